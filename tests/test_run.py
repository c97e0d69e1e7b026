"""One small run from end to end: what it leaves behind, how it ends, and that a stop anywhere changes nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from bayestensor import cli
from bayestensor.errors import ConfigError, DataError, RunError
from bayestensor.experiment import build, config, folder, measure, pruning, run, session
from bayestensor.experiment.config import Prune
from bayestensor.experiment.progress import Silent
from bayestensor.inference import checkpoint
from bayestensor.ranks import select
from bayestensor.tensor.plan import matvec_flops

pytestmark = pytest.mark.promoting  # Optax: a float to the power of a whole number of steps

# 10 steps an epoch; epochs 1 and 3 cut and, like 2 and 4, are measured
SMALL = {
    "name": "small",
    "data": {"name": "digits", "validation": 0.1, "scaling": "standard"},
    "model": {"name": "mlp", "hidden": [16], "rank": 6, "activation": "gelu"},
    "prior": {"name": "log_uniform"},
    "engine": {"name": "map", "optimizer": {"name": "adam", "learning_rate": 0.02}},
    "train": {"epochs": 4, "batch_size": 128, "evaluate_every": 2},
    "prune": {"epochs": [1, 3], "threshold": 0.2},
    "dense_twin": False,
}
PRUNED_AT, STEPS = (1, 3), 10


def settings(**sections):
    """SMALL with some keys of some sections replaced."""
    raw = {key: value | sections.pop(key, {}) if isinstance(value, dict) else value for key, value in SMALL.items()}
    return config.build(raw | sections)


class Heard(Silent):
    """Remembers what was said."""

    def __init__(self):
        self.lines, self.records = [], []

    def said(self, line):
        self.lines.append(line)

    def evaluated(self, record):
        self.records.append(record)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Runs of one shape compile once; their processes too (see `command`)."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield options
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def finished(compiled_once, tmp_path_factory):
    """A finished run with its dense twin: (folder, summary, what it said)."""
    out, heard = tmp_path_factory.mktemp("runs") / "finished", Heard()
    summary = run.run(settings(dense_twin=True), out, progress=heard)
    return folder.open_run(out), summary, heard


@pytest.fixture(autouse=True)
def no_figures(finished, monkeypatch):
    """Only `finished` has a real report: drawing takes longer than training here."""

    def write_report(run_dirs):
        (run_dirs[0] / "report.html").write_text(str(json.loads((run_dirs[0] / "summary.json").read_text())["name"]))

    monkeypatch.setattr(run, "write_report", write_report)


def final_bytes(path):
    """What must not depend on how often a run was stopped."""
    newest = checkpoint.latest(path / "checkpoints")
    files = [path / "metrics.jsonl", path / "model.npz", path / "model.json", newest / "arrays.npz"]
    return {file.name: file.read_bytes() for file in files} | {"checkpoint": newest.name}


def arrays_of(path):
    with np.load(path / "model.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


# --- what is left behind ------------------------------------------------------------------------------------------


def test_the_folder_holds_what_it_should(finished):
    path = finished[0].path
    names = {entry.name for entry in path.iterdir()}
    assert names == {
        *("config.yaml", "manifest.json", "metrics.jsonl", "plans.json", "summary.json", "report.html"),
        *("model.npz", "model.json", "checkpoints", "figures", "twin"),
    }
    assert any((path / "figures").glob("*.png"))
    assert len(list((path / "checkpoints").iterdir())) == 3
    assert config.load(path / "config.yaml") == settings(dense_twin=True)
    assert not [entry for entry in path.rglob(".*")]  # nothing half-written


def test_the_summary_says_what_the_files_hold(finished):
    run_folder, summary, _ = finished
    assert json.loads(run_folder.summary_file.read_text()) == summary
    arrays = arrays_of(run_folder.path)
    count = sum(array.size for array in arrays.values())
    assert summary["params_final"] == count < summary["params_initial"]
    assert summary["params_dense"] == 64 * 16 + 16 + 16 * 10 + 10
    assert summary["compression"] == summary["params_dense"] / count
    size = (run_folder.path / "model.npz").stat().st_size
    assert summary["model_bytes"] == size
    assert 4 * count <= size <= 1.1 * 4 * count + 8192
    spec = json.loads((run_folder.path / "model.json").read_text())
    for layer in spec["layers"]:
        ranks = summary["ranks"][layer["name"]]
        assert ranks == {bond: layer["network"]["sizes"][bond] for bond in ranks}
    assert sum(layer["params_initial"] for layer in summary["layers"]) == summary["params_initial"]
    assert sum(layer["params_final"] for layer in summary["layers"]) == count
    assert 0 < summary["compile_seconds"] < summary["train_seconds"]
    assert 0 < summary["first_step_seconds"] < summary["train_seconds"]
    assert 0 <= summary["test_ece"] <= 1 and 0 <= summary["test_brier"] <= 2
    assert np.sum(summary["confusion"]) == 360
    assert np.trace(summary["confusion"]) == round(360 * summary["test_accuracy"])


def test_the_saved_model_predicts_what_was_measured(finished):
    from bayestensor.data import load_dataset
    from bayestensor.experiment.model_file import apply, load_model

    run_folder, summary, _ = finished
    data = load_dataset("digits")
    spec, arrays = load_model(run_folder.model_stem)
    x = data.x_test.reshape(360, 64).astype(np.float32)
    logits = np.asarray(jax.jit(lambda arrays, x: apply(spec, arrays, x))(arrays, x))
    log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    assert (log_p.argmax(1) == data.y_test).mean() == summary["test_accuracy"]
    np.testing.assert_allclose(-log_p[np.arange(360), data.y_test].mean(), summary["test_nll"], rtol=1e-5)


def test_metrics_hold_a_record_of_every_cut_and_every_evaluated_epoch(finished):
    run_folder, summary, heard = finished
    records = run_folder.metrics()
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["epoch"] for record in records if record["event"] == "pruned"] == list(PRUNED_AT)
    assert [record["step"] for record in records] == [STEPS * k for k in (1, 2, 3, 4)]
    assert json.loads(json.dumps(heard.records[:4])) == records
    parameters = [record["num_parameters"] for record in records]
    assert summary["params_initial"] > parameters[0] == parameters[1] >= parameters[2] == parameters[3]
    for record in records:
        for layer, bonds in record["ranks"].items():
            assert bonds == {bond: len(record["scales"][layer][bond]) for bond in bonds}
        assert 0 < record["validation_accuracy"] <= 1
        assert record["train_loss"] > record["train_nll"] or record["epoch"] > 1
    assert records[-1]["test_accuracy"] == summary["test_accuracy"]
    assert records[-1]["test_nll"] == summary["test_nll"]
    assert summary["before_pruning"]["epoch"] == 1
    assert records[-1]["train_nll"] < records[0]["train_nll"]


def test_a_run_between_measurements_is_not_measured(tmp_path):
    heard = Heard()
    run.run(settings(train={"epochs": 3, "evaluate_every": 2}, prune={"epochs": []}), tmp_path / "r", progress=heard)
    assert [record["epoch"] for record in heard.records] == [2, 3]  # the last one always


def test_patience_ends_training_where_held_out_data_are_told_best(tmp_path, monkeypatch):
    """Validation NLLs as given here: cuts after 1, best after 3, two no better; four epochs never run."""
    told = iter([0.1, 0.5, 0.4, 0.6, 0.4, 0.3])
    changed = settings(train={"epochs": 9, "evaluate_every": 1, "patience": 2}, prune={"epochs": [1]})
    measured = session.Session._measured
    monkeypatch.setattr(session.Session, "_measured", lambda self: measured(self) | {"validation_nll": next(told)})
    saved: dict[int, np.ndarray] = {}
    compare = session.Session._compare

    def noting(self, nll):
        saved[self.epoch] = np.asarray(self.position["weights"]["layers"][0]["kernel"]["cores"]["core0"])
        compare(self, nll)

    monkeypatch.setattr(session.Session, "_compare", noting)
    heard = Heard()
    run.run(changed, tmp_path / "r", progress=heard)
    assert [record["epoch"] for record in heard.records] == [1, 2, 3, 4, 5]
    assert heard.lines[-1] == "the model is that of epoch 3, whose validation NLL 0.4000 is lowest"
    with np.load(tmp_path / "r" / "model.npz") as found:
        np.testing.assert_array_equal(found["layers.0.core0"], saved[3])
        assert (found["layers.0.core0"] != saved[5]).any()
    flat, _ = checkpoint.load(checkpoint.latest(tmp_path / "r" / "checkpoints"))
    np.testing.assert_array_equal(flat["state/position/weights/layers/0/kernel/cores/core0"], saved[3])


def test_patience_needs_data_to_be_patient_with():
    with pytest.raises(ConfigError, match=r"train.patience: given 3 without held-out data; set data.validation"):
        settings(data={"validation": 0.0}, train={"patience": 3})


def test_the_dense_twin_is_a_run_of_its_own(finished):
    run_folder, summary, heard = finished
    twin = summary["dense_twin"]
    inner = folder.open_run(run_folder.path / "twin")
    assert twin["params"] == summary["params_dense"] == sum(a.size for a in arrays_of(inner.path).values())
    assert twin["test_accuracy"] == inner.summary()["test_accuracy"]
    assert inner.config().data == run_folder.config().data
    assert inner.config().train == run_folder.config().train
    assert inner.summary()["dense_twin"] is None and inner.summary()["before_pruning"] is None
    assert "training the dense twin" in heard.lines
    assert not (inner.path / "report.html").exists() and not (inner.path / "twin").exists()


def test_the_report_marks_the_cuts(finished):
    from bayestensor.experiment.run_record import read_run

    assert read_run(finished[0].path).cuts == list(PRUNED_AT)
    page = (finished[0].path / "report.html").read_text()
    assert "small" in page and f"{finished[1]['params_final']:,}" in page


# --- the same again -----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_does_not(finished, tmp_path):
    run.run(settings(), tmp_path / "again")
    assert final_bytes(tmp_path / "again") == final_bytes(finished[0].path)
    run.run(settings(seed=1, train={"epochs": 2}, prune={"epochs": []}), tmp_path / "other")
    first = (finished[0].path / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["train_nll"] != folder.open_run(tmp_path / "other").metrics()[0]["train_nll"]


class Stopped(Exception):
    """Stands for the end of a process."""


class StopAt(Silent):
    """Stops a run at its n-th event of a kind."""

    def __init__(self, kind, number):
        self.kind, self.left = kind, number

    def event(self, kind):
        self.left -= kind == self.kind
        if self.left == 0:
            raise Stopped

    def stepped(self, epoch, step):
        self.event("stepped")

    def evaluated(self, record):
        self.event("evaluated")


STOPS = {
    "in the first epoch": ("stepped", 3),
    "at the end of an epoch, not closed": ("stepped", 6),
    "after the first cut, not saved": ("evaluated", 1),
    "in the epoch after the first cut": ("stepped", 8),
    "after the last cut, not saved": ("evaluated", 3),
    "after the last epoch, not saved": ("evaluated", 4),
}


@pytest.mark.parametrize("when", STOPS)
def test_a_stop_changes_nothing(finished, tmp_path, monkeypatch, when):
    monkeypatch.setattr(session, "SECONDS_PER_CHECKPOINT", 0.0)  # within epochs, too
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        run.run(settings(), out, progress=StopAt(*STOPS[when]))
    assert not (out / "summary.json").exists()
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 10, "ep')  # what a kill may leave of a line
    before = checkpoint.load(checkpoint.latest(out / "checkpoints"))[1]
    summary = run.resume(out)
    assert final_bytes(out) == final_bytes(finished[0].path)
    timed = {"train_seconds", "compile_seconds", "first_step_seconds", "dense_twin"}
    assert {k: v for k, v in summary.items() if k not in timed} == {
        k: v for k, v in finished[1].items() if k not in timed
    }
    assert summary["train_seconds"] > before["seconds"]
    assert summary["compile_seconds"] >= before["compile_seconds"]


def test_a_full_disk_ends_with_one_line_and_room_lets_it_go_on(finished, tmp_path, monkeypatch):
    """The disk is full from the n-th flush on: at the folder's making, in a checkpoint, at the model file."""
    real, left = os.fsync, 0

    def fsync(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        return real(descriptor)

    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    for flushes in (0, 12):
        out, left = tmp_path / f"run{flushes}", flushes
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            result = CliRunner().invoke(cli.main, ["run", str(path), "--out", str(out)])
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1
        assert str(out) in result.stderr and "No space left on device" in result.stderr
    run.resume(out)
    assert final_bytes(out) == final_bytes(finished[0].path)


def test_a_twin_begun_and_not_yet_a_run_is_begun_again(finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(run, "dense_config", lambda config: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            run.run(settings(dense_twin=True), out)
    (out / "twin").mkdir()
    (out / "twin" / "manifest.json").write_text("{}")
    summary = run.resume(out)
    assert summary["dense_twin"]["test_accuracy"] == finished[1]["dense_twin"]["test_accuracy"]
    assert final_bytes(out / "twin") == final_bytes(finished[0].path / "twin")


def test_resuming_a_finished_run_trains_nothing(finished, monkeypatch):
    run_folder, summary, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run_folder.path.rglob("*")}
    monkeypatch.setattr(run, "Session", None)  # calling it would fail
    heard = Heard()
    assert run.resume(run_folder.path, progress=heard) == summary
    assert heard.lines == [f"{run_folder.path} is already finished"]
    assert {path: path.stat().st_mtime_ns for path in run_folder.path.rglob("*")} == before
    report = run_folder.path / "report.html"
    page = report.read_text()
    report.unlink()  # a stop between summary and report
    run.resume(run_folder.path)
    assert report.read_text() == "small"
    report.write_text(page)


# --- processes ----------------------------------------------------------------------------------------------------


def command(options, *arguments):
    environment = os.environ | {name.upper(): str(value) for name, value in options.items()}
    code = "from bayestensor.cli import main; main()"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, **pipes)


def wait_for_step(process, out: Path, step: int):
    """Until a checkpoint at or after a step is there."""
    names = {checkpoint.step_path(out, k).name for k in range(step, 100)}
    until = time.monotonic() + 120
    while not any(path.name in names for path in (out / "checkpoints").glob("step-*")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)


def test_ctrl_c_leaves_a_run_to_go_on_with(finished, compiled_once, tmp_path):
    path, out = tmp_path / "small.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(SMALL))
    process = command(compiled_once, "run", path, "--out", out)
    wait_for_step(process, out, 0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == f"stopped; go on with: bayestensor resume {out}"
    assert "Traceback" not in errors
    run.resume(out)
    assert final_bytes(out) == final_bytes(finished[0].path)


@pytest.mark.slow
def test_kills_change_nothing(finished, compiled_once, tmp_path):
    """SIGKILL up to 0.3 s after the start, after the first cut, and after the last; then the run is finished."""
    path, out = tmp_path / "small.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(SMALL))
    rng, arguments = random.Random(0), ("run", path, "--out", out)
    for step in (0, STEPS * PRUNED_AT[0], STEPS * PRUNED_AT[1]):
        process = command(compiled_once, *arguments)
        wait_for_step(process, out, step)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        arguments = ("resume", out)
    process = command(compiled_once, *arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert final_bytes(out) == final_bytes(finished[0].path)


# --- bad ends -----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_step_and_array(tmp_path):
    path, out = tmp_path / "small.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(SMALL))
    rate = "engine.optimizer.learning_rate=1e15"
    result = CliRunner().invoke(cli.main, ["run", str(path), rate, "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: step ") and result.stderr.count("\n") == 1
    assert "['weights']['layers'][" in result.stderr
    assert "engine.optimizer.learning_rate" in result.stderr
    arrays, meta = checkpoint.load(checkpoint.latest(out / "checkpoints"))
    assert meta["epoch"] == 0 and all(np.isfinite(array).all() for array in arrays.values())
    assert not (out / "summary.json").exists() and not (out / "model.npz").exists()


def test_places_that_cannot_be_used(finished, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = final_bytes(finished[0].path)
    for out in (finished[0].path, tmp_path / "file"):
        with pytest.raises(RunError, match=r"already there .* nothing is overwritten"):
            run.run(settings(), out)
    with pytest.raises(RunError, match="cannot be"):
        run.run(settings(), tmp_path / "file" / "inside")
    for nothing, why in ((tmp_path / "empty", "not a run folder"), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(RunError, match=why):
            run.resume(nothing)
    assert final_bytes(finished[0].path) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_missing_data_leave_no_folder_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "load_dataset", lambda *_: (_ for _ in ()).throw(DataError("mnist: missing")))
    with pytest.raises(DataError, match="mnist: missing"):
        run.run(settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_plans_are_said_and_made_anew(finished, tmp_path):
    """With the plans of an untouched machine the run ends as without a stop."""
    out, heard = tmp_path / "run", Heard()
    with pytest.raises(Stopped):
        run.run(settings(), out, progress=StopAt("evaluated", 2))
    for content in ("{", "[]", '{"plans": 3}', '{"plans": [{"network": "none"}]}'):
        (out / "plans.json").write_text(content)
        made = folder.open_run(out)
        session.Session(made.config(), made, session.load_sets(made.config(), None), heard)
    said = f"{out / 'plans.json'} is damaged: orders of contraction are planned anew"
    assert heard.lines == [said] * 4
    run.resume(out)
    assert final_bytes(out) == final_bytes(finished[0].path)


# --- cuts ---------------------------------------------------------------------------------------------------------


def test_budgets_hold_in_a_run(tmp_path):
    """Parameters and rank multiples at the last cut, multiples alone at the first; and milliseconds that can be met."""
    budgets = {"epochs": [1, 2], "threshold": 0.0, "granularity": 2, "max_params": 400, "max_ms": 10_000.0}
    summary = run.run(settings(train={"epochs": 3}, prune=budgets), tmp_path / "run")
    assert summary["params_final"] <= 400 < summary["params_initial"]
    assert all(rank % 2 == 0 for bonds in summary["ranks"].values() for rank in bonds.values())
    first, last = folder.open_run(tmp_path / "run").metrics()[0], folder.open_run(tmp_path / "run").metrics()[-1]
    assert first["num_parameters"] > 400 >= last["num_parameters"]


def test_time_that_cannot_be_met_ends_the_run(tmp_path):
    with pytest.raises(RunError, match=r"pruning after epoch 1: max_ms is 1e-06.*still takes"):
        run.run(settings(prune={"epochs": [1], "max_ms": 1e-6}), tmp_path / "run")


@pytest.fixture(scope="module")
def untrained(compiled_once):
    made = settings()
    model, initial = build.neural_model(made)
    return model, initial(jax.random.key(0))


BUDGETS = [
    {"max_params": 400},
    {"max_flops": 4000},
    {"max_params": 450, "max_flops": 4000, "granularity": 2},
    {"granularity": 4, "threshold": 0.4},
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_selections_keep_to_budgets(untrained, budget):
    model, position = untrained
    section = Prune(epochs=(1,), **{"threshold": 0.0} | budget)
    tensors = model.tensors(position)
    outside = model.num_free(position)

    def sizes(keep):
        networks = [
            tensors[name].network.resized({b: len(kept) for b, kept in bonds.items()}) for name, bonds in keep.items()
        ]
        return (
            sum(n.num_parameters for n in networks) + outside,
            sum(matvec_flops(n, 1) for n in networks) + 2 * outside,
            {rank for n in networks for rank in n.ranks.values()},
        )

    parameters, flops, ranks = sizes(pruning.selection(section, model, position, last=True).keep)
    assert parameters <= budget.get("max_params", 10**9)
    assert flops <= budget.get("max_flops", 10**9)
    granularity = budget.get("granularity", 1)
    assert all(rank % granularity == 0 or rank == 6 for rank in ranks)
    assert ranks != {6}
    whole = sizes({name: {b: np.arange(r) for b, r in t.network.ranks.items()} for name, t in tensors.items()})
    if len(budget) == 1 and "granularity" not in budget:  # cut no further than needed, and not before the last cut
        spent, most = (parameters, 400) if "max_params" in budget else (flops, 4000)
        assert 0.7 * most < spent <= most < (whole[0] if "max_params" in budget else whole[1])
        assert sizes(pruning.selection(section, model, position, last=False).keep) == whole


def test_a_faster_model_is_cut_until_it_is_fast_enough(untrained, monkeypatch):
    """A clock that reads a millisecond for every 100 weights."""
    model, position = untrained
    seen = []

    def latency(predict, smaller, x):
        seen.append(measure.num_weights(smaller))
        return seen[-1] / 100 / 1e3

    monkeypatch.setattr(pruning, "latency", latency)
    section = Prune(epochs=(1,), threshold=0.0, max_ms=4.0)
    chosen = pruning.selection(section, model, position, last=True)
    found = pruning.faster(section, model, position, chosen, None, None)
    cut = jax.tree.map(lambda array, keep: keep(array), position, model.cuts(position, found.keep))
    assert 330 < measure.num_weights(cut) <= 400 < measure.num_weights(position)


def test_rules_are_those_of_the_section(untrained):
    """Each section's rule keeps what `ranks.select` keeps with the same threshold, and the three differ."""
    model, position = untrained
    rng = np.random.default_rng(0)
    position = position | {
        "log_scales": jax.tree.map(
            lambda v: jax.numpy.asarray(2 * rng.normal(size=v.shape), v.dtype), position["log_scales"]
        )
    }
    scales = jax.tree.map(np.exp, position["log_scales"])
    by_hand = {"norm_lost": select.norm_lost(0.2), "energy": select.energy_share(0.2), "scale": select.raw_scale(0.2)}
    found = set()
    for name, rule in by_hand.items():
        section = Prune(epochs=(1,), rule=name, threshold=0.2)
        keep = pruning.selection(section, model, position, last=True).keep
        expected = select.select(model.tensors(position), rule, scales=scales).keep
        assert jax.tree.map(np.ndarray.tolist, keep) == jax.tree.map(np.ndarray.tolist, expected)
        found.add(str(jax.tree.map(np.ndarray.tolist, keep)))
    assert len(found) == 3


def test_a_collapse_is_said_by_name_and_goes_on_at_rank_1(tmp_path):
    heard = Heard()
    cuts = {"epochs": [1, 2], "threshold": 0.999}
    summary = run.run(
        settings(data={"validation": 0.0}, train={"epochs": 3}, prune=cuts), tmp_path / "run", None, heard
    )
    assert {rank for bonds in summary["ranks"].values() for rank in bonds.values()} == {1}
    bonds = [f"bond {bond!r} of layer {layer!r}" for layer, bonds in summary["ranks"].items() for bond in bonds]
    assert sorted(summary["collapsed"]) == sorted(bonds)  # once each
    assert heard.lines == [
        f"{bond} has collapsed; its largest slice is kept, so it stays at rank 1" for bond in summary["collapsed"]
    ]
    assert {record["validation_accuracy"] for record in heard.records} == {None}  # no data held out
    assert np.isfinite(summary["test_nll"])


def test_a_collapse_may_be_refused(tmp_path):
    with pytest.raises(RunError, match=r"pruning after epoch 1: .*'layers\.0'"):
        run.run(settings(prune={"threshold": 0.999, "on_collapse": "refuse"}), tmp_path / "run")
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") is not None
    assert not (tmp_path / "run" / "summary.json").exists()
