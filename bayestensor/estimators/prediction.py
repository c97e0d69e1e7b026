"""Mean and variance of a tensor over posterior draws, all of it or at coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.tensor.contract import dense, entries
from bayestensor.tensor.network import Factored, Network
from bayestensor.tensor.normal import in_blocks
from bayestensor.typing import Array

_LARGEST = 200_000_000  # entries of a dense prediction
_BLOCK = 8192


def moments(
    network: Network,
    cores: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    coords: np.ndarray | None,
    each: bool = False,
) -> Any:
    """(mean, variance) over draws of the tensor of the given shape, or at coordinates; with `each`, every draw.

    Args:
        network: of the cores; its modes are those of `shape`, with modes of size 1 appended where it has more.
        cores: name -> [draw, ...].
        shape: of the tensor.
        coords: (n, modes), or None for the whole tensor.
        each: whether the draws themselves are asked for.

    Raises:
        ValueError: the whole tensor is too large for memory.
    """
    if coords is None and math.prod(shape) > _LARGEST:
        raise ValueError(f"the tensor of shape {shape} is too large to predict whole; ask for coordinates")
    with jax.enable_x64(True):
        if coords is not None:
            at = np.zeros((len(coords), len(network.modes)), np.int32)
            at[:, : coords.shape[1]] = coords
        else:
            at = None
        out = _all(network, dict(cores), at) if each else _moments(network, dict(cores), at)
        shaped = [
            np.asarray(a).reshape(
                *a.shape[: a.ndim - (1 if at is not None else len(network.modes))], *(shape if at is None else (-1,))
            )
            for a in jax.tree.leaves(out)
        ]
    return shaped[0] if each else tuple(shaped)


def _values(network: Network, cores: Mapping[str, Array], at: Array | None) -> Array:
    tensor = Factored(network, dict(cores))
    return dense(tensor) if at is None else in_blocks(lambda block: entries(tensor, block), at, _BLOCK)


@partial(jax.jit, static_argnames="network")
def _moments(network: Network, cores: dict[str, Array], at: Array | None) -> tuple[Array, Array]:
    def add(carry, one):
        n, mean, square = carry
        x = _values(network, one, at)
        shift = x - mean
        mean = mean + shift / (n + 1)
        return (n + 1, mean, square + shift * (x - mean)), None

    zero = jnp.zeros(network.shape if at is None else len(at), jnp.result_type(*cores.values()))
    (n, mean, square), _ = jax.lax.scan(add, (0.0, zero, zero), cores)
    return mean, square / n


@partial(jax.jit, static_argnames="network")
def _all(network: Network, cores: dict[str, Array], at: Array | None) -> Array:
    return jax.lax.map(lambda one: _values(network, one, at), cores)
