from __future__ import annotations

import os
import signal

import jax
import numpy as np
import pytest
from completing import FAST

# Modules whose slow tests run under JAX's check that no key is used twice: all that draw by our engines. Not the fast ones:
# under the check nothing dispatches from JAX's cache, and a test takes several times as long.
KEYS_CHECKED = {"test_engines", "test_every_engine", "test_sampled_run"}


# Most of the fast tests' time is XLA's: it compiles small programs that run once. These halve it and change rounding only.
# The slow tests, those of whole runs among them, compile as users do.
QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"


def pytest_configure(config):
    config.addinivalue_line("markers", "promoting: runs third-party code that relies on dtype or rank promotion")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.markexpr == "not slow":
        os.environ.setdefault("XLA_FLAGS", QUICK_TO_COMPILE)
    # a program that another test, worker or session compiled is read from disk
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def no_key_twice(request):
    """A key used twice is an error."""
    if request.module.__name__ not in KEYS_CHECKED or not request.node.get_closest_marker("slow"):
        yield
        return
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """No silent float32 + float64, no silent (3,) + (2, 3), unless the test is marked `promoting`."""
    if request.node.get_closest_marker("promoting"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """64-bit floats for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def completed():
    """(tensor of rank 2, it behind noise, which entries are seen, these alone, a completion of them)."""
    from bayestensor.estimators import TensorCompletion

    rng = np.random.default_rng(0)
    factors = [rng.normal(size=(n, 2)) for n in (12, 10, 8)]
    truth = np.einsum("ir,jr,kr->ijk", *factors)
    noisy = truth + 0.1 * rng.normal(size=truth.shape)
    observed = rng.random(truth.shape) > 0.5
    holed = np.where(observed, noisy, np.nan)
    return truth, noisy, observed, holed, TensorCompletion(**FAST).fit(holed)
