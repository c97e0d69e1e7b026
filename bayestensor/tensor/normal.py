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
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations
from operator import mul
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.tensor.contract import Term, _gathered, contract, dense, entries
from bayestensor.tensor.network import Core, Factored, Network
from bayestensor.typing import Array, Float, Int

_WIDTH = 16  # entries of one mode index that share a matrix product; a group is filled up to a multiple of it
_BLOCK = 1 << 17  # numbers of one block of gathered design rows, 1 MB in float64: they stay in the cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Grid:
    """Observations as arrays of the tensor's shape, zero where hidden: for images and other tensors that fit."""

    weight: Float[Array, ...]
    target: Float[Array, ...]
    count: Float[Array, ""]  # of observations
    energy: Float[Array, ""]  # sum of target^2 / weight

    @classmethod
    def build(cls, values: np.ndarray, observed: np.ndarray, weights: np.ndarray | None = None) -> Grid:
        """Weight 1, or `weights`, where observed; what stands elsewhere is not looked at."""
        weight = np.where(observed, 1.0 if weights is None else weights, 0.0)
        values = np.where(observed, values, 0.0)
        energy = (weight * values**2).sum()
        return cls(*map(jnp.asarray, (weight, weight * values, float(observed.sum()), energy)))

    def values(self, tensor: Factored) -> Array:
        """The tensor at the observations (and at the hidden entries too)."""
        return dense(tensor)

    def total(self, x: Array, mode: int) -> Array:
        """Sum of x, shaped as the observations are, over all with the same index of a mode."""
        return x.sum(tuple(k for k in range(x.ndim) if k != mode))

    def spread(self, row: Array, mode: int) -> Array:
        """A number for each index of a mode, at the observations (or broadcast to them)."""
        return row.reshape([-1 if k == mode else 1 for k in range(self.weight.ndim)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Entries:
    """Observations as a list of coordinates: nothing of the size of the tensor is ever formed.

    `places[core]` is [chunks, width], rows of the list that share the core's mode index, filled up with n;
    `groups[core]` is [chunks], that index, ascending. `Entries.build` makes both.
    """

    shape: tuple[int, ...] = field(metadata={"static": True})
    coords: Int[Array, "n modes"]
    weight: Float[Array, "n"]
    target: Float[Array, "n"]
    count: Float[Array, ""]
    energy: Float[Array, ""]
    places: dict[str, Array]
    groups: dict[str, Array]

    @classmethod
    def build(
        cls, network: Network, coords: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None
    ) -> Entries:
        """Weight 1 each, or `weights`; the list is sorted once for each core."""
        places, groups = {}, {}
        for core in network.cores:
            open_, _ = split_legs(network, core)
            sizes = [network.size[leg] for leg in open_]
            columns = [coords[:, network.modes.index(leg)] for leg in open_]
            index = np.ravel_multi_index(columns, sizes) if open_ else np.zeros(len(coords), int)
            places[core.name], groups[core.name] = _chunks(index, math.prod(sizes))
        weight = np.ones_like(values) if weights is None else weights
        target, count, energy = weight * values, jnp.asarray(float(len(values))), (weight * values**2).sum()
        w, t, square = map(jnp.asarray, (weight, target, energy))
        return cls(network.shape, jnp.asarray(coords, jnp.int32), w, t, count, square, places, groups)

    def values(self, tensor: Factored) -> Array:
        """The tensor at the observations, block by block."""
        return in_blocks(lambda at: entries(tensor, at), self.coords, 4096)

    def total(self, x: Array, mode: int) -> Array:
        """Sum of x, one number an observation, over all with the same index of a mode."""
        return jax.ops.segment_sum(x, self.coords[:, mode], self.shape[mode])

    def spread(self, row: Array, mode: int) -> Array:
        """A number for each index of a mode, at the observations."""
        return jnp.asarray(row)[self.coords[:, mode]]


Observations: TypeAlias = Grid | Entries


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
    per_block = max(1, min(len(places), _BLOCK // (_WIDTH * p * (1 if covariances is None else p))))
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
    chunks = places.reshape(-1, per_block, _WIDTH), groups.reshape(-1, per_block)
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


def is_joint(network: Network) -> bool:
    """Whether one bond joins all cores and there is no other, as in CP with one mode a core."""
    return (
        len(network.bonds) == 1
        and all(len(split_legs(network, c)[0]) == 1 and network.bonds[0] in c.legs for c in network.cores)
        and len(network.cores) == len(network.modes)
    )


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


def _chunks(index: np.ndarray, groups: int) -> tuple[Array, Array]:
    """Rows sorted by group, each group filled up to whole chunks: (places [chunks, width], group of each chunk)."""
    counts = np.bincount(index, minlength=groups)
    chunks = -(-counts // _WIDTH)
    order = np.argsort(index, kind="stable")
    first = np.concatenate([[0], np.cumsum(chunks)[:-1]]) * _WIDTH - np.concatenate([[0], np.cumsum(counts)[:-1]])
    places = np.full(int(chunks.sum()) * _WIDTH, len(index), np.int32)
    places[first[index[order]] + np.arange(len(index))] = order
    return jnp.asarray(places.reshape(-1, _WIDTH)), jnp.asarray(np.repeat(np.arange(groups, dtype=np.int32), chunks))


def in_blocks(function, rows: Array, size: int) -> Array:
    """`function` of the rows, `size` of them at a time."""
    n = len(rows)
    size = min(size, n)
    padded = jnp.pad(rows, ((0, -n % size), (0, 0)))
    return jax.lax.map(function, padded.reshape(-1, size, rows.shape[1])).reshape(-1)[:n]
