"""A network as the coefficient of tensor covariates: the normal equations of one core, for every format.

`eta[n, k] = <X_n, W[:, k]>`, W a network whose row modes are those of X and whose column modes k are those of the
response. With w and t weight and target as in `tensor.normal`, eta enters by `-w eta^2 / 2 + t eta`. Every index of a
covariate mode meets every other one in `<X_n, W>`, so that the unknowns of a core are its covariate modes and bonds
together; only response modes split them into systems of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from bayestensor.tensor.contract import Term, contract
from bayestensor.tensor.network import Core, Network
from bayestensor.typing import Array, Float

BATCH = "batch"


class Unknowns(NamedTuple):
    """Legs of a core: `split` number its systems, `own` (covariate modes) and `bonds` the unknowns of each."""

    split: tuple[str, ...]
    own: tuple[str, ...]
    bonds: tuple[str, ...]


def unknowns(network: Network, name: str) -> Unknowns:
    """The legs of a core by their part in its equations."""
    legs = network.core[name].legs
    return Unknowns(
        tuple(x for x in legs if x in network.cols),
        tuple(x for x in legs if x in network.rows),
        tuple(x for x in legs if x not in network.modes),
    )


def system_shape(network: Network, name: str) -> tuple[int, int, int]:
    """(systems, indices of the covariate modes, bond indices): a core has that many entries, in this order."""
    return tuple(math.prod(network.size[leg] for leg in legs) for legs in unknowns(network, name))  # type: ignore[return-value]


def to_systems(network: Network, name: str, array: Array) -> Float[Array, "b q p"]:
    """A core as an array of its systems (see `system_shape`)."""
    order = [leg for legs in unknowns(network, name) for leg in legs]
    return array.transpose([network.core[name].legs.index(leg) for leg in order]).reshape(system_shape(network, name))


def from_systems(network: Network, name: str, array: Float[Array, "b q p"]) -> Array:
    """The inverse of `to_systems`."""
    order = [leg for legs in unknowns(network, name) for leg in legs]
    shaped = array.reshape([network.size[leg] for leg in order])
    return shaped.transpose([order.index(leg) for leg in network.core[name].legs])


def responses(network: Network, cores: Mapping[str, Array], x: Float[Array, "n *rows"]) -> Float[Array, "n *cols"]:
    """`<X_n, W>`, without forming W where that is dearer."""
    terms: list[Term] = [(cores[c.name], c.legs) for c in network.cores]
    return contract([(x, (BATCH, *network.rows)), *terms], (BATCH, *network.cols))


def slice_responses(
    network: Network, cores: Mapping[str, Array], x: Float[Array, "n *rows"], bond: str
) -> Float[Array, "n *cols r"]:
    """`<X_n, W restricted to bond = r>` for each r."""
    terms: list[Term] = [(cores[c.name], c.legs) for c in network.cores]
    return contract([(x, (BATCH, *network.rows)), *terms], (BATCH, *network.cols, bond))


def core_covariates(
    network: Network, cores: Mapping[str, Array], name: str, x: Float[Array, "n *rows"]
) -> tuple[Term, list[Term]]:
    """(X contracted with the other cores that carry no response mode, those that do): their product is the design."""
    own = set(network.core[name].legs)
    others = [c for c in network.cores if c.name != name]
    far = [c for c in others if any(leg in network.cols for leg in c.legs)]
    near = [c for c in others if c not in far]
    outside = {leg for c in far for leg in c.legs} | own
    legs = dict.fromkeys([*network.rows, *(leg for c in near for leg in c.legs)])
    kept = (BATCH, *(leg for leg in legs if leg in outside))
    z = contract([(x, (BATCH, *network.rows)), *((cores[c.name], c.legs) for c in near)], kept)
    return (z, kept), [*((cores[c.name], c.legs) for c in far), *_ones(network, others, network.core[name], z.dtype)]


def design(network: Network, name: str, near: Term, far: list[Term]) -> Float[Array, "rows qp"]:
    """Gradient of eta in one system of a core, the same for all: a row for each datum and response outside `split`."""
    split, own, bonds = unknowns(network, name)
    rest = tuple(leg for leg in network.cols if leg not in split)
    whole = contract([near, *far], (BATCH, *rest, *own, *bonds))
    _, q, p = system_shape(network, name)
    return whole.reshape(-1, q * p)


def by_system(network: Network, name: str, values: Float[Array, "n *cols"]) -> Float[Array, "b n"]:
    """Weights or targets in the order of the rows of `design`."""
    split, _, _ = unknowns(network, name)
    axes = [network.cols.index(leg) + 1 for leg in split]
    b = math.prod(network.size[leg] for leg in split)
    return jnp.moveaxis(values, axes, range(len(axes))).reshape(b, -1)


def normal_equations(
    network: Network,
    name: str,
    near: Term,
    far: list[Term],
    weight: Float[Array, "n *cols"],
    target: Float[Array, "n *cols"],
) -> tuple[Float[Array, "b u u"], Float[Array, "b u"]]:
    """(gram, moment) of a core, u = q p unknowns a system, without the design itself.

    Args:
        network: whose core this is.
        name: of the core.
        near: as `core_covariates` gives it.
        far: as `core_covariates` gives it.
        weight: w.
        target: t.
    """
    split, own, bonds = unknowns(network, name)
    fixed = {BATCH, *network.cols}
    double = [(array, tuple(leg if leg in fixed else leg + "'" for leg in legs)) for array, legs in (near, *far)]
    primed = tuple(leg + "'" for leg in (*own, *bonds))
    modes = (BATCH, *network.cols)
    gram = contract([(weight, modes), near, *far, *double], (*split, *own, *bonds, *primed))
    moment = contract([(target, modes), near, *far], (*split, *own, *bonds))
    b, q, p = system_shape(network, name)
    return gram.reshape(b, q * p, q * p), moment.reshape(b, q * p)


def _ones(network: Network, others: list[Core], core: Core, dtype) -> list[Term]:
    """For bonds that only this core has."""
    alone = [b for b in core.legs if b not in network.modes and not any(b in c.legs for c in others)]
    return [(jnp.ones(network.size[b], dtype), (b,)) for b in alone]
