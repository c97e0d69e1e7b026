"""The leading subspace of every mode of a tensor known at few of its entries, and the small tensor within them.

Y is the tensor with zeros where nothing was observed, p the share that was. `Y_(k) Y_(k)'` without its diagonal sums
products of different entries of a fibre, in which noise has mean zero: its mean is `p^2 X_(k) X_(k)'`, so that its
leading eigenvectors U_k span what X has in mode k. Within them X is `Y x_1 U_1' x_2 U_2' ... / p`: small, full, with
noise of one size. Random starts learn nothing where a row of a core has fewer entries than it takes to tell a
component from noise; this one needs more products than rows, for which squares of entries do.

Cai, Li, Poor, Chen, "Subspace estimation from unbalanced and incomplete data matrices", Annals of Statistics 49, 2021;
Montanari, Sun, "Spectral algorithms for tensor completion", CPAM 71, 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import LinearOperator, eigsh

_LARGEST_CORE = 8000  # numbers of the small tensor
_MOST_ENTRIES = 1 << 21  # that the small tensor is made from
_BLOCK = 1 << 14
_DENSE = 256  # rows of a mode whose products are made into an array


class Compressed(NamedTuple):
    """`X ~ core x_1 bases[0] x_2 bases[1] ...`; bases[k] is [n_k, r_k] with columns of mean square 1."""

    bases: tuple[np.ndarray, ...]
    core: np.ndarray


def compressed(coords: np.ndarray, values: np.ndarray, shape: Sequence[int], ranks: Sequence[int]) -> Compressed:
    """What the observed entries tell of the tensor in the leading subspaces of its modes.

    Args:
        coords: (n, modes) of the observed entries, each once.
        values: (n,) of mean near zero against their spread.
        shape: of the whole tensor.
        ranks: dimension wanted in each mode, at most its size; lowered together until the core is small.
    """
    most = max(2, int(_LARGEST_CORE ** (1 / len(shape))))
    bases = []
    for mode, size in enumerate(shape):
        rank = min(ranks[mode], size, most)
        basis = np.eye(size) if rank == size else _subspace(coords, values, shape, mode, rank)
        bases.append(basis * math.sqrt(size / rank))
    step = -(-len(values) // _MOST_ENTRIES)
    coords, values = coords[::step], values[::step]
    core = np.zeros((math.prod(b.shape[1] for b in bases[:-1]), bases[-1].shape[1]))
    for first in range(0, len(values), _BLOCK):
        at, y = coords[first : first + _BLOCK], values[first : first + _BLOCK]
        left = np.ones((len(y), 1))
        for basis, index in zip(bases[:-1], at.T, strict=False):
            left = (left[:, :, None] * basis[index][:, None, :]).reshape(len(y), -1)
        core += left.T @ (bases[-1][at[:, -1]] * y[:, None])
    core *= math.prod(b.shape[1] for b in bases) / len(values)  # U' U = n / r: the sum over entries, / p, * prod(r / n)
    return Compressed(tuple(bases), core.reshape([b.shape[1] for b in bases]))


def _subspace(coords: np.ndarray, values: np.ndarray, shape: Sequence[int], mode: int, rank: int) -> np.ndarray:
    """Leading eigenvectors of `Y_(mode) Y_(mode)'` without its diagonal, [n, rank]."""
    size = shape[mode]
    others = [k for k in range(len(shape)) if k != mode]
    fibre = np.zeros(len(values), int)  # a vector is one fibre
    if others:
        fibre = np.ravel_multi_index([coords[:, k] for k in others], [shape[k] for k in others])
    order = np.argsort(fibre)
    fibre = fibre[order]
    again = fibre[1:] == fibre[:-1]
    shared = np.concatenate([again, [False]]) | np.concatenate([[False], again])  # an entry alone has no product
    order, fibre = order[shared], fibre[shared]
    column = np.concatenate([[0], np.cumsum(fibre[1:] != fibre[:-1])]) if len(fibre) else np.zeros(0, int)
    row, y = coords[order, mode], values[order]
    unfolding = csr_matrix((y, (row, column)), shape=(size, int(column[-1]) + 1 if len(column) else 1))
    squares = np.bincount(row, y**2, minlength=size)
    if size <= max(_DENSE, 2 * rank + 1):
        products = (unfolding @ unfolding.T).toarray() - np.diag(squares)
        return np.linalg.eigh(products)[1][:, -rank:]
    transposed = unfolding.T.tocsr()
    operator = LinearOperator(
        (size, size), matvec=lambda v: unfolding @ (transposed @ v) - squares * v, dtype=values.dtype
    )
    start = np.random.default_rng(mode).normal(size=size)
    return eigsh(operator, k=rank, which="LA", tol=1e-2, v0=start)[1]
