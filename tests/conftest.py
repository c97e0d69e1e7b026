from __future__ import annotations

import jax
import pytest

# Modules whose slow tests run under JAX's check that no key is used twice: all that draw by our engines. Not the fast ones:
# under the check nothing dispatches from JAX's cache, and a test takes several times as long.
KEYS_CHECKED = {"test_engines", "test_every_engine", "test_sampled_run"}


def pytest_configure(config):
    config.addinivalue_line("markers", "promoting: runs third-party code that relies on dtype or rank promotion")


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
