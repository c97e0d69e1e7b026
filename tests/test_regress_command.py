"""`bayestensor regress`: data in, scores of data left out, and one line where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bayestensor import cli
from bayestensor.data.covariates import COVARIATE_SETS
from bayestensor.estimators import TensorClassifier, TensorRegressor
from bayestensor.experiment import regress
from bayestensor.experiment.config import load_section

CONFIGS = Path(__file__).parent.parent / "configs" / "regression"


def _write(folder, y, more=""):
    x = np.random.default_rng(0).normal(size=(60, 5, 4))
    np.savez(folder / "xy.npz", X=x, y=y(x))
    estimator = "estimator: {num_draws: 20, burn_in: 20, remainder: null}"
    (folder / "x.yaml").write_text(f"data: {folder / 'xy.npz'}\nfolds: {{number: 2}}\n{estimator}\n{more}")
    return ["regress", str(folder / "x.yaml"), "-o", str(folder / "out")]


def test_responses_are_predicted_fold_by_fold(tmp_path):
    """Noise of sd 0.3 on each of two responses: the RMSE is that and little more; 120 coverages, standard error 0.03."""
    noise = np.random.default_rng(1).normal(size=(60, 2))
    called = _write(tmp_path, lambda x: np.stack([2 * x[:, 0, 0], -x[:, 0, 0]], 1) + 0.3 * noise)
    assert CliRunner().invoke(cli.main, called, catch_exceptions=False).exit_code == 0
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["responses"]
    assert list(scores) == ["y0", "y1"] and all(0.22 < one["rmse"] < 0.45 for one in scores.values())
    found = np.load(tmp_path / "out" / "predictions.npz", allow_pickle=False)
    assert sorted(found["row"]) == list(range(60)) and found["mean"].shape == (60, 2)
    assert 0.8 < np.mean((found["low"] <= found["truth"]) & (found["truth"] <= found["high"])) < 0.99
    assert (tmp_path / "out" / "held_out.png").stat().st_size > 5000


def test_classes_are_predicted_fold_by_fold(tmp_path):
    called = _write(tmp_path, lambda x: np.where(x[:, 0, 0] > 0, "yes", "no"))
    assert CliRunner().invoke(cli.main, [*called, "--seed", "3"], catch_exceptions=False).exit_code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["responses"]["classes"]["auc"] > 0.9 and summary["task"]["seed"] == 3
    assert (tmp_path / "out" / "held_out.png").stat().st_size > 5000


@pytest.mark.parametrize("kind", [TensorRegressor, TensorClassifier])
def test_a_config_has_every_parameter_of_the_estimators(kind):
    parameters = {k: v for k, v in kind().get_params().items() if k not in ("shape", "random_state")}
    assert regress.Estimator().model_dump() == parameters


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_name_their_data(path):
    assert load_section(regress.Regression, path).data in COVARIATE_SETS


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        ("fold: 3", "did you mean 'folds'"),
        ("seed: -1", "seed"),
        ("data: sugars", "sugars"),
        ("data: gone.npz", "gone.npz"),
    ],
)
def test_bad_configs_end_with_one_line(more, fragment, tmp_path):
    (tmp_path / "x.yaml").write_text(more if more.startswith("data") else f"data: sugar\n{more}")
    result = CliRunner().invoke(cli.main, ["regress", str(tmp_path / "x.yaml"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2 and fragment in result.output and len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
