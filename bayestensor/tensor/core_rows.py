"""Cores as matrices: a row for each index of the core's modes, a column for each of its bonds' indices."""

from __future__ import annotations

import math
from typing import Any

from bayestensor.tensor.network import Core, Network


def split_legs(network: Network, core: Core) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(mode legs, bond legs) of a core, each in the core's order."""
    return tuple(x for x in core.legs if x in network.modes), tuple(x for x in core.legs if x not in network.modes)


def to_rows(network: Network, name: str, array: Any) -> Any:
    """A core as a matrix [q, p], NumPy's or JAX's: mode legs by bond legs. Leading axes (draws) stay in front."""
    core = network.core[name]
    lead = array.ndim - len(core.legs)
    order = [core.legs.index(leg) + lead for part in split_legs(network, core) for leg in part]
    q, p = row_shape(network, name)
    return array.transpose(*range(lead), *order).reshape(*array.shape[:lead], q, p)


def from_rows(network: Network, name: str, rows: Any) -> Any:
    """The inverse of `to_rows`."""
    core = network.core[name]
    legs = [leg for part in split_legs(network, core) for leg in part]
    array = rows.reshape([network.size[leg] for leg in legs])
    return array.transpose([legs.index(leg) for leg in core.legs])


def row_shape(network: Network, name: str) -> tuple[int, int]:
    """(Q, P): how many systems of which size a core's normal equations are."""
    open_, bonds = split_legs(network, network.core[name])
    return math.prod(network.size[leg] for leg in open_), math.prod(network.size[leg] for leg in bonds)


def is_joint(network: Network) -> bool:
    """Whether one bond joins all cores and there is no other, as in CP with one mode a core."""
    return (
        len(network.bonds) == 1
        and all(len(split_legs(network, c)[0]) == 1 and network.bonds[0] in c.legs for c in network.cores)
        and len(network.cores) == len(network.modes)
    )
