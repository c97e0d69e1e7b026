"""Convolutions whose kernel is a tensor network."""

from __future__ import annotations

import math
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
    """A kernel in two: `inner` takes a pixel's channels to the bonds between, `outer` a window of those to out."""

    inner: Network  # rows: the bonds between; cols: the input channels
    outer: Network  # rows: the output channels; cols: the window, then the bonds between


class Conv(nnx.Module):
    """`y[p] = sum_k W[:, k, :] x[stride p + k] + bias`, W (out, window * in) a network; calls like `flax.nnx.Conv`.

    Inputs are `(*batch, *space, in)` in one or two dimensions. The kernel is never formed unless that is counted
    cheapest. Where the input channels sit on cores of their own (CP, Tucker, trains over (out, window, in), ...), they
    can go first, pixel by pixel, and windows are cut from the few bonds that are left: for CP and Tucker-2 these are
    the chains of Lebedev et al. 2015 and Kim et al. 2016. On CPU a product of windows is several times faster than the
    convolution of XLA and its gradients (experiments/conv_speed); elsewhere a formed kernel goes to the latter.

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
    pixels, windows = (x.shape[0] * math.prod(space) for space in (x.shape[1:-1], out))
    parts, _ = cheapest(network, size, pixels, windows)
    if parts is not None:
        inner, outer = (Factored(n, {core.name: tensor.cores[core.name] for core in n.cores}) for n in parts)
        return _windowed(partial(_product, outer), _product(inner, x), size, strides, pads)
    if untiled(network, windows).densify and jax.default_backend() != "cpu":
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
def cheapest(network: Network, size: tuple[int, ...], pixels: int, windows: int) -> tuple[Split | None, float]:
    """(the split to use, or None for windows of the input itself; counted seconds of a step)."""

    window = math.prod(size)
    whole = untiled(network, windows).seconds + PATCH * windows * network.matrix_shape[1]
    parts = split(network, window)
    if parts is None:
        return None, whole
    between = parts.inner.matrix_shape[0]
    products = untiled(parts.inner, pixels).seconds + untiled(parts.outer, windows).seconds
    chained = products + PATCH * windows * window * between
    return (parts, chained) if chained < whole else (None, whole)


def conv_flops(network: Network, size: tuple[int, ...], pixels: int, windows: int) -> int:
    """Additions and multiplications of `convolve` on one image, the way of fewest."""
    whole, parts = matvec_flops(network, windows), split(network, math.prod(size))
    if parts is None:
        return whole
    return min(whole, matvec_flops(parts.inner, pixels) + matvec_flops(parts.outer, windows))


def split(network: Network, window: int) -> Split | None:
    """The network as input channels first, window after; None where they share a core, or a mode.

    Args:
        network: of a kernel, columns as `Conv` takes them.
        window: positions of the kernel's window.
    """
    count = 0
    while math.prod(network.size[leg] for leg in network.cols[:count]) < window:
        count += 1
    space, channels = network.cols[:count], network.cols[count:]
    if math.prod(network.size[leg] for leg in space) != window:
        return None
    first = [core for core in network.cores if channels and set(core.legs) & set(channels)]
    rest = [core for core in network.cores if core not in first]
    modes = {*network.rows, *space}
    if not first or not rest or any(modes & set(core.legs) for core in first):
        return None
    between = tuple(b for b in network.bonds if any(b in c.legs for c in first) and any(b in c.legs for c in rest))
    if not between or modes - {leg for core in rest for leg in core.legs}:
        return None

    def part(cores: list[Core], rows: tuple[str, ...], cols: tuple[str, ...]) -> Network:
        bare = tuple(Core(core.name, core.legs) for core in cores)
        return Network(bare, {leg: network.size[leg] for core in cores for leg in core.legs}, rows, cols)

    return Split(part(first, between, channels), part(rest, network.rows, (*space, *between)))


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
