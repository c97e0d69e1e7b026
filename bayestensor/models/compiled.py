"""Programs that compile quickly: what a user waits for before the first result."""

from __future__ import annotations

from functools import partial

import jax

# Sweeps spend their time in LAPACK and matrix products, which no code generation makes faster, and compile once for
# each shape of data. Without the fusion emitters, at LLVM's lowest level that still optimises, one of CP takes 2.8 s of
# CPU to compile in place of 5.4, and as long to run. (Level 0 compiles in 1.1 s and runs half as fast.)
quick_jit = partial(
    jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
)
