"""The posterior over ranks, read off draws of any engine. (`ranks.mass` cuts draws by it.)

Indices of a bond have no identity across draws, chains or particles, so slices are ordered by norm within each draw
before anything is counted, averaged or cut: "the k-th slice" below is a draw's k-th largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.inference.draws import Draws
from bayestensor.ranks.select import RANK_THRESHOLD
from bayestensor.tensor.contract import norm, slice_norms
from bayestensor.tensor.network import Factored
from bayestensor.typing import Array, Position

__all__ = [
    "BondRanks",
    "RankPosterior",
    "Tensorized",
    "as_draws",
    "rank_posterior",
    "relative_norms",
    "unstack",
]


class Tensorized(Protocol):
    """What is asked of a model: `NeuralModel` and `CompletionModel` are such."""

    def tensors(self, position: Position) -> Mapping[str, Factored]:
        """Layer -> its tensor at a position."""
        ...

    def cuts(self, position: Position, keep: Mapping[str, Mapping[str, Any]]) -> Any:
        """A tree like the position, of functions array -> array that keep the given indices of each layer's bonds."""
        ...


def as_draws(position: Position, stacked: bool = False) -> Draws:
    """A MAP position as one chain of one draw; or, `stacked`, members or particles [n, ...] as n chains of one draw."""
    axes = (1,) if stacked else (0, 1)
    return Draws(jax.tree.map(lambda x: np.expand_dims(np.asarray(x), axes), position))


def unstack(draws: Draws) -> Draws:
    """Draws of an engine that moves a stack of particles or members: each of the n becomes a chain of its own.

    Leaves [run, draw, n, ...] become [run * n, draw, ...]; the engine's `stats`, one number a stack, are repeated.
    """
    n = jax.tree.leaves(draws.positions)[0].shape[2]

    def apart(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])

    return Draws(jax.tree.map(apart, draws.positions), {k: np.repeat(v, n, axis=0) for k, v in draws.stats.items()})


@dataclass(frozen=True)
class BondRanks:
    """What the draws say about one bond.

    Attributes:
        norms: [chain, draw, R], `||X restricted to r|| / ||X||` in descending order within each draw.
        threshold: a slice is alive where its share is larger.
    """

    norms: np.ndarray
    threshold: float = RANK_THRESHOLD

    @property
    def size(self) -> int:
        """R, the largest rank there can be."""
        return self.norms.shape[2]

    @cached_property
    def ranks(self) -> np.ndarray:
        """[chain, draw], the number of slices alive."""
        return (self.norms > self.threshold).sum(axis=2)

    @property
    def probabilities(self) -> np.ndarray:
        """P(rank = r) for r = 0 ... R."""
        return self._shares(self.ranks)

    @property
    def alive(self) -> np.ndarray:
        """P(the k-th largest slice is alive) = P(rank >= k) for k = 1 ... R."""
        return (self.norms > self.threshold).mean(axis=(0, 1))

    @property
    def mean(self) -> float:
        """Posterior mean of the rank."""
        return float(self.ranks.mean())

    @property
    def mode(self) -> int:
        """The most probable rank, the smaller of equals."""
        return int(self.probabilities.argmax())

    def interval(self, level: float = 0.9) -> tuple[int, int]:
        """The shortest run of ranks that holds at least `level` of the mass, the lower of equals."""
        if not 0 < level <= 1:
            raise ValueError(f"level is {level}; a probability above 0 and at most 1 is needed")
        below = np.concatenate([[0.0], np.cumsum(self.probabilities)])  # P(rank < r)
        runs = [
            (last - first, first, last)
            for first in range(self.size + 1)
            for last in range(first, self.size + 1)
            if below[last + 1] - below[first] >= level - 1e-9
        ]
        _, first, last = min(runs)
        return first, last

    @property
    def disagreement(self) -> float:
        """Largest total variation between one chain's P(rank) and that of the others together; nan for one chain.

        It is 0.1 where a chain puts a tenth of its mass elsewhere. Chains of n independent draws over K ranks that
        agree are still about sqrt(K / n) apart.
        """
        if len(self.ranks) < 2:
            return float("nan")
        own = np.stack([self._shares(chain) for chain in self.ranks])
        others = (own.sum(axis=0) - own) / (len(own) - 1)
        return float(0.5 * np.abs(own - others).sum(axis=1).max())

    def _shares(self, ranks: np.ndarray) -> np.ndarray:
        return np.bincount(ranks.ravel(), minlength=self.size + 1) / ranks.size


@dataclass(frozen=True)
class RankPosterior:
    """P(rank) of every bond and of bonds jointly, from draws: `posterior[layer][bond]` is a `BondRanks`."""

    layers: Mapping[str, Mapping[str, BondRanks]]

    def __getitem__(self, layer: str) -> Mapping[str, BondRanks]:
        if layer not in self.layers:
            raise KeyError(f"no layer {layer!r}; the model's are {sorted(self.layers)}")
        return self.layers[layer]

    @property
    def bonds(self) -> dict[tuple[str, str], BondRanks]:
        """(layer, bond) -> its posterior."""
        return {(layer, bond): ranks for layer, bonds in self.layers.items() for bond, ranks in bonds.items()}

    def joint(self, *bonds: tuple[str, str]) -> np.ndarray:
        """P(ranks of the named (layer, bond) pairs), one axis a bond, each over r = 0 ... R.

        Raises:
            ValueError: no bond named, or one that is not there.
        """
        unknown = [bond for bond in bonds if bond not in self.bonds]
        if unknown or not bonds:
            raise ValueError(f"bonds {unknown or 'none'} asked for; name some of {list(self.bonds)}")
        chosen = [self.bonds[bond] for bond in bonds]
        counts = np.zeros([bond.size + 1 for bond in chosen])
        np.add.at(counts, tuple(bond.ranks.ravel() for bond in chosen), 1.0)
        return counts / counts.sum()

    def agree(self, limit: float = 0.1) -> bool | None:
        """Whether no bond's chains disagree by more than `limit`; None where there is but one chain to ask."""
        worst = [bond.disagreement for bond in self.bonds.values()]
        return None if np.isnan(worst).any() else max(worst, default=0.0) <= limit

    def to_dict(self, level: float = 0.9) -> dict[str, dict[str, dict[str, Any]]]:
        """Layer -> bond -> figures, for JSON; the disagreement of a single chain is null."""

        def figures(bond: BondRanks) -> dict[str, Any]:
            return {
                "size": bond.size,
                "threshold": bond.threshold,
                "mean": bond.mean,
                "mode": bond.mode,
                "interval": list(bond.interval(level)),
                "interval_level": level,
                "probabilities": bond.probabilities.tolist(),
                "alive": bond.alive.tolist(),
                "disagreement": None if np.isnan(bond.disagreement) else bond.disagreement,
            }

        return {layer: {name: figures(bond) for name, bond in bonds.items()} for layer, bonds in self.layers.items()}

    def summary(self, level: float = 0.9) -> str:
        """A table: size, mean, mode, interval and the chains' disagreement of every bond."""
        head = ("layer", "bond", "size", "mean", "mode", f"{level:.0%} interval", "P(mode)", "chains differ by")
        rows = [head]
        for (layer, name), bond in self.bonds.items():
            first, last = bond.interval(level)
            apart = "one chain" if np.isnan(bond.disagreement) else f"{bond.disagreement:.2f}"
            mass = f"{bond.probabilities.max():.2f}"
            row = (layer, name, str(bond.size), f"{bond.mean:.2f}", str(bond.mode), f"{first} to {last}", mass, apart)
            rows.append(row)
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )

    def __str__(self) -> str:
        return self.summary()


def rank_posterior(model: Tensorized, draws: Draws, threshold: float = RANK_THRESHOLD) -> RankPosterior:
    """The posterior over ranks: rank = number of r with `||X restricted to r|| > threshold ||X||`, in every draw.

    Args:
        model: whose positions the draws are; for coordinates of your own, map the draws back first.
        draws: [chain, draw, ...] from any engine; see `as_draws` and `unstack`.
        threshold: share of ||X|| that a living slice exceeds.
    """
    norms = relative_norms(model, draws, threshold)
    return RankPosterior(
        {layer: {bond: BondRanks(x, threshold) for bond, x in bonds.items()} for layer, bonds in norms.items()}
    )


def relative_norms(
    model: Tensorized, draws: Draws, threshold: float = RANK_THRESHOLD
) -> dict[str, dict[str, np.ndarray]]:
    """Layer -> bond -> [chain, draw, R], slice norms as shares of ||X||, descending within each draw.

    Raises:
        ValueError: a threshold outside [0, 1), or a draw whose norm is not finite.
    """
    check_share("threshold", threshold)
    values = draws.map(lambda position: shares(model.tensors(position)))
    refuse_not_finite(values)
    return jax.tree.map(lambda x: -np.sort(-x, axis=-1), values)


def shares(tensors: Mapping[str, Factored], totals: Mapping[str, Array] | None = None) -> Any:
    """Layer -> bond -> `||X restricted to r|| / total`, traced; total is ||X|| by default, and 0 gives 0."""
    out = {}
    for layer, tensor in tensors.items():
        total = norm(tensor) if totals is None else totals[layer]
        total = jnp.where(total == 0, 1, total)
        out[layer] = {bond: slice_norms(tensor, bond) / total for bond in tensor.network.bonds}
    return out


def refuse_not_finite(norms: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raises ValueError, naming the bond, where a draw's slice norms are not finite."""
    for layer, bonds in norms.items():
        for bond, values in bonds.items():
            bad = int((~np.isfinite(values)).any(axis=-1).sum())
            if bad:
                raise ValueError(f"bond {bond!r} of layer {layer!r}: {bad} draws are not finite; drop their chains")


def check_share(name: str, value: float) -> None:
    """Raises ValueError unless `0 <= value < 1`."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; it is at least 0 and below 1")
