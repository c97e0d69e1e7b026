"""Noise with a scale of its own for each index of a mode: car parks, bands or sensors that are noisier than others.

`y = x + noise / sqrt(precision lambda[k])`, k the observation's index of the mode, `lambda[k] ~ Gamma(EVEN, EVEN)` of
mean 1. Given the tensor

    lambda[k] ~ Gamma(EVEN + n[k] / 2, EVEN + precision energy[k] / 2),

n[k] and energy[k] the number of observations of that index and the sum of their w (y - x)^2.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from bayestensor.priors.log_gamma import draw_log_gamma
from bayestensor.tensor.observations import Observations
from bayestensor.typing import Array, Float, Key

EVEN = 1.0  # as many observations again, twice this, say that an index is as noisy as the others


def pick_shares(key: Key[Array, ""], data: Observations, mode: int, x: Array, precision: Array) -> Float[Array, "size"]:
    """lambda given the tensor x at the observations."""
    seen = data.weight > 0
    y = data.target / jnp.where(seen, data.weight, 1.0)
    number = data.total(jnp.where(seen, 1.0, 0.0), mode)
    energy = data.total(data.weight * (y - x) ** 2, mode)
    return jnp.exp(draw_log_gamma(key, EVEN + 0.5 * number)) / (EVEN + 0.5 * precision * energy)


def reweighted(data: Observations, share: Float[Array, "size"], mode: int) -> Observations:
    """The observations with their weights times lambda."""
    own = data.spread(share, mode)
    weight, target = data.weight * own, data.target * own
    energy = jnp.where(weight > 0, target**2 / jnp.where(weight > 0, weight, 1.0), 0.0).sum()
    return dataclasses.replace(data, weight=weight, target=target, energy=energy)
