"""Data sets, scaling and splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bayestensor.data.base import SCALINGS, DataError, Dataset, first, hold_out, scaled, scaling, split_indices
from bayestensor.data.cifar import load_cifar10
from bayestensor.data.digits import load_digits
from bayestensor.data.images import load_fashion_mnist, load_mnist

__all__ = [
    "DATASETS",
    "SCALINGS",
    "DataError",
    "Dataset",
    "first",
    "hold_out",
    "load_dataset",
    "scaled",
    "scaling",
    "split_indices",
]

DATASETS: dict[str, Callable[[str | Path | None], Dataset]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
}


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """A data set by name, raw; see `scaled` and `hold_out`.

    Raises:
        ValueError: no such set.
        DataError: a file is missing or damaged.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name](data_dir)
