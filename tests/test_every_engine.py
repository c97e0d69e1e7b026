"""Every engine from a config, end to end: runs, is killed and goes on to the same draws, reports, predicts, exports."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import scipy.special
import yaml

from bayestensor.data import load_dataset
from bayestensor.experiment import config, engines, folder, model_file, predict, run, sampling, saved
from bayestensor.experiment.export import export
from bayestensor.inference import checkpoint

pytestmark = [pytest.mark.promoting, pytest.mark.slow]  # Optax: a float to the power of a whole number of steps

SMALL = {
    "name": "small",
    "data": {"name": "digits", "scaling": "standard"},
    "model": {"name": "mlp", "hidden": [16], "rank": 3, "activation": "gelu"},
    "prior": {"name": "half_cauchy"},
    "train": {"epochs": 2, "batch_size": 128},
    "dense_twin": False,
}
MAP = {"name": "map", "optimizer": {"name": "adam", "learning_rate": 0.02}}
PRIOR = {"name": "prior"}
SHORT = {"burn_in": 1, "epochs": 2, "draws": 8}
CUTS = {"epochs": [1], "threshold": 0.2}

# name -> (engine section, members, draws of each)
ENGINES = {
    "map": (MAP, 1, 1),
    "sghmc": ({"name": "sghmc", "start": MAP, "starts": 2, "chains": 2, "scale_draws": 3, **SHORT}, 2, 8),
    "sghmc, prior start": ({"name": "sghmc", "start": PRIOR, "chains": 2, **SHORT}, 2, 8),
    "sgld": ({"name": "sgld", "start": MAP, "chains": 2, **SHORT}, 2, 8),
    "svgd": ({"name": "svgd", "start": MAP, "particles": 3, **SHORT}, 3, 8),
    "svgd, prior start": ({"name": "svgd", "start": PRIOR, "particles": 3, **SHORT}, 3, 8),
    "nuts": ({"name": "nuts", "start": MAP, "chains": 2, **SHORT, "epochs": 8, "max_doublings": 2}, 2, 8),
    "variational": ({"name": "variational", "start": MAP, "burn_in": 2, "draws": 8}, 1, 8),
    "ensemble": ({"name": "ensemble", "start": MAP, "members": 3}, 3, 1),
}
every_engine = pytest.mark.parametrize("name", ENGINES)


def raw(name):
    section = ENGINES[name][0]
    return SMALL | {"engine": section, "prune": CUTS if section.get("start") != PRIOR else {}}


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """What one run compiles the next one and its processes need not; a checkpoint after every draw."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options} | {"seconds": sampling.SECONDS_PER_CHECKPOINT}
    for name, value in options.items():
        jax.config.update(name, value)
    sampling.SECONDS_PER_CHECKPOINT = 0.0
    yield options
    sampling.SECONDS_PER_CHECKPOINT = before.pop("seconds")
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def finished(compiled_once, tmp_path_factory):
    """name -> (folder, summary) of a run without a stop."""

    @functools.cache
    def make(name):
        out = tmp_path_factory.mktemp("runs") / "run"
        summary = run.run(config.build(raw(name)), out)
        return folder.open_run(out), summary

    return make


def test_the_table_lists_every_engine_and_start():
    assert {section["name"] for section, *_ in ENGINES.values()} == set(engines.ENGINES)
    starts = {section["start"]["name"] for section, *_ in ENGINES.values() if "start" in section}
    assert starts == set(engines.STARTS)


@every_engine
def test_it_leaves_a_summary_a_report_and_its_draws(finished, name):
    (run_folder, summary), (section, members, draws) = finished(name), ENGINES[name]
    assert np.isfinite(summary["test_nll"]) and 0 <= summary["test_ece"] <= 1
    page = (run_folder.path / "report.html").read_text()
    assert section["name"].upper() in page or section["name"] == "map"
    count = sum(array.size for array in saved.load_run(run_folder.path).arrays.values())
    if section["name"] == "map":
        assert "sampling" not in summary and count == summary["params_final"]
        return
    assert (summary["sampling"]["members"], summary["sampling"]["draws"]) == (members, draws)
    assert count == summary["params_stored"] == members * draws * summary["params_final"]
    assert (summary["sampling"]["start"] is None) == (section["start"] == PRIOR)
    assert summary["test_nll"] <= summary["test_nll_members"] + 1e-6  # the logarithm is concave
    if section["start"] != PRIOR:
        assert summary["test_accuracy"] > 0.3  # of ten classes, after two epochs


@every_engine
def test_loaded_and_exported_it_predicts_what_was_scored(finished, name, tmp_path):
    """Three readers of the model file, and of a sampled run the draws themselves, against the summary's scores."""
    (run_folder, summary), data = finished(name), load_dataset("digits")
    loaded = saved.load_run(run_folder.path)
    p = loaded.predict(data.x_test)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    picked = np.arange(360), data.y_test
    assert abs((p.argmax(1) == data.y_test).mean() - summary["test_accuracy"]) < 1.5 / 360  # a tie may fall either way
    if run_folder.draws.is_dir():
        x = data.x_test.reshape(360, 64).astype(np.float32) - np.asarray(loaded.spec["scaling"]["shift"], np.float32)
        x = x / np.float32(loaded.spec["scaling"]["scale"])
        each = loaded.draws().map(lambda position: jax.nn.log_softmax(loaded.model.apply(position, x)))
        np.testing.assert_allclose(np.exp(each).mean((0, 1)), p, atol=2e-5)
        log_p = scipy.special.logsumexp(each, axis=(0, 1)) - np.log(each.shape[0] * each.shape[1])
    else:
        log_p = np.log(p)
    # a network drawn from the prior can be so sure of a wrong class that its probability is 0 in floats: compare logs
    np.testing.assert_allclose(-log_p[picked].mean(), summary["test_nll"], rtol=1e-3)
    out = export(run_folder.path, tmp_path / "out")
    np.testing.assert_allclose(predict.probabilities(*predict.load(out), data.x_test), p, atol=2e-5)
    program = jax.export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    logits = np.asarray(program.call(data.x_test.reshape(360, 64).astype(np.float32)))
    np.testing.assert_allclose(predict.softmax(logits), p, atol=2e-5)
    assert model_file.load_model(out / "model")[0].get("members") == loaded.spec.get("members")


def what_stays(path):
    """What must not depend on how often a run was stopped."""
    newest = [checkpoint.latest(path / name) for name in ("checkpoints", "sampling") if (path / name).exists()]
    files = [path / "model.npz", path / "metrics.jsonl", *(folder / "arrays.npz" for folder in newest)]
    files += [*sorted(path.glob("draws/*")), *sorted(path.glob("pruned/*")), *path.glob("sampling.jsonl")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@every_engine
def test_a_kill_changes_nothing(finished, compiled_once, name, tmp_path):
    """SIGKILL at a random moment within 0.3 s after the first files of the last stage; then the run goes on."""
    out, path = tmp_path / "run", tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(raw(name)))
    code = "from bayestensor.experiment import sampling; sampling.SECONDS_PER_CHECKPOINT = 0.0; "
    command = [sys.executable, "-c", code + "from bayestensor.cli import main; main()", "run", path, "--out", out]
    environment = os.environ | {key.upper(): str(value) for key, value in compiled_once.items()}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)
    first = {"map": "checkpoints/step-*", "ensemble": "starts/1/checkpoints/step-*"}.get(name, "draws/draws-*")
    until = time.monotonic() + 120
    while not any(out.glob(first)):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.002)
    time.sleep(random.Random(name).uniform(0, 0.3))
    process.kill()
    process.communicate()
    assert not (out / "summary.json").exists()
    run.resume(out)
    assert what_stays(out) == what_stays(finished(name)[0].path)
