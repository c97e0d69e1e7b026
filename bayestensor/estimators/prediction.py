"""What posterior draws say of a tensor's entries, all of them or at coordinates: moments, draws, quantiles, densities.

Draws are folded in one after another, so that memory is that of the answer, however many draws there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import expit
from jax.scipy.stats import norm, poisson, t

from bayestensor.estimators.residuals import noise_scales
from bayestensor.models.augment import DEGREES_OF_FREEDOM
from bayestensor.models.compiled import quick_jit
from bayestensor.models.effects import CONSTANT
from bayestensor.tensor.contract import dense, entries
from bayestensor.tensor.network import Factored, Network
from bayestensor.tensor.observations import in_blocks
from bayestensor.typing import Array

_LARGEST = 200_000_000  # entries of a dense prediction
_BLOCK = 8192
_MOST_STEPS = 60
_TAIL = (1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530)
_CLOSE = 1e-6  # in probability
_FEWEST_SCALES = 32  # normal laws that stand in for Student's t in intervals

Drawn: TypeAlias = tuple[dict[str, Array], dict[str, Array]]  # cores and effects
Noise: TypeAlias = dict[str, Array]  # its scale under its mode's name, or CONSTANT


class Posterior(NamedTuple):
    """Draws of a tensor and of the noise on it.

    Attributes:
        network: of the cores; its modes are those of `shape`, with modes of size 1 appended where it has more.
        cores: name -> [draw, ...].
        effects: constant [draw] and offsets [draw, size] under their modes' names.
        noise: its scale, [draw], or [draw, index of the mode `noise_by`].
        shape: of the tensor.
        likelihood: one of `models.augment.LIKELIHOODS`. For 'bernoulli' entries are probabilities, the logistic
            function of network and effects, and quantiles those of the probability. For 'poisson' entries are rates,
            their exponential function, and quantiles those of a count.
        noise_by: name of the mode whose indices have a noise scale of their own.
        df: of 'gaussian', degrees of freedom of the t of standard deviation `noise` that an observation has around the
            tensor; infinite for the normal law. Intervals have normal laws of `noise_scales` in its place.
    """

    network: Network
    cores: Mapping[str, np.ndarray]
    effects: Mapping[str, np.ndarray]
    noise: np.ndarray
    shape: tuple[int, ...]
    likelihood: str = "gaussian"
    noise_by: str | None = None
    df: float = math.inf

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
        if self.likelihood == "poisson":
            return tuple(self._count(mean, variance, p, coords) for p in probabilities)
        sd = np.sqrt(self.observed(mean, variance, coords))
        mixed = self._mixed()
        return tuple(mixed._run(_quantile, coords, mean, sd, p)[0] for p in probabilities)

    def observed(self, mean: np.ndarray, variance: np.ndarray, coords: np.ndarray | None) -> np.ndarray:
        """Variance of an observation, from the moments of the tensor at these coordinates."""
        if self.likelihood == "bernoulli":
            return mean * (1 - mean)
        if self.likelihood == "poisson":
            return mean + variance
        heavy = DEGREES_OF_FREEDOM / (DEGREES_OF_FREEDOM - 2) if self.likelihood == "student_t" else 1.0
        own = np.mean(self.noise**2, axis=0)
        if self.noise_by:
            own = _spread(self.network.modes[: len(self.shape)], self.noise_by, own, coords)
        return variance + heavy * own

    def log_density(self, values: np.ndarray, coords: np.ndarray) -> np.ndarray:
        """`log mean over draws of p(value | entry, noise)`, one number a coordinate."""
        return self._run(_log_density, coords, values, None if math.isinf(self.df) else self.df)[0]

    def _mixed(self) -> Posterior:
        """Draws that have a scale of noise each, so that their normal laws mix to the t; more than once where few."""
        if math.isinf(self.df):
            return self
        times = -(-_FEWEST_SCALES // len(self.noise))
        cores, effects = (
            {name: np.concatenate([row] * times) for name, row in drawn.items()} for drawn in (self.cores, self.effects)
        )
        noise = np.concatenate([self.noise] * times)
        scales = noise_scales(self.df, len(noise)).reshape(-1, *(1,) * (noise.ndim - 1))
        return self._replace(cores=cores, effects=effects, noise=noise * scales, df=math.inf)

    def _count(self, mean: np.ndarray, variance: np.ndarray, p: float, coords: np.ndarray | None) -> np.ndarray:
        """The least count with probability p or more at or below it, of the mixture of Poisson laws.

        From the quantile of the negative binomial of the same mean and variance, in steps that double until the count
        is between two known ones, then by halves.
        """
        from scipy.stats import nbinom, poisson

        more = variance / mean
        spread = nbinom.ppf(p, mean / np.maximum(more, 1e-8), 1 / (1 + more))
        enough = np.where(more > 1e-8, spread, poisson.ppf(p, mean))
        short, step = np.full(mean.shape, -1.0), 1.0  # the greatest count known to be too small
        while (up := self._below_count(enough, coords) < p).any():
            short, enough, step = np.where(up, enough, short), np.where(up, enough + step, enough), 2 * step
        step = 1.0
        while (short < enough - 1).any():
            halves = (short >= 0) | (enough <= step)
            tried = np.where(halves, np.floor(0.5 * (short + enough)), enough - step)
            tried = np.where(short < enough - 1, tried, enough)
            up = self._below_count(tried, coords) < p
            short, enough, step = np.where(up, tried, short), np.where(up, enough, tried), 2 * step
        return enough

    def _below_count(self, counts: np.ndarray, coords: np.ndarray | None) -> np.ndarray:
        """P(count <= counts), a draw after another."""
        from scipy.special import pdtr

        total = np.zeros(counts.shape)
        for k in range(len(self.noise)):
            one = {name: core[k : k + 1] for name, core in self.cores.items()}
            effects = {name: row[k : k + 1] for name, row in self.effects.items()}
            rate = self._replace(cores=one, effects=effects, noise=self.noise[k : k + 1]).draws(coords)[0]
            total += np.where(counts < 0, 0.0, pdtr(np.maximum(counts, 0), rate))
        return total / len(self.noise)

    def _run(self, function, coords, *arguments) -> tuple[np.ndarray, ...]:
        if coords is None and math.prod(self.shape) > _LARGEST:
            raise ValueError(f"the tensor of shape {self.shape} is too large to predict whole; ask for coordinates")
        modes = len(self.network.modes)
        with jax.enable_x64(True):
            at = None if coords is None else np.pad(coords, ((0, 0), (0, modes - coords.shape[1]))).astype(np.int32)
            inner = self.network.shape if at is None else (len(at),)
            shaped = [np.reshape(a, inner) if np.ndim(a) else a for a in arguments]
            out = jax.tree.leaves(
                function(
                    self.network,
                    self.likelihood,
                    (dict(self.cores), dict(self.effects)),
                    {self.noise_by or CONSTANT: np.asarray(self.noise)},
                    at,
                    *shaped,
                )
            )
        outer = self.shape if at is None else inner
        return tuple(np.asarray(a).reshape(*a.shape[: a.ndim - len(inner)], *outer) for a in out)


def _values(network: Network, likelihood: str, drawn: Drawn, at: Array | None) -> Array:
    cores, effects = drawn
    tensor = Factored(network, dict(cores))
    x = dense(tensor) if at is None else in_blocks(lambda block: entries(tensor, block), at, _BLOCK)
    for name, row in effects.items():
        x = x + _spread(network.modes, name, row, at)
    return {"bernoulli": expit, "poisson": jnp.exp}.get(likelihood, lambda x: x)(x)


def _spread(modes: Sequence[str], name: str, row: Any, at: Any) -> Any:
    """A number for each index of a mode, or the one number of CONSTANT, at the entries (or broadcast to them)."""
    if name == CONSTANT:
        return row
    mode = modes.index(name)
    return row.reshape([-1 if k == mode else 1 for k in range(len(modes))]) if at is None else row[at[:, mode]]


def _noise_at(network: Network, noise: Noise, at: Array | None) -> Array:
    """The noise's scale at the entries: one number, or its mode's, by name as effects are."""
    ((name, row),) = noise.items()
    return _spread(network.modes, name, row, at)


def _below(likelihood: str, z: Array) -> tuple[Array, Array]:
    """(distribution function, density) of the standardised noise.

    The normal one within 8e-8, from the density's exponential (Abramowitz and Stegun, 26.2.17): a fifth of the time.
    """
    if likelihood == "student_t":
        x = z / jnp.sqrt(1 + z**2 / 4)  # of 4 degrees of freedom
        return 0.5 + 0.375 * x * (1 - x**2 / 12), 0.375 * (1 + z**2 / 4) ** -2.5
    density, t = norm.pdf(z), 1 / (1 + 0.2316419 * jnp.abs(z))
    above = density * t * jnp.polyval(jnp.asarray(_TAIL, z.dtype), t)
    return jnp.where(z > 0, 1 - above, above), density


def _log_p(likelihood: str, value: Array, x: Array, noise: Array, df: Array | None) -> Array:
    if likelihood == "bernoulli":
        return jnp.log(jnp.where(value > 0.5, x, 1 - x))
    if likelihood == "poisson":
        return poisson.logpmf(value, x)
    if likelihood == "student_t":
        return t.logpdf(value, DEGREES_OF_FREEDOM, x, noise)
    if df is not None:
        return t.logpdf(value, df, x, noise * jnp.sqrt(1 - 2 / df))
    return norm.logpdf(value, x, noise)


@partial(quick_jit, static_argnames=("network", "likelihood"))
def _moments(network: Network, likelihood: str, drawn: Drawn, noise: Noise, at: Array | None) -> tuple[Array, Array]:
    def add(carry, one):
        n, mean, square = carry
        x = _values(network, likelihood, one, at)
        shift = x - mean
        mean = mean + shift / (n + 1)
        return (n + 1, mean, square + shift * (x - mean)), None

    zero = jnp.zeros(network.shape if at is None else len(at))
    (n, mean, square), _ = jax.lax.scan(add, (0.0, zero, zero), drawn)
    return mean, square / n


@partial(jax.jit, static_argnames=("network", "likelihood"))
def _all(network: Network, likelihood: str, drawn: Drawn, noise: Noise, at: Array | None) -> Array:
    return jax.lax.map(lambda one: _values(network, likelihood, one, at), drawn)


@partial(quick_jit, static_argnames=("network", "likelihood"))
def _quantile(network, likelihood, drawn, noise, at, mean, sd, p) -> Array:
    """Newton's steps on the mixture's distribution function, inside a bracket that halves where they do not serve.

    The first bracket is Cantelli's: no law has its p-quantile outside `mean - sd sqrt((1 - p) / p)` and
    `mean + sd sqrt(p / (1 - p))`.
    """

    def step(state):
        k, _, before, low, high, x = state

        def add(total, one):
            x_drawn, s = one[0], _noise_at(network, one[1], at)
            z = (x - _values(network, likelihood, x_drawn, at)) / s
            part, density = _below(likelihood, z)
            return (total[0] + part, total[1] + density / s), None

        zero = jnp.zeros_like(x)
        (below, density), _ = jax.lax.scan(add, (zero, zero), (drawn, noise))
        below, density = below / draws, density / draws
        low, high = jnp.where(below < p, x, low), jnp.where(below < p, high, x)
        moved = x - (below - p) / jnp.maximum(density, 1e-300)
        off = jnp.abs(below - p)
        serves = (moved > low) & (moved < high) & (off < 0.5 * before)
        closer = jnp.where(serves, moved, 0.5 * (low + high))
        return k + 1, off.max(), off, low, high, jnp.where(off < _CLOSE, x, closer)

    draws = len(next(iter(noise.values())))
    bracket = mean - sd * jnp.sqrt((1 - p) / p), mean + sd * jnp.sqrt(p / (1 - p))
    start = (0, jnp.ones((), sd.dtype), jnp.ones_like(sd), *bracket, mean + sd * norm.ppf(p))
    return jax.lax.while_loop(lambda state: (state[0] < _MOST_STEPS) & (state[1] >= _CLOSE), step, start)[-1]


@partial(jax.jit, static_argnames=("network", "likelihood"))
def _log_density(network, likelihood, drawn, noise, at, values, df) -> Array:
    def add(total, one):
        x, s = _values(network, likelihood, one[0], at), _noise_at(network, one[1], at)
        return jnp.logaddexp(total, _log_p(likelihood, values, x, s, df)), None

    total, _ = jax.lax.scan(add, jnp.full_like(values, -jnp.inf), (drawn, noise))
    return total - jnp.log(len(next(iter(noise.values()))))
