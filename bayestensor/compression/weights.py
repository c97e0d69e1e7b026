"""Trained weights from a file into a Flax model: safetensors, named and laid out as by Flax or as by PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

MOST_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_COUNTER = "num_batches_tracked"  # PyTorch's batch normalisation counts; Flax's does not


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The floating arrays of a safetensors file, by name.

    Eight bytes hold the length of a JSON header, which has a type, a shape and a place in the rest for every name. The
    format has no checksum: a flipped bit in the data goes unseen.

    Raises:
        ValueError: a header that is none, or that says of an array what the file does not hold.
    """
    content = Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        if len(content) < 8 or length > min(MOST_HEADER, len(content) - 8):
            raise ValueError("it is shorter than its header")
        header, data = json.loads(content[8 : 8 + length].decode()), content[8 + length :]
        if not isinstance(header, dict):
            raise ValueError("its header is no table")
    except ValueError as error:  # of JSON and of UTF-8 too
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
    header.pop("__metadata__", None)
    return {name: _array(f"{path}: {name!r}", told, data) for name, told in header.items() if not _counts(name)}


def _counts(name: str) -> bool:
    return name.rpartition(".")[2] == _COUNTER


def _array(what: str, told: Any, data: bytes) -> np.ndarray:
    try:
        dtype, shape, (begin, end) = told["dtype"], tuple(map(int, told["shape"])), map(int, told["data_offsets"])
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{what}: its entry has no dtype, shape and pair of data_offsets, but {told!r:.80}") from None
    if dtype not in DTYPES:
        raise ValueError(f"{what} is {dtype}; weights are one of {', '.join(DTYPES)}")
    wanted = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(data) or end - begin != wanted:
        raise ValueError(
            f"{what}: bytes {begin} to {end} of {len(data)} for {dtype} of shape {shape}; it takes {wanted}"
        )
    return np.frombuffer(data[begin:end], DTYPES[dtype]).reshape(shape)


def load_weights(
    model: nnx.Module,
    weights: str | Path | Mapping[str, np.ndarray],
    *,
    layout: Literal["flax", "torch"] = "flax",
    names: Mapping[str, str] | None = None,
) -> nnx.Module:
    """A copy of a model with all parameters, and statistics of batch normalisation, from a file.

    With layout "torch" a Linear's `weight` (out, in) becomes its kernel (in, out), a Conv's (out, in, *window) becomes
    (*window, in, out), an Embed's `weight` its table, a normalisation's `weight`, `running_mean` and `running_var` its
    scale, mean and var. What is flattened between a convolution and a Linear lies (channels, height, width) there and
    (height, width, channels) here: that layer's columns are for the caller to reorder.

    Args:
        model: an nnx model, tensorized or not; it stays as it is.
        weights: a safetensors file, or arrays by name. A name is the layer's dotted path, then that of the array.
        layout: whose names and axes.
        names: path of a layer in the model -> its path in the file, where they differ.

    Raises:
        ValueError: a file that cannot be read; arrays that are missing, left over, or of other shapes: all are listed.
    """
    given = dict(weights) if isinstance(weights, Mapping) else read_safetensors(weights)
    if layout not in ("flax", "torch"):
        raise ValueError(f"layout is {layout!r}; it is 'flax' or 'torch'")
    copy, found, problems = nnx.clone(model), {}, []
    kinds = {path: type(module) for path, module in nnx.iter_modules(copy)}
    for path, leaf in nnx.to_flat_state(nnx.state(copy, (nnx.Param, nnx.BatchStat))):
        layer, name = ".".join(map(str, path[:-1])), str(path[-1])
        theirs = _torch_name(kinds.get(path[:-1]), name) if layout == "torch" else name
        at = ".".join(filter(None, [(names or {}).get(layer, layer), theirs]))
        where = f"layer {layer or 'model'!r}, {name}"
        if at not in given:
            problems.append(f"{where}: {at!r} is not there")
            continue
        array = np.asarray(given.pop(at))
        turned = _from_torch(array, kinds.get(path[:-1]), name) if layout == "torch" else array
        if turned.shape != leaf.shape:
            other = layout == "flax" and array.T.shape == leaf.shape
            hint = " (transposed: try layout='torch')" if other else ""
            problems.append(
                f"{where}: {at!r} has shape {array.shape}, which makes {turned.shape}; the model has {leaf.shape}{hint}"
            )
            continue
        found[path] = leaf.replace(jnp.asarray(turned, leaf.dtype))
    problems += [f"{name!r} is of no layer of the model" for name in given if not _counts(name)]
    if problems:
        raise ValueError("weights that do not fit the model:\n  " + "\n  ".join(problems))
    nnx.update(copy, nnx.from_flat_state(list(found.items())))
    return copy


_NORMS = {"scale": "weight", "mean": "running_mean", "var": "running_var"}
_TORCH: dict[type, dict[str, str]] = {
    nnx.Linear: {"kernel": "weight"},
    nnx.Conv: {"kernel": "weight"},
    nnx.Embed: {"embedding": "weight"},
    nnx.LayerNorm: _NORMS,
    nnx.GroupNorm: _NORMS,
    nnx.BatchNorm: _NORMS,
}


def _torch_name(kind: type | None, name: str) -> str:
    return _TORCH.get(kind, {}).get(name, name)  # type: ignore[arg-type]


def _from_torch(array: np.ndarray, kind: type | None, name: str) -> np.ndarray:
    if kind in (nnx.Linear, nnx.Conv) and name == "kernel" and array.ndim >= 2:
        return np.moveaxis(array, (0, 1), (-1, -2))
    return array
