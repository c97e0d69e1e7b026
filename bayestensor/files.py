"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bayestensor.errors import RunError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into one line that names the path.

    Raises:
        RunError: for any OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror or error}; free space or choose another folder"
        ) from (None)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its final name, flush it to the disk, then rename it into place."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):  # some file systems and Windows cannot
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def vacant(path: Path) -> Path:
    """The path, if nothing is there or it is an empty folder.

    Raises:
        RunError: something is there that would be overwritten.
    """
    try:
        occupied = path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir())))
    except OSError as error:
        raise RunError(f"{path}: cannot be used: {error.strerror or error}; choose another folder") from None
    if occupied:
        raise RunError(f"{path}: already there and not an empty folder; nothing is overwritten, choose another name")
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
