"""Half-Cauchy on the scale: much mass near zero, tails heavy enough to leave live slices alone."""

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
class HalfCauchy:
    """`p(s) = 2 eta / (pi (eta^2 + s^2))`, hence `p(log v) = eta s / (pi (eta^2 + v))`.

    Carvalho, Polson, Scott, "The horseshoe estimator for sparse signals", Biometrika 97, 2010.
    """

    eta: float = 1.0

    proper: ClassVar[bool] = True
    has_conditional: ClassVar[bool] = True

    def __post_init__(self):
        require_positive(self, eta=self.eta)

    @property
    def support(self) -> tuple[float, float]:
        """The whole line."""
        return -math.inf, math.inf

    def log_density(self, log_v: Float[Array, "*r"]) -> Float[Array, "*r"]:
        """`log p(log v) = log eta - log pi + log(v) / 2 - log(eta^2 + v)`."""
        log_eta = math.log(self.eta)
        return (log_eta - math.log(math.pi)) + 0.5 * log_v - jnp.logaddexp(log_v, 2 * log_eta)

    def mode(self, energy: Float[Array, "*r"], count: float | Array) -> Float[Array, "*r"]:
        """Positive root of `(D+1) u^2 + ((D-1) - m) u - m = 0` with u = v / eta^2, m = M / eta^2."""
        d = jnp.asarray(count, energy.dtype)
        m = energy / self.eta**2
        b = (d - 1) - m
        root = jnp.hypot(b, 2 * jnp.sqrt(d + 1) * jnp.sqrt(m))
        # two forms of the one root: each adds numbers of like sign where it is used
        small = 2 * m / jnp.where(b > 0, b + root, 1.0)
        large = (root - b) / (2 * (d + 1))
        return self.eta**2 * jnp.where(b > 0, small, large)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        """Prior draws of v = eta^2 times a ratio of two Gamma(1/2), in logs so that both tails are there."""
        above, below = jax.random.loggamma(key, 0.5, (2, *shape), dtype)
        return exp_in_range(above - below + 2 * math.log(self.eta))

    @partial(jax.jit, static_argnums=0)
    def sample_conditional(
        self, key: Key[Array, ""], v: Float[Array, "*r"], energy: Float[Array, "*r"], count: float | Array
    ) -> Float[Array, "*r"]:
        """One Gibbs sweep of the auxiliary pair: `xi | v`, then `v | xi, M`.

        `xi ~ IG(1, 1/eta^2 + 1/v)`, `v ~ IG((D + 1)/2, 1/xi + M/2)`.
        Makalic, Schmidt, "A simple sampler for the horseshoe estimator", IEEE SPL 23, 2016.
        """
        xi_key, v_key = jax.random.split(key)
        inverse_xi = jax.random.exponential(xi_key, v.shape, v.dtype) * (self.eta**2 / (1 + self.eta**2 / v))
        shape = jnp.broadcast_to(0.5 * (jnp.asarray(count, v.dtype) + 1), v.shape)
        log_gamma = draw_log_gamma(v_key, shape)
        return exp_in_range(jnp.log(inverse_xi + 0.5 * energy) - log_gamma)
