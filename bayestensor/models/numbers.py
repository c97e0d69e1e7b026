"""Random numbers of sweeps, normal ones by one call and uniform ones by another: each costs XLA a tenth of a second."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bayestensor.priors.log_gamma import PROPOSALS, GammaNumbers
from bayestensor.typing import Array, Float, Key


@dataclass(frozen=True)
class Count:
    """How many numbers a sweep takes."""

    normals: int
    uniforms: int

    def __add__(self, other: Count) -> Count:
        return Count(self.normals + other.normals, self.uniforms + other.uniforms)


def gammas(size: int) -> Count:
    """Numbers of so many gamma draws."""
    return Count(PROPOSALS * size, (PROPOSALS + 1) * size)


class Numbers:
    """Hands out the numbers of one sweep piece by piece, while it is traced; more than there are do not reshape."""

    def __init__(self, normals: Float[Array, "n"], uniforms: Float[Array, "u"], key: Key[Array, ""]):
        self._normals, self._uniforms, self.key = normals, uniforms, key
        self._used = Count(0, 0)

    @classmethod
    def drawn(cls, key: Key[Array, ""], count: Count, dtype) -> Numbers:
        """Those of one sweep."""
        return cls(*draw_numbers(key, (), count, dtype))

    def normal(self, *size: int) -> Array:
        """N(0, 1)."""
        at = self._used.normals
        self._used += Count(math.prod(size), 0)
        return self._normals[at : self._used.normals].reshape(size)

    def uniform(self, *size: int) -> Array:
        """U(0, 1)."""
        at = self._used.uniforms
        self._used += Count(0, math.prod(size))
        return self._uniforms[at : self._used.uniforms].reshape(size)

    def exponential(self, *size: int) -> Array:
        """Exp(1)."""
        return -jnp.log1p(-self.uniform(*size))

    def gamma(self, *size: int) -> GammaNumbers:
        """Of gamma draws."""
        return GammaNumbers(self.normal(PROPOSALS, *size), self.exponential(PROPOSALS, *size), self.exponential(*size))


def draw_numbers(
    key: Key[Array, ""], sweeps: tuple[int, ...], count: Count, dtype
) -> tuple[Array, Array, Key[Array, "..."]]:
    """(normals, uniforms, keys) for sweeps along the first axes."""
    normal_key, uniform_key, rest = jax.random.split(key, 3)
    normals = jax.random.normal(normal_key, (*sweeps, count.normals), dtype)
    uniforms = jax.random.uniform(uniform_key, (*sweeps, count.uniforms), dtype)
    return normals, uniforms, jax.random.split(rest, sweeps)
