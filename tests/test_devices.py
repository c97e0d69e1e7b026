"""Chains, particles and members shared out among 8 virtual devices: the same draws as on one.

Run as a script, this file writes what it draws on the devices that the process has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayestensor.experiment import config, run
from bayestensor.inference.base import Posterior
from bayestensor.inference.draws import Draws
from bayestensor.inference.ensemble import ensemble
from bayestensor.inference.map import map_estimate
from bayestensor.inference.parallel import num_devices, over
from bayestensor.inference.sample import jitter, sample
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.svgd import svgd

DEVICES = 8
X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
DATA = (jnp.asarray(X), jnp.asarray(X @ np.array([1.0, -1.0, 0.5], np.float32) + 0.3))
POSTERIOR = Posterior(
    lambda p: -0.5 * sum((x**2).sum() for x in jax.tree.leaves(p)),
    lambda p, batch: -2.0 * (batch[1] - batch[0] @ p["weight"] - p["bias"]) ** 2,
    num_data=64,
)
ADAM = optax.adam(0.05)

# name -> (engine, stack of starts? [chain, member, ...], parallel, largest difference). One chain after the other does
# the same arithmetic wherever it runs. Side by side, and where particles are summed over, only the order of additions
# may differ: 40 steps of a well-conditioned target carry that on without growth; a chain that ran with another's key
# or batch would differ by its posterior sd, 0.05.
SUBJECTS = {
    "sghmc, one after the other": (lambda: sghmc(POSTERIOR, burn_in=20), (8,), "map", 0.0),
    "sghmc, side by side": (lambda: sghmc(POSTERIOR, burn_in=20), (8,), "vmap", 1e-5),
    "svgd": (lambda: svgd(POSTERIOR, burn_in=20), (1, 8), "auto", 1e-5),
    "two chains of svgd": (lambda: svgd(POSTERIOR, burn_in=20), (2, 4), "auto", 1e-5),
    "ensemble": (lambda: ensemble(map_estimate(POSTERIOR, ADAM), parallel="map"), (1, 8), "auto", 0.0),
}
RUN = {
    "name": "small",
    "data": {"name": "digits", "scaling": "standard"},
    "model": {"name": "mlp", "hidden": [16], "rank": 6, "activation": "gelu"},
    "engine": {"name": "sghmc", "chains": 4, "burn_in": 1, "epochs": 1, "draws": 3},
    "train": {"epochs": 1, "batch_size": 128},
    "dense_twin": False,
}
pytestmark = [pytest.mark.promoting, pytest.mark.slow]


def drawn(name) -> np.ndarray:
    make, shape, parallel, _ = SUBJECTS[name]
    point = {"bias": jnp.full((), 0.1), "weight": jnp.full(3, 0.1)}
    starts = jitter(jax.random.key(3), point, int(np.prod(shape)), 0.5)
    starts = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), starts)
    settings = {"draws": 5, "burn_in": 30, "thin": 2, "batch_size": 16, "parallel": parallel}
    return sample(make(), jax.random.key(0), starts, DATA, **settings)[0].positions["weight"]


def run_of_a_config(folder) -> dict[str, np.ndarray]:
    run.write_report = lambda run_dirs: None
    summary = run.run(config.build(RUN), folder / "run")
    leaves = jax.tree.leaves(Draws.load(folder / "run" / "draws").positions)
    return {f"run {k}": leaf for k, leaf in enumerate(leaves)} | {"devices": summary["sampling"]["devices"]}


def everything() -> dict[str, np.ndarray]:
    with TemporaryDirectory() as folder:
        return {name: drawn(name) for name in SUBJECTS} | run_of_a_config(Path(folder))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What one device draws, and what eight draw."""
    path = tmp_path_factory.mktemp("devices") / "drawn.npz"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    command = [sys.executable, __file__, str(path)]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(path) as eight:
        return everything(), dict(eight)


@pytest.mark.parametrize("name", SUBJECTS)
def test_eight_devices_draw_what_one_draws(both, name):
    one, eight = (found[name] for found in both)
    np.testing.assert_allclose(eight, one, rtol=0, atol=SUBJECTS[name][3])
    flat = one.reshape(8, -1) if one.ndim == 3 else np.moveaxis(one, 2, 1).reshape(8, -1)
    assert len(np.unique(flat.round(4), axis=0)) == 8  # members differ


def test_a_run_of_a_config_uses_the_devices_and_draws_the_same_bits(both):
    one, eight = both
    assert (one["devices"], eight["devices"]) == (1, 4)  # 4 chains
    for name in one:
        if name.startswith("run "):
            np.testing.assert_array_equal(eight[name], one[name])


def test_members_take_the_devices_that_divide_their_number(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: DEVICES)
    assert [num_devices(n) for n in (1, 4, 12, 16, 7)] == [1, 4, 4, 8, 1]
    with pytest.raises(ValueError, match=r"parallel = .rows.; .auto., .vmap. or"):
        over(lambda x: x, "rows")


if __name__ == "__main__":
    np.savez(sys.argv[1], **everything())
