"""What a loader returns, and what can be done with it: scaling, and holding out a validation part."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from bayestensor.errors import DataError

__all__ = ["SCALINGS", "DataError", "Dataset", "first", "hold_out", "scaled", "scaling", "split_indices"]

SCALINGS = ("unit", "signed", "standard")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification set as NumPy arrays: x (n, *input_shape), y (n,) whole numbers below `num_classes`."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    highest: float  # the largest value a raw feature can take: 255 for bytes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.x_train.shape[1:]


def first(data: Dataset, count: int | None) -> Dataset:
    """The first so many data of each part, all for None."""
    parts = ("x_train", "y_train", "x_test", "y_test")
    return data if count is None else replace(data, **{part: getattr(data, part)[:count] for part in parts})


def scaling(data: Dataset, how: str = "unit") -> tuple[float, float]:
    """(shift, scale) of `(x - shift) / scale`; the test part never enters them.

    Args:
        data: raw features, from 0 to `data.highest`.
        how: 'unit' for `x / highest`, 'signed' for `2 x / highest - 1`, 'standard' for `(x - mean) / sd` with the one
            mean and sd of all training values.
    """
    if how == "unit":
        return 0.0, data.highest
    if how == "signed":
        return data.highest / 2, data.highest / 2
    if how == "standard":
        return _moments(data.x_train)
    raise ValueError(f"scaling is {how!r}; one of {', '.join(SCALINGS)} is needed")


def scaled(data: Dataset, how: str = "unit") -> Dataset:
    """Features as float32 on another scale (see `scaling`)."""
    shift, scale = scaling(data, how)

    def apply(x: np.ndarray) -> np.ndarray:
        out = np.divide(x, np.float32(scale), dtype=np.float32)
        if shift:
            out -= np.float32(shift / scale)
        return out

    return replace(data, x_train=apply(data.x_train), x_test=apply(data.x_test))


def _moments(x: np.ndarray) -> tuple[float, float]:
    """Mean and sd of all values, in float64 a slab at a time: the set is never copied whole."""
    total = squares = 0.0
    for start in range(0, len(x), 256):
        slab = x[start : start + 256].ravel().astype(np.float64)
        total += slab.sum()
        squares += np.square(slab, out=slab).sum()  # no BLAS: its threads cost more than they save here
    mean = total / x.size
    sd = float(np.sqrt(max(squares / x.size - mean**2, 0.0)))
    return float(mean), sd if sd > 0 else 1.0


def split_indices(
    labels: ArrayLike, held_out: int | float, seed: int = 0, stratified: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(indices kept, indices held out), each sorted; the same seed gives the same split.

    Args:
        labels: the class of each datum.
        held_out: how many to hold out, or (a float below 1) which share.
        seed: of NumPy's PCG64.
        stratified: whether each class gives its share, to within one datum.

    Raises:
        ValueError: nothing would be held out, or nothing kept.
    """
    labels = np.asarray(labels)
    n = len(labels)
    size = held_out
    if isinstance(held_out, float):
        size = round(held_out * n) if 0 < held_out < 1 else 0
    if not 0 < size < n:
        raise ValueError(
            f"held_out is {held_out!r} of {n} data; a share between 0 and 1 or a number below {n} is needed"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    if stratified:
        classes, counts = np.unique(labels, return_counts=True)
        share = size * counts / n
        quota = np.floor(share).astype(int)
        largest = np.argsort(-(share - quota), kind="stable")[: size - quota.sum()]
        quota[largest] += 1
        picked = [order[labels[order] == c][:k] for c, k in zip(classes, quota, strict=True)]
        out = np.sort(np.concatenate(picked))
    else:
        out = np.sort(order[:size])
    kept = np.ones(n, bool)
    kept[out] = False
    return np.flatnonzero(kept), out


def hold_out(data: Dataset, held_out: int | float = 0.1, seed: int = 0, stratified: bool = True) -> Dataset:
    """The training data in two: a `Dataset` whose test part is the validation part, the real test part gone.

    Choose thresholds, temperatures and epochs on this one.
    """
    kept, out = split_indices(data.y_train, held_out, seed, stratified)
    x, y = data.x_train, data.y_train
    name = f"{data.name}/validation"
    return replace(data, name=name, x_train=x[kept], y_train=y[kept], x_test=x[out], y_test=y[out])
