"""Choose a plan by the clock rather than by count: for devices whose constants differ from those in `cost`."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.tensor.contract import matvec
from bayestensor.tensor.initialise import initialise
from bayestensor.tensor.network import Factored, Network
from bayestensor.tensor.plan import Plan, candidates, use_plan


def plan_by_timing(
    network: Network,
    batch: int,
    *,
    backward: bool = True,
    dtype=jnp.float32,
    best: int = 6,
    repeats: int = 5,
    clock: Callable[[Plan], float] | None = None,
) -> Plan:
    """Time the `best` plans by count on the default device, in turns, and let `plan_matvec` answer the fastest.

    Args:
        network: what x is multiplied by.
        batch: rows of x.
        backward: time the gradient with respect to cores and x too.
        dtype: of cores and x.
        best: how many of the candidates are compiled and timed.
        repeats: rounds of timing; a plan's time is its median.
        clock: plan -> seconds, in place of timing here.

    Raises:
        ValueError: `best` or `repeats` is below 1.
    """
    if best < 1 or repeats < 1:
        raise ValueError(f"best is {best} and repeats {repeats}; at least one plan is timed at least once")
    itemsize = jnp.dtype(dtype).itemsize
    plans = candidates(network, batch, backward, itemsize)[:best]
    if clock is None:
        seconds = _seconds(network, plans, batch, backward, dtype, repeats)
    else:
        seconds = [clock(plan) for plan in plans]
    fastest = plans[int(np.argmin(seconds))]
    use_plan(fastest, network, batch, backward=backward, itemsize=itemsize)
    return fastest


def _seconds(network: Network, plans, batch: int, backward: bool, dtype, repeats: int) -> list[float]:
    tensor = initialise(jax.random.key(0), network, dtype=dtype)
    x = jnp.ones((batch, network.matrix_shape[1]), dtype)
    compiled = []
    for plan in plans:

        def product(cores, x, plan=plan):
            return matvec(Factored(network, cores), x, plan)

        def gradient(cores, x, product=product):
            y, pull = jax.vjp(product, cores, x)
            return pull(y)

        compiled.append(jax.jit(gradient if backward else product).lower(tensor.cores, x).compile())
        jax.block_until_ready(compiled[-1](tensor.cores, x))  # the first call also loads
    rounds = np.empty((repeats, len(compiled)))
    for turn in range(repeats):
        for k, run in enumerate(compiled):
            start = time.perf_counter()
            jax.block_until_ready(run(tensor.cores, x))
            rounds[turn, k] = time.perf_counter() - start
    return np.median(rounds, axis=0).tolist()
