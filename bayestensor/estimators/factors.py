"""Factors that can be shown with bands: draws of a CP tensor aligned in order, sign and scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from bayestensor.ranks.select import RANK_THRESHOLD
from bayestensor.tensor.core_rows import is_joint, to_rows
from bayestensor.tensor.network import Network


class Components(NamedTuple):
    """Living components of CP draws, heaviest first, each the product of its weight and a unit column a mode.

    Attributes:
        weights: [draw, component].
        columns: for each mode [draw, size, component], of norm 1; the entry largest on average is positive.
    """

    weights: np.ndarray
    columns: tuple[np.ndarray, ...]


def align(network: Network, cores: Mapping[str, np.ndarray]) -> Components:
    """Components in the same order and sign in every draw: matched to the last draw so that they differ least.

    The sum of `||a_r - b_match(r)||^2` over the last draw's components a is least where that of the sizes of their
    inner products is largest (`scipy.optimize.linear_sum_assignment`).

    Args:
        network: of CP format.
        cores: name -> [draw, ...].

    Raises:
        ValueError: another format, whose cores have no meaning one by one.
    """
    if not is_joint(network):
        raise ValueError("components are those of the CP format; cores of other formats can be turned into one another")
    columns = []
    for mode in network.modes:
        name = next(core.name for core in network.cores if mode in core.legs)
        columns.append(np.stack([np.asarray(to_rows(network, name, draw)) for draw in np.asarray(cores[name])]))
    norms = [np.linalg.norm(c, axis=1) for c in columns]
    weights = np.prod(norms, axis=0)
    columns = [c / np.maximum(n, 1e-300)[:, None] for c, n in zip(columns, norms, strict=True)]
    order = np.argsort(-weights[-1], kind="stable")
    living = order[weights[-1, order] > RANK_THRESHOLD * np.sqrt((weights[-1] ** 2).sum())]
    last, heavy = [c[-1][:, living] for c in columns], weights[-1, living]
    for draw in range(len(weights)):
        cosines = [a.T @ c[draw] for a, c in zip(last, columns, strict=True)]
        _, match = linear_sum_assignment(-np.abs(np.prod(cosines, axis=0)) * weights[draw] * heavy[:, None])
        rest = np.setdiff1d(np.arange(weights.shape[1]), match)
        match = np.concatenate([match, rest])
        weights[draw] = weights[draw, match]
        for a, c in zip(last, columns, strict=True):
            c[draw] = c[draw][:, match]
            c[draw][:, : len(living)] *= np.where((a * c[draw][:, : len(living)]).sum(0) < 0, -1, 1)
    out = []
    for c in columns:
        kept = c[:, :, : len(living)]
        mean = kept.mean(axis=0)
        largest = mean[np.abs(mean).argmax(axis=0), np.arange(mean.shape[1])]
        out.append(kept * np.where(largest < 0, -1, 1))
    return Components(weights[:, : len(living)], tuple(out))
