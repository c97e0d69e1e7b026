"""Ranks under a budget of parameters, FLOPs or measured time: drop the cheapest slices until it holds.

Greedy: of all slices of all layers, drop the one with the least `||X restricted to b = r||^2 / ||X||^2` (relative to
its own layer) for what it saves, then measure norms and savings of that layer again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np

from bayestensor.ranks.select import Kept, Selection, Slices
from bayestensor.tensor.network import Factored, Network

Cost = Callable[[Network], int]


class Limit(NamedTuple):
    """`sum of cost(network) over the layers + extra <= most`."""

    name: str  # of the budget, for messages
    cost: Cost
    most: float
    extra: int = 0


class _Step(NamedTuple):
    """Some slices of one bond, and what dropping them would lose and save."""

    score: float
    layer: str
    bond: str
    indices: np.ndarray


def within_budget(
    layers: Mapping[str, Factored],
    extra_params: int = 0,
    *,
    max_params: int | None = None,
    max_flops: int | None = None,
    flops: Cost | None = None,
    extra_flops: int = 0,
    granularity: int = 1,
    keep: Mapping[str, Kept] | None = None,
) -> Selection:
    """The greedy selection that fits `max_params` and `max_flops`, whichever are given, and the granularity.

    Args:
        layers: name -> tensor.
        extra_params: parameters outside the networks, which count and stay.
        max_params: most parameters of the whole model.
        max_flops: most FLOPs of the whole model, counted by `flops`.
        flops: network -> FLOPs.
        extra_flops: FLOPs outside the networks.
        granularity: bonds fall to multiples of this (a bond that starts below stays as it is).
        keep: layer -> bond -> indices to start from, such as a rule's `Selection.keep`; all by default. A rank
            between multiples of `granularity` is first filled up with its largest dropped slices.

    Raises:
        ValueError: no budget and no granularity given, or a budget that even the smallest ranks exceed.
    """
    limits = []
    if max_params is not None:
        limits.append(Limit("max_params", lambda network: network.num_parameters, max_params, extra_params))
    if max_flops is not None:
        if flops is None:
            raise ValueError("max_flops needs flops, a function network -> FLOPs")
        limits.append(Limit("max_flops", cache(flops), max_flops, extra_flops))
    if not limits and granularity == 1:
        raise ValueError("no budget given: pass max_params, max_flops or a granularity above 1")
    search = _Search(layers, granularity, keep)
    for limit in limits:
        smallest = sum(limit.cost(network) for network in search.smallest().values()) + limit.extra
        if smallest > limit.most:
            raise ValueError(
                f"{limit.name} is {limit.most}, but with every rank at its least (granularity {granularity}) "
                f"{smallest} remain, {limit.extra} of them outside the tensor networks; allow at least {smallest}"
            )
    for _ in search.path(limits):
        pass
    return search.selection()


def within_latency(
    layers: Mapping[str, Factored],
    measure: Callable[[dict[str, Kept]], float],
    max_ms: float,
    *,
    granularity: int = 1,
    keep: Mapping[str, Kept] | None = None,
) -> Selection:
    """The largest selection on the greedy path of fewest parameters that runs in `max_ms`, found by bisection.

    Time is taken to fall along the path; where it does not, the answer still met the budget when it was measured.

    Args:
        layers: name -> tensor.
        measure: selection (layer -> bond -> indices) -> milliseconds of a model cut to it. Called about
            log2(number of slices) times.
        max_ms: the budget.
        granularity: see `within_budget`.
        keep: see `within_budget`.

    Raises:
        ValueError: even the smallest ranks are slower than `max_ms`.
    """
    search = _Search(layers, granularity, keep)
    parameters = Limit("parameters", lambda network: network.num_parameters, -1)
    path = [search.selection(), *search.path([parameters])]  # largest first
    slow, fast = -1, len(path) - 1
    measured = measure(path[fast].keep)
    if measured > max_ms:
        raise ValueError(
            f"max_ms is {max_ms}, but with every rank at its least (granularity {granularity}) the model still takes "
            f"{measured:.3g} ms; allow more, or a smaller batch"
        )
    while fast - slow > 1:
        middle = (slow + fast) // 2
        if measure(path[middle].keep) > max_ms:
            slow = middle
        else:
            fast = middle
    return path[fast]


class _Search:
    """The greedy descent from a starting selection."""

    def __init__(self, layers: Mapping[str, Factored], granularity: int, keep: Mapping[str, Kept] | None):
        if isinstance(granularity, bool) or not isinstance(granularity, int) or granularity < 1:
            raise ValueError(f"granularity is {granularity!r}; it is a whole number of at least 1")
        self.granularity = granularity
        self.slices = {layer: Slices(layer, tensor) for layer, tensor in layers.items()}
        for layer, bonds in (keep or {}).items():
            for bond, indices in bonds.items():
                self._start(self.slices[layer], bond, np.asarray(indices))

    def _start(self, slices: Slices, bond: str, indices: np.ndarray) -> None:
        """Drop what the starting selection drops, but for the largest slices that fill a multiple up."""
        dropped = np.setdiff1d(np.arange(len(slices.norms[bond])), indices)
        short = min(-len(indices) % self.granularity, len(dropped))
        by_norm = dropped[np.argsort(slices.norms[bond][dropped], kind="stable")]
        slices.drop(bond, by_norm[: len(dropped) - short])

    def path(self, limits: list[Limit]) -> Iterator[Selection]:
        """Drop step by step until every limit holds or every rank is at its least; yields after each step."""
        steps: dict[str, list[_Step]] = {}
        while over := [limit for limit in limits if self._spent(limit) > limit.most]:
            for layer in self.slices:
                if layer not in steps:
                    steps[layer] = self._steps(layer, over)
            possible = [step for found in steps.values() for step in found]
            if not possible:
                return
            best = min(possible, key=lambda step: step.score)  # the first of equals: layers, then bonds, in order
            self.slices[best.layer].drop(best.bond, best.indices)
            still = [limit for limit in limits if self._spent(limit) > limit.most]
            steps = {} if len(still) != len(over) else {k: v for k, v in steps.items() if k != best.layer}
            yield self.selection()

    def _steps(self, layer: str, over: list[Limit]) -> list[_Step]:
        """The next step of every bond of a layer, scored by loss over savings in the budgets not yet met."""
        slices, steps = self.slices[layer], []
        network = self._network(layer)
        for bond, rank in slices.ranks().items():
            lower = (rank - 1) // self.granularity * self.granularity
            if lower < 1:
                continue
            indices = slices.smallest(bond, rank - lower)
            smaller = network.resized({bond: lower})
            # relative to the budget, so that parameters and FLOPs can be added
            saved = sum((limit.cost(network) - limit.cost(smaller)) / max(abs(limit.most), 1) for limit in over)
            loss = float(np.sum(slices.norms[bond][indices] ** 2)) / (slices.total**2 or 1.0)
            # a step that saves nothing comes last, but comes: the next may save
            steps.append(_Step(loss / saved if saved > 0 else np.inf, layer, bond, indices))
        return steps

    def _network(self, layer: str) -> Network:
        slices = self.slices[layer]
        return slices.tensor.network.resized(slices.ranks())

    def _spent(self, limit: Limit) -> float:
        return sum(limit.cost(self._network(layer)) for layer in self.slices) + limit.extra

    def smallest(self) -> dict[str, Network]:
        """Layer -> network with every rank at its least."""
        return {
            layer: slices.tensor.network.resized(
                {bond: min(rank, self.granularity) for bond, rank in slices.ranks().items()}
            )
            for layer, slices in self.slices.items()
        }

    def selection(self) -> Selection:
        """What stays now."""
        keep = {layer: slices.kept() for layer, slices in self.slices.items()}
        return Selection(keep, {layer: slices.lost for layer, slices in self.slices.items()})
