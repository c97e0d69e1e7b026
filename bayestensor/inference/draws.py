"""Draws of a posterior: arrays with `chain` and `draw` in front, in memory, on disk and in ArviZ."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bayestensor.errors import DrawsError

if TYPE_CHECKING:
    import arviz

FORMAT = "bayestensor draws 1"


@dataclass(frozen=True)
class Draws:
    """Attributes:
    positions: the engine's pytree, each leaf [chain, draw, ...].
    stats: name -> [chain, draw], what the engine reported with each draw.
    """

    positions: Any
    stats: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Chains, draws a chain."""
        chains, draws = jax.tree.leaves(self.positions)[0].shape[:2]
        return chains, draws

    def flat(self) -> Any:
        """Positions with one leading axis [chain * draw, ...]."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.positions)

    def last(self) -> Any:
        """Each chain's last position, [chain, ...]."""
        return jax.tree.map(lambda x: x[:, -1], self.positions)

    def map(self, function: Callable[[Any], Any], batch_size: int = 32) -> Any:
        """`function(position)` of every draw, [chain, draw, ...]; `batch_size` draws at a time are on the device."""
        return in_batches(function, batch_size)(self)

    def to_inference_data(self, functionals: dict[str, Any] | None = None) -> arviz.InferenceData:
        """ArviZ groups: `posterior` (the functionals [chain, draw, ...], or the raw leaves) and `sample_stats`.

        `.to_netcdf(path)` of the result writes NetCDF. R-hat of raw cores means nothing: a network's factors have sign,
        scale and order to spare. Give functionals of what the network represents.
        """
        import arviz

        values = functionals if functionals is not None else _named(self.positions)
        return arviz.from_dict(posterior=values, sample_stats=self.stats or None)

    def save(self, path: str | Path, first: int = 0, of: int | None = None) -> None:
        """Writes an npz with a manifest of SHA-256 sums, atomically: an old file stays until the new one is whole.

        Args:
            path: the file; for one piece of a longer run, `piece_path(folder, first)`.
            first: how many draws a chain came before these.
            of: draws a chain in all pieces; these alone when None.

        Raises:
            ValueError: a draw is not finite.
        """
        arrays = {f"positions/{k}": v for k, v in _named(self.positions).items()}
        arrays |= {f"stats/{k}": np.asarray(v) for k, v in self.stats.items()}
        for name, value in arrays.items():
            if name.startswith("positions/") and not np.isfinite(value).all():
                raise ValueError(f"{name} holds numbers that are not finite; draws are not written. Drop those chains.")
        manifest: dict[str, Any] = {"format": FORMAT, "sha256": {k: _digest(v) for k, v in arrays.items()}}
        manifest |= {"first": first, "of": first + self.shape[1] if of is None else of}
        path = Path(path)
        part = path.with_name(path.name + ".part")
        with open(part, "wb") as file:
            np.savez(file, manifest=np.array(json.dumps(manifest)), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    @staticmethod
    def load(path: str | Path, like: Any = None) -> Draws:
        """Reads what `save` wrote and checks every sum.

        Args:
            path: the file, or a folder of pieces (`piece_path`), or a run folder: `pruned/` if whole, else `draws/`.
            like: a position (any leaf shapes) whose tree structure the draws take; None: nested dicts by name.

        Raises:
            DrawsError: the file is damaged, not ours, or does not fit `like`; a piece is missing in the middle.
        """
        path = Path(path)
        if path.is_dir():
            return Draws.concatenate(list(Pieces(path, like)))
        return _as_draws(_read(path)[0], like)

    @staticmethod
    def concatenate(pieces: Sequence[Draws]) -> Draws:
        """Pieces of one run, one after the other."""
        if not pieces:
            raise ValueError("no pieces to concatenate; give at least one")
        join = lambda *x: np.concatenate(x, axis=1)  # noqa: E731
        positions = jax.tree.map(join, *(piece.positions for piece in pieces))
        return Draws(positions, jax.tree.map(join, *(piece.stats for piece in pieces)))


def in_batches(function: Callable[..., Any], batch_size: int = 32) -> Callable[..., Any]:
    """(draws, *more) -> `function(position, *more)` of every draw, [chain, draw, ...], `more` in the draws' own axes.

    Compiled once, whatever the number of draws; the device holds `batch_size` of them.
    """
    program = jax.jit(jax.vmap(function))

    def mapped(draws: Draws, *more: Any) -> Any:
        flat = (draws.flat(), *(Draws(one).flat() for one in more))
        count = math.prod(draws.shape)
        values = []
        for first in range(0, count, batch_size):
            # the last batch is filled up with its last draw, so that one program serves all
            which = np.minimum(np.arange(first, first + min(batch_size, count)), count - 1)
            out = program(*jax.tree.map(lambda x: x[which], flat))  # noqa: B023
            values.append(jax.tree.map(lambda x: np.asarray(x)[: count - first], out))  # noqa: B023
        return jax.tree.map(lambda *x: np.concatenate(x).reshape(*draws.shape, *x[0].shape[1:]), *values)

    return mapped


@dataclass(frozen=True)
class Pieces:
    """A run's draws on disk, read and verified one piece at a time, as often as it is iterated over.

    Attributes:
        folder: of pieces (`piece_path`), or a run folder: `pruned/` if whole, else `draws/`.
        like: as for `Draws.load`.

    Raises:
        DrawsError: while iterating; a piece is damaged, not ours, does not fit `like`, or is missing in the middle.
        FileNotFoundError: no piece is there.
    """

    folder: Path
    like: Any = None

    def __iter__(self) -> Iterator[Draws]:
        folder, done, of = self.folder, 0, 0
        if not any(folder.glob("draws-*.npz")):
            folder = folder / "pruned" if whole(folder / "pruned") else folder / "draws"
        for path in sorted(folder.glob("draws-*.npz")):
            arrays, manifest = _read(path)
            if manifest["first"] != done:
                raise DrawsError(
                    f"{path} starts with draw {manifest['first']}; draw {done} is missing: take another copy"
                )
            piece = _as_draws(arrays, self.like)
            done, of = done + piece.shape[1], manifest["of"]
            yield piece
        if not done:
            raise FileNotFoundError(f"{folder}: no draws here; a sampled run writes draws/draws-*.npz")
        if done < of:
            warnings.warn(
                f"{folder} holds {done} of {of} draws a chain: its run has not finished, or files are missing",
                stacklevel=3,
            )


def piece_path(folder: str | Path, first: int) -> Path:
    """Where the piece of a run that starts with draw `first` of every chain lies; names sort like draws."""
    return Path(folder) / f"draws-{first:09d}.npz"


def whole(folder: str | Path) -> bool:
    """Whether a folder holds every piece of its run; damage is not looked for."""
    paths = sorted(Path(folder).glob("draws-*.npz"))
    if not paths:
        return False
    with np.load(paths[-1], allow_pickle=False) as file:
        manifest = json.loads(str(file["manifest"]))
        digest = next(name for name in file.files if name != "manifest")
        return bool(manifest["first"] + file[digest].shape[1] == manifest["of"])


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of one file, every sum checked, and its manifest."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        manifest = json.loads(str(arrays.pop("manifest")))
        if manifest["format"] != FORMAT or manifest["sha256"] != {k: _digest(v) for k, v in arrays.items()}:
            raise ValueError("a checksum does not fit")
    except FileNotFoundError:
        raise
    except Exception as error:  # damage shows in many ways: zip, header, JSON, checksum
        raise DrawsError(f"{path} is damaged or holds no draws ({error}); take another copy") from error
    return arrays, manifest


def _as_draws(arrays: dict[str, np.ndarray], like: Any) -> Draws:
    positions = {k.removeprefix("positions/"): v for k, v in arrays.items() if k.startswith("positions/")}
    stats = {k.removeprefix("stats/"): v for k, v in arrays.items() if k.startswith("stats/")}
    return Draws(_nested(positions) if like is None else _as_tree(positions, like), stats)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path) or "value": np.asarray(x) for path, x in leaves}


def _nested(named: dict[str, np.ndarray]) -> Any:
    if list(named) == ["value"]:
        return named["value"]
    tree: dict[str, Any] = {}
    for name, value in named.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _as_tree(named: dict[str, np.ndarray], like: Any) -> Any:
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [_name(path) or "value" for path, _ in paths]
    if set(names) != set(named):
        raise DrawsError(f"the file holds {sorted(named)}, the position asked for {sorted(names)}")
    return jax.tree.unflatten(structure, [named[name] for name in names])


def _digest(value: np.ndarray) -> str:
    value = np.ascontiguousarray(value)
    return hashlib.sha256(f"{value.dtype.str}{value.shape}".encode() + value.tobytes()).hexdigest()
