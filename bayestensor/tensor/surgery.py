"""Keep or add indices of bonds: the only place where a network changes its sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array


def keep_axes(legs: Sequence[str], keep: Mapping[str, np.ndarray]):
    """A function that keeps the named indices of an array whose last axes are `legs`.

    Serves everything shaped like a core: the core, its gradient moments, its momentum, and stacks of them
    (chains, particles) in leading axes. The indices may be traced: under `vmap` every draw keeps its own.
    """
    cuts = tuple((axis - len(legs), jnp.asarray(keep[leg])) for axis, leg in enumerate(legs) if leg in keep)

    def cut(array: Array) -> Array:
        for axis, indices in cuts:
            array = jnp.take(array, indices, axis=axis)
        return array

    return cut


def keep_network(network: Network, keep: Mapping[str, np.ndarray]) -> Network:
    """The network left when each bond in `keep` holds only the given indices.

    Raises:
        ValueError: a leg that is no bond, no index left, or an index out of range; of traced indices only their
            number is known.
    """
    for bond, indices in keep.items():
        network.check_bond(bond)
        if isinstance(indices, jax.core.Tracer):
            continue
        indices, size = np.asarray(indices), network.size[bond]
        if indices.ndim != 1 or indices.size == 0:
            raise ValueError(f"bond {bond!r} would keep no index; keep at least one, or drop the layer")
        if indices.dtype.kind not in "iu":
            raise ValueError(
                f"bond {bond!r} keeps {indices.dtype} values; give whole indices (np.flatnonzero of a mask)"
            )
        if indices.min() < 0 or indices.max() >= size or len(set(indices.tolist())) < indices.size:
            raise ValueError(f"bond {bond!r} keeps indices {indices.tolist()}; they must differ and be below {size}")
    return network.resized({bond: len(indices) for bond, indices in keep.items()})


def keep(tensor: Factored, indices: Mapping[str, np.ndarray]) -> Factored:
    """The tensor with only the given indices of each named bond: the same as zeroing the others."""
    network = keep_network(tensor.network, indices)
    cores = {core.name: keep_axes(core.legs, indices)(tensor.cores[core.name]) for core in tensor.network.cores}
    return Factored(network, cores)


def pad(tensor: Factored, ranks: Mapping[str, int]) -> Factored:
    """The same tensor with larger bonds: the new slices are zero.

    Raises:
        ValueError: a leg that is no bond, or a size below the present one.
    """
    network = tensor.network
    for bond, size in ranks.items():
        network.check_bond(bond)
        if size < network.size[bond]:
            raise ValueError(f"bond {bond!r} has {network.size[bond]} indices; pad cannot shrink it to {size}")
    larger = network.resized(ranks)
    cores = dict(tensor.cores)
    for core in network.cores:
        if core.legs:  # jnp.pad refuses an array without axes
            wider = [(0, larger.size[leg] - network.size[leg]) for leg in core.legs]
            cores[core.name] = jnp.pad(tensor.cores[core.name], wider)
    return Factored(larger, cores)
