"""The baseline: mean-field variational Bayes for the BCPF model (Zhao, Zhang and Cichocki, IEEE TPAMI 37, 2015), written
with masked matrix products in NumPy: one product of mask and Khatri-Rao products for all rows of a factor at once."""

from __future__ import annotations

from functools import reduce

import numpy as np


def bcpf(
    tensor: np.ndarray, max_rank: int = 40, sweeps: int = 100, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """(mean, sd of an observation, rank, sweeps taken) of a tensor with NaN where unknown."""
    rng, shape = np.random.default_rng(seed), tensor.shape
    observed = np.isfinite(tensor)
    unit = tensor[observed].std()
    masks = [_unfold(observed.astype(float), k) for k in range(len(shape))]
    values = [_unfold(np.where(observed, tensor, 0) / unit, k) for k in range(len(shape))]
    energy, count = (values[0] ** 2).sum(), observed.sum()
    means = [rng.normal(size=(n, max_rank)) for n in shape]
    spreads = [np.broadcast_to(np.eye(max_rank), (n, max_rank, max_rank)) for n in shape]
    gamma, tau, before = np.ones(max_rank), 100.0, None
    for sweep in range(sweeps):
        for k in range(len(shape)):
            moment = values[k] @ _khatri_rao([m for j, m in enumerate(means) if j != k])
            gram = _gram(masks[k], means, spreads, k)
            spreads[k] = np.linalg.inv(tau * gram + np.diag(gamma))
            means[k] = tau * np.einsum("irs,is->ir", spreads[k], moment)
        size = sum((m**2).sum(0) + np.einsum("irr->r", s) for m, s in zip(means, spreads, strict=True))
        gamma = (1e-6 + 0.5 * sum(shape)) / (1e-6 + 0.5 * size)
        square = (gram * (spreads[-1] + means[-1][:, :, None] * means[-1][:, None])).sum()
        if sweep >= 10:  # taken as 20 dB until the fit can tell: from 1 on, ranks and errors are worse
            tau = (1e-6 + 0.5 * count) / (1e-6 + 0.5 * (energy - 2 * (means[-1] * moment).sum() + square))
        now = _dense(means, shape)
        if sweep >= 2:
            alive = sum((m**2).sum(0) for m in means) > sum(shape) * np.finfo(float).eps * np.linalg.norm(now)
            if alive.any():
                means, gamma = [m[:, alive] for m in means], gamma[alive]
                spreads = [s[:, alive][:, :, alive] for s in spreads]
        if before is not None and np.linalg.norm(now - before) < 1e-5 * np.linalg.norm(before):
            break
        before = now
    variance = np.maximum(_second(means, spreads, shape) - now**2, 0) + 1 / tau
    return now * unit, np.sqrt(variance) * unit, len(gamma), sweep + 1


def _gram(mask, means, spreads, k):
    """Mask times the Khatri-Rao product of second moments, some rows of its first factor at a time: memory, not more."""
    first, *rest = [pair for j, pair in enumerate(_pairs(means, spreads)) if j != k]
    inner, rank = _khatri_rao(rest) if rest else np.ones((1, first.shape[1])), means[0].shape[1]
    mask, gram = mask.reshape(len(mask), len(first), -1), 0
    step = max(1, 400 // len(inner))  # rows whose products stay in the cache
    for at in range(0, len(first), step):
        block = (first[at : at + step, None] * inner[None]).reshape(-1, rank**2)
        gram = gram + mask[:, at : at + step].reshape(len(mask), -1) @ block
    return gram.reshape(-1, rank, rank)


def _unfold(array: np.ndarray, k: int) -> np.ndarray:
    return np.moveaxis(array, k, 0).reshape(array.shape[k], -1)


def _pairs(means, spreads):
    """Second moments of each factor's rows, [n, rank^2]."""
    return [(s + m[:, :, None] * m[:, None]).reshape(len(m), -1) for m, s in zip(means, spreads, strict=True)]


def _khatri_rao(matrices):
    return reduce(lambda a, b: (a[:, None] * b[None]).reshape(-1, a.shape[1]), matrices)


def _dense(means, shape):
    return (means[0] @ _khatri_rao(means[1:]).T).reshape(shape)


def _second(means, spreads, shape):
    """E[X^2]."""
    return _dense(_pairs(means, spreads), shape)
