"""Convolutions whose kernel is a tensor network."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from bayestensor.nn.weight import TensorWeight
from bayestensor.tensor.contract import matrix, matvec
from bayestensor.tensor.network import Core, Factored, Network
from bayestensor.tensor.plan import Plan, candidates, matvec_flops
from bayestensor.typing import Array, Float

Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]

PATCH = 5e-9  # s an entry of the patches, its gradient included: experiments/conv_speed
FEW_CHANNELS = 4  # up to so many, patches are cut with the batch as the last axis: runs of one channel copy badly


class Split(NamedTuple):
    """A kernel in two, one after the other: `inner` takes channels to the bonds between, `outer` those to out.

    `inner` goes along the first `axes` axes of the window, `outer` along the others.
    """

    inner: Network  # rows: the bonds between; cols: its axes of the window, then the input channels
    outer: Network  # rows: the output channels; cols: its axes of the window, then the bonds between
    axes: int  # 0: pixel by pixel; 1: a column of the window

    def halves(self, values: Sequence, neutral) -> tuple[tuple, tuple]:
        """One value an axis, as the two convolutions take it."""
        k, rest = self.axes, len(values) - self.axes
        return (*values[:k], *(neutral,) * rest), (*(neutral,) * k, *values[k:])


class Conv(nnx.Module):
    """`y[p] = sum_k W[:, k, :] x[stride p + k] + bias`, W (out, window * in) a network; calls like `flax.nnx.Conv`.

    Inputs are `(*batch, *space, in)` in one or two dimensions. The kernel is never formed unless that is counted
    cheapest. Where the input channels sit on cores of their own (CP, Tucker, trains over (out, window, in), ...), they
    can go first, pixel by pixel, and windows are cut from the few bonds that are left: for CP and Tucker-2 these are
    the chains of Lebedev et al. 2015 and Kim et al. 2016. Where the window's two axes sit on different cores (CP,
    Tucker, 'svd_spatial'), a convolution along the second can follow one along the first (Yang et al. 2020). On CPU a
    product of windows is several times faster than the convolution of XLA and its gradients (experiments/conv_speed);
    elsewhere a formed kernel goes to the latter.

    Args:
        network: its rows multiply to the output channels; its columns are the window's modes, slowest axis first, then
            the input channels' (`conv_network` makes one).
        kernel_size: of the window, one number an axis; an int is one axis.
        strides: one for all axes, or one an axis.
        padding: 'SAME', 'VALID', or how much on each side: one number for all, or one (or a pair) an axis.
        use_bias: whether to add a bias.
        variance: of an entry of W at the start; 2 / (window * in) when None (He et al. 2015).
        rngs: Flax's random streams.

    Raises:
        ValueError: columns that are no multiple of the window, a padding that is none of the above.
    """

    def __init__(
        self,
        network: Network,
        kernel_size: int | Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: Padding = "SAME",
        use_bias: bool = True,
        variance: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.kernel_size = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        axes, window = len(self.kernel_size), math.prod(self.kernel_size)
        self.out_features, width = network.matrix_shape
        if axes not in (1, 2) or width % window:
            raise ValueError(
                f"a kernel of size {self.kernel_size} on a network with {width} columns: the size has one or two axes, "
                "and the columns are the window times the input channels"
            )
        self.in_features = width // window
        self.strides = (strides,) * axes if isinstance(strides, int) else tuple(strides)
        self.padding = _padding(padding, axes)
        if len(self.strides) != axes or min(self.strides) < 1:
            raise ValueError(f"strides are {strides!r}; a whole number of at least 1 for each of the {axes} axes")
        self.kernel = TensorWeight(network, 2 / width if variance is None else variance, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(self.out_features)) if use_bias else None

    def __call__(self, x: Float[Array, "*batch_space in"]) -> Float[Array, "*batch_space out"]:
        """The layer's output."""
        axes = len(self.kernel_size)
        if x.ndim <= axes or x.shape[-1] != self.in_features:
            wanted = f"(..., {'height, ' if axes == 2 else ''}width, {self.in_features})"
            raise ValueError(f"x has shape {x.shape}; this convolution takes {wanted}")
        batch = x.shape[: -axes - 1]
        flat = x.reshape(-1, *x.shape[-axes - 1 :])
        pads = padding_of(flat.shape[1:-1], self.kernel_size, self.strides, self.padding)
        y = convolve(self.kernel.tensor, flat, self.kernel_size, self.strides, pads)
        y = y.reshape(*batch, *y.shape[1:])
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape)


def convolve(
    tensor: Factored,
    x: Float[Array, "batch *space in"],
    size: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
) -> Float[Array, "batch *space out"]:
    """A convolution by the way that is counted cheapest: see `Conv`."""
    network = tensor.network
    out = _out_shape(x.shape[1:-1], size, strides, pads)
    parts, _ = cheapest(network, size, x.shape[0], x.shape[1:-1], out)
    if parts is not None:
        inner, outer = (
            partial(_product, Factored(n, {core.name: tensor.cores[core.name] for core in n.cores})) for n in parts[:2]
        )
        told = (parts.halves(values, none) for values, none in ((size, 1), (strides, 1), (pads, (0, 0))))
        ahead, after = zip(*told, strict=True)
        return _windowed(outer, _windowed(inner, x, *ahead) if parts.axes else inner(x), *after)
    if untiled(network, x.shape[0] * math.prod(out)).densify and jax.default_backend() != "cpu":
        kernel = matrix(tensor).T.reshape(*size, x.shape[-1], network.matrix_shape[0])
        names = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}[len(size)]
        return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=names)
    return _windowed(partial(_product, tensor), x, size, strides, pads)


def _product(tensor: Factored, x: Array, batch_last: bool = False) -> Array:
    return matvec(tensor, x, untiled(tensor.network, math.prod(x.shape[:-1]), batch_last))


def dense_convolution(x: Array, kernel: Float[Array, "*size in out"], strides, padding, **options) -> Array:
    """For `nnx.Conv(..., conv_general_dilated=dense_convolution)`: a dense kernel by windows too, on CPU.

    Without dilation and groups.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    size, matrix = kernel.shape[:-2], kernel.reshape(-1, kernel.shape[-1])
    return _windowed(
        lambda cut, batch_last=False: cut @ matrix, x, size, strides, padding_of(x.shape[1:-1], size, strides, padding)
    )


def _windowed(product: Callable[..., Array], x: Array, size, strides, pads) -> Array:
    """A product with every window of x, (windows, window * in) -> (windows, out)."""
    out = _out_shape(x.shape[1:-1], size, strides, pads)
    if x.shape[-1] > FEW_CHANNELS:
        return product(patches(x, size, strides, pads, channel=-1))
    turned = jnp.moveaxis(x, (-1, 0), (0, -1))  # channels, space, batch: whole rows of the batch move at a time
    cut = patches(turned, size, strides, pads, channel=0)
    y = product(cut.reshape(cut.shape[0], -1).T, batch_last=True)
    return jnp.moveaxis(y.reshape(*out, x.shape[0], -1), len(out), 0)


def patches(x: Array, size: Sequence[int], strides: Sequence[int], pads, *, channel: int) -> Array:
    """Windows of x side by side along its channel axis, slowest axis of the window first, channels last.

    Shifted slices, one axis after the other: XLA's own patches are a convolution, whose gradient is slow on CPU.

    Args:
        x: (batch, *space, channels), or (channels, *space, batch).
        size: of the window.
        strides: of the window.
        pads: zeros (before, after) each axis of space.
        channel: 0 or -1, where the channels are.
    """
    edge = (0, 0)
    x = jnp.pad(x, (edge, *pads, edge))
    for axis in range(len(size), 0, -1):
        k, stride = size[axis - 1], strides[axis - 1]
        last = (x.shape[axis] - k) // stride * stride
        shifted = [jax.lax.slice_in_dim(x, j, j + last + 1, stride, axis) for j in range(k)]
        x = jnp.concatenate(shifted, axis=channel) if k > 1 else shifted[0]
    return x


@lru_cache(maxsize=1024)
def untiled(network: Network, batch: int, batch_last: bool = False) -> Plan:
    """The cheapest plan that takes the batch in one piece.

    Windows are many and short, and already written out: a loop over tiles of them would only copy them again.
    """
    plans = [plan for plan in candidates(network, max(batch, 1)) if plan.tile is None and not plan.rematerialise]
    return next((plan for plan in plans if plan.batch_last == batch_last), plans[0])


@lru_cache(maxsize=1024)
def cheapest(
    network: Network, size: tuple[int, ...], batch: int, space: tuple[int, ...], out: tuple[int, ...]
) -> tuple[Split | None, float]:
    """(the split to use, or None for windows of the input itself; counted seconds of a step).

    Args:
        network: of a kernel, columns as `Conv` takes them.
        size: of its window.
        batch: images.
        space: pixels of an image along each axis.
        out: windows along each axis.
    """
    windows = batch * math.prod(out)
    best: tuple[Split | None, float]
    best = None, untiled(network, windows).seconds + PATCH * windows * network.matrix_shape[1]
    for parts in splits(network, size):
        pixels = batch * _between(parts, space, out)
        seconds = untiled(parts.inner, pixels).seconds + untiled(parts.outer, windows).seconds
        cut = windows * parts.outer.matrix_shape[1] + (pixels * parts.inner.matrix_shape[1] if parts.axes else 0)
        if seconds + PATCH * cut < best[1]:
            best = parts, seconds + PATCH * cut
    return best


def conv_flops(
    network: Network, size: tuple[int, ...], batch: int, space: tuple[int, ...], out: tuple[int, ...]
) -> int:
    """Additions and multiplications of `convolve`, the way of fewest; arguments as `cheapest`'s."""
    windows = batch * math.prod(out)
    chained = (
        matvec_flops(parts.inner, batch * _between(parts, space, out)) + matvec_flops(parts.outer, windows)
        for parts in splits(network, size)
    )
    return min([matvec_flops(network, windows), *chained])


def _between(parts: Split, space: tuple[int, ...], out: tuple[int, ...]) -> int:
    """Pixels between the two convolutions of a split."""
    return math.prod((*out[: parts.axes], *space[parts.axes :]))


@lru_cache(maxsize=1024)
def splits(network: Network, size: tuple[int, ...]) -> tuple[Split, ...]:
    """The kernel as input channels first, alone or with the window's first axis, where they have cores of their own."""
    found = (_split(network, size, axes) for axes in range(len(size)))
    return tuple(parts for parts in found if parts is not None)


def _split(network: Network, size: tuple[int, ...], axes: int) -> Split | None:
    ahead, window = (_legs(network, math.prod(size[:k])) for k in (axes, len(size)))
    if ahead is None or window is None:
        return None
    own = (*network.cols[:ahead], *network.cols[window:])
    modes = {*network.rows, *network.cols[ahead:window]}
    first = [core for core in network.cores if set(core.legs) & set(own)]
    rest = [core for core in network.cores if core not in first]
    if not first or not rest or any(modes & set(core.legs) for core in first):
        return None
    between = tuple(b for b in network.bonds if any(b in c.legs for c in first) and any(b in c.legs for c in rest))
    if not between or modes - {leg for core in rest for leg in core.legs}:
        return None

    def part(cores: list[Core], rows: tuple[str, ...], cols: tuple[str, ...]) -> Network:
        bare = tuple(Core(core.name, core.legs) for core in cores)
        return Network(bare, {leg: network.size[leg] for core in cores for leg in core.legs}, rows, cols)

    outer = part(rest, network.rows, (*network.cols[ahead:window], *between))
    return Split(part(first, between, own), outer, axes)


def _legs(network: Network, width: int) -> int | None:
    """How many of the columns' first modes come to a width; None where no number does."""
    products = itertools.accumulate((network.size[leg] for leg in network.cols), operator.mul, initial=1)
    return next((count for count, product in enumerate(products) if product == width), None)


def _padding(padding: Padding, axes: int) -> str | tuple[tuple[int, int], ...]:
    if padding in ("SAME", "VALID"):
        return str(padding)
    per_axis = (padding,) * axes if isinstance(padding, int) else padding
    if not isinstance(per_axis, str) and len(per_axis) == axes:
        pads = tuple((p, p) if isinstance(p, int) else tuple(p) for p in per_axis)
        if all(len(pair) == 2 and min(pair) >= 0 for pair in pads):
            return pads  # type: ignore[return-value]
    raise ValueError(f"padding is {padding!r}; 'SAME', 'VALID', a whole number, or one (or a pair) for each axis")


def padding_of(space, size, strides, padding) -> tuple[tuple[int, int], ...]:
    """Zeros (before, after) each axis."""
    pads = jax.lax.padtype_to_pads(space, size, strides, padding) if isinstance(padding, str) else padding
    return tuple((int(before), int(after)) for before, after in pads)


def _out_shape(space, size, strides, pads) -> tuple[int, ...]:
    out = tuple((n + sum(p) - k) // s + 1 for n, k, s, p in zip(space, size, strides, pads, strict=True))
    if min(out) < 1:
        raise ValueError(f"a window of {size} does not fit into {tuple(space)} padded by {pads}")
    return out
