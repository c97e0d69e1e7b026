"""Which networks could stand for a dense Flax layer, and the layer that would hold one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from flax import nnx

from bayestensor.nn.attention import LinearGeneral
from bayestensor.nn.conv import Conv
from bayestensor.nn.embedding import Embed
from bayestensor.nn.linear import Linear
from bayestensor.tensor.formats import tensor_train
from bayestensor.tensor.network import Network
from bayestensor.tensor.sized import conv_network, embed_network, linear_network

Ranked = Callable[[int], Network]  # rank -> network


@dataclass(frozen=True)
class Candidates:
    """How one dense layer could be tensorized.

    Attributes:
        matrix: its dense weight as (out, in), or (rows, features) of a table, on the host.
        networks: format -> (rank -> network).
        build: (network, variance, rngs) -> the layer, cores at random.
        weight: the attribute where that layer has its `TensorWeight`.
    """

    matrix: np.ndarray
    networks: Mapping[str, Ranked]
    build: Callable[..., nnx.Module]
    weight: str = "kernel"


def candidates(layer: nnx.Module, format: str | None) -> Candidates | str:
    """What could stand for a layer, or why nothing can.

    Args:
        layer: of a Flax model.
        format: the only format to consider; None for the usual ones of its kind.
    """
    find = _KINDS.get(type(layer))
    if find is None:
        return "no tensorized layer of this type"
    dtype = getattr(layer, "dtype", None)
    if dtype is not None and np.dtype(dtype) != np.float32:
        return f"computes in {np.dtype(dtype)}; only float32 is taken over"
    return find(layer, format)


def _linear(layer: nnx.Linear, format: str | None) -> Candidates:
    out, into = layer.out_features, layer.in_features
    build = partial(_make, Linear, use_bias=layer.bias is not None)
    return Candidates(np.asarray(layer.kernel[...]).T, _for_matrix(out, into, format), build)


def _general(layer: nnx.LinearGeneral, format: str | None) -> Candidates | str:
    axes = tuple(layer.axis)
    if layer.batch_axis or sorted(axes) != list(range(-len(axes), 0)):
        return "only the last axes, and no batch axes, are taken over"
    into, out = tuple(layer.in_features), tuple(layer.out_features)
    width, rows = int(np.prod(into)), int(np.prod(out))

    def build(network: Network, variance: float, rngs: nnx.Rngs) -> LinearGeneral:
        return LinearGeneral(network, into, out, use_bias=layer.bias is not None, variance=variance, rngs=rngs)

    kernel = np.asarray(layer.kernel[...]).reshape(width, rows)
    return Candidates(kernel.T, _for_matrix(rows, width, format), build)


def _conv(layer: nnx.Conv, format: str | None) -> Candidates | str:
    size, strides, padding = tuple(layer.kernel_size), layer.strides, layer.padding
    dilations = np.ravel([layer.input_dilation or 1, layer.kernel_dilation or 1])
    plain = isinstance(padding, int) or not isinstance(padding, str) or padding in ("SAME", "VALID")
    if layer.feature_group_count != 1 or (dilations != 1).any() or layer.mask is not None or not plain or len(size) > 2:
        return "only 1D and 2D kernels without groups, dilation or mask, padded SAME, VALID or by numbers"
    out, into = layer.out_features, layer.in_features

    def build(network: Network, variance: float, rngs: nnx.Rngs) -> Conv:
        options: dict[str, Any] = {"strides": 1 if strides is None else strides, "padding": padding}
        return Conv(network, size, use_bias=layer.bias is not None, variance=variance, rngs=rngs, **options)

    names = ("tensor_train", "tt_matrix") if format is None else (format,)
    networks = {name: partial(conv_network, out, into, size, name) for name in names}
    return Candidates(np.asarray(layer.kernel[...]).reshape(-1, out).T, networks, build)


def _embed(layer: nnx.Embed, format: str | None) -> Candidates:
    count, features = layer.num_embeddings, layer.features

    def build(network: Network, variance: float, rngs: nnx.Rngs) -> Embed:
        return Embed(network, count, variance=variance, rngs=rngs)

    networks: dict[str, Ranked] = {"tt_matrix": partial(embed_network, count, features, "tt_matrix")}
    networks["tensor_train"] = _low_rank(count, features)
    if format is not None:
        networks = {format: partial(embed_network, count, features, format)}
    return Candidates(np.asarray(layer.embedding[...]), networks, build, weight="embedding")


_KINDS: dict[type, Callable[..., Candidates | str]] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _general,
    nnx.Conv: _conv,
    nnx.Embed: _embed,
}


def _for_matrix(out: int, into: int, format: str | None) -> dict[str, Ranked]:
    if format is not None:
        return {format: partial(linear_network, out, into, format)}
    return {"tt_matrix": partial(linear_network, out, into, "tt_matrix"), "tensor_train": _low_rank(out, into)}


def _low_rank(rows: int, cols: int) -> Ranked:
    """A plain product of two matrices, (rows, rank) and (rank, cols): a train over two modes."""
    return lambda rank: tensor_train((rows,), (cols,), min(rank, rows, cols))


def _make(kind: type, network: Network, variance: float, rngs: nnx.Rngs, **options) -> nnx.Module:
    return kind(network, variance=variance, rngs=rngs, **options)
