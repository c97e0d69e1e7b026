"""What a computation costs in measured time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def latency(function: Callable[..., Any], *args: Any, repeats: int = 20, warmup: int = 2) -> float:
    """Median seconds of `function(*args)` until its arrays are there, after `warmup` calls that compile."""
    import jax

    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats is {repeats} and warmup {warmup}; at least 1 and 0 are needed")
    for _ in range(warmup):
        jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return statistics.median(times)
