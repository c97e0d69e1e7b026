"""Classification from tensor covariates by stick breaking, with draws in closed form by Polya-Gamma augmentation.

Class k is taken, if none before it was, with probability `sigmoid(eta_k)`, the last one otherwise (Linderman, Johnson,
Adams, NeurIPS 2015): `eta[n, k] = <X_n, W[:, k]> + b[k] + f_k(X_n)`, b[k] ~ N(0, 10^2), f_k a Gaussian process of
variance `ratio[k]`. Given omega ~ PG(w, eta), the likelihood to the power w, the weight of datum n, enters by
`-omega eta^2 / 2 + kappa eta`, kappa = +-w/2 (Polson, Scott, Windle, JASA 108, 2013), and not at all where the class is
no more in question.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models.augment import TERMS, polya_gamma_of
from bayestensor.models.coefficient import (
    Coefficient,
    CoefficientState,
    Family,
    Numbers,
    portion_numbers,
    run_portion,
)
from bayestensor.models.compiled import AnyArray, quick_jit
from bayestensor.models.whitened import unknown_space_draw
from bayestensor.tensor.design import responses
from bayestensor.typing import Array, Float

RATIOS = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 37)])  # equally likely: log odds beyond 30 are certainties
_BIAS_SD = 10.0
_FARTHEST = 8  # places along RATIOS that one step goes


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Labelled:
    """Centred covariates and labels.

    Attributes:
        x: covariates.
        kappa: w/2 where the class is this one, -w/2 where it is a later one, 0 where it is an earlier one.
        basis: `U sqrt(s)` of the remainder's kernel `U diag(s) U^T`, one column of zeros where there is none.
        families: of the smooth cores.
    """

    x: Float[Array, "n *rows"]
    kappa: Float[Array, "n *cols"]
    basis: Float[Array, "n m"]
    families: dict[str, Family]


class LogisticState(NamedTuple):
    """W, b, and the remainder `f_k = sqrt(ratio[k]) basis z[:, k]`."""

    coefficient: CoefficientState
    bias: Float[Array, "k"]
    z: Float[Array, "m k"]
    ratio: Float[Array, "k"]


class LogisticNumbers(NamedTuple):
    """What a sweep draws from, made on the host."""

    coefficient: Numbers
    terms: AnyArray  # [TERMS, n, *cols], Gamma(w): of the Polya-Gamma variables
    normal: AnyArray  # [k, m + 1]: of bias and remainder
    choice: AnyArray  # [2, k], U(0, 1): of the ratio


def sweep_numbers(model: Coefficient, rng: np.random.Generator, n: int, data: Labelled) -> LogisticNumbers:
    """Those of n sweeps, along a new first axis."""
    shape, k = data.kappa.shape, data.kappa[0].size
    return LogisticNumbers(
        model.numbers(rng, n, shape),
        rng.standard_gamma(2 * np.abs(data.kappa), (n, TERMS, *shape)),
        rng.standard_normal((n, k, data.basis.shape[1] + 1)),
        rng.random((n, 2, k)),
    )


def sweep(
    model: Coefficient, numbers: LogisticNumbers, state: LogisticState, data: Labelled, draw: float | Array
) -> LogisticState:
    """omega given everything; W, then bias and remainder, then the ratio given omega."""
    shape, k = data.kappa.shape, state.bias.size
    rest = state.bias[None] + data.basis @ (state.z * jnp.sqrt(state.ratio)[None])
    eta = responses(model.network, state.coefficient.cores, data.x) + rest.reshape(shape)
    omega = polya_gamma_of(numbers.terms, 2 * jnp.abs(data.kappa), eta, draw)
    target = data.kappa - omega * rest.reshape(shape)
    coefficient = model.move(numbers.coefficient, state.coefficient, data.x, omega, target, data.families, draw)
    low_rank = responses(model.network, coefficient.cores, data.x)
    omega, left = omega.reshape(-1, k), (data.kappa - omega * low_rank).reshape(-1, k)
    bias, z, ratio = _pick_rest(numbers.normal, numbers.choice, state.ratio, data.basis, omega, left, draw)
    return LogisticState(coefficient, bias, z, ratio)


def _pick_rest(normal, choice, ratio, basis, omega, left, draw) -> tuple[Array, Array, Array]:
    """Bias, remainder and its ratio given W and omega, for each class.

    Given the ratio `(b / 10, z)` is Gaussian, N(0, I) beforehand. The ratio moves by a Metropolis step along RATIOS,
    with both integrated out: given z it would hardly move.
    """
    noise, ratios = draw * normal, jnp.asarray(RATIOS, basis.dtype)
    place = jnp.searchsorted(ratios, ratio)
    steps = jnp.floor((2 * choice[0] - 1) * (_FARTHEST + 1)).astype(place.dtype)
    tried = place + jnp.where(steps >= 0, steps + 1, steps)  # never where it is
    inside = (tried >= 0) & (tried < len(ratios))
    pair = jnp.stack([ratio, ratios[jnp.clip(tried, 0, len(ratios) - 1)]], axis=1)
    features = jnp.concatenate([jnp.full((len(basis), 1), _BIAS_SD, basis.dtype), basis], axis=1)

    def one(now):
        pair, omega, left, noise, inside, u = now
        size = jnp.broadcast_to(jnp.sqrt(pair)[:, None], (2, basis.shape[1]))
        size = jnp.concatenate([jnp.ones((2, 1), basis.dtype), size], axis=1)
        gram = (features * omega[:, None]).T @ features  # one product for both ratios: it costs more than all else
        gram, moment = size[:, :, None] * size[:, None, :] * gram[None], size * (left @ features)[None]
        both, log_z = unknown_space_draw(gram, moment, jnp.stack([noise, noise]))
        taken = (inside & (log_z[1] - log_z[0] > draw * jnp.log(u))).astype(int)
        return both[taken], pair[taken]

    found, ratio = jax.lax.map(one, (pair, omega.T, left.T, noise, inside, choice[1]))
    return _BIAS_SD * found[:, 0], found[:, 1:].T, ratio


def sweeps(
    model: Coefficient, seed: int, part: int, states: LogisticState, data: Labelled, draw: float
) -> tuple[LogisticState, LogisticState]:
    """PORTION sweeps of each chain: (last states, all states [chain, sweep, ...]). See `portion_numbers`."""
    numbers = portion_numbers(lambda rng, n: sweep_numbers(model, rng, n, data), seed, part, len(states.bias))
    return _sweeps(model, numbers, states, data, draw)


@partial(quick_jit, static_argnames="model")
def _sweeps(model: Coefficient, numbers: Any, states: LogisticState, data: Labelled, draw: float | Array):
    return run_portion(lambda now, state: sweep(model, now, state, data, draw), numbers, states)


def stick_probabilities(eta: np.ndarray) -> np.ndarray:
    """Probabilities of all classes (..., k + 1) from the sticks' log odds (..., k)."""
    from scipy.special import log_expit

    zero = np.zeros((*eta.shape[:-1], 1))
    passed = np.concatenate([zero, np.cumsum(log_expit(-eta), axis=-1)], axis=-1)
    return np.exp(passed + np.concatenate([log_expit(eta), zero], axis=-1))
