"""The command line: what it calls, what it prints, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from click.testing import CliRunner

from bayestensor import __version__, cli
from bayestensor.errors import DataError, RunError
from bayestensor.experiment import config as configs
from bayestensor.experiment import folder as folders

CONFIG = """
data: {name: mnist}
model: {name: mlp, rank: 20, shapes: [[[7, 4, 7, 4], [5, 5, 5, 5]], [[25, 25], [5, 2]]]}
"""
SUMMARY = {
    "params_dense": 496_885,
    "params_initial": 27_235,
    "params_final": 2_000,
    "test_accuracy": 0.98321,
    "dense_twin": {"test_accuracy": 0.98},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def driver(monkeypatch):
    """A stand-in for the training driver and the report: notes its calls, then does what `act` says."""
    calls = []

    def run(config, out_dir, data_dir, progress):
        calls.append(("run", config, out_dir, data_dir))
        folders.create(out_dir, config, data_dir)
        progress.said("under way")
        return fake.act(out_dir) or SUMMARY

    def resume(run_dir, data_dir=None, progress=None):
        calls.append(("resume", run_dir))
        return fake.act(run_dir) or SUMMARY

    fake = types.SimpleNamespace(run=run, resume=resume, act=lambda out: None, calls=calls)
    writer = types.SimpleNamespace(write_report=lambda run_dirs, path: calls.append(("report", run_dirs, path)))
    monkeypatch.setitem(sys.modules, "bayestensor.experiment.run", fake)
    monkeypatch.setitem(sys.modules, "bayestensor.experiment.report", writer)
    return fake


def call(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def refused(result, *fragments):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert all(fragment in result.stderr for fragment in fragments), result.stderr
    return True


def test_version():
    assert call("--version").output == f"bayestensor, version {__version__}\n"


def test_check_prints_the_layers(place):
    result = call("check", "small.yaml")
    assert result.exit_code == 0, result.output
    for fragment in ("layers.0", "490,625", "496,885", "27,235", "18.2x", "7x4x7x4", "small.yaml: good"):
        assert fragment in result.stdout
    assert "13,617" not in result.stdout
    assert call("check", "small.yaml", "model.rank=10").stdout != result.stdout
    assert list(place.iterdir()) == [place / "small.yaml"]


def test_run_hands_over_config_and_folders(place, driver):
    result = call("run", "small.yaml", "engine.temperature=2", "--out", "here", "--data-dir", "data")
    assert result.exit_code == 0, result.output
    ((name, config, out, data),) = driver.calls
    assert (name, out, data) == ("run", Path("here"), Path("data"))
    assert config == configs.load("small.yaml", ["engine.temperature=2"])
    for fragment in ("under way", "98.32%", "98.00%", "2,000", "248.4x", "run: here"):
        assert fragment in result.stdout


def test_run_makes_a_fresh_folder_each_time(place, driver):
    for _ in range(2):
        assert call("run", "small.yaml").exit_code == 0
    outs = [out for _, _, out, _ in driver.calls]
    assert len(set(outs)) == 2
    assert all(out.parts[0] == "runs" and out.name.startswith("small-2") for out in outs)


def test_resume_report_and_export(place, driver, monkeypatch):
    call("run", "small.yaml", "--out", "here")
    assert call("resume", "here").exit_code == 0
    assert driver.calls[-1] == ("resume", Path("here"))
    assert call("report", "here").exit_code == 0
    assert driver.calls[-1] == ("report", [Path("here")], Path("here/report.html"))
    assert call("report", "here", "here").exit_code == 0
    assert driver.calls[-1] == ("report", [Path("here")] * 2, Path("report.html"))
    (place / "mine.html").write_text("mine")
    refused(call("report", "here", "-o", "mine.html"), "mine.html", "nothing is overwritten")
    assert refused(call("export", "here", "-o", "out"), "model.npz", "no such file")
    assert not (place / "out").exists()


BAD_CALLS = [
    (["run", "smal.yaml"], ["smal.yaml", "no such file", "'small.yaml'"]),
    (["run", "small.yaml", "engine.temprature=2"], ["engine.temprature", "'temperature'"]),
    (["run", "small.yaml", "model.rank={b9: 3}"], ["model.rank", "b9"]),
    (["run", "small.yaml", "--out", "taken"], ["taken", "nothing is overwritten"]),
    (["check", "small.yaml", "model.shapes.1.1=[5, 3]"], ["model.shapes.1.1", "expected product 10"]),
    (["check", "taken"], ["taken", "cannot be read"]),
    (["resume", "taken"], ["taken", "not a run folder"]),
    (["resume", "nowhere"], ["nowhere", "no such folder"]),
    (["report", "taken"], ["taken", "not a run folder"]),
    (["export", "taken", "-o", "out"], ["taken", "not a run folder"]),
]


@pytest.mark.parametrize(("arguments", "fragments"), BAD_CALLS)
def test_bad_calls_end_with_one_line(place, driver, arguments, fragments):
    (place / "taken").mkdir()
    (place / "taken" / "mine.txt").write_text("mine")
    before = sorted(place.rglob("*"))
    refused(call(*arguments), *fragments)
    assert driver.calls == []
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "error",
    [
        RunError("loss is nan at step 12: layer0.core1"),
        DataError("train-images: damaged\nsecond line"),
        OSError(28, "No space left on device", "x.npz"),
    ],
)
def test_errors_of_a_run_end_with_one_line(place, driver, error):
    def act(out):
        raise error

    driver.act = act
    result = call("run", "small.yaml", "--out", "here")
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert all(word in last for word in str(error).split())
    assert "Traceback" not in result.output


def test_our_own_mistakes_are_not_hidden(place, driver):
    def act(out):
        raise KeyError("a bug")

    driver.act = act
    assert isinstance(call("run", "small.yaml").exception, KeyError)


@pytest.mark.parametrize(
    ("stop", "code"),
    [(lambda: signal.raise_signal(signal.SIGINT), 130), (lambda: os.kill(os.getpid(), signal.SIGTERM), 143)],
)
@pytest.mark.parametrize("saved", [True, False])
def test_signals_end_with_a_way_on(place, driver, stop, code, saved):
    def act(out):
        if saved:
            (out / "checkpoints" / "step-000000000469").mkdir(parents=True)
        stop()
        time.sleep(5)

    driver.act = act
    before = signal.getsignal(signal.SIGTERM)
    result = call("run", "small.yaml", "--out", "here")
    assert result.exit_code == code
    last = result.stderr.splitlines()[-1]
    assert last == ("stopped; go on with: bayestensor resume here" if saved else last)
    assert saved or "before the first checkpoint" in last
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_a_process_of_its_own(place):
    """No traceback, and no JAX before a command needs it."""
    code = "import sys, bayestensor.cli as c, atexit; atexit.register(lambda: print('jax' in sys.modules)); c.main()"

    def command(*arguments):
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)

    done = command("check", "small.yaml", "seed=x")
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr == 'error: small.yaml: seed: given "x"; expected a whole number\n'
    done = command("--help")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "False")
    assert all(name in done.stdout for name in ("run", "resume", "check", "report", "export"))
