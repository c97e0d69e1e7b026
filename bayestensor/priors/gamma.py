"""Gamma on the scale: the prior of the first paper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from bayestensor.priors.base import exp_in_range, require_positive
from bayestensor.priors.log_concave import sample_log_concave
from bayestensor.typing import Array, Float, Key

_NEWTON_STEPS = 7  # from a start within a factor 1.4 of the root: full float64


@dataclass(frozen=True)
class Gamma:
    """`p(s) = c^a / Gamma(a) s^(a - 1) exp(-c s)`, a = shape, c = rate; hence `p(log v) = s p(s) / 2`.

    Hawkins, Zhang, "Bayesian tensorized neural networks with automatic rank selection", Neurocomputing 453, 2021.
    """

    shape: float = 1.0
    rate: float = 5.0

    proper: ClassVar[bool] = True
    has_conditional: ClassVar[bool] = True

    def __post_init__(self):
        require_positive(self, shape=self.shape, rate=self.rate)

    @property
    def support(self) -> tuple[float, float]:
        """The whole line."""
        return -math.inf, math.inf

    def log_density(self, log_v: Float[Array, "*r"]) -> Float[Array, "*r"]:
        """`log p(log v) = a log c - log Gamma(a) - log 2 + (a / 2) log v - c sqrt(v)`."""
        a, c = self.shape, self.rate
        return (a * math.log(c) - math.lgamma(a) - math.log(2)) + 0.5 * a * log_v - c * jnp.exp(0.5 * log_v)

    def mode(self, energy: Float[Array, "*r"], count: float | Array) -> Float[Array, "*r"]:
        """`v = s^2`, s the positive root of `c s^3 + (D - a) s^2 - M = 0`.

        With `s = (M / c)^(1/3) y` this is `y^3 + k y^2 - 1 = 0`. Newton from above the root, where the cubic is convex
        and rising, falls on it without overshoot; Cardano's formula would cancel to nothing in float32.
        """
        excess = jnp.asarray(count, energy.dtype) - self.shape  # D - a
        some = energy > 0
        unit = jnp.cbrt(jnp.where(some, energy, 1.0) / self.rate)
        k = excess / (self.rate * unit)
        up, down = jnp.maximum(k, 0.0), jnp.maximum(-k, 0.0)
        y = jnp.where(k >= 0, 1 / jnp.sqrt(jnp.maximum(up, 1.0)), down + 1 / jnp.maximum(down, 1.0) ** 2)
        for _ in range(_NEWTON_STEPS):
            y = y - ((y + k) - 1 / y**2) / (3 + 2 * k / y)
        s = jnp.where(some, unit * y, jnp.maximum(-excess, 0.0) / self.rate)
        return s**2

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        """Prior draws of v."""
        return exp_in_range(2 * (jax.random.loggamma(key, self.shape, shape, dtype) - math.log(self.rate)))

    @partial(jax.jit, static_argnums=0)
    def sample_conditional(
        self, key: Key[Array, ""], v: Float[Array, "*r"], energy: Float[Array, "*r"], count: float | Array
    ) -> Float[Array, "*r"]:
        """Independent draws by rejection: no named law, but log-concave in log v. The current `v` plays no part.

        `-log p = (D - a)/2 delta + c s_mode (e^(delta/2) - 1) + M/(2 v_mode) (e^-delta - 1)` with `v = v_mode e^delta`.
        """
        energy = jnp.maximum(energy, jnp.finfo(energy.dtype).tiny ** 0.5)  # M = 0 has no proper conditional if D >= a
        centre = self.mode(energy, count)
        k = 0.5 * (jnp.asarray(count, energy.dtype) - self.shape)
        c, m = self.rate * jnp.sqrt(centre), 0.5 * energy / centre
        ends = jnp.full_like(energy, jnp.inf)
        delta = sample_log_concave(key, lambda y: k * y + c * jnp.expm1(0.5 * y) + m * jnp.expm1(-y), ends, ends)
        return exp_in_range(jnp.log(centre) + delta)
