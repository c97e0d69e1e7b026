"""Regression on tensor covariates with Gaussian noise and an optional remainder: closed-form draws of all of it.

`y[n, k] = b[k] + <X_n, W[:, k]> + f_k(X_n) + noise`, the noise of variance `1 / precision[k]`, f_k a Gaussian process
of variance `ratio[k] / precision[k]` whose kernel has the eigenvalues s on the data. In the kernel's eigenvectors, and
with data centred, which takes b out, the response given W has independent errors of variance
`(1 + ratio s_j) / precision`: the remainder is integrated out of every draw.

Errors of many responses are seldom independent (neighbouring places share their weather), and W, which sees them all,
would take what they share for signal. Its likelihood is raised to the power `share`, the number of independent
responses that they are worth over their number: the composite likelihood's adjustment of magnitude (Pauli, Racugno,
Ventura, Statistica Sinica 21, 2011). Noise and remainder, learnt for each response by itself, need none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models.coefficient import (
    Coefficient,
    CoefficientState,
    Family,
    Numbers,
    pick_place,
    portion_numbers,
    run_portion,
)
from bayestensor.models.compiled import AnyArray, quick_jit
from bayestensor.models.conditionals import HIGHEST_PRECISION, best_precision, precision_shape
from bayestensor.tensor.design import responses
from bayestensor.typing import Array, Float

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
        share: how many independent responses all of them are worth, over their number; see `independent_share`.
        families: of the smooth cores.
    """

    x: Float[Array, "m *rows"]
    y: Float[Array, "m *cols"]
    spectrum: Float[Array, "m"]
    lost: Float[Array, "*cols"]
    count: Float[Array, ""]
    share: Float[Array, ""]
    families: dict[str, Family]


class RegressionState(NamedTuple):
    """W, and for each response the precision of its noise and its remainder's ratio of variances."""

    coefficient: CoefficientState
    precision: Float[Array, "*cols"]
    ratio: Float[Array, "*cols"]


class NoiseNumbers(NamedTuple):
    """What `pick_noise` draws from, made on the host."""

    place: AnyArray  # [responses], U(0, 1): of the ratio
    gamma: AnyArray  # [*cols]: of the law of the noise precision, of mean 1


def noise_numbers(rng: np.random.Generator, n: int, data: Centred) -> NoiseNumbers:
    """Those of n draws, along a new first axis."""
    cols, shape = data.y.shape[1:], precision_shape(float(data.count))
    return NoiseNumbers(rng.random((n, math.prod(cols))), rng.standard_gamma(shape, (n, *cols)) / shape)


def sweep(
    model: Coefficient,
    numbers: tuple[Numbers, NoiseNumbers],
    state: RegressionState,
    data: Centred,
    draw: float | Array,
) -> RegressionState:
    """W given the noise, then ratio and noise given W: draws, or modes where `draw` is 0."""
    spread = 1 + state.ratio[None] * _column(data.spectrum, data.y.ndim)
    weight = data.share * state.precision[None] / spread
    coefficient = model.move(numbers[0], state.coefficient, data.x, weight, weight * data.y, data.families, draw)
    residual = data.y - responses(model.network, coefficient.cores, data.x)
    precision, ratio = pick_noise(numbers[1], residual, data, draw)
    return RegressionState(coefficient, precision, ratio)


def pick_noise(
    numbers: NoiseNumbers,
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
    best = pick_place(numbers.place, log_p, draw)
    chosen = jnp.take_along_axis(energy, best[None], axis=0)[0].reshape(shape)
    precision = (1 + draw * (numbers.gamma - 1)) * best_precision(data.count, chosen)
    return jnp.minimum(precision, HIGHEST_PRECISION), ratios[best].reshape(shape)


def independent_share(
    residual: Float[Array, "m *cols"], ratio: Float[Array, "*cols"], data: Centred
) -> Float[Array, ""]:
    """`1 / (1 + (k - 1) mean r^2)`, r the correlation of two of k responses' errors, where W leaves `residual`.

    Errors are residuals over `sqrt(1 + ratio s_j)`; correlations of m independent pairs have a mean square of 1 / m,
    which is taken off: `(m r^2 - 1) / (m - 1)`.
    """
    z = (residual / jnp.sqrt(1 + ratio[None] * _column(data.spectrum, residual.ndim))).reshape(len(residual), -1)
    z = z / jnp.maximum(jnp.sqrt((z**2).sum(0)), jnp.finfo(z.dtype).tiny)[None]
    m, k = (data.x.reshape(len(z), -1) != 0).any(1).sum().astype(z.dtype), z.shape[1]  # padding is not counted
    square = (((z @ z.T) ** 2).sum() - k) / max(k * (k - 1), 1)
    return 1 / (1 + (k - 1) * jnp.clip((m * square - 1) / jnp.maximum(m - 1, 1), 0, 1))


@partial(quick_jit, static_argnames="model")
def share_left(model: Coefficient, states: RegressionState, data: Centred) -> Float[Array, ""]:
    """`independent_share` of what the chains' W leave, each ratio the best one; the mean over chains."""

    def one(cores):
        residual = data.y - responses(model.network, cores, data.x)
        none = NoiseNumbers(jnp.zeros(data.y[0].size), jnp.ones(data.y.shape[1:]))  # a mode takes no numbers
        _, ratio = pick_noise(none, residual, data, 0.0)
        return independent_share(residual, ratio, data)

    return jnp.mean(jax.lax.map(one, states.coefficient.cores))


def sweeps(
    model: Coefficient, seed: int, part: int, states: RegressionState, data: Centred, draw: float
) -> tuple[RegressionState, RegressionState]:
    """PORTION sweeps of each chain: (last states, all states [chain, sweep, ...]). See `portion_numbers`."""

    def make(rng, n):
        return model.numbers(rng, n, data.y.shape), noise_numbers(rng, n, data)

    return _sweeps(model, portion_numbers(make, seed, part, len(states.precision)), states, data, draw)


@partial(quick_jit, static_argnames="model")
def _sweeps(model: Coefficient, numbers: Any, states: RegressionState, data: Centred, draw: float | Array):
    return run_portion(lambda now, state: sweep(model, now, state, data, draw), numbers, states)


def _column(values: Float[Array, "m"], ndim: int) -> Array:
    return values.reshape(-1, *[1] * (ndim - 1))
