"""In which order to contract, in what pieces of the batch, and when to form the dense matrix: by counted cost.

Every contraction of a network with x is a chain: x meets groups of cores one after the other, each group contracted
beforehand into one factor that does not depend on the batch. One group with every core in it is the dense matrix; one
core a group is the textbook order. A `Plan` is such a chain, and how the batch runs through it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from bayestensor.tensor.cost import Cost, chain_cost, chain_flops
from bayestensor.tensor.lower import BATCH, Groups, lower
from bayestensor.tensor.network import Core, Network
from bayestensor.tensor.paths import contraction_path

Key = tuple[Network, int, bool, int]  # network, batch, backward, itemsize

EXHAUSTIVE = 5  # cores up to which every chain is counted; larger networks follow opt_einsum's pairwise order
FINALISTS = 8  # chains, of those with fewest operations, that are counted with their memory traffic and tiles


@dataclass(frozen=True)
class Plan:
    """How to multiply by a network. Hashable, hence static under `jax.jit`; right for any batch, fast for its own.

    Args:
        groups: core names; x is contracted with the product of each group in turn.
        batch_last: run with the batch as the last axis, between two transposes, rather than as the first.
        tile: rows of x at a time, one tile after the other, or None for all at once.
        rematerialise: compute the intermediates of a tile again for the gradient rather than keep them.
        flops: additions and multiplications of one forward product.
        seconds: counted cost, of the gradient too if the plan was made for it.
    """

    groups: tuple[tuple[str, ...], ...]
    batch_last: bool = False
    tile: int | None = None
    rematerialise: bool = False
    flops: int = 0
    seconds: float = 0.0

    @property
    def densify(self) -> bool:
        """Whether the dense matrix is formed."""
        return len(self.groups) == 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"groups": [list(group) for group in self.groups]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Plan:
        """Inverse of `to_dict`."""
        return cls(**(dict(record) | {"groups": tuple(tuple(group) for group in record["groups"])}))


_chosen: dict[Key, Plan] = {}  # what this process uses: counted on first use, timed, or read back from a run folder


def plan_matvec(network: Network, batch: int, *, backward: bool = True, itemsize: int = 4) -> Plan:
    """The plan in use for this network and batch: timed or restored if there is one, else the one counted cheapest."""
    key = (network, batch, backward, itemsize)
    if key not in _chosen:
        _chosen[key] = candidates(*key)[0]
    return _chosen[key]


def use_plan(plan: Plan, network: Network, batch: int, *, backward: bool = True, itemsize: int = 4) -> None:
    """Let `plan_matvec` answer with this plan from now on.

    Raises:
        ValueError: the plan's groups are not the network's cores, each once.
    """
    check_plan(plan, network)
    _chosen[network, batch, backward, itemsize] = plan


def check_plan(plan: Plan, network: Network) -> None:
    """Raises ValueError where the plan is for another network, or its tile is no whole number of at least 1."""
    named = sorted(name for group in plan.groups for name in group)
    if named != sorted(network.core) or not all(plan.groups):
        raise ValueError(f"the plan contracts the cores {named}; the network has {sorted(network.core)}")
    if plan.tile is not None and plan.tile < 1:
        raise ValueError(f"the plan has a tile of {plan.tile} rows; a tile has at least 1, or is None")


def export_plans() -> list[dict[str, Any]]:
    """Every plan in use with what it is for, as JSON takes it: to store beside a run."""
    return [
        {"network": asdict(network), "batch": batch, "backward": backward, "itemsize": itemsize, "plan": plan.to_dict()}
        for (network, batch, backward, itemsize), plan in _chosen.items()
    ]


def restore_plans(records: Sequence[Mapping[str, Any]]) -> None:
    """Use the plans that `export_plans` wrote, so that a resumed run computes in the same order.

    Raises:
        ValueError: a record that names no such network or plan.
    """
    for record in records:
        parts = record["network"]
        cores = tuple(Core(c["name"], tuple(c["legs"]), tuple(c["shrunk_by"])) for c in parts["cores"])
        network = Network(cores, dict(parts["sizes"]), tuple(parts["rows"]), tuple(parts["cols"]))
        plan = Plan.from_dict(record["plan"])
        use_plan(plan, network, record["batch"], backward=record["backward"], itemsize=record["itemsize"])


def matvec_flops(network: Network, batch: int = 1) -> int:
    """Additions and multiplications of `matvec` on that many rows of x, in the order of fewest."""
    return chain_flops(network, _finalists(network, batch)[0], batch)


@lru_cache(maxsize=1024)
def candidates(network: Network, batch: int, backward: bool = True, itemsize: int = 4) -> tuple[Plan, ...]:
    """Plans by counted cost, the cheapest first: every tile, layout and use of memory for the chains worth it."""
    plans = []
    for groups in _finalists(network, batch):
        for batch_last, tile in itertools.product((False, True), _tiles(batch)):
            if batch_last and (tile == 1 or batch == 1):
                continue  # a single row has no layout to choose
            if tile and len(groups) == 1:
                continue  # no intermediate that a tile could keep in the cache
            steps = lower(network, groups, batch_last)
            cost = chain_cost(network, steps, batch, tile, itemsize, backward)
            plans += _kept_or_again(groups, batch_last, tile, cost, backward)
    return tuple(sorted(plans, key=lambda plan: plan.seconds))


def _kept_or_again(groups: Groups, batch_last: bool, tile: int | None, cost: Cost, backward: bool) -> list[Plan]:
    if not backward:
        return [Plan(groups, batch_last, tile, False, cost.flops, cost.forward)]
    both = cost.forward + cost.backward
    kept = Plan(groups, batch_last, tile, False, cost.flops, both + cost.keep)
    again = Plan(groups, batch_last, tile, True, cost.flops, both + cost.again)
    return [kept, again]


def _tiles(batch: int) -> list[int | None]:
    """All at once, or a divisor of the batch near a power of four: few to count, and no ragged last tile."""
    tiles: list[int | None] = [None]
    for goal in (1, 4, 16, 64, 256):
        tile = max(d for d in range(1, min(goal, batch) + 1) if batch % d == 0)
        if tile < batch and tile not in tiles:
            tiles.append(tile)
    return tiles


def _finalists(network: Network, batch: int) -> list[Groups]:
    """The chains of fewest operations, the dense matrix always among them."""
    whole: Groups = (tuple(core.name for core in network.cores),)
    chains = {whole, *_merged(_pairwise_chain(network, batch))}
    if len(network.cores) <= EXHAUSTIVE:
        chains.update(_chains(network.cores, network.cols))
    counted = sorted((chain_flops(network, groups, batch), groups) for groups in chains)
    return list(dict.fromkeys([groups for _, groups in counted[:FINALISTS]] + [whole]))


@lru_cache(maxsize=256)
def _chains(cores: tuple[Core, ...], cols: tuple[str, ...]) -> tuple[Groups, ...]:
    """Every way to cut the cores into connected groups and line them up so that each meets legs of what came before."""
    legs = {core.name: frozenset(core.legs) for core in cores}

    def connected(group: tuple[str, ...]) -> bool:
        reached, rest = set(legs[group[0]]), set(group[1:])
        while near := {name for name in rest if legs[name] & reached}:
            reached.update(*(legs[name] for name in near))
            rest -= near
        return not rest

    groups = [g for size in range(1, len(legs) + 1) for g in itertools.combinations(legs, size) if connected(g)]
    reach = {group: frozenset().union(*(legs[name] for name in group)) for group in groups}

    def extend(chain: Groups, reached: frozenset, rest: frozenset) -> Iterator[Groups]:
        if not rest:
            yield chain
        for group in groups:
            if rest.issuperset(group) and reached & reach[group]:
                yield from extend((*chain, group), reached | reach[group], rest.difference(group))

    return tuple(extend((), frozenset(cols), frozenset(legs)))


def _merged(chain: Groups) -> Iterator[Groups]:
    """The chain with neighbouring groups contracted together, in all ways (in pairs only, if it is long)."""
    gaps = range(1, len(chain))
    kept = range(len(chain)) if len(chain) <= 7 else (len(chain) - 1, len(chain) - 2)
    for number in kept:
        for cuts in itertools.combinations(gaps, number):
            edges = (0, *cuts, len(chain))
            yield tuple(sum(chain[a:b], ()) for a, b in itertools.pairwise(edges))


def _pairwise_chain(network: Network, batch: int) -> Groups:
    """opt_einsum's order of fewest operations, read as a chain: the groups that x meets on its way to the end."""
    legs = ((BATCH, *network.cols), *(core.legs for core in network.cores))
    shapes = ((batch, *(network.size[leg] for leg in network.cols)), *map(network.core_shape, network.core))
    terms: list[tuple[bool, tuple]] = [(True, ()), *((False, (name,)) for name in network.core)]
    for pair in contraction_path(legs, shapes, (BATCH, *network.rows)):
        taken = [terms.pop(k) for k in sorted(pair, reverse=True)]
        chain = [held for with_x, held in taken if with_x]
        cores = tuple(name for with_x, held in reversed(taken) if not with_x for name in held)
        terms.append((True, (*chain[0], cores)) if chain else (False, cores))
    return tuple(group for group in terms[0][1] if group)
