"""Regression on tensor covariates with Gaussian noise and an optional remainder: closed-form draws of all of it.

`y[n, k] = b[k] + <X_n, W[:, k]> + f_k(X_n) + noise`, the noise of variance `1 / precision[k]`, f_k a Gaussian process
of variance `ratio[k] / precision[k]` whose kernel has the eigenvalues s on the data. In the kernel's eigenvectors, and
with data centred, which takes b out, the response given W has independent errors of variance
`(1 + ratio s_j) / precision`: the remainder is integrated out of every draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models.coefficient import Coefficient, CoefficientState, Family, run_portion
from bayestensor.models.compiled import quick_jit
from bayestensor.models.conjugate import pick_precision
from bayestensor.tensor.design import responses
from bayestensor.typing import Array, Float, Key

RATIOS = np.concatenate([[0.0], np.geomspace(1e-4, 1e9, 53)])  # the values a ratio can take, equally likely


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Centred:
    """Covariates and response with their means taken out, in the eigenvectors of the remainder's kernel.

    Attributes:
        x: covariates.
        y: responses.
        spectrum: s, eigenvalues of the kernel; 0 where there is no remainder.
        lost: sum of squares of y outside the eigenvectors, where only noise is.
        count: degrees of freedom of the noise, n - 1.
        families: of the smooth cores.
    """

    x: Float[Array, "m *rows"]
    y: Float[Array, "m *cols"]
    spectrum: Float[Array, "m"]
    lost: Float[Array, "*cols"]
    count: Float[Array, ""]
    families: dict[str, Family]


class RegressionState(NamedTuple):
    """W, and for each response the precision of its noise and its remainder's ratio of variances."""

    coefficient: CoefficientState
    precision: Float[Array, "*cols"]
    ratio: Float[Array, "*cols"]


def sweep(
    model: Coefficient, key: Key[Array, ""], state: RegressionState, data: Centred, draw: float | Array
) -> RegressionState:
    """W given the noise, then ratio and noise given W: draws, or modes where `draw` is 0."""
    core_key, ratio_key, noise_key = jax.random.split(key, 3)
    spread = 1 + state.ratio[None] * _column(data.spectrum, data.y.ndim)
    weight = state.precision[None] / spread
    coefficient = model.move(core_key, state.coefficient, data.x, weight, weight * data.y, data.families, draw)
    residual = data.y - responses(model.network, coefficient.cores, data.x)
    precision, ratio = pick_noise(ratio_key, noise_key, residual, data, draw)
    return RegressionState(coefficient, precision, ratio)


def pick_noise(
    ratio_key: Key[Array, ""],
    noise_key: Key[Array, ""],
    residual: Float[Array, "m *cols"],
    data: Centred,
    draw: float | Array,
) -> tuple[Float[Array, "*cols"], Float[Array, "*cols"]]:
    """(precision, ratio) given W: `ratio` with the precision integrated out, then the precision given it.

    `log p(ratio) = -sum_j log(1 + ratio s_j) / 2 - (n - 1) log(lost + sum_j r_j^2 / (1 + ratio s_j)) / 2`.
    """
    shape = residual.shape[1:]
    squares, lost = residual.reshape(len(residual), -1) ** 2, data.lost.reshape(1, -1)
    ratios = jnp.asarray(RATIOS, squares.dtype)
    spread = 1 + ratios[:, None] * data.spectrum[None, :]
    energy = lost + (1 / spread) @ squares  # [ratio, response]
    tiny = jnp.finfo(energy.dtype).tiny
    log_p = -0.5 * jnp.log(spread).sum(1, keepdims=True) - 0.5 * data.count * jnp.log(jnp.maximum(energy, tiny))
    log_p = log_p + draw * jax.random.gumbel(ratio_key, log_p.shape, log_p.dtype)
    best = jnp.argmax(log_p, axis=0)
    chosen = jnp.take_along_axis(energy, best[None], axis=0)[0].reshape(shape)
    count = jnp.broadcast_to(data.count, shape)
    return pick_precision(noise_key, count, chosen, jnp.asarray(draw)), ratios[best].reshape(shape)


@partial(quick_jit, static_argnames="model")
def sweeps(
    model: Coefficient, seed: Array, part: Array, states: RegressionState, data: Centred, draw: float | Array
) -> tuple[RegressionState, RegressionState]:
    """PORTION sweeps of each chain: (last states, all states [chain, sweep, ...]). See `run_portion`."""
    return run_portion(lambda key, state: sweep(model, key, state, data, draw), seed, part, states)


def _column(values: Float[Array, "m"], ndim: int) -> Array:
    return values.reshape(-1, *[1] * (ndim - 1))
