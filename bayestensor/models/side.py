"""Side information: rows of a core around a shrunk linear map of the features of its mode.

`core[q, p] ~ N(sum over f of basis[q, f] map[f, p], w_p)`, `map[f, p] ~ N(0, w_p / strength)`, w_p the variance of the
core's entries. basis is the features (and a constant) turned so that its columns are orthogonal, which changes neither
law, and makes the entries of map independent given the rows. strength is learnt, one number a core: where the features
say nothing it is large, map is zero, and rows are as they would be without. A row that nothing was observed of is
predicted from its features (Simm et al., "Macau", IEEE MLSP 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models.compiled import AnyArray
from bayestensor.priors.log_concave import sample_log_concave
from bayestensor.typing import Array, Float, Key

_SHARES = np.geomspace(1e-4, 1e4, 33)  # of variance that the map may add, relative to w: equally likely


@dataclass(frozen=True, eq=False)
class Features:
    """Of one mode: static under `jax.jit`, told apart by identity.

    Attributes:
        basis: [q, f], columns orthogonal.
        squares: [f], their squared norms.
    """

    basis: np.ndarray
    squares: np.ndarray

    @classmethod
    def build(cls, features: np.ndarray, size: int, mode: int) -> Features:
        """Of numbers (size, f), each column brought to mean 0 and variance 1, a constant beside them.

        Raises:
            ValueError: another shape, or numbers that are not finite.
        """
        numbers = np.asarray(features)
        if numbers.ndim != 2 or len(numbers) != size or numbers.dtype.kind not in "biuf":
            raise ValueError(
                f"side[{mode}] has shape {numbers.shape} and type {numbers.dtype}; a row of numbers for each of the "
                f"{size} indices of mode {mode} is needed"
            )
        numbers = numbers.astype(np.float64)
        if not np.isfinite(numbers).all():
            raise ValueError(f"side[{mode}] is not finite; fill what is unknown, say by the column's mean")
        spread = numbers.std(axis=0)
        varied = numbers[:, spread > 0]
        columns = (varied - varied.mean(axis=0)) / spread[spread > 0]
        u, s, _ = np.linalg.svd(np.column_stack([np.ones(size), columns]), full_matrices=False)
        s, u = s[s > 1e-9 * s[0]], u[:, s > 1e-9 * s[0]]
        return cls(u * s, s**2)


class Side(NamedTuple):
    """map [f, p] and strength [] of one core."""

    map: AnyArray
    strength: AnyArray


def start(features: Features, p: int, dtype) -> Side:
    """No map yet, and a strength by which it would add as much variance as the rows have of their own."""
    return Side(np.zeros((len(features.squares), p), dtype), np.asarray(len(features.squares), dtype))


def mean(features: Features, side: Side) -> Float[Array, "q p"]:
    """Where the rows are expected."""
    return jnp.asarray(features.basis, side.map.dtype) @ side.map


def pick_strength(
    key: Key[Array, ""], features: Features, rows: Float[Array, "q p"], d: Float[Array, "p"], draw: float | Array
) -> tuple[Array, Float[Array, "p"]]:
    """(strength, what the map then takes off the columns' sums of squares), map itself integrated out.

    With strength k: `log p(rows) = sum over f, p of -log(1 + squares / k) / 2 + d (basis' rows)^2 / (squares + k) / 2`.

    Args:
        key: for the draw.
        features: of the core's mode.
        rows: of the core.
        d: prior precision of the columns.
        draw: 1 to draw, 0 for the best.
    """
    squares = jnp.asarray(features.squares, rows.dtype)[:, None]
    found = (jnp.asarray(features.basis, rows.dtype).T @ rows) ** 2  # [f, p]
    strengths = jnp.asarray(len(features.squares) / _SHARES, rows.dtype)
    log_p = 0.5 * (found @ d)[None, :] / (squares.T + strengths[:, None])
    log_p = (log_p - 0.5 * rows.shape[1] * jnp.log1p(squares.T / strengths[:, None])).sum(1)
    strength = strengths[jnp.argmax(log_p + draw * jax.random.gumbel(key, log_p.shape, log_p.dtype))]
    return strength, (found / (squares + strength)).sum(0)


def pick_map(
    key: Key[Array, ""],
    features: Features,
    rows: Float[Array, "q p"],
    d: Float[Array, "p"],
    strength: Array,
    draw: float | Array,
) -> Side:
    """The map given the rows: `N(basis' rows / (squares + strength), 1 / (d (squares + strength)))`, or its mean."""
    total = jnp.asarray(features.squares, rows.dtype)[:, None] + strength
    best = jnp.asarray(features.basis, rows.dtype).T @ rows / total
    noise = jax.random.normal(key, best.shape, best.dtype) / jnp.sqrt(d[None, :] * total)
    return Side(best + draw * noise, strength)


def rebalance(
    key: Key[Array, ""], energies: dict[str, Float[Array, "p"]], sizes: dict[str, int], pivot: str, draw: float | Array
) -> dict[str, Float[Array, "p"]]:
    """Core -> log factors of its columns, of product 1 over the cores of CP: where the prior would have them.

    X does not change, so only the prior has a say. Between the pivot a and another core b,
    `log p(t) = (n_a - n_b) t - (A exp(2 t) + B exp(-2 t)) / 2` for columns times exp(t) and exp(-t), A and B their sums
    of squares over w: an exact draw along the orbit (Liu and Sabatti, Biometrika 87, 2000). Without it a row that
    nothing was observed of has the size of the other cores' rows, not of its own.

    Args:
        key: for the draws.
        energies: core -> sums of squares over w, map integrated out.
        sizes: core -> rows.
        pivot: the core with features.
        draw: 1 to draw, 0 for the mode.
    """
    logs = {name: jnp.zeros_like(energy) for name, energy in energies.items()}
    for k, other in enumerate(name for name in energies if name != pivot):
        a, b = (energies[n] * jnp.exp(2 * logs[n]) for n in (pivot, other))
        some = (a > 1e-9) & (b > 1e-9)  # a column of zeros stays as it is
        a, b = jnp.where(some, a, 1.0), jnp.where(some, b, 1.0)
        excess = 0.5 * (sizes[pivot] - sizes[other])
        centre = 0.5 * jnp.log((excess + jnp.sqrt(excess**2 + a * b)) / a)
        high, low = a * jnp.exp(2 * centre), b * jnp.exp(-2 * centre)
        ends = jnp.full_like(a, jnp.inf)

        def drop(y, high=high, low=low, excess=excess):
            return 0.5 * (high * jnp.expm1(2 * y) + low * jnp.expm1(-2 * y)) - 2 * excess * y

        step = centre + draw * sample_log_concave(jax.random.fold_in(key, k), drop, ends, ends)
        step = jnp.where(some, step, 0.0)
        logs = logs | {pivot: logs[pivot] + step, other: logs[other] - step}
    return logs
