"""Programs that compile quickly: what a user waits for before the first result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import jax
from threadpoolctl import threadpool_limits

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
