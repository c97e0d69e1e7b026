"""Residual networks for small images, with batch normalisation (He et al. 2016, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bayestensor.nn.conv import Conv, dense_convolution
from bayestensor.tensor.sized import conv_network
from bayestensor.typing import Array, Float

WIDTHS = (16, 32, 64)  # channels of the three stages; the second and the third begin with a stride of 2

Kernel = Callable[[int, int, int], nnx.Module]  # (in channels, out channels, stride) -> a 3 x 3 convolution


class Residual(nnx.Module):
    """`relu(x + norm(conv(relu(norm(conv(x))))))`; where the shape changes, x is strided and filled up with zeros.

    Args:
        into, out: channels.
        stride: of the first convolution.
        kernel: makes a convolution.
        rngs: Flax's random streams.
    """

    def __init__(self, into: int, out: int, stride: int, kernel: Kernel, *, rngs: nnx.Rngs):
        self.stride, self.grown = stride, out - into
        self.convolutions = nnx.List([kernel(into, out, stride), kernel(out, out, 1)])
        self.norms = nnx.List(nnx.BatchNorm(out, rngs=rngs) for _ in range(2))

    def __call__(self, x: Float[Array, "batch high wide into"]) -> Float[Array, "batch less less out"]:
        """The block's output."""
        y = jax.nn.relu(self.norms[0](self.convolutions[0](x)))
        y = self.norms[1](self.convolutions[1](y))
        shortcut = x[:, :: self.stride, :: self.stride]
        return jax.nn.relu(y + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.grown))))


class ResNet(nnx.Module):
    """A first convolution, three stages of `blocks` residual blocks, the mean over pixels, a linear layer.

    In training every batch is normalised by its own statistics, so that log densities and their gradients depend on
    weights and batch alone, for one model, chains and particles alike; `calibrated` fixes them for prediction.

    Args:
        depth: 6 n + 2: 20, 32, 44, 56, 110.
        classes: that go out.
        format: of the 3 x 3 kernels with `least_channels` inputs or more; "dense" for none.
        rank: of every bond.
        least_channels: kernels of fewer inputs stay dense.
        rngs: Flax's random streams.

    Raises:
        ValueError: a depth that is not 6 n + 2.
    """

    def __init__(
        self,
        depth: int = 20,
        classes: int = 10,
        *,
        format: str = "tensor_train",
        rank: int = 16,
        least_channels: int = 16,
        rngs: nnx.Rngs,
    ):
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth is {depth}; it is 6 n + 2: 8, 14, 20, 32, 44, 56, 110, ...")

        def kernel(into: int, out: int, stride: int) -> nnx.Module:
            if format == "dense" or into < least_channels:
                return _dense(into, out, stride, rngs)
            network = conv_network(out, into, (3, 3), format, rank)
            return Conv(network, (3, 3), strides=stride, padding=1, use_bias=False, rngs=rngs)

        self.first, self.norm = _dense(3, WIDTHS[0], 1, rngs), nnx.BatchNorm(WIDTHS[0], rngs=rngs)
        made, into = [], WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for block in range(blocks):
                made.append(Residual(into, width, 2 if stage and not block else 1, kernel, rngs=rngs))
                into = width
        self.blocks = nnx.List(made)
        self.head = nnx.Linear(into, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "batch high wide 3"]) -> Float[Array, "batch classes"]:
        """Logits."""
        x = jax.nn.relu(self.norm(self.first(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


def _dense(into: int, out: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        into,
        out,
        (3, 3),
        strides=stride,
        padding=1,
        use_bias=False,
        kernel_init=nnx.initializers.he_normal(),
        conv_general_dilated=dense_convolution,
        rngs=rngs,
    )


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


def _norms(model: nnx.Module) -> list[nnx.BatchNorm]:
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]
