"""Likelihoods that are Gaussian given something more: what makes the closed-form sweeps serve outliers and yes or no.

Each observation enters a sweep as `-w x^2 / 2 + t x` (see `tensor.normal`). Given x, a hidden variable is drawn (or
put at its mean) that makes it so:

    student_t:  y = x + noise / sqrt(precision lambda),  lambda ~ Gamma((df + 1) / 2, (df + precision (y - x)^2) / 2),
                w = lambda, t = lambda y
    bernoulli:  P(y = 1) = sigmoid(x),  omega ~ PG(1, x),  w = omega, t = y - 1/2
                (Polson, Scott and Windle, JASA 108, 2013)
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from bayestensor.priors.log_gamma import draw_log_gamma
from bayestensor.tensor.normal import Observations
from bayestensor.typing import Array, Float, Key

LIKELIHOODS = ("gaussian", "student_t", "bernoulli")
DEGREES_OF_FREEDOM = 4.0  # of Student's t: heavy tails that still have a variance
_TERMS = 6  # of the series of a Polya-Gamma draw; what the rest varies is 1e-4 of its variance


def augmented(
    likelihood: str, key: Key[Array, ""], data: Observations, x: Array, precision: Array, draw: float | Array
) -> Observations:
    """The observations as this sweep's cores see them.

    Args:
        likelihood: one of LIKELIHOODS.
        key: for the draws.
        data: weight 1 where observed, else 0; targets are the values.
        x: the tensor at `data`'s entries.
        precision: of the noise.
        draw: 1 draws the hidden variables, 0 takes their means.
    """
    if likelihood == "gaussian":
        return data
    if likelihood == "bernoulli":
        weight = data.weight * polya_gamma(key, x, draw)
        return dataclasses.replace(data, weight=weight, target=data.weight * (data.target - 0.5))
    shape = 0.5 * (DEGREES_OF_FREEDOM + 1)
    rate = 0.5 * (DEGREES_OF_FREEDOM + precision * (data.target - x) ** 2)
    drawn = jnp.exp(draw_log_gamma(key, jnp.full(x.shape, shape, x.dtype)))
    weight = data.weight * jnp.where(draw > 0, drawn, shape) / rate
    return dataclasses.replace(data, weight=weight, target=weight * data.target, energy=(weight * data.target**2).sum())


def polya_gamma_mean(c: Array) -> Array:
    """`tanh(c / 2) / (2 c)`."""
    small = jnp.abs(c) < 1e-3
    safe = jnp.where(small, 1.0, c)
    return jnp.where(small, 0.25 - c**2 / 48, jnp.tanh(0.5 * safe) / (2 * safe))


def polya_gamma(key: Key[Array, ""], c: Float[Array, "*n"], draw: float | Array = 1.0) -> Float[Array, "*n"]:
    """PG(1, c), or its mean where `draw` is 0.

    `sum over k of g_k / (2 pi^2 ((k - 1/2)^2 + (c / 2 pi)^2))`, g_k ~ Exp(1): six terms are drawn, the others enter by
    their mean, so that the mean is exact and the variance short by 1e-4 of itself.
    """
    k = jnp.arange(1, _TERMS + 1, dtype=c.dtype).reshape(-1, *[1] * c.ndim)
    share = 1 / (2 * math.pi**2 * ((k - 0.5) ** 2 + (c[None] / (2 * math.pi)) ** 2))
    terms = (jax.random.exponential(key, share.shape, c.dtype) - 1) * share
    return polya_gamma_mean(c) + draw * terms.sum(0)
