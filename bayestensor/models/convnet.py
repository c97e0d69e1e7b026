"""Convolutions with pooling, then linear layers: LeNet-5 and its like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from bayestensor.models.stage import Stage
from bayestensor.nn.conv import Conv, dense_convolution
from bayestensor.nn.linear import ACTIVATIONS, MLP
from bayestensor.tensor.network import Network
from bayestensor.typing import Array, Float


class ConvNet(nnx.Module):
    """`activation(max pool(convolution))` a stage, then an `MLP`; inputs are flat, (*batch, height * width * channels).

    LeNet-5 as Caffe has it: stages of 20 and 50 channels, linear layers 800 -> 500 -> 10 (LeCun et al. 1998 had 6 and
    16, then 120, 84 and 10).

    Args:
        stages: geometry and kernel of each convolution, None for a dense one.
        layers: as in `MLP`.
        activation: one of `ACTIVATIONS`, after every layer but the last.
        use_bias: one entry a layer, convolutions first.
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
        rngs: nnx.Rngs,
    ):
        count = len(stages)
        use_bias = [True] * (count + len(layers)) if use_bias is None else list(use_bias)
        self.stages = tuple(stage for stage, _ in stages)
        convolutions = [
            _convolution(stage, network, bias, rngs) for (stage, network), bias in zip(stages, use_bias, strict=False)
        ]
        linear = MLP(layers, activation=activation, use_bias=use_bias[count:], rngs=rngs)
        self.activation = activation
        self.layers = nnx.List([*convolutions, *linear.layers])
        self._check(linear.layers[0].in_features)

    def _check(self, taken: int) -> None:
        for k, (before, after) in enumerate(itertools.pairwise(self.stages)):
            if before.out_shape != after.in_shape:
                raise ValueError(f"stage {k} gives {before.out_shape} and stage {k + 1} takes {after.in_shape}")
        if not self.stages:
            raise ValueError("a ConvNet has at least one stage; without any it is an MLP")
        width = math.prod(self.stages[-1].out_shape)
        if width != taken:
            raise ValueError(f"the last stage gives {width} features and the first linear layer takes {taken}")

    def __call__(self, x: Float[Array, "*batch pixels"]) -> Float[Array, "*batch out"]:
        """Logits (or means)."""
        batch, activate = x.shape[:-1], ACTIVATIONS[self.activation]
        x = x.reshape(-1, *self.stages[0].in_shape)
        for stage, layer in zip(self.stages, self.layers, strict=False):
            x = activate(max_pool(layer(x), stage.pool))
        x = x.reshape(*batch, math.prod(x.shape[1:]))
        for layer in self.layers[len(self.stages) : -1]:
            x = activate(layer(x))
        return self.layers[-1](x)


def max_pool(x: Float[Array, "batch high wide channels"], side: int) -> Float[Array, "batch high wide channels"]:
    """The largest of each square; rows and columns that fill none are left out."""
    batch, high, wide, channels = x.shape
    high, wide = high // side, wide // side
    squares = x[:, : high * side, : wide * side].reshape(batch, high, side, wide, side, channels)
    return jnp.max(squares, axis=(2, 4))


def _convolution(stage: Stage, network: Network | None, bias: bool, rngs: nnx.Rngs) -> nnx.Module:
    size, into = (stage.kernel_size,) * 2, stage.in_shape[2]
    if network is not None:
        if network.matrix_shape != stage.kernel_shape:
            raise ValueError(f"a kernel of {stage.kernel_shape} is asked for; the network is {network.matrix_shape}")
        return Conv(network, size, padding=stage.padding, use_bias=bias, rngs=rngs)
    return nnx.Conv(
        into,
        stage.out_channels,
        size,
        padding=stage.padding,
        use_bias=bias,
        kernel_init=nnx.initializers.he_normal(),
        conv_general_dilated=dense_convolution,
        rngs=rngs,
    )
