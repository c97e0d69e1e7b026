"""Cores whose rows have too many unknowns for one system of equations: a block of bond indices after another.

`X = sum over blocks of X restricted to the block`, so each block of a core has normal equations of its own, those of
the network restricted to it, for what the others leave. A Tucker core of 22 x 22 x 22 would need a matrix of 0.9 GB.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from bayestensor.models.rows import chain_posterior, row_posterior
from bayestensor.tensor.core_rows import from_rows, row_shape, split_legs
from bayestensor.tensor.network import Factored, Network
from bayestensor.tensor.normal import normal_equations
from bayestensor.tensor.observations import Observations
from bayestensor.typing import Array, Float

LARGEST = 1024  # unknowns of one system
_MOST = 1 << 25  # numbers in the systems of one core's rows, 256 MB

Block = Mapping[str, slice]  # bond -> its indices


def blocks(network: Network, name: str) -> Sequence[Block]:
    """How a core's bond indices are shared out: one block of all of them where that is small enough."""
    q, p = row_shape(network, name)
    most = max(1, min(LARGEST, int(math.sqrt(_MOST / q))))
    _, bonds = split_legs(network, network.core[name])
    if p <= most:
        return [{bond: slice(0, network.size[bond]) for bond in bonds}]
    steps = {bond: network.size[bond] for bond in bonds}
    while math.prod(steps.values()) > most:
        longest = max(steps, key=steps.__getitem__)
        steps[longest] = -(-steps[longest] // 2)
    cuts = [[slice(k, min(k + steps[b], network.size[b])) for k in range(0, network.size[b], steps[b])] for b in bonds]
    return [dict(zip(bonds, block, strict=True)) for block in itertools.product(*cuts)]


def is_blocked(network: Network) -> bool:
    """Whether any core is drawn block by block; covariances of its rows are then too large to hold."""
    return any(len(blocks(network, core.name)) > 1 for core in network.cores)


def draw_blocks(
    network: Network,
    cores: Mapping[str, Array],
    name: str,
    data: Observations,
    precision: Array,
    d: Float[Array, "p"],
    pull: Float[Array, "q p"],
    normal: Float[Array, "q p"],
    rho: Float[Array, "p"] | None,
) -> tuple[Array, Float[Array, ""]]:
    """(core, sum of weighted squares that it leaves): given the others, every block given the rest.

    Args:
        network: of the tensor.
        cores: of which the others stay.
        name: of the core.
        data: observations; hidden variables and effects taken off.
        precision: of the noise.
        d: prior precision of a row's entries.
        pull: d times their prior mean.
        normal: standard normal numbers; where they are zero blocks move to their conditional means.
        rho: correlations of neighbouring rows; None where rows are independent.
    """
    array, x = cores[name], data.values(Factored(network, dict(cores)))
    for block in blocks(network, name):
        small = network.resized({bond: cut.stop - cut.start for bond, cut in block.items()})
        every = {**cores, name: array}
        inside = {core.name: every[core.name][_at(core.legs, block)] for core in network.cores}
        own = data.values(Factored(small, inside))
        left = dataclasses.replace(data, target=data.target - data.weight * (x - own))
        gram, moment = normal_equations(small, inside, name, left, None)
        pulled = precision * moment + _part(network, block, pull)
        system = precision * gram, pulled, _part(network, block, d), _part(network, block, normal)
        if rho is None:
            rows, *_ = row_posterior(*system)
        else:
            rows, *_ = chain_posterior(*system, _part(network, block, rho), 0.0)
        inside[name] = from_rows(small, name, rows)
        array = array.at[_at(network.core[name].legs, block)].set(inside[name])
        x = x - own + data.values(Factored(small, inside))
    return array, data.energy + (data.weight * x**2 - 2 * data.target * x).sum()


def _part(network: Network, block: Block, rows: Array) -> Array:
    """Columns of rows [..., p] that belong to a block."""
    apart = rows.reshape(*rows.shape[:-1], *(network.size[bond] for bond in block))
    return apart[(..., *block.values())].reshape(*rows.shape[:-1], -1)


def _at(legs: Sequence[str], block: Block) -> tuple[slice, ...]:
    return tuple(block.get(leg, slice(None)) for leg in legs)
