"""Inverse-gamma on the squared scale: the conjugate prior, a gamma on the precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from bayestensor.priors.base import exp_in_range, require_positive
from bayestensor.priors.log_gamma import draw_log_gamma
from bayestensor.typing import Array, Float, Key


@dataclass(frozen=True)
class InverseGamma:
    """`p(v) = scale^shape / Gamma(shape) v^(-shape - 1) exp(-scale / v)`; below, a = shape and b = scale.

    The default has the half-Cauchy's tail (s is the inverse of a half-normal) and next to no mass below
    v = scale / 10. Zhao, Zhang, Cichocki, "Bayesian CP factorization of incomplete tensors", IEEE TPAMI 37, 2015
    (a gamma on the precision 1/v).
    """

    shape: float = 0.5
    scale: float = 0.01

    proper: ClassVar[bool] = True
    has_conditional: ClassVar[bool] = True

    def __post_init__(self):
        require_positive(self, shape=self.shape, scale=self.scale)

    @property
    def support(self) -> tuple[float, float]:
        """The whole line."""
        return -math.inf, math.inf

    def log_density(self, log_v: Float[Array, "*r"]) -> Float[Array, "*r"]:
        """`log p(log v) = a log b - log Gamma(a) - a log v - b / v`."""
        a, b = self.shape, self.scale
        return (a * math.log(b) - math.lgamma(a)) - a * log_v - b * jnp.exp(-log_v)

    def mode(self, energy: Float[Array, "*r"], count: float | Array) -> Float[Array, "*r"]:
        """`v = (M + 2b) / (D + 2a)`."""
        return (energy + 2 * self.scale) / (jnp.asarray(count, energy.dtype) + 2 * self.shape)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        """Prior draws of v."""
        return exp_in_range(math.log(self.scale) - jax.random.loggamma(key, self.shape, shape, dtype))

    @partial(jax.jit, static_argnums=0)
    def sample_conditional(
        self, key: Key[Array, ""], v: Float[Array, "*r"], energy: Float[Array, "*r"], count: float | Array
    ) -> Float[Array, "*r"]:
        """Independent draws from IG(a + D/2, b + M/2); the current `v` plays no part."""
        shape = jnp.broadcast_to(self.shape + 0.5 * jnp.asarray(count, energy.dtype), energy.shape)
        log_gamma = draw_log_gamma(key, shape)
        return exp_in_range(jnp.log(self.scale + 0.5 * energy) - log_gamma)
