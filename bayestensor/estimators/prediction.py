"""What posterior draws say of a tensor's entries, all of them or at coordinates: moments, draws, quantiles, densities.

Draws are folded in one after another, so that memory is that of the answer, however many draws there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import expit, ndtr
from jax.scipy.stats import norm, t

from bayestensor.models.augment import DEGREES_OF_FREEDOM
from bayestensor.tensor.contract import dense, entries
from bayestensor.tensor.network import Factored, Network
from bayestensor.tensor.normal import in_blocks
from bayestensor.typing import Array

_LARGEST = 200_000_000  # entries of a dense prediction
_BLOCK = 8192
_MOST_STEPS = 60
_CLOSE = 1e-6  # in probability


class Posterior(NamedTuple):
    """Draws of a tensor and of the noise on it.

    Attributes:
        network: of the cores; its modes are those of `shape`, with modes of size 1 appended where it has more.
        cores: name -> [draw, ...].
        noise: standard deviation, [draw].
        shape: of the tensor.
        likelihood: one of `models.augment.LIKELIHOODS`. For 'bernoulli' entries are probabilities, the logistic
            function of the network, and quantiles those of the probability.
    """

    network: Network
    cores: Mapping[str, np.ndarray]
    noise: np.ndarray
    shape: tuple[int, ...]
    likelihood: str = "gaussian"

    def moments(self, coords: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(mean, variance) of the tensor, without noise, at coordinates (n, modes) or everywhere.

        Raises:
            ValueError: the whole tensor is too large for memory.
        """
        mean, variance = self._run(_moments, coords)
        return mean, variance

    def draws(self, coords: np.ndarray | None = None) -> np.ndarray:
        """Every draw of the tensor, without noise: [draw, ...]."""
        return self._run(_all, coords)[0]

    def quantiles(self, probabilities: tuple[float, ...], coords: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Quantiles of an observation, of the mixture over draws; one array a probability."""
        if self.likelihood == "bernoulli":
            return tuple(np.quantile(self.draws(coords), probabilities, axis=0))
        mean, variance = self.moments(coords)
        sd = np.sqrt(self.observed(mean, variance))
        return tuple(self._run(_quantile, coords, mean, sd, p)[0] for p in probabilities)

    def observed(self, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Variance of an observation, from the moments of the tensor."""
        if self.likelihood == "bernoulli":
            return mean * (1 - mean)
        heavy = DEGREES_OF_FREEDOM / (DEGREES_OF_FREEDOM - 2) if self.likelihood == "student_t" else 1.0
        return variance + heavy * np.mean(self.noise**2)

    def log_density(self, values: np.ndarray, coords: np.ndarray) -> np.ndarray:
        """`log mean over draws of p(value | entry, noise)`, one number a coordinate."""
        return self._run(_log_density, coords, values)[0]

    def _run(self, function, coords, *arguments) -> tuple[np.ndarray, ...]:
        if coords is None and math.prod(self.shape) > _LARGEST:
            raise ValueError(f"the tensor of shape {self.shape} is too large to predict whole; ask for coordinates")
        modes = len(self.network.modes)
        with jax.enable_x64(True):
            at = None if coords is None else np.pad(coords, ((0, 0), (0, modes - coords.shape[1]))).astype(np.int32)
            inner = self.network.shape if at is None else (len(at),)
            shaped = [np.reshape(a, inner) if np.ndim(a) else a for a in arguments]
            out = jax.tree.leaves(
                function(self.network, self.likelihood, dict(self.cores), np.asarray(self.noise), at, *shaped)
            )
        outer = self.shape if at is None else inner
        return tuple(np.asarray(a).reshape(*a.shape[: a.ndim - len(inner)], *outer) for a in out)


def _values(network: Network, likelihood: str, cores: Mapping[str, Array], at: Array | None) -> Array:
    tensor = Factored(network, dict(cores))
    x = dense(tensor) if at is None else in_blocks(lambda block: entries(tensor, block), at, _BLOCK)
    return expit(x) if likelihood == "bernoulli" else x


def _below(likelihood: str, z: Array) -> tuple[Array, Array]:
    """(distribution function, density) of the standardised noise."""
    if likelihood == "student_t":
        x = z / jnp.sqrt(1 + z**2 / 4)  # of 4 degrees of freedom
        return 0.5 + 0.375 * x * (1 - x**2 / 12), 0.375 * (1 + z**2 / 4) ** -2.5
    return ndtr(z), norm.pdf(z)


def _log_p(likelihood: str, value: Array, x: Array, noise: Array) -> Array:
    if likelihood == "bernoulli":
        return jnp.log(jnp.where(value > 0.5, x, 1 - x))
    if likelihood == "student_t":
        return t.logpdf(value, DEGREES_OF_FREEDOM, x, noise)
    return norm.logpdf(value, x, noise)


@partial(jax.jit, static_argnames=("network", "likelihood"))
def _moments(
    network: Network, likelihood: str, cores: dict[str, Array], noise: Array, at: Array | None
) -> tuple[Array, Array]:
    def add(carry, one):
        n, mean, square = carry
        x = _values(network, likelihood, one, at)
        shift = x - mean
        mean = mean + shift / (n + 1)
        return (n + 1, mean, square + shift * (x - mean)), None

    zero = jnp.zeros(network.shape if at is None else len(at), noise.dtype)
    (n, mean, square), _ = jax.lax.scan(add, (0.0, zero, zero), cores)
    return mean, square / n


@partial(jax.jit, static_argnames=("network", "likelihood"))
def _all(network: Network, likelihood: str, cores: dict[str, Array], noise: Array, at: Array | None) -> Array:
    return jax.lax.map(lambda one: _values(network, likelihood, one, at), cores)


@partial(jax.jit, static_argnames=("network", "likelihood"))
def _quantile(network, likelihood, cores, noise, at, mean, sd, p) -> Array:
    """Newton's steps on the mixture's distribution function, inside a bracket that halves where they leave it.

    The first bracket is Cantelli's: no law has its p-quantile outside `mean - sd sqrt((1 - p) / p)` and
    `mean + sd sqrt(p / (1 - p))`.
    """

    def step(state):
        k, _, low, high, x = state

        def add(total, one):
            core, s = one
            z = (x - _values(network, likelihood, core, at)) / s
            part, density = _below(likelihood, z)
            return (total[0] + part, total[1] + density / s), None

        zero = jnp.zeros_like(x)
        (below, density), _ = jax.lax.scan(add, (zero, zero), (cores, noise))
        below, density = below / len(noise), density / len(noise)
        low, high = jnp.where(below < p, x, low), jnp.where(below < p, high, x)
        moved = x - (below - p) / jnp.maximum(density, 1e-300)
        inside = (moved > low) & (moved < high) & (k % 3 < 2)  # one step of three halves the bracket
        closer = jnp.where(inside, moved, 0.5 * (low + high))
        off = jnp.abs(below - p)
        return k + 1, off.max(), low, high, jnp.where(off < _CLOSE, x, closer)

    bracket = mean - sd * jnp.sqrt((1 - p) / p), mean + sd * jnp.sqrt(p / (1 - p))
    start = (0, jnp.ones((), sd.dtype), *bracket, mean + sd * norm.ppf(p))
    return jax.lax.while_loop(lambda state: (state[0] < _MOST_STEPS) & (state[1] >= _CLOSE), step, start)[-1]


@partial(jax.jit, static_argnames=("network", "likelihood"))
def _log_density(network, likelihood, cores, noise, at, values) -> Array:
    def add(total, one):
        core, s = one
        return jnp.logaddexp(total, _log_p(likelihood, values, _values(network, likelihood, core, at), s)), None

    total, _ = jax.lax.scan(add, jnp.full_like(values, -jnp.inf), (cores, noise))
    return total - jnp.log(len(noise))
