"""Sets of tensor covariates with responses, read from local files: spectra, EEG, serology, climate.

Terms differ from set to set, so that none is bundled or downloaded; each loader's docstring names its source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bayestensor.data.base import DataError
from bayestensor.data.files import ENVIRONMENT, data_folder

_FILES = {  # path below the data folder -> sha256
    "regression/sugar/sugar.npz": "20821cb2e12c03fed7ad5009fc832a81ad8a0317f50116c0357eb779e0f98917",
    "regression/tecator/tecator.npz": "38ad2348dc534e3c648c2b9b8db6e2c4a30ac60b3e5eb742dcb1695dfd190a85",
    "regression/eeg-alcoholism/EEG_TRES.npz": "e011b4f6a21e5605621d37dba8660542a6ffd6dc62e6202d41a86cfd8b8d431a",
    "regression/ccds-climate/climateP17.mat": "c12f158ea21def27785d8e32c95c6304daec9c0cbebfc3659981ad444b564057",
    "tensors/serology/COVID19_data.npy": "b1e2f72e0211f556c6c32cd66368a9a3c4ee521aed116d195fdadb07bf498aad",
    "tensors/serology/COVID19_labels.json": "85c77dba66c9404b1f02b54abb767c57183f7ebbdd7c231fb658bd7dda2286fc",
}


@dataclass(frozen=True, eq=False)
class CovariateSet:
    """x (n, *shape): one covariate tensor a datum; y (n,) or (n, ...): numbers, or class labels."""

    name: str
    x: np.ndarray
    y: np.ndarray
    responses: tuple[str, ...]


def load_sugar(data_dir: str | Path | None = None) -> CovariateSet:
    """Fluorescence of 268 sugar samples (571 emission x 7 excitation wavelengths); colour and ash content.

    Bro, Chemometrics and Intelligent Laboratory Systems 46, 1999; ucphchemometrics.com, `regression/sugar/sugar.npz`.
    """
    arrays = _npz("regression/sugar/sugar.npz", data_dir)
    return CovariateSet("sugar", arrays["X"], arrays["y"], ("colour", "ash x 1000"))


def load_tecator(data_dir: str | Path | None = None) -> CovariateSet:
    """Near-infrared absorbance of 215 meat samples at 100 wavelengths; fat, water and protein content in %.

    Borggaard, Thodberg, Analytical Chemistry 64, 1992; lib.stat.cmu.edu/datasets/tecator, `regression/tecator`.
    """
    arrays = _npz("regression/tecator/tecator.npz", data_dir)
    return CovariateSet("tecator", arrays["absorbance"], arrays["y"], ("fat", "water", "protein"))


def load_eeg(data_dir: str | Path | None = None) -> CovariateSet:
    """EEG of 61 subjects (64 channels x 64 times); 1 for alcoholic, 0 for control.

    Zhang et al., Brain Research Bulletin 38, 1995, as in Li, Zhang, JASA 112, 2017; `regression/eeg-alcoholism`.
    """
    arrays = _npz("regression/eeg-alcoholism/EEG_TRES.npz", data_dir)
    return CovariateSet("eeg", arrays["eeg"], arrays["alcoholic"].astype(int), ("alcoholic",))


def load_serology(data_dir: str | Path | None = None) -> CovariateSet:
    """Antibody measurements of 438 COVID-19 samples (6 antigens x 11 receptors); severity in 5 classes.

    Zohar et al., Cell 183, 2020; `tensors/serology/COVID19_data.npy` and `COVID19_labels.json` of TensorLy.
    """
    x = np.load(_verified("tensors/serology/COVID19_data.npy", data_dir), allow_pickle=False)
    labels = json.loads(_verified("tensors/serology/COVID19_labels.json", data_dir).read_text())
    return CovariateSet("serology", x, np.array(labels["samples"]), ("severity",))


def load_climate(data_dir: str | Path | None = None, lags: int = 3) -> CovariateSet:
    """Monthly climate of North America, standardised: x (n, lags, 17 variables, 125 places), y the month after them.

    Lozano et al., KDD 2009; Bahadori, Yu, Liu, NeurIPS 2014; `regression/ccds-climate/climateP17.mat`. Lag 0 is the
    month just before.
    """
    from scipy.io import loadmat

    found = loadmat(_verified("regression/ccds-climate/climateP17.mat", data_dir))
    series = np.stack([cell[0] for cell in found["series"]]).transpose(2, 0, 1)  # month, variable, place
    x = np.stack([series[lags - k - 1 : len(series) - k - 1] for k in range(lags)], axis=1)
    return CovariateSet("climate", x, series[lags:], tuple(str(name[0]) for name in found["names"].ravel()))


COVARIATE_SETS: dict[str, Callable[..., CovariateSet]] = {
    "sugar": load_sugar,
    "tecator": load_tecator,
    "climate": load_climate,
    "serology": load_serology,
    "eeg": load_eeg,
}


def _npz(name: str, data_dir: str | Path | None) -> dict[str, np.ndarray]:
    with np.load(_verified(name, data_dir), allow_pickle=False) as arrays:
        return dict(arrays)


def _verified(name: str, data_dir: str | Path | None) -> Path:
    """The file, if it is there and has the published sum.

    Raises:
        DataError: it is missing or damaged.
    """
    path = data_folder(data_dir) / name
    if not path.is_file():
        raise DataError(f"{path} is missing; put the file there, or name another folder by {ENVIRONMENT}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _FILES[name]:
        raise DataError(f"{path} is damaged: its sha256 is {found[:12]}..., {_FILES[name][:12]}... is expected")
    return path
