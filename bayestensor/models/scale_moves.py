"""Draws of scales at fixed z, by which slices die and come back: exact, on lattices placed at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from bayestensor.models.shrinkage import log_prior_scales
from bayestensor.priors.base import ScalePrior
from bayestensor.tensor.network import Network
from bayestensor.typing import Array, Key, Scalar

POINTS = 16
SPANS = 0.5, 30.0  # ends of the lattice's log-uniform length, in units of log v: from a live scale's sd to dead to live


def lattice_draw(
    key: Key[Array, ""], log_density: Callable[[Scalar], Scalar], x: Scalar, draw: float | Array = 1.0
) -> Scalar:
    """A move of `x` that leaves `exp(log_density)` as it is, in one vectorised evaluation.

        span ~ log-uniform(SPANS),   j ~ uniform{0 ... m-1}
        x_i = x + (i - j) span / m,   x <- x_i with probability proportional to exp(log_density(x_i))

    Given the lattice, every point of it would have led to it with the same probability, so the choice among them is a
    Gibbs draw; nothing is rejected and nothing tuned. (Neal, "MCMC using ensembles of states", 2011.) Where `draw` is
    0, the best point of the lattice, which is no worse than x.
    """
    span, place, pick = jax.random.uniform(key, (3,), x.dtype)  # one stream: each more is compiled anew
    low, high = (math.log(span) for span in SPANS)
    step = jnp.exp(low + (high - low) * span) / POINTS
    points = x + (jnp.arange(POINTS, dtype=x.dtype) - jnp.floor(POINTS * place)) * step
    values = jax.vmap(log_density)(points)
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)  # far out, where a tensor overflows
    below = jnp.cumsum(jnp.exp(values - values.max()))
    return points[jnp.where(draw > 0, (below <= pick * below[-1]).sum(), values.argmax())]


def draw_each(
    key: Key[Array, ""], log_density: Callable[[Mapping[str, Array]], Scalar], log_scales: Mapping[str, Array]
) -> dict[str, Array]:
    """Every log v of every bond by `lattice_draw` given all the others, one after another.

    Args:
        key: for the draws.
        log_density: bond -> log v, to the log density of them and all else, at fixed z.
        log_scales: bond -> log v.
    """
    now = dict(log_scales)
    for bond, own_key in zip(now, jax.random.split(key, len(now)), strict=True):
        now[bond] = _each_of(own_key, lambda x: log_density(now | {bond: x}), now[bond])  # noqa: B023
    return now


def _each_of(key: Key[Array, ""], log_density: Callable[[Array], Scalar], x: Array) -> Array:
    def one(k: Array, x: Array) -> Array:
        new = lattice_draw(jax.random.fold_in(key, k), lambda new: log_density(x.at[k].set(new)), x[k])
        return x.at[k].set(new)

    return jax.lax.fori_loop(0, x.size, one, x)


def exchange_levels(
    key: Key[Array, ""],
    prior: ScalePrior,
    network: Network,
    log_scales: Mapping[str, Array],
    draw: float | Array = 1.0,
) -> dict[str, Array]:
    """Moves a common factor from every v of a bond to every v of the next, at fixed z, by `lattice_draw`.

        log v_b <- log v_b + t / k_b,   log v_c <- log v_c - t / k_c       k: how often the bond shrinks a core

    X is as it was, whatever t: only the prior has a say. No draw of one v alone can go this way, since live slices hold
    each bond's level where it is.
    """
    now = dict(log_scales)
    times = {bond: sum(network.shrunk_by(core.name).count(bond) for core in network.cores) for bond in now}
    pairs = list(itertools.pairwise(bond for bond in now if times[bond]))
    for pair, own_key in zip(pairs, jax.random.split(key, max(len(pairs), 1)), strict=False):
        now |= _exchange(own_key, prior, {bond: now[bond] for bond in pair}, times, draw)
    return now


def _exchange(
    key: Key[Array, ""], prior: ScalePrior, pair: Mapping[str, Array], times: Mapping[str, int], draw: float | Array
) -> dict[str, Array]:
    b, c = pair

    def moved(t: Scalar) -> dict[str, Array]:
        return {b: pair[b] + t / times[b], c: pair[c] - t / times[c]}

    return moved(lattice_draw(key, lambda t: log_prior_scales(prior, moved(t)), jnp.zeros((), pair[b].dtype), draw))
