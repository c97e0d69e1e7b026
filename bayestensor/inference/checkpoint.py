"""Checkpoints that are whole or absent: any pytree of arrays, nothing pickled, nothing trusted unverified.

A checkpoint is a folder with three files: `arrays.npz`; `manifest.json` (the SHA-256 of arrays.npz, shape and
dtype of every array, the caller's meta); `manifest.sha256`, which vouches for the manifest (`sha256sum -c` reads it).
The folder is written under another name, flushed to the disk, then renamed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bayestensor.errors import CheckpointError
from bayestensor.files import sync_folder, writing

FORMAT_VERSION = 1
_PREFIX = "step-"
_PARTIAL = ".partial-"


def save(path: str | Path, tree: Any, meta: Mapping[str, Any], keep: int | None = None) -> None:
    """Write a checkpoint folder.

    Args:
        path: the folder to make; one that is there already is replaced.
        tree: a pytree of arrays, typed PRNG keys and Python numbers.
        meta: what JSON can hold: step, ranks, whatever rebuilds the tree.
        keep: how many checkpoints to leave of those up to this one; None for all.

    Raises:
        CheckpointError: an array with entries that are not finite (named), a leaf that is no array, names that clash.
        RunError: a full disk or a forbidden folder. What was there before is still there.
    """
    path = Path(path)
    stored, described = {}, {}
    for name, leaf in _named_leaves(tree).items():
        stored[_member(name)], described[name] = _encode(name, leaf)
    try:
        body = json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"meta cannot be written as JSON: {error}") from None
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **stored)
    content = buffer.getvalue()
    manifest = {
        "format_version": FORMAT_VERSION,
        "files": {"arrays.npz": _digest(content)},
        "arrays": described,
        "meta": json.loads(body),
    }
    text = json.dumps(manifest, indent=1).encode()
    files = {"arrays.npz": content, "manifest.json": text, "manifest.sha256": _voucher(text)}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_folder(path, files)
        if keep is not None:
            _drop_older(path, keep)


def load(path: str | Path, template: Any = None) -> tuple[Any, dict[str, Any]]:
    """Read a checkpoint whose every byte verifies.

    Args:
        path: a checkpoint folder.
        template: a pytree of the structure, shapes and dtypes saved; None for a flat dict name -> NumPy array.

    Returns:
        The tree (JAX arrays and Python numbers where the template has them) and the meta.

    Raises:
        CheckpointError: missing, damaged, or not of the template's structure, shapes or dtypes.
    """
    path = Path(path)
    contents = _read(path)
    manifest = json.loads(contents["manifest.json"])
    if manifest["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {manifest['format_version']}; this version reads {FORMAT_VERSION}"
        )
    with np.load(io.BytesIO(contents["arrays.npz"]), allow_pickle=False) as archive:
        flat = {name: _decode(archive[_member(name)], about) for name, about in manifest["arrays"].items()}
    return (flat if template is None else _fill(path, template, flat)), manifest["meta"]


def verify(path: str | Path) -> None:
    """Read and check every byte, building nothing.

    Raises:
        CheckpointError: missing or damaged.
    """
    _read(Path(path))


def latest(directory: str | Path) -> Path | None:
    """The newest checkpoint of a folder that verifies, with a warning for every newer one that does not.

    Returns:
        None where no checkpoint was ever finished.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    candidates = _newest_first(Path(directory))
    for path in candidates:
        try:
            verify(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
        else:
            return path
    if candidates:
        raise CheckpointError(f"{directory}: none of its {len(candidates)} checkpoints verifies; start the run again")
    return None


def step_path(directory: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies; names sort like steps."""
    return Path(directory) / f"{_PREFIX}{step:012d}"


# --- pytree <-> names -----------------------------------------------------------------------------------------


def _named_leaves(tree: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise CheckpointError(f"two arrays of this tree are both called {name!r}; rename one")
        named[name] = leaf
    return named


def _fill(path: Path, template: Any, flat: Mapping[str, Any]) -> Any:
    named = _named_leaves(template)
    missing, extra = sorted(named.keys() - flat.keys()), sorted(flat.keys() - named.keys())
    if missing or extra:
        raise CheckpointError(f"{path}: holds another tree: missing {missing[:5]}, unexpected {extra[:5]}")
    leaves = []
    for name, wanted in named.items():
        value = flat[name]
        for what in ("shape", "dtype"):
            if getattr(value, what, None) != getattr(wanted, what, None):
                had, asked = getattr(value, what, type(value)), getattr(wanted, what, type(wanted))
                raise CheckpointError(f"{path}: {name!r} has {what} {had}; expected {asked}")
        leaves.append(jax.numpy.asarray(value) if isinstance(wanted, jax.Array) and not _is_key(value) else value)
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _encode(name: str, leaf: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """A plain array, and what turns it back into the leaf."""
    about: dict[str, Any] = {}
    if _is_key(leaf):
        about["key"] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    elif isinstance(leaf, (bool, int, float)):
        about["python"] = type(leaf).__name__
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufcV" or array.dtype.names:
        raise CheckpointError(f"{name!r} is {type(leaf).__name__}, not an array of numbers; nothing was saved")
    if jax.numpy.issubdtype(array.dtype, np.inexact):
        wrong = array.size - int(np.isfinite(array).sum())
        if wrong:
            raise CheckpointError(f"{name!r} has {wrong} of {array.size} entries not finite; nothing was saved")
    about |= {"shape": list(array.shape), "dtype": array.dtype.name}
    if array.dtype.kind == "V":  # bfloat16 and its like, which the npy format does not know
        array = array.view(f"u{array.dtype.itemsize}")
    return array, about


def _decode(array: np.ndarray, about: Mapping[str, Any]) -> Any:
    array = array.view(jax.numpy.dtype(about["dtype"])).reshape(about["shape"])
    if "key" in about:
        return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=about["key"])
    return array.item() if "python" in about else array


def _member(name: str) -> str:
    return f"tree/{name}"  # a prefix, so that no name meets a keyword of np.savez


# --- files ------------------------------------------------------------------------------------------------------


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _voucher(manifest: bytes) -> bytes:
    return f"{_digest(manifest)}  manifest.json\n".encode()


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    temporary, aside = (path.with_name(f"{_PARTIAL}{path.name}-{os.getpid()}-{what}") for what in ("new", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, content in files.items():
            with (temporary / name).open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        sync_folder(temporary)
        if path.exists():  # an unverified or repeated step: it gives way at once
            os.rename(path, aside)
            os.rename(temporary, path)
            shutil.rmtree(aside)
        else:
            os.rename(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        raise


def _read(path: Path) -> dict[str, bytes]:
    """The three files, every byte vouched for."""
    contents = {}
    for name in ("manifest.sha256", "manifest.json", "arrays.npz"):
        try:
            contents[name] = (path / name).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(f"{path / name}: cannot be read: {reason}; not a whole checkpoint") from None
    if contents["manifest.sha256"] != _voucher(contents["manifest.json"]):
        raise CheckpointError(f"{path / 'manifest.json'}: damaged: does not match manifest.sha256")
    for name, digest in json.loads(contents["manifest.json"])["files"].items():
        if _digest(contents[name]) != digest:
            raise CheckpointError(f"{path / name}: damaged: does not match manifest.json")
    return contents


def _newest_first(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if path.name.startswith(_PREFIX)), reverse=True)


def _drop_older(path: Path, keep: int) -> None:
    """Remove all but `keep` of the checkpoints up to `path`, and what killed writers left behind."""
    up_to = [other for other in _newest_first(path.parent) if other.name <= path.name]
    for old in [*up_to[max(keep, 1) :], *path.parent.glob(_PARTIAL + "*")]:
        shutil.rmtree(old, ignore_errors=True)
