"""The embedded default: scikit-learn's copy of the UCI handwritten digits, 1797 images of 8 x 8."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bayestensor.data.base import DataError, Dataset, split_indices

NUM_TEST = 360
_SPLIT_SEED = 0


def load_digits(data_dir: str | Path | None = None) -> Dataset:
    """1437 training and 360 test images, values 0 to 16; `split_indices(labels, 360, seed=0, stratified=True)`.

    Read from the installed package's file: importing `sklearn.datasets` alone would take a second. `data_dir` is not
    looked at.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("digits: scikit-learn, which carries the file, is not installed; pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(
            gzip.decompress(path.read_bytes()).decode("ascii").splitlines(), delimiter=",", dtype=np.uint8
        )
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"digits: {path} cannot be read ({error}); install scikit-learn again") from error
    if table.shape != (1797, 65) or table[:, :-1].max() != 16 or table[:, -1].max() != 9:
        raise DataError(f"digits: {path} is not the 1797 x 65 table of digits; install scikit-learn again")
    x, y = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int32)
    train, test = split_indices(y, NUM_TEST, seed=_SPLIT_SEED)
    return Dataset("digits", x[train], y[train], x[test], y[test], num_classes=10, highest=16.0)
