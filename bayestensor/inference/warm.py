"""A first look at the curvature, so that the first step is already in posterior standard deviations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bayestensor.inference.base import Posterior
from bayestensor.inference.gradient import batch_size as length
from bayestensor.inference.gradient import estimator, preconditioner
from bayestensor.inference.sample import draw_batch
from bayestensor.typing import Array, Batch, Key


def warm(
    states: Any,
    posterior: Posterior,
    data: Batch,
    key: Key[Array, ""],
    batch_size: int | None = None,
    prepare: Callable[[Key[Array, ""], Batch], Batch] | None = None,
    batches: int = 100,
) -> Any:
    """SGHMC's (or SGLD's) fresh states [chain, ...] with curvature and noise measured on `batches` where they stand.

    A chain that starts at a mode with `scale = 1` leaves it in one step wherever the posterior sd is far below 1.
    """
    estimate, size = estimator(posterior), length(data) if batch_size is None else batch_size

    def chain(key: Key[Array, ""], position: Any) -> Any:
        def one(key):
            batch_key, prepare_key = jax.random.split(key)
            batch = draw_batch(batch_key, data, size)
            found = estimate(position, batch if prepare is None else prepare(prepare_key, batch))
            return found.curvature, found.noise

        def add(total, key):
            return jax.tree.map(jnp.add, total, one(key)), None

        keys = jax.random.split(key, batches)
        first = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, keys[0]))
        total, _ = jax.lax.scan(add, first, keys)
        return jax.tree.map(lambda x: x / batches, total)

    @jax.jit
    def measured(states: Any) -> Any:
        chains = states.step.shape[0]
        curvature, noise = jax.lax.map(lambda both: chain(*both), (jax.random.split(key, chains), states.position))
        count = jnp.int32(batches)
        scale = jax.tree.map(
            lambda c, b: jax.vmap(preconditioner, (0, 0, None))(c, jnp.zeros_like(b), count), curvature, noise
        )
        return states._replace(
            curvature=curvature, noise=noise, scale=scale, measured=jnp.full(chains, count, states.measured.dtype)
        )

    return measured(states)
