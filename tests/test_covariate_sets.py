"""Loaders of tensor covariates on made-up files with their own checksums."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import scipy.io

from bayestensor.data import covariates
from bayestensor.data.base import DataError

RNG = np.random.default_rng(0)
SERIES = RNG.normal(size=(3, 4, 9))  # variable, place, month


def _write(folder):
    for name in covariates._FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    sugar, meat, eeg, climate, serology, labels = (folder / name for name in covariates._FILES)
    np.savez(sugar, X=RNG.normal(size=(5, 6, 2)), y=RNG.normal(size=(5, 2)))
    np.savez(meat, absorbance=RNG.normal(size=(5, 7)), y=RNG.normal(size=(5, 3)))
    np.savez(eeg, eeg=RNG.normal(size=(4, 3, 3)), alcoholic=np.array([0, 1, 1, 0], np.int8))
    cells, names = np.empty((3, 1), object), np.empty((1, 3), object)
    cells[:, 0], names[0] = list(SERIES), ["CO2", "CH4", "CO"]
    scipy.io.savemat(climate, {"series": cells, "names": names})
    np.save(serology, RNG.normal(size=(4, 2, 3)))
    labels.write_text(json.dumps({"samples": ["Mild", "Severe", "Mild", "Deceased"]}))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    _write(tmp_path)
    sums = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in covariates._FILES}
    monkeypatch.setattr(covariates, "_FILES", sums)
    return tmp_path


@pytest.mark.parametrize("name", covariates.COVARIATE_SETS)
def test_a_set_has_one_response_a_datum(folder, name):
    data = covariates.COVARIATE_SETS[name](folder)
    assert data.name == name and len(data.x) == len(data.y) and data.x.ndim >= 2
    assert len(data.responses) == (data.y.shape[1] if data.y.ndim > 1 else 1)


def test_climate_looks_back_and_never_ahead(folder):
    data = covariates.load_climate(folder, lags=2)
    months = SERIES.transpose(2, 0, 1)
    assert data.x.shape == (7, 2, 3, 4)
    for n in range(7):
        np.testing.assert_array_equal(data.y[n], months[n + 2])
        np.testing.assert_array_equal(data.x[n, 0], months[n + 1])
        np.testing.assert_array_equal(data.x[n, 1], months[n])


def test_missing_and_damaged_files_are_named(folder):
    path = folder / "regression/tecator/tecator.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"tecator.npz is damaged"):
        covariates.load_tecator(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"tecator.npz is missing"):
        covariates.load_tecator(folder)
