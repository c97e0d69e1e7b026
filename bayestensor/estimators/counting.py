"""How many components there are: slices that noise alone would not give, and that no stronger one can take over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bayestensor.ranks.select import RANK_THRESHOLD, host_slice_norms, host_spectra
from bayestensor.tensor.core_rows import is_joint, to_rows
from bayestensor.tensor.network import Network


def standing_out(network: Network, cores: dict[str, Any], noise: float = 0.0) -> dict[str, np.ndarray]:
    """Bond -> `||X restricted to r||` where it exceeds 1e-3 ||X|| and what noise alone would give, else 0.

    The best slice for pure noise has a norm near `noise * sum over its cores of sqrt(entries tied to r)`, noise =
    `seen_noise` (the spectral norm of a noise tensor: Tomioka and Suzuki, arXiv 1407.1870). A core without the bond
    adds the root of its modes' sizes: what a spare index of its own bonds can turn to noise along with r.
    """
    norms, total = host_slice_norms(network, {k: np.asarray(v) for k, v in cores.items()})
    return {bond: np.where(norm > _least(network, bond, total, noise), norm, 0) for bond, norm in norms.items()}


def _least(network: Network, bond: str, total: float, noise: float) -> float:
    free = [[x for x in c.legs if x != bond and (bond in c.legs or x in network.modes)] for c in network.cores]
    return max(RANK_THRESHOLD * total, noise * sum(math.sqrt(math.prod(network.size[x] for x in f)) for f in free))


def seen_noise(network: Network, precision: Any, count: int) -> Any:
    """`sqrt(N / n / precision)`: noise of an entry, larger by what n of N entries leave unseen."""
    return np.sqrt(math.prod(network.shape) / count / np.asarray(precision))


def apart(columns: Sequence[np.ndarray], norms: np.ndarray) -> np.ndarray:
    """How much of each component of CP is beyond what changing one column of a stronger one gives, from 0 to 1, [r].

    `sqrt(1 - max_s t_rs)`, s over the components stronger than r and
    `t_rs = prod_k c_k^2 + sum_k (1 - c_k^2) prod_(j != k) c_j^2`, c_k the cosine of the columns of r and s in mode k:
    the share of r in the tangent space of the rank-one tensors at s. At `t = 1` the two are one component: all columns
    but one are parallel.

    Args:
        columns: of each mode, [size, r].
        norms: of the components, [r]; 0 for those that are not there.
    """
    squares = np.stack([_cosines(c) ** 2 for c in columns])
    others = np.stack([np.prod(np.delete(squares, k, axis=0), axis=0) for k in range(len(squares))])
    tangent = np.prod(squares, axis=0) + np.sum((1 - squares) * others, axis=0)
    stronger = (norms[None, :] > norms[:, None]) & (norms[:, None] > 0)
    return np.sqrt(1 - np.clip(np.max(np.where(stronger, tangent, 0), axis=1, initial=0), 0, 1))


def columns(network: Network, cores: Mapping[str, Any]) -> list[np.ndarray]:
    """Columns of CP's components, [size, r], mode by mode."""
    return [np.asarray(to_rows(network, core.name, cores[core.name])) for core in network.cores]


def _cosines(columns: np.ndarray) -> np.ndarray:
    unit = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-150)  # squares of less are zero
    return unit.T @ unit


def rank_shares(
    network: Network, cores: dict[str, np.ndarray], noise: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Bond -> share of the draws whose rank is 0, 1, 2, ...; a rank counts the slices that stand out.

    Draws share one slice out over several that point the same way. Of CP a component counts only with what is `apart`
    from stronger ones; where a bond cuts the network in two, singular values of X across it take the place of norms.

    Args:
        network: of the cores.
        cores: name -> [draw, ...].
        noise: for each draw the noise that a slice must stand out from (see `standing_out`); none when None.
    """
    counts: dict[str, list[int]] = {bond: [] for bond in network.bonds}
    for k in range(len(next(iter(cores.values())))):
        level = 0.0 if noise is None else float(noise[k])
        for bond, n in ranks(network, {name: core[k] for name, core in cores.items()}, level).items():
            counts[bond].append(n)
    return {bond: np.bincount(n, minlength=network.size[bond] + 1) / len(n) for bond, n in counts.items()}


def ranks(network: Network, cores: Mapping[str, Any], noise: float = 0.0) -> dict[str, int]:
    """Bond -> rank of one draw (see `rank_shares`)."""
    norms, total = host_slice_norms(network, cores)
    least = {bond: _least(network, bond, total, noise) for bond in norms}
    spectra = host_spectra(network, cores)
    norms |= spectra
    if is_joint(network) and not spectra:
        ((bond, norm),) = norms.items()
        norms[bond] = norm * apart(columns(network, cores), np.where(norm > least[bond], norm, 0))
    return {bond: int(np.sum(norm > least[bond])) for bond, norm in norms.items()}


def most_frequent_rank(posterior: dict[str, np.ndarray]) -> Any:
    """The most frequent rank of each bond; a number where there is one bond."""
    modes = {bond: int(np.argmax(shares)) for bond, shares in posterior.items()}
    return next(iter(modes.values())) if len(modes) == 1 else modes
