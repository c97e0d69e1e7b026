"""Log-uniform on the scale, truncated: scale-free shrinkage between two stated ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from bayestensor.priors.base import require_positive
from bayestensor.priors.log_concave import sample_log_concave
from bayestensor.typing import Array, Float, Key


@dataclass(frozen=True)
class LogUniform:
    """`p(s) = 1 / (s log(s_max / s_min))` on `[s_min, s_max]`, hence log v uniform on `[2 log s_min, 2 log s_max]`.

    Untruncated it is improper, and its posterior with a Gaussian puts all mass on v = 0: hence the two ends.
    Hawkins, Liu, Zhang, "Towards compact neural networks via end-to-end training", 2020 (untruncated, by MAP).
    """

    s_min: float = 1e-4
    s_max: float = 1e2

    proper: ClassVar[bool] = True
    has_conditional: ClassVar[bool] = True

    def __post_init__(self):
        require_positive(self, s_min=self.s_min, s_max=self.s_max)
        if not self.s_min < self.s_max:
            raise ValueError(f"LogUniform: s_min must be below s_max, not {self.s_min} and {self.s_max}")

    @property
    def support(self) -> tuple[float, float]:
        """(2 log s_min, 2 log s_max)."""
        return 2 * math.log(self.s_min), 2 * math.log(self.s_max)

    def log_density(self, log_v: Float[Array, "*r"]) -> Float[Array, "*r"]:
        """`log p(log v) = -log(2 log(s_max / s_min))` on the support, -inf outside."""
        low, high = self.support
        slack = 4 * float(jnp.finfo(log_v.dtype).eps) * max(abs(low), abs(high), 1.0)  # log(v_min) must count as inside
        inside = (log_v >= low - slack) & (log_v <= high + slack)
        return jnp.where(inside, -math.log(high - low), -jnp.inf).astype(log_v.dtype)

    def mode(self, energy: Float[Array, "*r"], count: float | Array) -> Float[Array, "*r"]:
        """`v = M / D`, clipped to the support (the target has one mode in log v)."""
        free = energy / jnp.maximum(jnp.asarray(count, energy.dtype), jnp.finfo(energy.dtype).tiny)
        return jnp.clip(free, self.s_min**2, self.s_max**2)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        """Prior draws of v."""
        return jnp.exp(jax.random.uniform(key, shape, dtype, *self.support))

    @partial(jax.jit, static_argnums=0)
    def sample_conditional(
        self, key: Key[Array, ""], v: Float[Array, "*r"], energy: Float[Array, "*r"], count: float | Array
    ) -> Float[Array, "*r"]:
        """Independent draws from inverse-gamma(D/2, M/2) truncated to the support; the current `v` plays no part.

        With `v = v_mode e^delta`, `log p = -k delta - A (e^-delta - 1)`, k = D/2, A = M / (2 v_mode): no difference
        of distribution functions, so no tail is too far and no D too large.
        """
        centre = self.mode(energy, count)
        k, a = 0.5 * jnp.asarray(count, energy.dtype), 0.5 * energy / centre
        left, right = jnp.log(centre / self.s_min**2), jnp.log(self.s_max**2 / centre)
        delta = sample_log_concave(
            key, lambda y: k * y + a * jnp.expm1(-y), jnp.maximum(left, 0), jnp.maximum(right, 0)
        )
        return jnp.clip(centre * jnp.exp(delta), self.s_min**2, self.s_max**2)
