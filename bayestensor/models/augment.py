"""Likelihoods that are Gaussian given something more: the closed-form sweeps for outliers, answers and counts.

Each observation enters a sweep as `-w x^2 / 2 + t x` (see `tensor.normal`). Given x, a hidden variable is drawn (or
put at its mean) that makes it so:

    student_t:  y = x + noise / sqrt(precision lambda),  lambda ~ Gamma((df + 1) / 2, (df + precision (y - x)^2) / 2),
                w = lambda, t = lambda y
    bernoulli:  P(y = 1) = sigmoid(x),  omega ~ PG(1, x),  w = omega, t = y - 1/2
    poisson:    y ~ Poisson(exp(x)), for which a negative binomial of the same mean and dispersion h stands in,
                omega ~ PG(y + h, x - log h),  w = omega, t = (y - h) / 2 + omega log h

(Polson, Scott and Windle, JASA 108, 2013). With h = rate / EXCESS, rate a constant near exp(x), the stand-in's variance
is 1 + EXCESS times Poisson's at every rate and its score has mean zero at the truth: posteriors are wider by a few
per cent and in the right place. A smaller EXCESS comes nearer and moves slower. h must not follow x while x is drawn:
that pulls small rates up (`experiments/completion/README.md`).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from bayestensor.priors.log_gamma import draw_log_gamma
from bayestensor.tensor.observations import Observations
from bayestensor.typing import Array, Float, Key

LIKELIHOODS = ("gaussian", "student_t", "bernoulli", "poisson")
DISCRETE = ("bernoulli", "poisson")  # with no noise to learn, and around a constant that is
DEGREES_OF_FREEDOM = 4.0  # of Student's t: heavy tails that still have a variance
EXCESS = 0.05  # share by which the variance of a count's stand-in is above Poisson's
_LEAST_RATE = 0.2  # that h is made for, because its draws' moments are matched and no more
TERMS = 6  # of the series of a Polya-Gamma draw; what the rest varies is 1e-4 of its variance


def augmented(
    likelihood: str, key: Key[Array, ""], data: Observations, x: Array, precision: Array, draw: float | Array
) -> Observations:
    """The observations as this sweep's cores see them.

    Args:
        likelihood: one of LIKELIHOODS.
        key: for the draws.
        data: weight 1 (of counts `dispersion`) where observed, else 0; targets are the values.
        x: the tensor at `data`'s entries.
        precision: of the noise.
        draw: 1 draws the hidden variables, 0 takes their means.
    """
    if likelihood == "gaussian":
        return data
    if likelihood == "bernoulli":
        weight = data.weight * polya_gamma(key, x, draw)
        return dataclasses.replace(data, weight=weight, target=data.weight * (data.target - 0.5))
    if likelihood == "poisson":
        seen = data.weight > 0
        h = jnp.where(seen, data.weight, 1.0)
        omega = jnp.where(seen, polya_gamma_sum(key, data.target + h, x - jnp.log(h), draw), 0.0)
        target = jnp.where(seen, 0.5 * (data.target - h), 0.0) + omega * jnp.log(h)
        return dataclasses.replace(data, weight=omega, target=target)
    shape = 0.5 * (DEGREES_OF_FREEDOM + 1)
    rate = 0.5 * (DEGREES_OF_FREEDOM + precision * (data.target - x) ** 2)
    drawn = jnp.exp(draw_log_gamma(key, jnp.full(x.shape, shape, x.dtype)))
    weight = data.weight * jnp.where(draw > 0, drawn, shape) / rate
    return dataclasses.replace(data, weight=weight, target=weight * data.target, energy=(weight * data.target**2).sum())


def dispersion(log_rate: Array) -> Array:
    """h of the negative binomial that stands in for counts of about this rate."""
    return jnp.maximum(jnp.exp(log_rate), _LEAST_RATE) / EXCESS


def polya_gamma_mean(c: Array) -> Array:
    """`tanh(c / 2) / (2 c)`."""
    small = jnp.abs(c) < 1e-3
    safe = jnp.where(small, 1.0, c)
    return jnp.where(small, 0.25 - c**2 / 48, jnp.tanh(0.5 * safe) / (2 * safe))


def polya_gamma(key: Key[Array, ""], c: Float[Array, "*n"], draw: float | Array = 1.0) -> Float[Array, "*n"]:
    """PG(1, c), or its mean where `draw` is 0: see `polya_gamma_of`."""
    return polya_gamma_of(jax.random.exponential(key, (TERMS, *c.shape), c.dtype), jnp.ones_like(c), c, draw)


def polya_gamma_of(
    terms: Float[Array, "k *n"], b: Float[Array, "*n"], c: Float[Array, "*n"], draw: float | Array
) -> Float[Array, "*n"]:
    """PG(b, c), 0 where b is, or its mean where `draw` is 0.

    `sum over k of g_k / (2 pi^2 ((k - 1/2)^2 + (c / 2 pi)^2))`, the terms g_k ~ Gamma(b, 1): six are drawn, the others
    enter by their mean, so that the mean is exact and the variance short by 1e-4 of itself.
    """
    drawn = ((terms - b[None]) * _shares(c, TERMS)).sum(0)
    return jnp.where(b > 0, b * polya_gamma_mean(c) + draw * drawn, 0.0)


def polya_gamma_sum(
    key: Key[Array, ""], b: Float[Array, "*n"], c: Float[Array, "*n"], draw: float | Array = 1.0
) -> Float[Array, "*n"]:
    """PG(b, c) for b of 4 and more, or its mean where `draw` is 0.

    As `polya_gamma` with g_k ~ Gamma(b, 1), of which three terms are drawn, the variance short by 1e-3 of itself:
    `g = b (1 - 1 / (9 b) + z / (3 sqrt(b)))^3`, z normal (Wilson and Hilferty, PNAS 17, 1931).
    """
    share = _shares(c, TERMS // 2)
    normal = jax.random.normal(key, share.shape, c.dtype)
    cube = (1 - 1 / (9 * b[None]) + normal / (3 * jnp.sqrt(b[None]))) ** 3
    return b * (polya_gamma_mean(c) + draw * ((jnp.maximum(cube, 0) - 1) * share).sum(0))


def _shares(c: Float[Array, "*n"], terms: int) -> Float[Array, "k *n"]:
    """`1 / (2 pi^2 ((k - 1/2)^2 + (c / 2 pi)^2))`, k = 1, 2, ...: means of the terms of a Polya-Gamma variable."""
    k = jnp.arange(1, terms + 1, dtype=c.dtype).reshape(-1, *[1] * c.ndim)
    return 1 / (2 * math.pi**2 * ((k - 0.5) ** 2 + (c[None] / (2 * math.pi)) ** 2))
