"""From a chain of groups to matrix products: which axes stand where, so that little is ever transposed.

An array that carries the batch is large and a product of cores is small, hence the factors are brought into the
order that suits x, not the other way round. With the contracted legs K together in the running array, a step is one
matrix product ('front', 'back') or one for each index before K ('middle'); anything else is left to einsum ('general').
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from bayestensor.tensor.network import Core, Network

BATCH = "*batch"  # no leg of a network is called so
Legs: TypeAlias = tuple[str, ...]
Groups: TypeAlias = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Step:
    """`result = sum over K of factor * source`: names of axes, no sizes.

    Args:
        kind: front `[K, Q] -> [M, Q]`, back `[P, K] -> [P, M]`, middle `[P, K, Q] -> [P, M, Q]`, or general.
        group: the cores whose product the factor is.
        factor: legs of the factor, M then K.
        source: legs of the running array before.
        result: legs of the running array after.
        before: P.
        within: K.
        after: Q.
        new: M.
    """

    kind: str
    group: tuple[str, ...]
    factor: Legs
    source: Legs
    result: Legs
    before: Legs = ()
    within: Legs = ()
    after: Legs = ()
    new: Legs = ()

    def sizes(self, size: Mapping[str, int]) -> tuple[int, int, int, int]:
        """P, K, Q and M as numbers."""
        p, k, q, m = (math.prod([size[leg] for leg in part]) for part in self._parts)
        return p, k, q, m

    @property
    def _parts(self) -> tuple[Legs, Legs, Legs, Legs]:
        return self.before, self.within, self.after, self.new


def lower(network: Network, groups: Groups, batch_last: bool) -> tuple[Step, ...]:
    """The steps of a chain, starting from x with its batch first or last."""
    return _lower(network.cores, network.rows, network.cols, groups, batch_last)


@lru_cache(maxsize=4096)
def _lower(cores: tuple[Core, ...], rows: Legs, cols: Legs, groups: Groups, batch_last: bool) -> tuple[Step, ...]:
    legs = {core.name: core.legs for core in cores}
    held: Legs = (*cols, BATCH) if batch_last else (BATCH, *cols)
    steps: list[Step] = []
    for number, group in enumerate(groups):
        later = [leg for other in groups[number + 1 :] for name in other for leg in legs[name]]
        needed = {BATCH, *rows, *later}
        options = _options(group, legs, held, needed, rows, batch_last)
        following = groups[number + 1 : number + 2]
        if following:
            rest = [leg for other in groups[number + 2 :] for name in other for leg in legs[name]]
            options.sort(key=lambda step: _clumsiness(step.result, following[0], legs, {BATCH, *rows, *rest}))
        steps.append(options[0])
        held = options[0].result
    return tuple(steps)


def _options(group, legs, held: Legs, needed: set[str], rows: Legs, batch_last: bool) -> list[Step]:
    """The same step with its new legs in either order: rows before bonds, bonds before rows."""
    own = tuple(dict.fromkeys(leg for name in group for leg in legs[name]))
    contracted = tuple(leg for leg in held if leg in own and leg not in needed)
    shared = tuple(leg for leg in held if leg in own and leg in needed)
    fresh = [leg for leg in own if leg not in held and leg in needed]
    new_rows = tuple(leg for leg in rows if leg in fresh)
    new_bonds = tuple(leg for leg in fresh if leg not in rows)
    kept = tuple(leg for leg in held if leg not in contracted and leg not in shared)
    steps = []
    for new in dict.fromkeys((new_rows + new_bonds, new_bonds + new_rows)):
        start = held.index(contracted[0]) if contracted else 0
        stop = start + len(contracted)
        if shared or not contracted or held[start:stop] != contracted:
            result = (*shared, *new, *kept) if batch_last else (*shared, *kept, *new)
            steps.append(Step("general", group, (*new, *shared, *contracted), held, result))
            continue
        before, after = held[:start], held[stop:]
        kind = "back" if not after else "middle" if before else "front"
        factor, result = new + contracted, before + new + after
        steps.append(Step(kind, group, factor, held, result, before, contracted, after, new))
    return steps


def _clumsiness(held: Legs, group: tuple[str, ...], legs, needed: set[str]) -> int:
    """0 where the next group contracts legs at one end, 1 inside, 2 where they are scattered."""
    own = {leg for name in group for leg in legs[name]}
    places = [k for k, leg in enumerate(held) if leg in own and leg not in needed]
    if not places or places[-1] - places[0] >= len(places):
        return 2
    return int(places[0] > 0 and places[-1] < len(held) - 1)
