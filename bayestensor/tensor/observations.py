"""Observed entries of a tensor, by a weight and a target each: as arrays, or as a list of coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.tensor.contract import dense, entries
from bayestensor.tensor.core_rows import split_legs
from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array, Float, Int

WIDTH = 16  # entries of one mode index that share a matrix product; a group is filled up to a multiple of it


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


def _chunks(index: np.ndarray, groups: int) -> tuple[Array, Array]:
    """Rows sorted by group, each group filled up to whole chunks: (places [chunks, width], group of each chunk)."""
    counts = np.bincount(index, minlength=groups)
    chunks = -(-counts // WIDTH)
    order = np.argsort(index, kind="stable")
    first = np.concatenate([[0], np.cumsum(chunks)[:-1]]) * WIDTH - np.concatenate([[0], np.cumsum(counts)[:-1]])
    places = np.full(int(chunks.sum()) * WIDTH, len(index), np.int32)
    places[first[index[order]] + np.arange(len(index))] = order
    return jnp.asarray(places.reshape(-1, WIDTH)), jnp.asarray(np.repeat(np.arange(groups, dtype=np.int32), chunks))


def in_blocks(function, rows: Array, size: int) -> Array:
    """`function` of the rows, `size` of them at a time."""
    n = len(rows)
    size = min(size, n)
    padded = jnp.pad(rows, ((0, -n % size), (0, 0)))
    return jax.lax.map(function, padded.reshape(-1, size, rows.shape[1])).reshape(-1)[:n]
