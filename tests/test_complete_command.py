"""`bayestensor complete`: every kind of file in, the same completion out, and one line where it cannot be."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from bayestensor import cli
from bayestensor.data.tensors import TENSORS, load_tensor
from bayestensor.errors import DataError
from bayestensor.estimators import TensorCompletion
from bayestensor.estimators.factors import align
from bayestensor.estimators.inputs import read
from bayestensor.experiment import complete as command
from bayestensor.experiment import task
from bayestensor.experiment.console import completion_table
from bayestensor.tensor.formats import FORMATS

CONFIGS = Path(__file__).parent.parent / "configs" / "completion"
OPTIONS = {"num_draws": 10, "burn_in": 5, "warm_up": 20, "max_rank": 3, "smooth": (), "random_state": 0}


@pytest.fixture(scope="module")
def tensor():
    rng = np.random.default_rng(0)
    truth = np.einsum("ir,jr,kr->ijk", *(rng.normal(size=(n, 2)) for n in (6, 5, 4)))
    return np.where(rng.random(truth.shape) < 0.7, truth + 0.1 * rng.normal(size=truth.shape), np.nan)


def _save(tensor, path):
    coords, values = np.argwhere(~np.isnan(tensor)), tensor[~np.isnan(tensor)]
    if path.suffix == ".npy":
        np.save(path, tensor)
    elif path.suffix == ".npz":
        np.savez(path, coords=coords, values=values, shape=np.array(tensor.shape))
    elif path.suffix == ".nc":
        xarray = pytest.importorskip("xarray")
        pytest.importorskip("h5netcdf")
        named = xarray.DataArray(tensor, dims=("a", "b", "c"), coords={"a": list("uvwxyz")}, name="y")
        named.to_netcdf(path, engine="h5netcdf")
    else:
        table = pd.DataFrame(coords, columns=["a", "b", "c"]).assign(y=values)
        table.to_csv(path, index=False)


@pytest.mark.parametrize("kind", ["npy", "npz", "nc", "csv"])
def test_every_kind_of_file_gives_the_same_completion(tensor, tmp_path, kind, monkeypatch):
    monkeypatch.setattr("bayestensor.experiment.complete_figures.write_figures", lambda *_: None)
    path, out = tmp_path / f"x.{kind}", tmp_path / "out"
    _save(tensor, path)
    model, summary = command.complete(path, out, OPTIONS, 0.0, lambda _: None)
    mean, sd = model.predict(return_std=True)
    low, high = model.predict_interval(command.LEVEL)
    if kind == "csv":
        table = pd.read_csv(out / "completed.csv")
        found = {name: table[name].to_numpy().reshape(tensor.shape) for name in ("mean", "sd", "lower", "upper")}
        assert list(table.columns[:3]) == ["a", "b", "c"]
    elif kind == "nc":
        data = pytest.importorskip("xarray").load_dataset(out / "completed.nc", engine="h5netcdf")
        assert data["mean"].dims == ("a", "b", "c") and list(data.coords["a"].to_numpy()) == list("uvwxyz")
        found = {name: data[name].to_numpy() for name in data.data_vars}
    else:
        found = np.load(out / "completed.npz", allow_pickle=False)
    for name, array in (("mean", mean), ("sd", sd), ("lower", low), ("upper", high)):
        np.testing.assert_allclose(found[name], array, rtol=1e-12)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["observed"] == np.isfinite(tensor).sum() and summary["rank"] == 2


def test_held_out_entries_are_not_seen_and_figures_are_drawn(tensor, tmp_path):
    _save(tensor, tmp_path / "x.npy")
    options = OPTIONS | {"conformal": 0.15}
    _, summary = command.complete(tmp_path / "x.npy", tmp_path / "out", options, 0.2, lambda _: None)
    completed = np.load(tmp_path / "out" / "completed.npz", allow_pickle=False)
    assert (completed["conformal_lower"] < completed["mean"]).all() and (
        completed["mean"] < completed["conformal_upper"]
    ).all()
    held = summary["held_out"]
    assert held["entries"] == np.ceil(0.2 * summary["observed"])
    assert 0.05 < held["rrse"] < 0.5 and held["width_90"] > 0.2  # noise of 0.1 in entries of sd 1.4, never below it
    shown = StringIO()
    Console(file=shown, width=100).print(completion_table(summary))
    for fragment in (
        "6 x 5 x 4",
        "rank",
        "2 (cp)",
        f"{held['entries']} entries",
        f"{held['rrse']:.4g}",
        "conformal 90 %",
        "num_draws",
    ):
        assert fragment in shown.getvalue()
    for name in ("rank", "held_out", "weights", "factors"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("x.txt", b"1 2", "files end in"),
        ("gone.npy", None, "no such file"),
        ("x.npy", b"not numpy", "cannot be read as .npy"),
        ("x.csv", b"a,y\n1,hello\n", "real numbers"),
        ("x.csv", b"a,b,y\n1,1,1\n1,1,2\n", "occurs with values"),
    ],
)
def test_bad_files_end_with_one_line(tmp_path, name, content, fragment):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = CliRunner().invoke(cli.main, ["complete", str(tmp_path / name), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2 and fragment in result.output and len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_config_has_every_parameter_of_the_estimator():
    assert set(task.Estimator.model_fields) | {"side", "random_state", "verbose"} == set(
        TensorCompletion().get_params()
    )
    wanted = {name: value for name, value in TensorCompletion().get_params().items() if name != "side"}
    assert task.estimator(task.Completion(data="amino", seed=3)) == wanted | {"random_state": 3, "verbose": True}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_of_completions_hide_what_they_say(path):
    config = task.load(path, seed=5)
    try:
        known = task.hide(config)
    except DataError:
        pytest.skip("the data are not here")
    given = read(*known.given)
    hidden, seen = len(known.truth), len(given.values)
    assert config.seed == 5 and abs(hidden / (hidden + seen) - config.hidden) < 0.03
    assert not set(map(tuple, known.coords[:1000].tolist())) & set(map(tuple, given.coords.tolist()))


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("data: amino\nhiden: 0.5", "did you mean 'hidden'"),
        ("data: aminos", "amino"),
        ("data: amino\nestimator: {max_rnk: 3}", "did you mean 'max_rank'"),
        ("data: amino\nalong: 7", "has modes 0 to 2"),
        ("data: amino\nevery: [2, 2]", "has 3 modes"),
        ("data: movielens\nalong: 1", "a list of ratings"),
    ],
)
def test_bad_configs_of_completions_end_with_one_line(text, fragment, tmp_path, monkeypatch):
    monkeypatch.setattr("bayestensor.experiment.task.load_tensor", lambda *_: np.ones((5, 4, 3)))
    (tmp_path / "x.yaml").write_text(text)
    result = CliRunner().invoke(cli.main, ["complete", str(tmp_path / "x.yaml"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2 and fragment in result.output and len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_config_is_completed_and_its_hidden_entries_scored(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    truth = np.einsum("ir,jr,kr->ijk", *(rng.normal(size=(n, 2)) for n in (8, 7, 6)))
    monkeypatch.setattr(
        "bayestensor.experiment.task.load_tensor", lambda *_: truth + 0.1 * rng.normal(size=truth.shape)
    )
    estimator = "{max_rank: 3, num_draws: 10, burn_in: 5, warm_up: 20, smooth: []}"
    (tmp_path / "x.yaml").write_text(f"data: amino\nhidden: 0.3\nestimator: {estimator}")
    called = ["complete", str(tmp_path / "x.yaml"), "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(cli.main, [*called, "--max-rank", "2"]).exit_code == 2
    assert CliRunner().invoke(cli.main, called, catch_exceptions=False).exit_code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["held_out"]["entries"] + summary["observed"] == truth.size
    assert 0.03 < summary["held_out"]["rrse"] < 0.2 and summary["task"]["data"] == "amino"
    completed = np.load(tmp_path / "out" / "completed.npz", allow_pickle=False)
    assert completed["mean"].shape == truth.shape and (tmp_path / "out" / "held_out.png").is_file()


def test_modes_are_read_from_text():
    assert [command.modes(text) for text in ("auto", "none", "0, 2")] == ["auto", (), (0, 2)]
    with pytest.raises(DataError, match="effects is 'users'"):
        command.modes("users")


def test_components_are_aligned_whatever_order_and_sign_they_were_drawn_in():
    rng, network = np.random.default_rng(0), FORMATS["cp"]((6, 5, 4), (), rank=4)
    base = [rng.normal(size=(n, 4)) * np.array([1.0, 3.0, 1e-6, 2.0]) for n in (6, 5, 4)]
    draws = [[] for _ in base]
    for _ in range(5):
        order, signs = rng.permutation(4), rng.choice([-1.0, 1.0], size=(2, 4))
        for k, sign in enumerate((*signs, signs.prod(0))):
            draws[k].append(base[k][:, order] * sign[order])
    found = align(network, {core.name: np.stack(d) for core, d in zip(network.cores, draws, strict=True)})
    norms = np.prod([np.linalg.norm(b, axis=0) for b in base], axis=0)
    np.testing.assert_allclose(found.weights, np.broadcast_to(np.sort(norms)[:0:-1], (5, 3)))
    order = np.argsort(-norms)[:3]
    for column, b in zip(found.columns, base, strict=True):
        unit = b[:, order] / np.linalg.norm(b[:, order], axis=0)
        unit *= np.sign(unit[np.abs(unit).argmax(0), range(3)])
        np.testing.assert_allclose(column, np.broadcast_to(unit, column.shape), atol=1e-12)


def test_a_light_component_beside_a_parallel_heavy_one_is_not_taken_for_it():
    rng, network = np.random.default_rng(0), FORMATS["cp"]((6, 5, 4), (), rank=2)
    heavy = [rng.normal(size=n) for n in network.shape]
    columns = [np.stack([c, c + 0.3 * rng.normal(size=c.shape)], axis=1) * [[1.0, 0.3]] for c in heavy]
    norms = [np.linalg.norm(c, axis=0) for c in columns]
    turned = [c / n * n[::-1] for c, n in zip(columns, norms, strict=True)]  # the light one heavy, the heavy one light
    cores = {c.name: np.stack(pair) for c, *pair in zip(network.cores, turned, columns, strict=True)}
    weights = align(network, cores).weights
    assert (weights[:, 0] > 5 * weights[:, 1]).all()


def test_an_unknown_tensor_is_named():
    with pytest.raises(DataError, match="amino"):
        load_tensor("claus")
    with pytest.raises(DataError, match="BAYESTENSOR_DATA"):
        load_tensor(next(iter(TENSORS)), "nowhere")
