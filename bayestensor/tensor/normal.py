"""A network is linear in each core: the normal equations of one core given the others, for every format.

Observations enter by a weight w and a target t for each entry x, as `-w x^2 / 2 + t x`: w = precision and t = precision
times value for a Gaussian; a hidden entry has w = t = 0. With g the gradient of an entry with respect to core C,
split into the core's mode index q and its bond indices p (all bonds as one axis),

    gram[q, p, p'] = sum over entries at q of w g_p g_p',      moment[q, p] = sum over entries at q of t g_p,

and the exponent is `-C[q] . gram[q] C[q] / 2 + moment[q] . C[q]` in C: one small system for each mode index.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import combinations
from operator import mul

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.tensor.contract import Term, _gathered, contract
from bayestensor.tensor.core_rows import is_joint, row_shape, split_legs, to_rows
from bayestensor.tensor.network import Core, Network
from bayestensor.tensor.observations import WIDTH, Entries, Observations
from bayestensor.typing import Array, Float

_BLOCK = 1 << 17  # numbers of one block of gathered design rows, 1 MB in float64: they stay in the cache


def normal_equations(
    network: Network,
    cores: Mapping[str, Array],
    name: str,
    data: Observations,
    covariances: Mapping[str, Array] | None = None,
) -> tuple[Float[Array, "q p p"], Float[Array, "q p"]]:
    """(gram, moment) of one core given the others.

    Args:
        network: whose cores these are.
        cores: name -> array; the core `name` itself is not looked at.
        name: of the core.
        data: the observations.
        covariances: name -> [q, p, p], where the other cores are uncertain (independently of each other): gram and
            moment are then expectations, as mean-field variational inference needs them.
    """
    if isinstance(data, Entries):
        return _from_entries(network, cores, name, data, covariances)
    return _from_grid(network, cores, name, data, covariances)


def _from_grid(network, cores, name, data, covariances):
    core, modes = network.core[name], network.modes
    open_, bonds = split_legs(network, core)
    q, p = row_shape(network, name)
    others = [c for c in network.cores if c.name != name]
    if is_joint(network) and others:  # CP: every second moment is symmetric, so that half of it will do
        rows, halves = _tables(network, cores, others, covariances)
        return _symmetric(_summed(data.weight, modes, halves), p), _summed(data.target, modes, rows)
    moment = contract([(data.target, modes), *_fill(network, cores, others, bonds)], (*open_, *bonds))
    terms = _pairs(network, cores, others, bonds, covariances)
    gram = contract([(data.weight, modes), *terms], (*open_, *bonds, *map(_primed, bonds)))
    return gram.reshape(q, p, p), moment.reshape(q, p)


def _from_entries(network, cores, name, data, covariances):
    core = network.core[name]
    _, bonds = split_legs(network, core)
    q, p = row_shape(network, name)
    others = [c for c in network.cores if c.name != name]
    places, groups = data.places[name], data.groups[name]
    coords = jnp.pad(data.coords, ((0, 1), (0, 0)))  # the place after the last: weight 0
    told = jnp.pad(jnp.stack([data.weight, data.target], axis=1), ((0, 1), (0, 0)))  # together: one line of memory
    per_block = max(1, min(len(places), _BLOCK // (WIDTH * p * (1 if covariances is None else p))))
    fill = -len(places) % per_block
    places = jnp.pad(places, ((0, fill), (0, 0)), constant_values=len(data.weight))
    groups = jnp.pad(groups, (0, fill), constant_values=q - 1)

    tables = _tables(network, cores, others, covariances) if is_joint(network) and others else None

    def block(carry, chunk):
        place, group = chunk
        flat = place.reshape(-1)
        at = dict(zip(network.modes, coords[flat].T, strict=True))
        w, t = jnp.split(told[place], 2, axis=-1)
        if tables is not None:  # CP: products of rows, in a quarter of the time of the general contraction
            rows, pairs = (reduce(mul, [table[at[leg]] for leg, table in kind.items()]) for kind in tables)
        else:
            rows = _at(network, _fill(network, cores, others, bonds), at, bonds)
            double = (*bonds, *map(_primed, bonds))
            terms = [] if covariances is None else _pairs(network, cores, others, bonds, covariances)
            pairs = _at(network, terms, at, double) if terms else rows
        rows = rows.reshape(*place.shape, p)
        if covariances is None:
            both = jnp.matmul(rows.mT, jnp.concatenate([rows * w, t], axis=-1)).reshape(len(group), -1)
        else:
            sums = (pairs.reshape(*place.shape, -1) * w).sum(1), (rows * t).sum(1)
            both = jnp.concatenate(sums, axis=-1)
        return carry.at[group].add(both, indices_are_sorted=True), None

    half = tables is not None and covariances is not None
    width = (p * (p + 1) // 2 if half else p * p) + p
    chunks = places.reshape(-1, per_block, WIDTH), groups.reshape(-1, per_block)
    both, _ = jax.lax.scan(block, jnp.zeros((q, width), jnp.result_type(*cores.values())), chunks)
    if covariances is None:
        both = both.reshape(q, p, p + 1)
        return both[..., :p], both[..., p]
    gram, moment = both[:, :-p], both[:, -p:]
    return (_symmetric(gram, p) if half else gram.reshape(q, p, p)), moment


def _tables(network, cores, others, covariances) -> tuple[dict[str, Array], dict[str, Array]]:
    """Of CP: mode leg -> rows of its core, and mode leg -> the upper halves of their second moments."""
    legs = {split_legs(network, c)[0][0]: c.name for c in others}
    rows = {leg: to_rows(network, name, cores[name]) for leg, name in legs.items()}
    one, other = np.triu_indices(next(iter(rows.values())).shape[1])
    halves = {leg: row[:, one] * row[:, other] for leg, row in rows.items()}
    if covariances is not None:
        halves = {leg: half + covariances[legs[leg]][:, one, other] for leg, half in halves.items()}
    return rows, halves


def _summed(array: Array, modes: tuple[str, ...], tables: Mapping[str, Array]) -> Float[Array, "q columns"]:
    """`sum over all modes but one of array * product of tables`, each [size, columns] under its mode.

    One matrix product with the tables of some modes, of which nothing larger than need be comes out, then the other
    modes one after another.
    """
    first = _first_modes(array.shape, modes, tables)
    legs = [leg for leg in modes if leg not in first]
    table = reduce(lambda a, b: (a[:, None] * b[None]).reshape(-1, a.shape[1]), [tables[leg] for leg in first])
    product = array.transpose([modes.index(leg) for leg in (*legs, *first)])
    sums = (product.reshape(-1, len(table)) @ table).reshape(*(array.shape[modes.index(leg)] for leg in legs), -1)
    for leg in [leg for leg in legs if leg in tables]:
        axis = legs.index(leg)
        legs.remove(leg)
        sums = _weighted_sum(sums, tables[leg], axis)
    return sums


def _first_modes(sizes: Sequence[int], modes: tuple[str, ...], tables: Mapping[str, Array]) -> tuple[str, ...]:
    """Which tables to multiply and sum over at once: their product and what it leaves together the smallest.

    Of several such the fewest and longest: two modes with the same longest neighbour then share that product where
    they come one after the other (the second and third of three modes whose first is the largest).
    """
    length, whole = {leg: len(table) for leg, table in tables.items()}, math.prod(sizes)
    found = [some for n in range(1, len(length) + 1) for some in combinations([m for m in modes if m in length], n)]

    def cost(some: tuple[str, ...]) -> tuple[float, int, int]:
        size = math.prod(length[leg] for leg in some)
        return size + whole / size, len(some), -size

    return min(found, key=cost)


def _weighted_sum(array: Array, table: Array, axis: int) -> Array:
    """`sum over k of table[k] * array[..., k, ..., :]`, k at an axis."""
    if axis:
        shape = *[1] * axis, -1, *[1] * (array.ndim - axis - 2), table.shape[1]
        return (array * table.reshape(shape)).sum(axis)
    # XLA adds up a first axis with strides of all the others, several times as slowly as in this loop
    start, table = jnp.zeros(array.shape[1:], array.dtype), table.reshape(-1, *[1] * (array.ndim - 2), table.shape[1])
    return jax.lax.fori_loop(0, len(array), lambda k, total: total + array[k] * table[k], start)


def _symmetric(half: Float[Array, "q pairs"], p: int) -> Float[Array, "q p p"]:
    """Matrices from their upper halves."""
    place = np.zeros((p, p), np.int32)
    place[np.triu_indices(p)] = np.arange(half.shape[1])
    return half[:, np.maximum(place, place.T).reshape(-1)].reshape(-1, p, p)


def expected_square(
    network: Network, cores: Mapping[str, Array], covariances: Mapping[str, Array], data: Observations
) -> Float[Array, ""]:
    """`sum over entries of w E[x^2] - 2 t E[x]`, cores independent with these means and covariances."""
    name = network.cores[0].name
    gram, moment = normal_equations(network, cores, name, data, covariances)
    mean = to_rows(network, name, cores[name])
    return (gram * (mean[:, :, None] * mean[:, None, :] + covariances[name])).sum() - 2 * (moment * mean).sum()


def _second(network: Network, cores, name: str, covariances) -> Float[Array, "q p p"]:
    rows = to_rows(network, name, cores[name])
    second = rows[:, :, None] * rows[:, None, :]
    return second if covariances is None else second + covariances[name]


def _fill(network: Network, cores, others: Sequence[Core], bonds: Sequence[str]) -> list[Term]:
    """The other cores, and ones for bonds that only the core in question has."""
    terms: list[Term] = [(cores[c.name], c.legs) for c in others]
    dtype = jnp.result_type(*cores.values())
    alone = [b for b in bonds if not any(b in c.legs for c in others)]
    return terms + [(jnp.ones(network.size[b], dtype), (b,)) for b in alone]


def _pairs(network: Network, cores, others: Sequence[Core], bonds: Sequence[str], covariances) -> list[Term]:
    """Two copies of the other cores, joined at the modes: bonds of the second copy are primed."""
    terms = _fill(network, cores, [], [b for b in bonds if not any(b in c.legs for c in others)])
    terms += [(array, tuple(map(_primed, legs))) for array, legs in terms]
    for c in others:
        open_, inner = split_legs(network, c)
        primed = tuple(map(_primed, inner))
        if covariances is None:
            second = tuple(leg if leg in open_ else _primed(leg) for leg in c.legs)
            terms += [(cores[c.name], c.legs), (cores[c.name], second)]
        else:
            sizes = [network.size[leg] for leg in (*open_, *inner, *inner)]
            terms.append((_second(network, cores, c.name, covariances).reshape(sizes), (*open_, *inner, *primed)))
    return terms


def _primed(leg: str) -> str:
    return leg + "'"


def _at(network: Network, terms: Sequence[Term], at: Mapping[str, Array], output: Sequence[str]) -> Array:
    """Terms at coordinates, contracted to [batch, *output]."""
    return contract(_gathered(terms, at, len(next(iter(at.values())))), ("batch", *output))
