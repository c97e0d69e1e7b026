"""Finding, verifying and fetching data files: nothing is used whose checksum is not the published one."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bayestensor.data.base import DataError

ENVIRONMENT = "BAYESTENSOR_DATA"
_GZIP = 31  # zlib's window bits for a gzip header and trailer


@dataclass(frozen=True)
class IdxFile:
    """One idx file of bytes: its array's shape, and the sha256 of the .gz as published and of what is inside."""

    name: str  # without .gz
    shape: tuple[int, ...]
    sha256_gz: str
    sha256: str

    @property
    def header(self) -> bytes:
        """Two zero bytes, the type (8 for unsigned bytes), the number of axes, each size in 4 bytes, big end first."""
        return bytes([0, 0, 8, len(self.shape)]) + np.array(self.shape, ">u4").tobytes()

    @property
    def length(self) -> int:
        """Bytes of the plain file."""
        return len(self.header) + int(np.prod(self.shape))


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder given, else the one named by BAYESTENSOR_DATA, else the user's cache."""
    given = data_dir or os.environ.get(ENVIRONMENT)
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("bayestensor")) / "data"


def read_files(
    set_name: str, files: Mapping[str, IdxFile], mirror: str, data_dir: str | Path | None
) -> dict[str, np.ndarray]:
    """Role -> array, for every file of a set; what is missing is downloaded first.

    Looks for `<dir>/<set>/<file>.gz`, `<dir>/<set>/<file>`, `<dir>/<file>.gz`, `<dir>/<file>`, in that order.

    Raises:
        DataError: a file is damaged, or missing and not to be had.
    """
    from concurrent.futures import ThreadPoolExecutor

    folder = data_folder(data_dir)
    paths: dict[str, Path] = {}
    missing = {}
    for role, file in files.items():
        path = _find(folder, set_name, file.name)
        if path is None:
            missing[role] = file
        else:
            paths[role] = path
    paths |= _download(set_name, missing, mirror, folder)
    with ThreadPoolExecutor() as pool:  # zlib and hashlib let go of the interpreter lock
        arrays = pool.map(lambda role: read_idx(paths[role], files[role], set_name, mirror), files)
        return dict(zip(files, arrays, strict=True))


def read_idx(path: Path, file: IdxFile, set_name: str, mirror: str) -> np.ndarray:
    """The array of one idx file, plain or .gz, read-only; its bytes must hash to the published sum.

    A .gz that was packed by someone else is let through if what it holds has the right sum.

    Raises:
        DataError: the file cannot be read, or is not the published one.
    """
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise DataError(f"{set_name}: {path} cannot be read ({error.strerror})") from error
    packed = path.suffix == ".gz"
    if hashlib.sha256(stored).hexdigest() == (file.sha256_gz if packed else file.sha256):
        plain = zlib.decompress(stored, _GZIP, file.length) if packed else stored
    else:
        plain, fault = _unpacked(stored, file) if packed else (stored, "")
        if fault or hashlib.sha256(plain).hexdigest() != file.sha256:
            expected = f"sha256 {file.sha256_gz[:12]}... as .gz or {file.sha256[:12]}... unpacked"
            raise DataError(
                f"{set_name}: {path} is damaged: {fault or _fault(plain, file)}; expected {file.name} with {expected}; "
                f"delete it to have it downloaded again, or take it from {mirror}{file.name}.gz"
            )
    return np.frombuffer(plain, np.uint8, offset=len(file.header)).reshape(file.shape)


def _unpacked(stored: bytes, file: IdxFile) -> tuple[bytes, str]:
    """(what an unknown gzip stream holds, what is wrong with it); never more than a byte beyond the length expected."""
    stream = zlib.decompressobj(_GZIP)
    try:
        plain = stream.decompress(stored, file.length + 1)
    except zlib.error as error:
        return b"", f"not a sound gzip file ({error})"
    if len(plain) <= file.length and not stream.eof:
        return plain, f"the gzip stream is cut off after {len(stored)} bytes"
    return plain, ""


def _fault(plain: bytes, file: IdxFile) -> str:
    """In words, how the plain bytes differ from the file expected."""
    if plain[:4] != file.header[:4]:
        return f"magic number {plain[:4].hex() or 'missing'} where {file.header[:4].hex()} (idx) belongs"
    sizes = tuple(int.from_bytes(plain[k : k + 4], "big") for k in range(4, len(file.header), 4))
    if sizes != file.shape:
        return f"its header says {sizes} where {file.shape} belongs"
    if len(plain) != file.length:
        more = " or more" if len(plain) > file.length else ""
        return f"{len(plain)}{more} bytes where {file.length} belong"
    return "right in length and header, wrong in content"


def _own(folder: Path, set_name: str) -> Path:
    return folder / set_name.replace("_", "-")


def _find(folder: Path, set_name: str, file_name: str) -> Path | None:
    places = (place / (file_name + end) for place in (_own(folder, set_name), folder) for end in (".gz", ""))
    return next((path for path in places if path.is_file()), None)


def _download(set_name: str, files: Mapping[str, IdxFile], mirror: str, folder: Path) -> dict[str, Path]:
    into = _own(folder, set_name)
    try:
        return {role: retrieve(mirror + file.name + ".gz", file.sha256_gz, into) for role, file in files.items()}
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; pooch's wrong checksum is a ValueError
        names = ", ".join(file.name + ".gz" for file in files.values())
        reason = " ".join(str(error).split())
        raise DataError(
            f"{set_name}: missing and not to be downloaded here ({type(error).__name__}: {reason[:160]}); "
            f"put {names} from {mirror} into {into}, or name another folder by {ENVIRONMENT} or --data-dir"
        ) from error


def retrieve(url: str, sha256: str, into: Path) -> Path:
    """Download one file (to a temporary name, moved when its checksum is right)."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    name = url.rsplit("/", 1)[1]
    downloader = pooch.HTTPDownloader(timeout=20)
    return Path(pooch.retrieve(url, f"sha256:{sha256}", fname=name, path=into, downloader=downloader))
