"""Chains, particles and members shared out among 8 virtual devices: the same draws as on one.

Run as a script, this file writes what it draws on the devices that the process has.
"""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayestensor.inference.base import Posterior
from bayestensor.inference.ensemble import ensemble
from bayestensor.inference.map import map_estimate
from bayestensor.inference.parallel import num_devices, over
from bayestensor.inference.sample import jitter, sample
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.svgd import svgd

DEVICES = 8
X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
DATA = (X, X @ np.array([1.0, -1.0, 0.5], np.float32) + np.float32(0.3))
POINT = {"bias": jnp.zeros(()), "weight": jnp.zeros(3)}
POSTERIOR = Posterior(
    lambda p: -0.5 * sum((x**2).sum() for x in jax.tree.leaves(p)),
    lambda p, batch: -2.0 * (batch[1] - batch[0] @ p["weight"] - p["bias"]) ** 2,
    num_data=64,
)

# name -> (engine, stacked as one chain?, parallel, largest difference). One chain after the other does the same
# arithmetic wherever it runs. Side by side, and where particles are summed over, the order of additions may differ: 30
# steps on a well-conditioned target carry that on without growth (measured: 5e-7). A member that ran with another's key
# or batch would differ by about its posterior sd, 0.06.
SUBJECTS = {
    "sghmc, one after the other": (lambda: sghmc(POSTERIOR, burn_in=20), False, "map", 0.0),
    "sghmc, side by side": (lambda: sghmc(POSTERIOR, burn_in=20), False, "vmap", 1e-5),
    "svgd": (lambda: svgd(POSTERIOR, burn_in=20, parallel="vmap"), True, "vmap", 1e-5),
    "ensemble": (lambda: ensemble(map_estimate(POSTERIOR, optax.adam(0.05)), parallel="map"), True, "map", 0.0),
}
pytestmark = [pytest.mark.promoting, pytest.mark.slow]


def drawn(name) -> np.ndarray:
    """[member, draw, 3]."""
    make, stacked, parallel, _ = SUBJECTS[name]
    starts = jitter(jax.random.key(3), jax.tree.map(lambda x: x + 0.1, POINT), DEVICES, 0.5)
    if stacked:
        starts = jax.tree.map(lambda x: x[None], starts)
    settings = {"draws": 5, "burn_in": 20, "thin": 2, "batch_size": 16, "parallel": parallel}
    weight = sample(make(), jax.random.key(0), starts, DATA, **settings)[0].positions["weight"]
    return np.moveaxis(weight[0], 1, 0) if stacked else weight


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What one device draws, and what eight draw."""
    path = tmp_path_factory.mktemp("devices") / "drawn.npz"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    command = [sys.executable, __file__, str(path)]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(path) as eight:
        assert eight["devices"] == DEVICES
        return {name: drawn(name) for name in SUBJECTS}, dict(eight)


@pytest.mark.parametrize("name", SUBJECTS)
def test_eight_devices_draw_what_one_draws(both, name):
    one, eight = (found[name] for found in both)
    np.testing.assert_allclose(eight, one, rtol=0, atol=SUBJECTS[name][3])
    assert one.shape == (DEVICES, 5, 3)
    assert len(np.unique(one.reshape(DEVICES, -1).round(5), axis=0)) == DEVICES  # members differ


def test_members_take_the_devices_that_divide_their_number(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: DEVICES)
    assert [num_devices(n) for n in (1, 4, 12, 16, 7)] == [1, 4, 4, 8, 1]
    with pytest.raises(ValueError, match=r"parallel = .rows.; .auto., .vmap. or"):
        over(lambda x: x, "rows")


if __name__ == "__main__":
    np.savez(sys.argv[1], devices=jax.local_device_count(), **{name: drawn(name) for name in SUBJECTS})
