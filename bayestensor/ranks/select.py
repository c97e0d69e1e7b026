"""Which indices of each bond survive: pure functions from tensors to kept indices; nothing is cut here.

A rule looks at one bond at a time: the norms of its slices, ||X||, and its scales. Bonds are taken in the network's
order and each is judged on X with the earlier cuts made, never all on the same X: slices of two bonds may cancel in
X (`t21 + t22 = 0` and `t12 + t22 = 0` make both second slices look dead although `t22` is large), and only this way
does the error telescope: `||X - X_cut|| <= sum of the norms of all dropped slices`, which `Selection.lost` bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import opt_einsum

from bayestensor.tensor.network import Factored, Network
from bayestensor.tensor.plan import contraction_path
from bayestensor.typing import Array

Kept: TypeAlias = dict[str, np.ndarray]  # bond -> indices that stay, ascending
Scales: TypeAlias = Mapping[str, Array]  # bond -> v, the squared scales

RANK_THRESHOLD = 1e-3  # a slice counts towards the rank when its norm exceeds this share of ||X||


class Bond(NamedTuple):
    """What a rule may look at."""

    norms: np.ndarray  # norm lost if index r goes, one an index
    total: float  # ||X||, before any cut
    scales: np.ndarray | None  # v of this bond, where the caller gave it


Rule: TypeAlias = Callable[[Bond], np.ndarray]  # True where the index stays


class Collapse(NamedTuple):
    """A bond of which a rule would have kept nothing; its largest slice stays."""

    layer: str
    bond: str

    def __str__(self) -> str:
        return f"bond {self.bond!r} of layer {self.layer!r}"


class Selection(NamedTuple):
    """What stays of every layer.

    Attributes:
        keep: layer -> bond -> indices that stay, ascending; every bond is named.
        lost: layer -> sum of the norms of the dropped slices / ||X||, a bound on the relative change of X.
        collapsed: bonds of which the rule would have kept nothing.
    """

    keep: dict[str, Kept]
    lost: dict[str, float]
    collapsed: tuple[Collapse, ...] = ()


def host_slice_norms(network: Network, cores: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], float]:
    """(bond -> ||X restricted to b = r||, ||X||) in NumPy, float64.

    The same numbers as `tensor.contract.slice_norms` and `norm`, which are for traced code: shapes change with every
    cut, and compiling a contraction for each costs seconds where this costs a millisecond.
    """
    arrays = [(np.asarray(cores[core.name], np.float64), core.legs) for core in network.cores]
    squares = {bond: _inner(arrays, (*network.modes, bond), (bond,)) for bond in network.bonds}
    norms = {bond: np.sqrt(np.maximum(square, 0)) for bond, square in squares.items()}
    return norms, float(np.sqrt(np.maximum(_inner(arrays, network.modes, ()), 0)))


def host_spectra(network: Network, cores: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Bond -> singular values of X across it, largest first, for each bond that cuts the network in two.

    With `X = sum_r L_r (x) R_r`, `G_L[r, s] = <L_r, L_s>` and G_R alike, they are the roots of the eigenvalues of
    `G_L G_R`: the norms of the slices in the gauge in which those are orthogonal. CP and rings have no such bond.
    """
    out = {}
    for bond in network.bonds:
        sides = _sides(network, bond)
        if len(sides) == 2:
            grams = []
            for side in sides:
                arrays = [(np.asarray(cores[name], np.float64), network.core[name].legs) for name in side]
                modes = tuple(leg for _, legs in arrays for leg in legs if leg in network.modes)
                grams.append(_inner(arrays, modes, (bond, bond + "'")))
            values, vectors = np.linalg.eigh(grams[0])
            root = vectors * np.sqrt(np.maximum(values, 0))
            out[bond] = np.sqrt(np.maximum(np.linalg.eigvalsh(root.T @ grams[1] @ root)[::-1], 0))
    return out


def _sides(network: Network, bond: str) -> list[list[str]]:
    """Names of the cores that hang together without a bond."""
    sides: list[tuple[set[str], list[str]]] = []
    for core in network.cores:
        legs, names = set(core.legs) - {bond}, [core.name]
        for other in [side for side in sides if side[0] & legs]:
            sides.remove(other)
            legs, names = legs | other[0], other[1] + names
        sides.append((legs, names))
    return [names for _, names in sides]


def _inner(arrays: list[tuple[np.ndarray, tuple[str, ...]]], shared: tuple[str, ...], output: tuple[str, ...]):
    """The network contracted with a second copy of itself, joined to it at the legs in `shared`."""
    terms = arrays + [(a, tuple(leg if leg in shared else leg + "'" for leg in legs)) for a, legs in arrays]
    legs = tuple(legs for _, legs in terms)
    path = contraction_path(legs, tuple(a.shape for a, _ in terms), output)
    operands = [part for a, term in terms for part in (a, term)]
    return opt_einsum.contract(*operands, output, optimize=list(path))


def rank_of(tensor: Factored, threshold: float = RANK_THRESHOLD) -> dict[str, int]:
    """Bond -> number of r with `||X restricted to b = r|| > threshold * ||X||`, a rule that no gauge can change."""
    norms, total = host_slice_norms(tensor.network, tensor.cores)
    return {bond: int(np.sum(norm > threshold * total)) for bond, norm in norms.items()}


def norm_lost(threshold: float = RANK_THRESHOLD, floor: float = 0.0) -> Rule:
    """Keep r where `||X restricted to b = r|| > max(threshold * ||X||, floor)`.

    Some slice has at least the share 1 / rank of ||X||, so that a layer which shrank as a whole shows only against
    `floor`, a norm in the units of X.
    """
    _refuse_outside("threshold", threshold, 0, 1)
    return lambda bond: bond.norms > max(threshold * bond.total, floor)


def energy_share(share: float = 1e-4) -> Rule:
    """Drop the smallest slices of a bond while their squared norms sum to at most `share * ||X||^2`."""
    _refuse_outside("share", share, 0, 1)

    def rule(bond: Bond) -> np.ndarray:
        order = np.lexsort((-np.arange(len(bond.norms)), bond.norms))  # of equal norms the later goes first
        stays = np.empty(bond.norms.shape, bool)
        stays[order] = np.cumsum(bond.norms[order] ** 2) > share * bond.total**2
        return stays

    return rule


def raw_scale(threshold: float = 1e-2, relative: bool = True) -> Rule:
    """Keep r where `v_r > threshold * max(v)` (`v_r > threshold` if not relative), as the papers prune.

    Depends on the gauge: use it to reproduce, `norm_lost` for all else.
    """
    _refuse_outside("threshold", threshold, 0, 1 if relative else float("inf"))

    def rule(bond: Bond) -> np.ndarray:
        if bond.scales is None:
            raise ValueError("the raw-scale rule needs the scales of every bond; pass them to select(scales=...)")
        return bond.scales > threshold * (bond.scales.max() if relative else 1)

    return rule


def select(
    layers: Mapping[str, Factored],
    rule: Rule,
    *,
    scales: Mapping[str, Scales] | None = None,
    on_collapse: Literal["keep", "refuse"] = "keep",
) -> Selection:
    """Apply a rule to every bond of every layer.

    Args:
        layers: name -> tensor.
        rule: what stays of a bond: `norm_lost(...)`, `energy_share(...)`, `raw_scale(...)` or your own.
        scales: layer -> bond -> v, for rules that look at scales.
        on_collapse: where nothing of a bond would stay, 'keep' its largest slice and report it, or 'refuse'.

    Raises:
        ValueError: a tensor that is not finite, a bond that collapses while `on_collapse` is 'refuse'.
    """
    if on_collapse not in ("keep", "refuse"):
        raise ValueError(f"on_collapse is {on_collapse!r}; it is 'keep' or 'refuse'")
    keep, lost, collapsed = {}, {}, []
    for layer, tensor in layers.items():
        slices = Slices(layer, tensor)
        for bond in tensor.network.bonds:
            v = None if scales is None else np.asarray(scales[layer][bond])
            stays = np.asarray(rule(Bond(slices.norms[bond], slices.total, v)))
            if not stays.any():
                collapsed.append(Collapse(layer, bond))
                stays = np.arange(len(stays)) == np.argmax(slices.norms[bond])
            slices.drop(bond, np.flatnonzero(~stays))
        keep[layer], lost[layer] = slices.kept(), slices.lost
    if collapsed and on_collapse == "refuse":
        raise ValueError(
            f"nothing would stay of {', '.join(map(str, collapsed))}; lower the threshold, weaken the prior, "
            "or let the largest slice stay with on_collapse: keep"
        )
    return Selection(keep, lost, tuple(collapsed))


class Slices:
    """The slice norms of one tensor while slices of it are dropped.

    Dropping zeroes: indices keep their meaning, and the order of contraction is searched for once.

    Raises:
        ValueError: the norm of the tensor is not finite.
    """

    def __init__(self, layer: str, tensor: Factored):
        self.tensor = tensor
        self._arrays = {name: np.asarray(array) for name, array in tensor.cores.items()}
        self.alive = {bond: np.ones(size, bool) for bond, size in tensor.network.ranks.items()}
        self.lost = 0.0
        self.total = self._measure()  # ||X||, before any cut
        if not np.isfinite(self.total):
            raise ValueError(f"the norm of layer {layer!r} is {self.total}; ranks need finite cores")

    def _measure(self) -> float:
        self.norms, total = host_slice_norms(self.tensor.network, self._masked())
        return total

    def _masked(self) -> dict[str, np.ndarray]:
        network, cores = self.tensor.network, dict(self._arrays)
        for core in network.cores:
            for axis, leg in enumerate(core.legs):
                if leg in self.alive and not self.alive[leg].all():
                    mask = np.expand_dims(self.alive[leg], [k for k in range(len(core.legs)) if k != axis])
                    cores[core.name] = np.where(mask, cores[core.name], 0)
        return cores

    def drop(self, bond: str, indices: np.ndarray) -> None:
        """Zero some indices of a bond, count their norms as lost, and measure the others again."""
        if len(indices):
            self.lost += float(self.norms[bond][indices].sum()) / (self.total or 1.0)
            self.alive[bond][indices] = False
            self._measure()

    def smallest(self, bond: str, count: int) -> np.ndarray:
        """The `count` living indices of least norm; of equal ones the later."""
        living = np.flatnonzero(self.alive[bond])[::-1]
        return living[np.argsort(self.norms[bond][living], kind="stable")[:count]]

    def kept(self) -> Kept:
        """Bond -> living indices, ascending."""
        return {bond: np.flatnonzero(mask) for bond, mask in self.alive.items()}

    def ranks(self) -> dict[str, int]:
        """Bond -> number of living indices."""
        return {bond: int(mask.sum()) for bond, mask in self.alive.items()}


def _refuse_outside(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ValueError(f"{name} is {value}; it is at least {low} and below {high}")
