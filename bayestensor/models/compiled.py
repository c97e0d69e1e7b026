"""Programs that compile quickly: what a user waits for before the first result."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

import jax
from threadpoolctl import threadpool_limits

P = ParamSpec("P")
Item = TypeVar("Item")
Result = TypeVar("Result")
AnyArray: TypeAlias = Any  # an array: NumPy's on the host, where each operation would be a program; JAX's inside one

# Sweeps spend their time in LAPACK and matrix products, which no code generation makes faster, and compile once for
# each shape of data. Without the fusion emitters, at LLVM's lowest level that still optimises, one of CP takes 2.8 s of
# CPU to compile in place of 5.4, and as long to run. (Level 0 compiles in 1.1 s and runs half as fast.)
quick_jit = partial(
    jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
)


@contextmanager
def closed_form() -> Iterator[None]:
    """64 bits, and LAPACK on one thread, whose own are of no use for systems of tens of unknowns, thousands a sweep.

    They wait for each other by spinning: beside other work on two cores a fit that takes 14 seconds on one thread had
    not ended after 100 on two.
    """
    with jax.enable_x64(True), threadpool_limits(limits=1, user_api="blas"):
        yield


_asking = threading.Lock()


def asked_in_turn(program: Callable[P, Result]) -> Callable[P, Result]:
    """The compiled function, called by one thread at a time: no two compile the same. They run side by side."""

    @wraps(program)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        with _asking:
            return program(*args, **kwargs)

    return call


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[function(item) for item in items]` in 64 bits, in as many threads as there are processors.

    What a thread computes must not depend on the others: each chain has random numbers of its own.
    """

    def run(item: Item) -> Result:
        with jax.enable_x64(True):  # a thread's own
            return function(item)

    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if min(processors, len(items)) <= 1:
        return [run(item) for item in items]
    with ThreadPoolExecutor(min(processors, len(items))) as pool:
        return list(pool.map(run, items))
