"""Cumulative shrinkage: the later an index of a bond, the likelier it is to be next to nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.priors.base import exp_in_range, require_positive
from bayestensor.priors.log_gamma import draw_log_gamma
from bayestensor.typing import Array, Float, Key

_NONE = -1e30  # log of no weight: finite, so that gradients are
_ROUNDS, _STEPS = 4, 40  # of the mode: odds taken anew, and for each index at these odds


@dataclass(frozen=True)
class CumulativeShrinkage:
    """`v_r ~ IG(a, b)` (slab) with probability w_r, else `IG(a, spike b)` (spike); a = shape, b = scale.

    `w_r = product over l <= r of u_l`, with `u_l ~ Beta(alpha, 1)` integrated out, exactly: a priori alpha indices of
    many are in the slab, an index never likelier than the one before. Legramanti, Durante, Dunson, "Bayesian cumulative
    shrinkage for infinite factorizations", Biometrika 107, 2020; theirs has a point in place of the spike, where log v
    would have no density.

    Given the slab or spike of every index (which), `p(which)` is that of an urn: R balls live, before index r each
    set of j survivors of i has probability Beta-binomial(j; i, alpha, 1) / (i choose j), and r is in the slab where
    ball r lives. Balls not yet looked at are alike, so that the number of the living is a Markov chain, and forward
    filtering, backward sampling take O(R^2).
    """

    alpha: float = 5.0
    shape: float = 2.0
    scale: float = 2.0
    spike: float = 0.05

    proper: ClassVar[bool] = True
    has_conditional: ClassVar[bool] = True

    def __post_init__(self):
        require_positive(self, alpha=self.alpha, shape=self.shape, scale=self.scale, spike=self.spike)
        if not self.spike < 1:
            raise ValueError(f"CumulativeShrinkage: spike must be below 1 (the slab itself), not {self.spike}")

    @property
    def support(self) -> tuple[float, float]:
        """The whole line."""
        return -math.inf, math.inf

    @partial(jax.jit, static_argnums=0)
    def log_density(self, log_v: Float[Array, "*r"]) -> Float[Array, "*r"]:
        """`log p(x_r | x_1 ... x_(r-1))`, x = log v, with `log IG = a log b - log Gamma(a) - a x - b e^-x`."""
        a, rates = self.shape, (self.scale, self.spike * self.scale)
        logs = [a * math.log(b) - math.lgamma(a) - a * log_v - b * jnp.exp(-log_v) for b in rates]
        urn = _Urn.of(self.alpha, log_v.shape[-1], log_v.dtype)
        return jnp.vectorize(lambda *both: _filtered(urn, *both).terms, signature="(r),(r)->(r)")(*logs)

    @partial(jax.jit, static_argnums=0)
    def mode(self, energy: Float[Array, "*r"], count: float | Array) -> Float[Array, "*r"]:
        """A local one: every index starts in the likelier of slab and spike given all the energies.

        `v = (M + 2 b (w + (1 - w) spike)) / (D + 2a)`, w = p(slab | v), whose odds are those that the other indices
        leave times `spike^-a exp(-b (1 - spike) / v)`.
        """
        d = jnp.asarray(count, energy.dtype) + 2 * self.shape

        def at(w):
            return (energy + 2 * self.scale * (w + (1 - w) * self.spike)) / d

        def told(v):
            return -self.shape * math.log(self.spike) - self.scale * (1 - self.spike) / v

        def step(_, v):
            left = odds(told(v))
            return jax.lax.fori_loop(0, _STEPS, lambda _, v: at(jax.nn.sigmoid(left + told(v))), v)

        odds = jnp.vectorize(partial(_odds_by_others, self.alpha), signature="(r)->(r)")
        evidence = self._evidence(energy, count)
        likelier = odds(evidence) + evidence > 0
        return jax.lax.fori_loop(0, _ROUNDS, step, at(likelier.astype(energy.dtype)))

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        """Prior draws of v."""
        stick_key, which_key, key = jax.random.split(key, 3)
        log_w = -jnp.cumsum(jax.random.exponential(stick_key, shape, dtype), axis=-1) / self.alpha
        slab = -jax.random.exponential(which_key, shape, dtype) < log_w
        log_b = math.log(self.scale) + jnp.where(slab, 0.0, math.log(self.spike)).astype(dtype)
        return exp_in_range(log_b - jax.random.loggamma(key, self.shape, shape, dtype))

    @partial(jax.jit, static_argnums=0)
    def sample_conditional(
        self, key: Key[Array, ""], v: Float[Array, "*r"], energy: Float[Array, "*r"], count: float | Array
    ) -> Float[Array, "*r"]:
        """Slab or spike of all indices given the energies, then v from inverse gammas; the current v plays no part."""
        which_key, walk_key, v_key = jax.random.split(key, 3)
        size = energy.shape[-1]
        toss = jax.random.logistic(which_key, energy.shape, energy.dtype)
        walk = jax.random.gumbel(walk_key, (*energy.shape, size + 1), energy.dtype)
        draw = jnp.vectorize(partial(_draw_slabs, self.alpha), signature="(r),(r),(r,s)->(r)")
        slab = draw(self._evidence(energy, count), toss, walk)
        b = self.scale * jnp.where(slab, 1.0, self.spike).astype(energy.dtype)
        half = jnp.broadcast_to(0.5 * jnp.asarray(count, energy.dtype), energy.shape)
        return exp_in_range(jnp.log(b + 0.5 * energy) - draw_log_gamma(v_key, self.shape + half))

    def _evidence(self, energy: Array, count: float | Array) -> Array:
        """Log density of an index's entries in the slab over that in the spike, v integrated out."""
        n, b = self.shape + 0.5 * jnp.asarray(count, energy.dtype), self.spike * self.scale
        return -self.shape * math.log(self.spike) - n * jnp.log1p((self.scale - b) / (b + 0.5 * energy))


class _Urn(NamedTuple):
    """Logs of its chances, of R balls. `Beta-binomial(j; i, alpha, 1) = exp(left[i] + right[j])`, j <= i."""

    left: Array  # [i]
    right: Array  # [j]
    lives: Array  # [r, j]: that ball r does, with j alive of it and those after it
    dies: Array

    @classmethod
    def of(cls, alpha: float, size: int, dtype) -> _Urn:
        j, balls = np.arange(size + 1), np.arange(size, 0, -1)[:, None]
        lives = np.where(j > 0, np.log(np.maximum(j, 1) / balls), _NONE)
        dies = np.where(j < balls, np.log(np.maximum(balls - j, 1) / balls), _NONE)
        left = [math.log(alpha) + math.lgamma(i + 1) - math.lgamma(i + alpha + 1) for i in j]
        right = [math.lgamma(i + alpha) - math.lgamma(i + 1) for i in j]
        return cls(*(jnp.asarray(np.array(logs), dtype) for logs in (left, right, lives, dies)))


class _Filter(NamedTuple):
    """For every index: log weights of the number alive before and after the survivors are picked, [r, r + 1]."""

    before: Array
    after: Array
    terms: Array  # log p(what index r shows | what those before it show)


def _filtered(urn: _Urn, slab: Float[Array, "r"], spike: Float[Array, "r"]) -> _Filter:
    """Forward pass over the indices; slab and spike are the log weights of what each index shows."""

    def one(before, now):
        after = urn.right + jax.lax.cumlogsumexp(before + urn.left, reverse=True)
        new = jnp.logaddexp(*_shown(after, *now))
        term = jax.nn.logsumexp(new)
        return new - term, _Filter(before, after, term)

    start = jnp.full(len(slab) + 1, _NONE, slab.dtype).at[-1].set(0.0)
    return jax.lax.scan(one, start, (urn.lives, urn.dies, slab, spike))[1]


def _shown(after: Array, lives: Array, dies: Array, slab: Array, spike: Array) -> tuple[Array, Array]:
    """Log weights of (alive: slab, dead: spike) of a ball, by the number alive among those after it."""
    return slab + jnp.roll(after + lives, -1), spike + after + dies


def _odds_by_others(alpha: float, told: Array) -> Array:
    """Log odds of slab and spike that the other indices leave, `told` what each says of itself: backward messages."""
    urn = _Urn.of(alpha, len(told), told.dtype)
    after, zero = _filtered(urn, told, jnp.zeros_like(told)).after, jnp.zeros((), told.dtype)

    def one(later, now):  # later[j]: log p(what the later indices show | j of them alive)
        told, after, lives, dies = now
        slab, spike = _shown(after, lives, dies, zero, zero)
        odds = jax.nn.logsumexp(slab + later) - jax.nn.logsumexp(spike + later)
        either = jnp.logaddexp(lives + told + jnp.roll(later, 1), dies + later)
        return urn.left + jax.lax.cumlogsumexp(urn.right + either), odds

    every = told, after, urn.lives, urn.dies
    return jax.lax.scan(one, jnp.zeros(len(told) + 1, told.dtype), every, reverse=True)[1]


def _draw_slabs(alpha: float, told: Array, toss: Array, walk: Array) -> Array:
    """Which indices are in the slab, a joint draw: backwards from the last. `toss` is logistic, `walk` Gumbel noise."""
    urn = _Urn.of(alpha, len(told), told.dtype)
    found, zero = _filtered(urn, told, jnp.zeros_like(told)), jnp.zeros((), told.dtype)
    counts = jnp.arange(len(told) + 1)

    def one(alive, now):
        told, toss, walk, before, after, lives, dies = now
        slab, spike = _shown(after, lives, dies, told, zero)
        here = toss < slab[alive] - spike[alive]
        survivors = jnp.where(here, alive + 1, alive)
        weights = jnp.where(counts >= survivors, before + urn.left + walk, -jnp.inf)
        return jnp.argmax(weights), here

    every = told, toss, walk, found.before, found.after, urn.lives, urn.dies
    return jax.lax.scan(one, jnp.zeros((), counts.dtype), every, reverse=True)[1]
