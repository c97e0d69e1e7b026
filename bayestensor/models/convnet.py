"""Convolutions with pooling, batch normalisation and shortcuts, then linear layers: LeNet-5, VGG's kind, ResNets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bayestensor.models.stage import Stage, average_shape, check_chain, residual_stages, shortcut_stride
from bayestensor.nn.conv import Conv, dense_convolution
from bayestensor.nn.linear import ACTIVATIONS, MLP
from bayestensor.nn.remat import called
from bayestensor.tensor.network import Network
from bayestensor.tensor.sized import conv_network
from bayestensor.typing import Array, Float

_REFERENCE = 16  # batches of training inputs that statistics of batch normalisation are computed from


class ConvNet(nnx.Module):
    """What each `Stage` says, then the mean over squares, then an `MLP`.

    Inputs are flat, (*batch, height * width * channels), or images. In training every batch is normalised by its own
    statistics, so that log densities and their gradients depend on weights and batch alone, for one model, chains and
    particles alike; `calibrated` fixes them for prediction.

    LeNet-5 as Caffe has it: stages of 20 and 50 channels, linear layers 800 -> 500 -> 10 (LeCun et al. 1998 had 6 and
    16, then 120, 84 and 10).

    Args:
        stages: geometry and kernel of each convolution, None for a dense one.
        layers: as in `MLP`.
        activation: one of `ACTIVATIONS`, after every layer but the last.
        use_bias: one entry a layer, convolutions first; those with batch normalisation have none.
        average: side of the squares whose mean the first linear layer sees; 0 for the whole image.
        rngs: Flax's random streams.

    Raises:
        ValueError: as `MLP`; stages or layers whose sizes do not chain.
    """

    def __init__(
        self,
        stages: Sequence[tuple[Stage, Network | None]],
        layers: Sequence[Network | tuple[int, int]],
        *,
        activation: str = "relu",
        use_bias: Sequence[bool] | None = None,
        average: int = 1,
        rngs: nnx.Rngs,
    ):
        if not stages:
            raise ValueError("a ConvNet has at least one stage; without any it is an MLP")
        count = len(stages)
        use_bias = [True] * (count + len(layers)) if use_bias is None else list(use_bias)
        self.stages, self.average = tuple(stage for stage, _ in stages), average
        check_chain(self.stages)
        convolutions = [
            _convolution(stage, network, bias and not stage.norm, rngs)
            for (stage, network), bias in zip(stages, use_bias, strict=False)
        ]
        linear = MLP(layers, activation=activation, use_bias=use_bias[count:], rngs=rngs)
        width, taken = math.prod(average_shape(self.stages[-1].out_shape, average)), linear.layers[0].in_features
        if width != taken:
            raise ValueError(f"the last stage gives {width} features and the first linear layer takes {taken}")
        self.activation, self.rematerialise = activation, False
        self.layers = nnx.List([*convolutions, *linear.layers])
        normed = {f"n{k}": stage for k, stage in enumerate(self.stages) if stage.norm}
        self.norms = nnx.Dict({name: nnx.BatchNorm(stage.out_channels, rngs=rngs) for name, stage in normed.items()})

    def __call__(self, x: Float[Array, "*batch pixels"]) -> Float[Array, "*batch out"]:
        """Logits (or means)."""
        shape, activate = self.stages[0].in_shape, ACTIVATIONS[self.activation]
        batch = x.shape[:-3] if x.shape[-3:] == shape else x.shape[:-1]
        x = x.reshape(-1, *shape)
        wanted = {stage.add for stage in self.stages}
        kept: dict[int, Array] = {}
        for k, stage in enumerate(self.stages):
            added = None if stage.add is None else kept[stage.add]
            x = called(partial(_stage_output, k), self.rematerialise, self, x, added)
            if k in wanted:
                kept[k] = x
        x = mean_pool(x, self.average)
        x = x.reshape(*batch, math.prod(x.shape[1:]))
        for layer in self.layers[len(self.stages) : -1]:
            x = activate(layer(x))
        return self.layers[-1](x)


def _stage_output(k: int, net: ConvNet, x: Array, added: Array | None) -> Array:
    """`activation(norm(max pool(convolution)) + added)` of stage k."""
    stage = net.stages[k]
    x = max_pool(net.layers[k](x), stage.pool)
    x = net.norms[f"n{k}"](x) if stage.norm else x
    x = x if added is None else x + shortcut(added, stage.out_shape)
    return ACTIVATIONS[net.activation](x)


def max_pool(x: Float[Array, "batch high wide channels"], side: int) -> Float[Array, "batch high wide channels"]:
    """The largest of each square; rows and columns that fill none are left out."""
    if side == 1:
        return x
    batch, high, wide, channels = x.shape
    high, wide = high // side, wide // side
    squares = x[:, : high * side, : wide * side].reshape(batch, high, side, wide, side, channels)
    return jnp.max(squares, axis=(2, 4))


def mean_pool(x: Float[Array, "batch high wide channels"], side: int) -> Float[Array, "batch high wide channels"]:
    """The mean of each square; of the whole image where the side is 0."""
    high, wide, channels = average_shape(x.shape[1:], side)
    if side == 1:
        return x
    return x.reshape(len(x), high, x.shape[1] // high, wide, x.shape[2] // wide, channels).mean(axis=(2, 4))


def shortcut(x: Float[Array, "batch high wide channels"], shape: Sequence[int]) -> Array:
    """Images strided and filled up with zeros to a shape (He et al. 2016, option A)."""
    stride = shortcut_stride(x.shape[1:], shape)
    edge = (0, 0)
    return jnp.pad(x[:, ::stride, ::stride], (edge, edge, edge, (0, shape[2] - x.shape[3])))


def _convolution(stage: Stage, network: Network | None, bias: bool, rngs: nnx.Rngs) -> nnx.Module:
    size, into = (stage.kernel_size,) * 2, stage.in_shape[2]
    if network is not None:
        if network.matrix_shape != stage.kernel_shape:
            raise ValueError(f"a kernel of {stage.kernel_shape} is asked for; the network is {network.matrix_shape}")
        return Conv(network, size, strides=stage.stride, padding=stage.pads, use_bias=bias, rngs=rngs)
    return nnx.Conv(
        into,
        stage.out_channels,
        size,
        strides=stage.stride,
        padding=stage.pads,
        use_bias=bias,
        kernel_init=nnx.initializers.he_normal(),
        conv_general_dilated=dense_convolution,
        rngs=rngs,
    )


def resnet(
    depth: int = 20,
    classes: int = 10,
    *,
    in_shape: tuple[int, int, int] = (32, 32, 3),
    format: str = "tensor_train",
    rank: int = 16,
    least_channels: int = 16,
    rngs: nnx.Rngs,
) -> ConvNet:
    """A residual network for small images (He et al. 2016, section 4.2): see `residual_stages`.

    Args:
        depth: 6 n + 2: 20, 32, 44, 56, 110.
        classes: that go out.
        in_shape: height, width and channels of an image.
        format: of the 3 x 3 kernels with `least_channels` inputs or more; "dense" for none.
        rank: of every bond.
        least_channels: kernels of fewer inputs stay dense.
        rngs: Flax's random streams.

    Raises:
        ValueError: a depth that is not 6 n + 2.
    """

    def kernel(stage: Stage) -> Network | None:
        into = stage.in_shape[2]
        if format == "dense" or into < least_channels:
            return None
        return conv_network(stage.out_channels, into, (3, 3), format, rank)

    stages = residual_stages(in_shape, depth)
    head = (stages[-1].out_channels, classes)
    return ConvNet([(stage, kernel(stage)) for stage in stages], [head], average=0, rngs=rngs)


def normalises(model: nnx.Module) -> bool:
    """Whether a model has batch normalisation."""
    return bool(_norms(model))


class Reference(NamedTuple):
    """Training inputs that statistics of batch normalisation are computed from, and in what batches."""

    x: Array
    batch_size: int

    @classmethod
    def of(cls, model: nnx.Module, x: Array, batch_size: int) -> Reference | None:
        """The first sixteen batches; None for a model without batch normalisation."""
        if not normalises(model):
            return None
        return cls(x[: min(_REFERENCE, len(x) // batch_size) * batch_size], batch_size)


def calibrated(model: nnx.Module, x: Float[Array, "n *shape"], batch_size: int = 128) -> nnx.Module:
    """A copy that normalises by `mean over batches of (mean, variance)`, from training inputs, not by a batch's own.

    One pass over x; statistics follow from the weights, so every draw or particle has its own (as `update_bn` of
    Izmailov et al. 2018, arXiv 1803.05407).

    Args:
        model: with `nnx.BatchNorm` layers.
        x: training inputs; those that do not fill a last batch are left out.
        batch_size: as in training.

    Raises:
        ValueError: fewer inputs than a batch.
    """
    batches = len(x) // batch_size
    if not batches:
        raise ValueError(f"{len(x)} inputs do not fill a batch of {batch_size}")
    parts: Any = nnx.split(nnx.clone(model), nnx.Param, nnx.BatchStat, ...)
    graphdef, parameters, statistics, rest = parts

    def body(total, batch):
        fresh = nnx.merge(graphdef, parameters, jax.tree.map(jnp.zeros_like, statistics), rest)
        fresh.train()
        for norm in _norms(fresh):
            norm.momentum = 0.0  # so that what is kept is the batch's own
        fresh(batch)
        return jax.tree.map(lambda a, b: a + b / batches, total, nnx.state(fresh, nnx.BatchStat)), None

    stacked = jnp.asarray(x)[: batches * batch_size].reshape(batches, batch_size, *x.shape[1:])
    found, _ = jax.jit(lambda xs: jax.lax.scan(body, jax.tree.map(jnp.zeros_like, statistics), xs))(stacked)
    result = nnx.merge(graphdef, parameters, found, rest)
    result.eval()
    return result


def uncalibrated(model: nnx.Module) -> nnx.Module:
    """A copy that normalises each batch by its own statistics, as in training; as it is without batch normalisation."""
    if not normalises(model):
        return model
    copy = nnx.clone(model)
    copy.train()
    return copy


def _norms(model: nnx.Module) -> list[nnx.BatchNorm]:
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]
