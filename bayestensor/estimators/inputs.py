"""Tensors as people have them: arrays with holes, labelled arrays, long tables, coordinates, sparse matrices."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_DENSE_LIMIT = 50_000_000  # entries above which coordinates are never made into an array
_DENSE_SHARE = 0.02  # observed share below which a list of coordinates is the cheaper form


@dataclass(frozen=True, eq=False)
class Observed:
    """Observed entries of a tensor, as coordinates (sorted, each once) and float64 values.

    Attributes:
        shape: of the whole tensor.
        coords: (n, modes) whole numbers.
        values: (n,) finite.
        names: of the modes, where the input had any.
        labels: for each mode its index values, where the input had any.
        weights: (n,) of the values, or None where all weigh the same.
    """

    shape: tuple[int, ...]
    coords: np.ndarray
    values: np.ndarray
    names: tuple[Hashable, ...] | None = None
    labels: tuple[np.ndarray, ...] | None = None
    weights: np.ndarray | None = None

    @property
    def dense(self) -> bool:
        """Whether arrays of the tensor's shape are the better way to compute."""
        size = np.prod(self.shape, dtype=float)
        return size <= 20_000 or (size <= _DENSE_LIMIT and len(self.values) >= _DENSE_SHARE * size)

    def arrays(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(values, observed) in the tensor's shape."""
        full, observed = np.zeros(self.shape), np.zeros(self.shape, bool)
        at = tuple(self.coords.T)
        full[at], observed[at] = values, True
        return full, observed

    def empty_slices(self) -> dict[int, np.ndarray]:
        """Mode -> indices with no observation at all."""
        counts = map(self.counts, range(len(self.shape)))
        return {k: np.flatnonzero(c == 0) for k, c in enumerate(counts) if (c == 0).any()}

    def counts(self, mode: int) -> np.ndarray:
        """Observations at each index of a mode."""
        return np.bincount(self.coords[:, mode], minlength=self.shape[mode])


def read(x: Any, values: Any = None, shape: Sequence[int] | None = None) -> Observed:
    """Observed entries of whatever a tensor with holes was given as.

    Args:
        x: an array with NaN or masked where unknown, an xarray DataArray, a pandas table (one column a mode, the last
            column the value), a SciPy sparse matrix (stored entries are the observed ones), or, with `values`, integer
            coordinates (n, modes).
        values: (n,), with coordinates only; NaN is not observed.
        shape: of the whole tensor, with coordinates or a sparse matrix; one beyond the largest coordinate if not given.

    Raises:
        ValueError: what is given is no such thing, or holds infinite or no values.
    """
    module = type(x).__module__.partition(".")[0]
    if values is not None:
        return _from_coordinates(_plain(x), values, shape)
    if module == "scipy" and hasattr(x, "tocoo"):
        coo = x.tocoo()
        return _from_coordinates(np.stack(coo.coords, axis=1), coo.data, shape or coo.shape)
    if shape is not None:
        raise ValueError("shape goes with coordinates and values; an array has its own")
    if module == "pandas" or type(x).__name__ == "DataFrame":
        return _from_table(x)
    if module == "xarray":
        whole = _from_array(_numbers(x.values), None)
        labels = tuple(
            np.asarray(x.coords[d]) if d in x.coords else np.arange(n) for d, n in zip(x.dims, x.shape, strict=True)
        )
        return Observed(whole.shape, whole.coords, whole.values, tuple(x.dims), labels)
    mask = np.ma.getmaskarray(x) if isinstance(x, np.ma.MaskedArray) else None
    return _from_array(_numbers(np.ma.getdata(x)), mask)


def weighted(given: Observed, x: Any, weights: Any) -> Observed:
    """The same observations with weights; those of weight 0 are left out.

    Args:
        given: what `read` made of x.
        x: an array of the tensor's shape, or coordinates or a table with a row a value.
        weights: of the shape of the array, or one a row.

    Raises:
        ValueError: another shape, negative or infinite weights, or none above 0.
    """
    numbers = _numbers(weights).astype(np.float64)
    if numbers.shape == given.shape and np.shape(x) == given.shape:
        found = numbers[tuple(given.coords.T)]
    elif numbers.shape == np.shape(x)[:1]:
        flat = np.ravel_multi_index(tuple(given.coords.T), given.shape)
        rows = np.ravel_multi_index(tuple(coordinates(x, given).T), given.shape)
        place = np.minimum(np.searchsorted(flat, rows), len(flat) - 1)
        known = flat[place] == rows  # a row whose value is NaN was not observed
        found = np.zeros(len(flat))
        found[place[known]] = numbers[known]
    else:
        raise ValueError(f"sample_weight has shape {numbers.shape}; {given.shape}, or one weight a row, is needed")
    if not (np.isfinite(found).all() and (found >= 0).all() and (found > 0).any()):
        raise ValueError("sample_weight must be finite, nowhere negative and somewhere above 0")
    kept = found > 0
    return replace(given, coords=given.coords[kept], values=given.values[kept], weights=found[kept])


def labelled(prediction: np.ndarray, given: Observed) -> Any:
    """A DataArray with the input's names and coordinates, where it had any; else the array itself."""
    if given.names is None or "xarray" not in sys.modules:
        return prediction
    import xarray

    assert given.labels is not None
    return xarray.DataArray(prediction, dims=given.names, coords=dict(zip(given.names, given.labels, strict=True)))


def coordinates(x: Any, given: Observed) -> np.ndarray:
    """Coordinates (n, modes) at which to predict, from numbers or from a table with the labels of the fit.

    Raises:
        ValueError: the wrong number of columns, a coordinate out of range, a label that the fit has not seen.
    """
    if hasattr(x, "columns") and given.labels is not None:
        columns = []
        for name, labels in zip(given.names or (), given.labels, strict=True):
            if name not in x.columns:
                raise ValueError(f"the table has no column {name!r}; the fit had {list(given.names or ())}")
            place = np.searchsorted(labels, x[name].to_numpy())
            place = np.minimum(place, len(labels) - 1)
            unknown = labels[place] != x[name].to_numpy()
            if unknown.any():
                raise ValueError(f"column {name!r} holds {x[name][unknown].iloc[0]!r}, which the fit has not seen")
            columns.append(place)
        return np.stack(columns, axis=1)
    return _checked_coordinates(_plain(x), given.shape)


def _numbers(x: Any) -> np.ndarray:
    array = np.asarray(x)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the tensor holds {array.dtype}; real numbers are needed, with NaN (or a mask) where unknown")
    return array


def _plain(x: Any) -> np.ndarray:
    array = np.asarray(x)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"coordinates have shape {array.shape} and type {array.dtype}; (n, modes) whole numbers are needed"
        )
    return array


def _from_array(array: np.ndarray, mask: np.ndarray | None) -> Observed:
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"the tensor has shape {array.shape}; at least one mode, none of size 0, is needed")
    unknown = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    if mask is not None:
        unknown = unknown | mask
    coords = np.argwhere(~unknown)
    return _finite(array.shape, coords, array[~unknown].astype(np.float64))


def _from_coordinates(coords: np.ndarray, values: Any, shape: Sequence[int] | None) -> Observed:
    numbers = _numbers(values).astype(np.float64)
    if numbers.shape != coords.shape[:1]:
        raise ValueError(f"{len(coords)} coordinates and values of shape {numbers.shape}; one value each is needed")
    if shape is None:
        if len(coords) == 0:
            raise ValueError("no coordinates and no shape; nothing is known of this tensor")
        shape = tuple(int(n) + 1 for n in coords.max(axis=0))
    coords = _checked_coordinates(coords, tuple(int(n) for n in shape))
    known = ~np.isnan(numbers)
    return _finite(tuple(int(n) for n in shape), *_unique(coords[known], numbers[known], shape))


def _checked_coordinates(coords: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if coords.shape[1] != len(shape):
        raise ValueError(f"coordinates have {coords.shape[1]} columns; the tensor of shape {shape} needs {len(shape)}")
    whole = coords.astype(np.int64)
    if (whole != coords).any():
        raise ValueError("coordinates must be whole numbers")
    out = ((whole < 0) | (whole >= np.array(shape))).any(axis=1)
    if out.any():
        raise ValueError(f"coordinate {tuple(whole[out][0].tolist())} is outside the shape {shape}; count from 0")
    return whole


def _unique(coords: np.ndarray, values: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    if len(coords) == 0:
        return coords, values
    flat = np.ravel_multi_index(tuple(coords.T), tuple(shape))
    order = np.argsort(flat, kind="stable")
    flat, coords, values = flat[order], coords[order], values[order]
    again = flat[1:] == flat[:-1]
    clash = again & (values[1:] != values[:-1])
    if clash.any():
        k = int(np.flatnonzero(clash)[0])
        raise ValueError(
            f"coordinate {tuple(coords[k].tolist())} occurs with values {values[k]:g} and {values[k + 1]:g}; "
            "average them first, or add a mode that tells them apart"
        )
    first = np.concatenate([[True], ~again])
    return coords[first], values[first]


def _from_table(table: Any) -> Observed:
    if table.shape[1] < 2:
        raise ValueError(f"a table with columns {list(table.columns)}; one column a mode and then the value is needed")
    modes, labels, columns = list(table.columns[:-1]), [], []
    for name in modes:
        if table[name].isna().any():
            raise ValueError(f"column {name!r} of the table has missing entries; every row needs all its coordinates")
        found, place = np.unique(table[name].to_numpy(), return_inverse=True)
        labels.append(found)
        columns.append(place)
    whole = _from_coordinates(np.stack(columns, axis=1), table[table.columns[-1]].to_numpy(), tuple(map(len, labels)))
    return Observed(whole.shape, whole.coords, whole.values, tuple(modes), tuple(labels))


def _finite(shape: tuple[int, ...], coords: np.ndarray, values: np.ndarray) -> Observed:
    if len(values) == 0:
        raise ValueError(f"the tensor of shape {shape} has no observed entry; there is nothing to complete it from")
    infinite = ~np.isfinite(values)
    if infinite.any():
        at = tuple(coords[infinite][0].tolist())
        raise ValueError(f"entry {at} is {values[infinite][0]}; mark unknown entries as NaN, and leave no infinity")
    return Observed(shape, coords, values)
