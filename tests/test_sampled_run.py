"""Small sampled runs from end to end: what they leave behind, and that a stop anywhere changes no draw."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from bayestensor.data import load_dataset
from bayestensor.experiment import config, folder, run, sampling
from bayestensor.experiment.progress import Silent
from bayestensor.experiment.saved import load_run
from bayestensor.inference import checkpoint
from bayestensor.inference.draws import Draws, piece_path
from bayestensor.metrics import classification
from bayestensor.ranks.explore import rank_posterior
from bayestensor.ranks.mass import prune_draws, select_by_mass

pytestmark = pytest.mark.promoting  # Optax: a float to the power of a whole number of steps

SMALL = {
    "name": "small",
    "data": {"name": "digits", "validation": 0.1, "scaling": "standard"},
    "model": {"name": "mlp", "hidden": [16], "rank": 4, "activation": "gelu"},
    "prior": {"name": "log_uniform"},
    "engine": {
        "name": "sghmc",
        "start": {"name": "map", "optimizer": {"name": "adam", "learning_rate": 0.02}},
        "chains": 2,
        "burn_in": 2,
        "epochs": 2,
        "draws": 6,
    },
    "train": {"epochs": 2, "batch_size": 128},
    "dense_twin": False,
}


def settings(engine=None, **sections):
    return config.build(SMALL | {"engine": SMALL["engine"] | (engine or {})} | sections)


class Stopped(Exception):
    """Stands for the end of a process."""


class StopAt(Silent):
    """Stops a run at its n-th event of a kind."""

    def __init__(self, kind, number):
        self.kind, self.left = kind, number

    def count(self, kind):
        self.left -= kind == self.kind
        if self.left == 0:
            raise Stopped

    def sampled(self, steps):
        self.count("sampled")

    def drawn(self, record):
        self.count("drawn")


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Two draws a visit to the host, a checkpoint after each."""
    before = sampling.CHUNKS, sampling.SECONDS_PER_CHECKPOINT
    sampling.CHUNKS, sampling.SECONDS_PER_CHECKPOINT = 3, 0.0
    yield
    sampling.CHUNKS, sampling.SECONDS_PER_CHECKPOINT = before


@pytest.fixture(scope="module")
def finished(small_chunks, tmp_path_factory):
    """A finished run: (folder, summary)."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    summary = run.run(settings(), out)
    return folder.open_run(out), summary


@pytest.fixture(autouse=True)
def no_figures(finished, monkeypatch):
    monkeypatch.setattr(run, "write_report", lambda run_dirs: None)


def what_stays(path):
    """What must not depend on how often a run was stopped."""
    newest = checkpoint.latest(path / "sampling")
    files = [*sorted((path / "draws").iterdir()), path / "sampling.jsonl", path / "model.npz", newest / "arrays.npz"]
    return {file.name: file.read_bytes() for file in files}


def test_the_summary_says_what_the_draws_say(finished):
    """Scores of the mixture, recomputed from the draws on disk by the metrics' own functions."""
    run_folder, summary = finished
    saved, data = load_run(run_folder.path), load_dataset("digits")
    draws = saved.draws()
    assert draws.shape == (2, 6) == (summary["sampling"]["members"], summary["sampling"]["draws"])
    assert sorted(path.name for path in run_folder.draws.iterdir()) == [
        piece_path(run_folder.draws, first).name for first in (0, 2, 4)
    ]
    spec = saved.spec
    x = (data.x_test.reshape(360, 64) - spec["scaling"]["shift"]) / spec["scaling"]["scale"]
    log_p = draws.map(lambda position: jax.nn.log_softmax(saved.model.apply(position, x.astype(np.float32))))
    log_p = log_p.reshape(12, 360, 10)
    both = classification.log_likelihood(log_p, data.y_test)
    np.testing.assert_allclose(
        [-both.mixture, -both.members], [summary["test_nll"], summary["test_nll_members"]], rtol=1e-4
    )
    probabilities = np.exp(classification.mixture(log_p))
    assert classification.accuracy(probabilities, data.y_test) == summary["test_accuracy"]
    np.testing.assert_allclose(saved.predict(data.x_test), probabilities, atol=1e-5)
    np.testing.assert_allclose(classification.brier(probabilities, data.y_test), summary["test_brier"], rtol=1e-4)
    ranks = json.loads(
        json.dumps(rank_posterior(saved.model, Draws.load(run_folder.draws, like=draws.positions)).to_dict())
    )
    assert ranks == summary["sampling"]["rank_posterior"]
    assert summary["params_stored"] == 12 * summary["params_final"] == sum(a.size for a in saved.arrays.values())
    assert summary["sampling"]["start"]["params"] >= summary["params_final"]
    assert summary["sampling"]["verdict"]["converged"] in (True, False)
    assert 0.5 < summary["sampling"]["kinetic_temperature"] < 2


def test_the_report_shows_verdict_and_ranks(finished):
    page = (finished[0].path / "report.html").read_text()
    for fragment in ("Posterior over ranks", "mixture of draws", "parameters stored in all", "R-hat"):
        assert fragment in page
    assert (finished[0].path / "figures" / "rank_posterior.png").is_file()


STOPS = {"in burn-in": ("sampled", 1), "after the first draws": ("drawn", 1), "before the last draws": ("sampled", 6)}


@pytest.mark.parametrize("when", STOPS)
def test_a_stop_changes_no_draw(finished, tmp_path, when):
    """Between two checkpoints too: files of draws that no checkpoint knows are written again, bit for bit."""
    with pytest.raises(Stopped):
        run.run(settings(), tmp_path / "run", progress=StopAt(*STOPS[when]))
    assert not (tmp_path / "run" / "summary.json").exists()
    run.resume(tmp_path / "run")
    assert what_stays(tmp_path / "run") == what_stays(finished[0].path)


def test_a_damaged_piece_or_a_missing_one_is_seen(finished, tmp_path):
    pieces = sorted(finished[0].draws.iterdir())
    for path in pieces:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / pieces[1].name).unlink()
    with pytest.raises(ValueError, match="draw 2 is missing"):
        Draws.load(tmp_path)
    content = bytearray(pieces[1].read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / pieces[1].name).write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        Draws.load(tmp_path)
    (tmp_path / pieces[1].name).write_bytes(pieces[1].read_bytes())
    (tmp_path / pieces[2].name).unlink()
    with pytest.warns(UserWarning, match="4 of 6 draws"):
        assert Draws.load(tmp_path).shape == (2, 4)


def test_draws_cut_by_posterior_mass_predict_alike(finished):
    """Two dead slices are put into every draw: they go, and no prediction moves."""
    saved = load_run(finished[0].path)
    draws, model = saved.draws(), saved.model
    name, bond = "layers.0", "b1"
    where = next(core for core in model.networks[name].cores if bond in core.legs)

    def deadened(position):
        cores = {layer: dict(tensor.cores) for layer, tensor in model.tensors(position).items()}
        mask = np.ones(cores[name][where.name].shape, np.float32)
        mask[tuple(slice(2, None) if leg == bond else slice(None) for leg in where.legs)] = 1e-7
        cores[name][where.name] = cores[name][where.name] * mask
        return model.with_tensors(position, cores, model.log_scales(position))

    dead = Draws(draws.map(deadened), draws.stats)
    found = select_by_mass(model, dead, 0.05)
    assert found.ranks[name][bond] == 2
    pruned = prune_draws(model, dead, found)
    x = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    before, after = (one.map(lambda position: model.apply(position, x)) for one in (dead, pruned))
    np.testing.assert_allclose(after, before, atol=2e-5 * np.abs(before).max())
