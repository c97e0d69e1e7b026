"""One initialisation law for every format."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array, Key


def core_variance(network: Network, variance: float) -> float:
    """sigma_core^2, alike for all cores, such that `variance = prod(bond sizes) * sigma_core^(2 * cores)`.

    A tensor entry is a sum over `prod(bond sizes)` products of independent core entries, one a core. The same
    number is the prior's variance of a core entry where every scale is 1.
    """
    if not 0 < variance < math.inf:
        raise ValueError(f"the variance of a tensor entry must be positive and finite, not {variance}")
    log_terms = sum(math.log(size) for size in network.ranks.values())
    return math.exp((math.log(variance) - log_terms) / len(network.cores))


@partial(jax.jit, static_argnames=("network", "variance", "dtype"))
def initialise(key: Key[Array, ""], network: Network, variance: float = 1.0, dtype=jnp.float32) -> Factored:
    """Normal cores whose dense tensor has entries of mean 0 and the given variance."""
    sd = math.sqrt(core_variance(network, variance))
    # one draw for all cores: XLA takes about 0.3 s to compile each shape that random numbers are drawn in
    sizes = [math.prod(network.core_shape(core.name)) for core in network.cores]
    flat = sd * jax.random.normal(key, (sum(sizes),), dtype)
    parts = jnp.split(flat, np.cumsum(sizes)[:-1])
    cores = {
        core.name: part.reshape(network.core_shape(core.name)) for core, part in zip(network.cores, parts, strict=True)
    }
    return Factored(network, cores)
