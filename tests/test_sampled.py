"""Small sampled runs from end to end: one key switches the engine, kills change nothing, no key is used twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import yaml

from bayestensor.experiment import config, run
from bayestensor.inference.draws import Draws

pytestmark = pytest.mark.promoting  # Optax: a float to the power of a whole number of steps

START = {"name": "map", "optimizer": {"name": "adam", "learning_rate": 0.02}}
SHORT = {"start": START, "burn_in": 1, "epochs": 2, "draws": 4}
SMALL = {
    "name": "small",
    "data": {"name": "digits", "scaling": "standard"},
    "model": {"name": "mlp", "hidden": [16], "rank": 4, "activation": "gelu"},
    "prior": {"name": "log_uniform"},
    "train": {"epochs": 2, "batch_size": 128, "evaluate_every": 2},
    "prune": {"epochs": [1], "threshold": 0.2},
    "dense_twin": False,
}
ENGINES = {
    "sghmc": {"chains": 2, **SHORT},
    "sgld": {"chains": 2, **SHORT},
    "svgd": {"particles": 3, "step_size": 0.01, **SHORT},
    "variational": {"chains": 2, **SHORT},
}


def raw(name):
    return SMALL | {"engine": {"name": name} | ENGINES[name]}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Drawing takes longer than sampling here."""
    monkeypatch.setattr(run, "write_report", lambda run_dirs: None)


def what_was_drawn(out):
    """What must not depend on how often a run was stopped."""
    pieces = {path.name: path.read_bytes() for path in (out / "draws").iterdir()}
    scores = json.loads((out / "summary.json").read_text())
    return pieces, {name: value for name, value in scores.items() if name.startswith("test_")}


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_leaves_its_draws_and_the_scores_of_their_mixture(name, tmp_path):
    with jax.debug_key_reuse(True):
        summary = run.run(config.build(raw(name)), tmp_path / "run")
    draws = Draws.load(tmp_path / "run")
    members = ENGINES[name].get("chains") or ENGINES[name]["particles"]
    assert draws.shape == (members, 4)
    size = sum(np.asarray(x).size for x in jax.tree.leaves(draws.position["weights"])) / (members * 4)
    assert size == summary["params_final"]
    assert summary["params_stored"] >= members * 4 * size
    # the logarithm is concave: a mixture is at least as good as its members are on average
    assert np.isfinite(summary["test_nll"])
    assert summary["test_nll"] <= summary["test_nll_members"] + 1e-6
    assert summary["test_accuracy"] > 0.5  # of ten classes, after two epochs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sghmc", "svgd"])
def test_kills_change_nothing(name, tmp_path):
    """SIGKILL when the first draws are written, and up to 0.5 s into the run that goes on; then it finishes."""
    settings = raw(name)
    settings["engine"] |= {"epochs": 20, "draws": 40}
    whole, out, path = tmp_path / "whole", tmp_path / "run", tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    run.run(config.build(settings), whole)

    def process(*arguments):
        code = "from bayestensor.cli import main; main()"
        return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.PIPE, text=True)

    def pieces():
        return len(list((out / "draws").glob("draws-*.npz"))) if (out / "draws").exists() else 0

    rng, arguments = random.Random(0), ("run", path, "--out", out)
    for wanted in (1, 3):
        started, until = process(*arguments), time.monotonic() + 120
        while pieces() < wanted:
            assert started.poll() is None and time.monotonic() < until, started.communicate()
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(started.pid, signal.SIGKILL)
        started.communicate()
        assert not (out / "summary.json").exists()
        arguments = ("resume", out)
    last = process(*arguments)
    _, errors = last.communicate(timeout=200)
    assert last.returncode == 0, errors
    assert what_was_drawn(out) == what_was_drawn(whole)
