"""One builder per format: each returns a `Network`, and its docstring holds the elementwise formula.

Row modes are named i0, i1, ..., column modes j0, j1, ...; x below is the tuple of all modes, rows first.
A rank is an int for every bond, a mapping bond -> int, or 'full': the size at which any tensor fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Literal, TypeAlias

from bayestensor.tensor.network import Core, Network

Shape: TypeAlias = Sequence[int]
Rank: TypeAlias = int | Mapping[str, int] | Literal["full"]


def _modes(rows: Shape, cols: Shape) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, int]]:
    if not (*rows, *cols):
        raise ValueError("a tensor without modes has no format; give at least one row or column size")
    for size in (*rows, *cols):
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise ValueError(
                f"a mode of size {size!r} in rows {rows}, cols {cols}; sizes are whole numbers of at least 1"
            )
    row_legs = tuple(f"i{k}" for k in range(len(rows)))
    col_legs = tuple(f"j{k}" for k in range(len(cols)))
    return row_legs, col_legs, dict(zip(row_legs + col_legs, (*rows, *cols), strict=True))


def _ranks(rank: Rank, full: Mapping[str, int]) -> dict[str, int]:
    if rank == "full":
        return dict(full)
    if isinstance(rank, Mapping):
        if set(rank) != set(full):
            raise ValueError(f"ranks name the bonds {sorted(rank)}; this format has {sorted(full)}")
        return dict(rank)
    if isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1:
        raise ValueError(f"rank is {rank!r}; it is a whole number of at least 1, a mapping bond -> number, or 'full'")
    return dict.fromkeys(full, int(rank))


def _smaller_side(sizes: Sequence[int], inside: slice) -> int:
    within = math.prod(sizes[inside])
    return min(within, math.prod(sizes) // within)


def cp(rows: Shape, cols: Shape = (), rank: Rank = 10) -> Network:
    """Canonical polyadic: `X[x] = sum_r prod_k factor_k[x_k, r]` (Hitchcock 1927)."""
    row_legs, col_legs, sizes = _modes(rows, cols)
    full = math.prod(sizes.values()) // max(sizes.values())
    cores = tuple(Core(f"factor{k}", (leg, "rank")) for k, leg in enumerate(row_legs + col_legs))
    return Network(cores, sizes | _ranks(rank, {"rank": full}), row_legs, col_legs)


def tucker(rows: Shape, cols: Shape = (), rank: Rank = 10) -> Network:
    """Tucker: `X[x] = sum_{r0, r1, ...} core[r0, r1, ...] prod_k factor_k[x_k, r_k]` (Tucker 1966)."""
    row_legs, col_legs, sizes = _modes(rows, cols)
    modes = row_legs + col_legs
    bonds = tuple(f"r{k}" for k in range(len(modes)))
    full = {bond: _smaller_side(list(sizes.values()), slice(k, k + 1)) for k, bond in enumerate(bonds)}
    cores = (Core("core", bonds), *(Core(f"factor{k}", (leg, bonds[k])) for k, leg in enumerate(modes)))
    return Network(cores, sizes | _ranks(rank, full), row_legs, col_legs)


def tensor_train(rows: Shape, cols: Shape = (), rank: Rank = 10) -> Network:
    """Tensor train over all modes in a line: `X[x] = core_0[x_0] core_1[x_1] ... core_d[x_d]`, a product of
    matrices `core_k[x_k]` of shape (b_k, b_k+1) with `b_0 = b_d+1 = 1` left out (Oseledets 2011)."""
    row_legs, col_legs, sizes = _modes(rows, cols)
    return _train(row_legs, col_legs, sizes, [(leg,) for leg in row_legs + col_legs], rank)


def tt_matrix(rows: Shape, cols: Shape, rank: Rank = 10) -> Network:
    """TT-matrix: a train whose core k carries a row and a column mode, `X[i, j] = prod_k core_k[i_k, j_k]`
    (Novikov et al. 2015). Rows and columns have the same number of modes; fill up with 1."""
    if len(rows) != len(cols):
        raise ValueError(
            f"a TT-matrix pairs modes: {len(rows)} row modes {tuple(rows)} against {len(cols)} {tuple(cols)}"
        )
    row_legs, col_legs, sizes = _modes(rows, cols)
    return _train(row_legs, col_legs, sizes, list(zip(row_legs, col_legs, strict=True)), rank)


def _train(row_legs, col_legs, sizes, stations: Sequence[tuple[str, ...]], rank: Rank) -> Network:
    widths = [math.prod(sizes[leg] for leg in station) for station in stations]
    bonds = [f"b{k}" for k in range(1, len(stations))]
    full = {bond: _smaller_side(widths, slice(0, k)) for k, bond in enumerate(bonds, 1)}
    cores = tuple(
        Core(f"core{k}", (*bonds[max(k - 1, 0) : k], *station, *bonds[k : k + 1])) for k, station in enumerate(stations)
    )
    return Network(cores, sizes | _ranks(rank, full), row_legs, col_legs)


def tensor_ring(rows: Shape, cols: Shape = (), rank: Rank = 10) -> Network:
    """Tensor ring: `X[x] = trace(core_0[x_0] core_1[x_1] ... core_d[x_d])` (Zhao et al. 2016).

    Over a single mode the ring closes on itself and is that core alone. 'full' opens the ring (`b0 = 1`), since
    a tensor train already carries everything.
    """
    row_legs, col_legs, sizes = _modes(rows, cols)
    modes = row_legs + col_legs
    if len(modes) == 1:
        _ranks(rank, {})  # there is no bond: only to refuse what is no rank
        return Network((Core("core0", modes),), sizes, row_legs, col_legs)
    bonds = [f"b{k}" for k in range(len(modes))]
    full = {bond: _smaller_side(list(sizes.values()), slice(0, k)) for k, bond in enumerate(bonds)}
    cores = tuple(Core(f"core{k}", (bonds[k], leg, bonds[(k + 1) % len(modes)])) for k, leg in enumerate(modes))
    return Network(cores, sizes | _ranks(rank, full), row_legs, col_legs)


def block_term(rows: Shape, cols: Shape = (), rank: Rank = 10) -> Network:
    """Block-term: a sum of Tucker blocks, `X[x] = sum_block sum_{r0, r1, ...} core[block, r0, r1, ...]
    prod_k factor_k[block, x_k, r_k]` (De Lathauwer 2008). An int rank gives that many of each inner bond and
    two blocks."""
    row_legs, col_legs, sizes = _modes(rows, cols)
    modes = row_legs + col_legs
    bonds = tuple(f"r{k}" for k in range(len(modes)))
    full = {"block": 1} | {bond: _smaller_side(list(sizes.values()), slice(k, k + 1)) for k, bond in enumerate(bonds)}
    ranks = _ranks(rank, full)
    if isinstance(rank, Integral):
        ranks["block"] = min(2, int(rank))
    cores = (
        Core("core", ("block", *bonds)),
        *(Core(f"factor{k}", ("block", leg, bonds[k])) for k, leg in enumerate(modes)),
    )
    return Network(cores, sizes | ranks, row_legs, col_legs)


def hierarchical_tucker(rows: Shape, cols: Shape = (), rank: Rank = 10) -> Network:
    """Hierarchical Tucker on a balanced binary tree (Grasedyck 2010): for a node t with children l and r,
    `U_t[x_t, n_t] = sum_{n_l, n_r} node_t[n_l, n_r, n_t] U_l[x_l, n_l] U_r[x_r, n_r]`, leaves
    `U_k = leaf_k[x_k, n_k]`, and X = U_root, which has no n_root.

    Rows and columns take turns from leaf to leaf (i0, j0, i1, j1, ...), so that no one bond carries all that the
    columns say to the rows; bonds are named after the places of their leaves.
    """
    row_legs, col_legs, sizes = _modes(rows, cols)
    modes = [leg for pair in itertools.zip_longest(row_legs, col_legs) for leg in pair if leg is not None]
    widths = [sizes[leg] for leg in modes]
    cores: list[Core] = []
    full: dict[str, int] = {}

    def grow(low: int, high: int) -> tuple[str, ...]:
        """Append the cores of modes low..high-1; return the bond towards the parent (none at the root)."""
        is_root = (low, high) == (0, len(modes))
        name = f"{low}" if high == low + 1 else f"{low}_{high - 1}"
        up: tuple[str, ...] = () if is_root else (f"n{name}",)
        if not is_root:
            full[up[0]] = _smaller_side(widths, slice(low, high))
        if high == low + 1:
            cores.append(Core(f"leaf{name}", (modes[low], *up)))
        else:
            middle = (low + high + 1) // 2
            cores.append(Core(f"node{name}", (*grow(low, middle), *grow(middle, high), *up)))
        return up

    grow(0, len(modes))
    return Network(tuple(cores), sizes | _ranks(rank, full), row_legs, col_legs)


def svd(rows: Shape, cols: Shape = (), rank: Rank = 10) -> Network:
    """Singular value decomposition of the matrix of rows against columns: `X[i, j] = sum_r u[i, r] s[r] v[j, r]` (Yang
    et al. 2020, arXiv 2004.09031; `priors.SvdPenalty` makes u and v orthonormal). Where one side has no modes, the
    first half of them stands against the second. An int rank is cut to what the matrix can have."""
    row_legs, col_legs, sizes = _modes(rows, cols)
    modes = row_legs + col_legs
    middle = len(row_legs) if row_legs and col_legs else (len(modes) + 1) // 2
    full = _smaller_side([sizes[leg] for leg in modes], slice(0, middle))
    ranks = _ranks(rank, {"rank": full})
    if isinstance(rank, Integral):
        ranks["rank"] = min(ranks["rank"], full)
    cores = (Core("u", (*modes[:middle], "rank")), Core("s", ("rank",)), Core("v", (*modes[middle:], "rank")))
    return Network(cores, sizes | ranks, row_legs, col_legs)


FORMATS: dict[str, Callable[..., Network]] = {
    "cp": cp,
    "tucker": tucker,
    "tensor_train": tensor_train,
    "tt_matrix": tt_matrix,
    "tensor_ring": tensor_ring,
    "block_term": block_term,
    "hierarchical_tucker": hierarchical_tucker,
    "svd": svd,
}


def factorize(size: int, order: int) -> tuple[int, ...]:
    """Split `size` into `order` whole factors, as equal as its divisors allow, largest first.

    A prime cannot be split: `factorize(7, 2) == (7, 1)`.
    """
    if size < 1 or order < 1:
        raise ValueError(f"cannot split {size} into {order} factors; both are at least 1")

    def best(rest: int, parts: int, ceiling: int) -> tuple[int, ...] | None:
        """The split of `rest` into `parts` factors of at most `ceiling` with the smallest sum."""
        if parts == 1:
            return (rest,) if rest <= ceiling else None
        splits = []
        for head in range(min(rest, ceiling), 0, -1):
            if rest % head == 0 and head**parts >= rest:
                tail = best(rest // head, parts - 1, head)
                if tail is not None:
                    splits.append((head, *tail))
        return min(splits, key=sum, default=None)

    found = best(size, order, size)
    assert found is not None  # (size, 1, ..., 1) always qualifies
    return found


def matrix_shapes(rows: int, cols: int, order: int | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tensorized shapes for a (rows, cols) matrix: `order` modes each; by default modes stay near 8 and below 32."""
    if order is None:
        order = max(2, round(math.log(max(rows, cols), 8))) if max(rows, cols) > 8 else 1
    return factorize(rows, order), factorize(cols, order)
