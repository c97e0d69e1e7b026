"""Networks for a layer of given widths: modes, order and ranks chosen, for any format."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from bayestensor.tensor.decompose import is_tree
from bayestensor.tensor.formats import FORMATS, Rank, Shape, factorize, matrix_shapes, svd
from bayestensor.tensor.network import Network

UNSPLIT = 64  # channels up to so many stay one mode of a convolution: the chain of Tucker-2 is short and fast
CENTRED = ("tucker", "block_term")  # their centre grows with the rank to the power of the modes
SPATIAL = "svd_spatial"  # of convolutions alone: see `conv_network`
PADDING = 0.02  # share by which a table may grow to a number of rows that factorises better


def linear_network(
    out_features: int, in_features: int, format: str = "tt_matrix", rank: Rank = 8, order: int | None = None
) -> Network:
    """A (out_features, in_features) matrix in `order` modes a side, as equal as the widths' divisors allow.

    A prime width stays one mode, which no format splits. Modes of 1 are kept only where rows and columns are paired
    (TT-matrix), formats with a centre of all bonds (Tucker, block-term) have at most two a side, and an SVD has one. In
    a tree an int rank is cut, bond by bond, to what any tensor of the shape can use.

    Raises:
        ValueError: an unknown format, widths below 1, a rank that the format does not take.
    """
    if order is None and format in CENTRED and max(out_features, in_features) > 8:
        order = 2
    if order is None and format == "svd":
        order = 1
    rows, cols = matrix_shapes(out_features, in_features, order)
    return _network(format, rows, cols, rank)


def conv_network(
    out_features: int,
    in_features: int,
    kernel_size: int | Sequence[int],
    format: str = "tensor_train",
    rank: Rank = 8,
    order: int | None = None,
) -> Network:
    """A kernel (out_features, window * in_features) as `Conv` takes it.

    Channels are one mode up to 64 of them, so that 'tensor_train' over (out, window, in) is the Tucker-2 chain of Kim
    et al. 2016; CP and Tucker have the window's two axes apart (Lebedev et al. 2015), other formats have them together.
    'svd_spatial' is the SVD of a (out * width, height * in) matrix, the window being (height, width): a vertical
    convolution and then a horizontal one (Yang et al. 2020, arXiv 2004.09031); 'svd' is of (out, window * in).

    Args:
        out_features, in_features: channels.
        kernel_size: of the window; an int is one axis.
        format: name in `FORMATS`, or 'svd_spatial'.
        rank: as formats take it.
        order: modes of each side's channels, instead of the choice above.
    """
    size = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
    if format == SPATIAL:
        return _spatial(out_features, in_features, size, rank)
    if order is None:
        widest = max(out_features, in_features)
        order = 1 if widest <= UNSPLIT else 2 if widest <= UNSPLIT**2 else 3
    rows, cols = factorize(out_features, order), factorize(in_features, order)
    if format == "tt_matrix":
        return _network(format, (1, *rows), (math.prod(size), *cols), rank)
    space = size if format in ("cp", "tucker") else (math.prod(size),)
    return _network(format, rows, cols, rank, before=space)


def _spatial(out: int, into: int, size: tuple[int, ...], rank: Rank) -> Network:
    if len(size) != 2:
        raise ValueError(f"format {SPATIAL!r} splits a window of two axes; this one is {size}: take 'svd'")
    pair = svd((out, size[1]), (size[0], into), rank)  # legs i0, i1 and j0, j1
    return Network(pair.cores, pair.sizes, ("i0",), ("j0", "i1", "j1"))


def embed_network(
    num_embeddings: int, features: int, format: str = "tt_matrix", rank: Rank = 8, order: int | None = None
) -> Network:
    """A table (rows, features) with at least num_embeddings rows: up to 2 % more where those factorise better.

    A vocabulary is often prime or nearly so; rows that nobody looks up cost next to nothing here. Formats with a
    centre of all bonds (Tucker, block-term) have at most two modes a side.
    """
    if order is None:
        order = len(matrix_shapes(num_embeddings, features)[0])
        order = min(order, 2) if format in CENTRED else order
    most = max(num_embeddings, math.floor(num_embeddings * (1 + PADDING)))
    return _network(format, _split_between(num_embeddings, most, order), factorize(features, order), rank)


def _split_between(least: int, most: int, order: int) -> tuple[int, ...]:
    """`order` factors, as equal as can be, whose product lies between; largest first."""
    middle = round(least ** (1 / order))

    def near(width: int) -> list[tuple[int, tuple[int, ...]]]:
        """(sum, split) of those with all factors within `width` of the middle."""
        factors = range(middle + width, max(middle - width, 1) - 1, -1)
        splits = itertools.combinations_with_replacement(factors, order)
        return [(sum(split), split) for split in splits if least <= math.prod(split) <= most]

    first = next(width for width in itertools.count(1) if near(width))  # ends: (least, 1, ..., 1) always qualifies
    return min(near(2 * first))[1]


def _bare(modes: Shape) -> tuple[int, ...]:
    """Modes without those of size 1, but never none."""
    return tuple(mode for mode in modes if mode > 1) or (1,)


def _network(format: str, rows: Shape, cols: Shape, rank: Rank, before: Shape = ()) -> Network:
    if format not in FORMATS:
        raise ValueError(f"no format {format!r}; there are {', '.join(FORMATS)}")
    build: Callable[..., Network] = FORMATS[format]
    if format == "tt_matrix":
        pairs = [pair for pair in zip(rows, cols, strict=True) if pair != (1, 1)] or [(1, 1)]
        rows, cols = zip(*pairs, strict=True)
    else:
        rows, cols = _bare(rows), (*before, *(mode for mode in cols if mode > 1)) or (1,)
    network = build(rows, cols, rank)
    if isinstance(rank, int) and is_tree(network):
        full = build(rows, cols, "full").ranks
        network = network.resized({bond: min(size, full[bond]) for bond, size in network.ranks.items()})
    return network
