"""Gamma draws that compile quickly: `jax.random.loggamma` takes XLA about a second for each shape of array."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bayestensor.typing import Array, Key

_PROPOSALS = 8  # 4 % or less of them are rejected: none of eight is accepted once in 10^11 draws


def draw_log_gamma(key: Key[Array, ""], shape: Array) -> Array:
    """`log g`, g ~ Gamma(shape, 1) elementwise, any shape > 0.

    `g = d (1 + x / sqrt(9 d))^3` with x normal, accepted by the squeeze-free test (Marsaglia, Tsang, ACM TOMS 26,
    2000), for shape + 1, then times `u^(1 / shape)`. A fixed number of proposals at once, the first accepted one taken.
    """
    normal_key, test_key, boost_key = jax.random.split(key, 3)
    x = jax.random.normal(normal_key, (_PROPOSALS, *shape.shape), shape.dtype)
    test = jax.random.exponential(test_key, x.shape, x.dtype)
    boost = jax.random.exponential(boost_key, shape.shape, shape.dtype)
    d = shape + (1 - 1 / 3)
    root = 1 + x / jnp.sqrt(9 * d)[None]
    log_cube = 3 * jnp.log(jnp.maximum(root, jnp.finfo(shape.dtype).tiny))
    accepted = (root > 0) & (-test < 0.5 * x**2 + d[None] * (1 - jnp.exp(log_cube) + log_cube))
    chosen = jnp.take_along_axis(log_cube, jnp.argmax(accepted, axis=0)[None], axis=0)[0]
    return jnp.log(d) + chosen - boost / shape
