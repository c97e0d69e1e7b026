"""Generalised inverse Gaussian on the squared scale: core entries are then generalised hyperbolic."""

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


@dataclass(frozen=True)
class GeneralisedHyperbolic:
    """`p(v) = v^(-shape - 1) exp(-scale / v - rate v) / Z`; below, a = shape, b = scale and c = rate.

    The inverse gamma with its upper tail cut as well: as c goes to 0 it is `InverseGamma(a, b)`. Cheng, Chen, Shi, Wu,
    "Towards flexible sparsity-aware modeling: automatic tensor rank learning using the generalized hyperbolic prior",
    IEEE TSP 70, 2022.
    """

    shape: float = 0.5
    scale: float = 0.01
    rate: float = 0.1

    proper: ClassVar[bool] = True
    has_conditional: ClassVar[bool] = True

    def __post_init__(self):
        require_positive(self, shape=self.shape, scale=self.scale, rate=self.rate)

    @property
    def support(self) -> tuple[float, float]:
        """The whole line."""
        return -math.inf, math.inf

    def log_density(self, log_v: Float[Array, "*r"]) -> Float[Array, "*r"]:
        """`log p(log v) = -a log v - b / v - c v - log Z`, `Z = 2 (c / b)^(a / 2) K_a(2 sqrt(b c))`."""
        a, b, c = self.shape, self.scale, self.rate
        return -a * log_v - b * jnp.exp(-log_v) - c * jnp.exp(log_v) - _log_normaliser(a, b, c)

    def mode(self, energy: Float[Array, "*r"], count: float | Array) -> Float[Array, "*r"]:
        """The positive root of `c v^2 + (D/2 + a) v - (M/2 + b) = 0`."""
        n, b = self.shape + 0.5 * jnp.asarray(count, energy.dtype), self.scale + 0.5 * energy
        return 2 * b / (n + jnp.hypot(n, 2 * jnp.sqrt(self.rate * b)))

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        """Prior draws of v."""
        return self._draw(key, jnp.zeros(shape, dtype), 0.0)

    @partial(jax.jit, static_argnums=0)
    def sample_conditional(
        self, key: Key[Array, ""], v: Float[Array, "*r"], energy: Float[Array, "*r"], count: float | Array
    ) -> Float[Array, "*r"]:
        """Independent draws of the same law with a + D/2 and b + M/2; the current `v` plays no part."""
        return self._draw(key, energy, count)

    def _draw(self, key: Key[Array, ""], energy: Float[Array, "*r"], count: float | Array) -> Float[Array, "*r"]:
        """By rejection: log-concave in log v. With `v = v_mode e^delta`,

        `-log p = n delta + (b / v_mode) (e^-delta - 1) + c v_mode (e^delta - 1)`, n = a + D/2, b with M/2 added.
        """
        centre = self.mode(energy, count)
        n = self.shape + 0.5 * jnp.asarray(count, energy.dtype)
        low, high = (self.scale + 0.5 * energy) / centre, self.rate * centre
        ends = jnp.full_like(energy, jnp.inf)
        drop = lambda y: n * y + low * jnp.expm1(-y) + high * jnp.expm1(y)  # noqa: E731
        return exp_in_range(jnp.log(centre) + sample_log_concave(key, drop, ends, ends))


def _log_normaliser(a: float, b: float, c: float) -> float:
    from scipy.special import kve

    z = 2 * math.sqrt(b * c)
    bessel = float(kve(a, z))  # times e^z
    if not math.isfinite(bessel):  # z is far below a: K_a(z) = Gamma(a) (2 / z)^a / 2
        return math.lgamma(a) - a * math.log(b)
    return math.log(2) + 0.5 * a * math.log(c / b) + math.log(bessel) - z
