"""Closed-form inference for one tensor behind noise: every core, scale and noise precision given the rest.

`y = X[x] + effects + noise / sqrt(precision)`, `core[q, p] ~ N(0, w)`, `w = sigma_core^2 * product of v`. In a core
whose mode is smooth each column is an autoregression, `core[q + 1, p] ~ N(correlation[p] core[q, p], w)`, from a
stationary start, with the correlation learnt: at 0 its entries are independent as in any other core, so nothing is lost
where neighbours have nothing in common. w is the variance of the innovations, because the correlation is then a
regression of a column on itself; were it that of the entries, a column rescaled against its neighbours (which leaves X
as it is) would drag the correlation along. Each column has its own, because those that the data have left would outvote
the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models import side
from bayestensor.models.augment import DISCRETE, augmented, dispersion
from bayestensor.models.compiled import quick_jit
from bayestensor.models.effects import Effects, spread_out, taken_off, update
from bayestensor.models.effects import start as no_effects
from bayestensor.models.rows import chain_posterior, pick_correlations, row_posterior
from bayestensor.models.side import Features, Side
from bayestensor.priors.base import ScalePrior, conditional
from bayestensor.priors.log_gamma import draw_log_gamma
from bayestensor.tensor.contract import bond_energy, contract
from bayestensor.tensor.network import Factored, Network
from bayestensor.tensor.normal import (
    Observations,
    from_rows,
    is_joint,
    normal_equations,
    row_shape,
    split_legs,
    to_rows,
)
from bayestensor.typing import Array, Float, Key

HIGHEST_PRECISION = 1e12  # of data scaled to mean square 1: noise below 1e-6 is no noise
LOWEST_SCALE = 1e-10
_SHAPE, _RATE = 1e-3, 1e-9  # gamma prior of the noise precision: proper, and felt by no data


class How(NamedTuple):
    """What a sweep does, as numbers, so that one compiled program serves all three engines."""

    draw: float | Array  # 1: conditional draws; 0: conditional means and modes
    spreads: float | Array  # 1: the other cores' posterior covariances count


GIBBS, VARIATIONAL, MAP = How(1.0, 0.0), How(0.0, 1.0), How(0.0, 0.0)


class State(NamedTuple):
    """Where a closed-form fit stands.

    `covariances[core]` is [q, p, p]: of the posterior of the core's rows in mean-field inference, zero for a draw. With
    none at all (`{}`) sweeps do without: draws and conditional modes the same, quicker where entries are a long list.
    """

    cores: dict[str, Array]
    covariances: dict[str, Array]
    scales: dict[str, Array]  # bond -> v
    correlations: dict[str, Array]  # of neighbouring rows: smooth core -> [p]
    precision: Array  # of the noise
    effects: Effects
    sides: dict[str, Side]  # of cores whose mode has features


@dataclass(frozen=True)
class Conjugate:
    """The model: static under `jax.jit`.

    Attributes:
        network: the tensor.
        prior: of the scales.
        variance: sigma_core^2.
        smooth: names of cores whose rows are an autoregression; each has one mode leg.
        likelihood: one of `augment.LIKELIHOODS`; for 'bernoulli' and 'poisson' the noise precision is held at 1.
        effects: names of the additive ones (see `models.effects`).
        sides: (core, features) of cores whose rows follow features of their one mode (see `models.side`).
    """

    network: Network
    prior: ScalePrior
    variance: float
    smooth: tuple[str, ...] = ()
    likelihood: str = "gaussian"
    effects: tuple[str, ...] = ()
    sides: tuple[tuple[str, Features], ...] = ()

    @property
    def discrete(self) -> bool:
        """Whether there is no noise to learn."""
        return self.likelihood in DISCRETE

    def start(self, cores: Mapping[str, Array], precision: float, constant: float = 0.0) -> State:
        """Cores to start from, every scale at 1; offsets at 0 around a constant."""
        cores = {c.name: jnp.asarray(cores[c.name]) for c in self.network.cores}
        dtype = jnp.result_type(*cores.values())
        shapes = {name: row_shape(self.network, name) for name in cores}
        covariances = {
            n: jnp.broadcast_to(self.variance * jnp.eye(p, dtype=dtype), (q, p, p)) for n, (q, p) in shapes.items()
        }
        scales = {bond: jnp.ones(size, dtype) for bond, size in self.network.ranks.items()}
        correlations = {name: jnp.full(shapes[name][1], 0.5, dtype) for name in self.smooth}
        effects = no_effects(self.effects, self.network.size, constant, dtype)
        sides = {name: side.start(features, shapes[name][1], dtype) for name, features in self.sides}
        return State(cores, covariances, scales, correlations, jnp.asarray(precision, dtype), effects, sides)

    def keep(self, state: State, indices: Mapping[str, np.ndarray]) -> tuple[Conjugate, State]:
        """Model and state with only the given indices of each bond; sigma_core^2 stays what it was."""
        sizes = {bond: len(kept) for bond, kept in indices.items()}
        smaller = replace(self, network=self.network.resized(sizes))

        def cut(array, legs):
            for axis, leg in enumerate(legs):
                array = jnp.take(array, np.asarray(indices[leg]), axis=axis) if leg in indices else array
            return array

        cores, covariances, correlations, sides = {}, {}, {}, {}
        for core in self.network.cores:
            cores[core.name] = cut(state.cores[core.name], core.legs)
            _, bonds = split_legs(self.network, core)
            q, p = row_shape(smaller.network, core.name)
            if state.covariances:
                full = state.covariances[core.name].reshape(q, *[self.network.size[b] for b in bonds * 2])
                covariances[core.name] = cut(full, ("", *bonds, *bonds)).reshape(q, p, p)
            if core.name in self.smooth:
                columns = state.correlations[core.name].reshape([self.network.size[b] for b in bonds])
                correlations[core.name] = cut(columns, bonds).reshape(p)
            if core.name in state.sides:
                old = state.sides[core.name]
                columns = old.map.reshape(-1, *[self.network.size[b] for b in bonds])
                sides[core.name] = old._replace(map=cut(columns, ("", *bonds)).reshape(-1, p))
        scales = {bond: cut(v, (bond,)) for bond, v in state.scales.items()}
        state = state._replace(cores=cores, covariances=covariances, scales=scales)
        return smaller, state._replace(correlations=correlations, sides=sides)

    def values(self, state: State, data: Observations) -> tuple[Array, Array]:
        """At the observations: (what the network says, constant and offsets)."""
        x = data.values(Factored(self.network, state.cores))
        return x, spread_out(state.effects.values, data, self.network.modes, x)

    def sweep(self, key: Key[Array, ""], state: State, data: Observations, how: How, hold: Array) -> State:
        """Hidden variables and effects, every core given the others, then correlations, scales and noise precision.

        Args:
            key: of this sweep.
            state: where the fit stands.
            data: what was observed, each entry with weight 1.
            how: GIBBS draws everything; VARIATIONAL takes mean-field moments of the cores and puts the rest at the
                maximum of the bound; MAP moves every coordinate to its conditional mode.
            hold: whether the noise precision stays as it is.
        """
        draw, spreads = how
        core_key, scale_key, noise_key, correlation_key, hidden_key, effect_key = jax.random.split(key, 6)
        features = dict(self.sides)
        if features:
            correlation_key, strength_key, map_key, gauge_key = jax.random.split(correlation_key, 4)
        effects, modes = state.effects, self.network.modes
        if self.likelihood != "gaussian" or self.effects:
            x, total = self.values(state, data)
            data = augmented(self.likelihood, hidden_key, data, x + total, state.precision, draw)
        if self.effects:
            effects, total = update(effect_key, effects, data, modes, x, state.precision, draw)
            data = taken_off(data, effects, modes, total)
        cores, covariances, correlations = dict(state.cores), dict(state.covariances), dict(state.correlations)
        shapes = {name: row_shape(self.network, name) for name in cores}
        ends = np.cumsum([q * p for q, p in shapes.values()])
        normal = jax.random.normal(core_key, (int(ends[-1]),), state.precision.dtype) * draw
        pieces = jnp.split(normal, ends[:-1])
        seconds, pairs, precisions = {}, {}, {}
        for k, (name, (q, p)) in enumerate(shapes.items()):
            gram, moment = normal_equations(self.network, cores, name, data, covariances or None)
            d = precisions[name] = prior_precision(self.network, name, state.scales, self.variance)
            pull = d[None] * side.mean(features[name], state.sides[name]) if name in features else 0.0
            scaled = state.precision * gram, state.precision * moment + pull, d, pieces[k].reshape(q, p)
            if name in self.smooth:
                rows, spread, lag = chain_posterior(*scaled, correlations[name])
                pairs[name] = rows[1:] * rows[:-1] + (spreads * lag[:-1] if covariances else 0.0)
            else:
                rows, spread = row_posterior(*scaled)
            cores[name], seconds[name] = from_rows(self.network, name, rows), rows**2
            second = rows[:, :, None] * rows[:, None, :]
            if covariances:
                covariances[name] = spread = spreads * spread
                seconds[name], second = seconds[name] + jnp.diagonal(spread, axis1=1, axis2=2), second + spread
        if self.smooth:
            correlations = pick_correlations(correlation_key, seconds, pairs, precisions, draw)
        squares, strengths = {}, {}
        for k, (name, own) in enumerate(seconds.items()):
            if name in features:
                own_key, about = jax.random.fold_in(strength_key, k), to_rows(self.network, name, cores[name])
                picked = side.pick_strength(own_key, features[name], about, precisions[name], draw)
                strengths[name], explained = picked
                own = own * jnp.maximum(1 - explained / jnp.maximum(own.sum(0), 1e-300), 0)[None]
            if name in self.smooth:
                rho, pair = correlations[name][None], pairs[name]
                own = jnp.concatenate([own[:1] * (1 - rho**2), own[1:] - 2 * rho * pair + rho**2 * own[:-1]])
            squares[name] = from_rows(self.network, name, jnp.sqrt(jnp.maximum(own, 0)))
        residual = data.energy + (second * gram).sum() - 2 * (moment * rows).sum()
        precision = pick_precision(noise_key, data.count, jnp.maximum(residual, 0), draw)
        if features and is_joint(self.network):
            moved = _rebalanced(
                gauge_key, self.network, cores, covariances, squares, precisions, next(iter(features)), draw
            )
            cores, covariances, squares = moved
        scales = pick_scales(scale_key, self.network, self.prior, self.variance, state.scales, squares, draw)
        sides = {}
        for k, (name, strength) in enumerate(strengths.items()):
            d = prior_precision(self.network, name, scales, self.variance)
            about = to_rows(self.network, name, cores[name])
            own_key = jax.random.fold_in(map_key, k)
            sides[name] = side.pick_map(own_key, features[name], about, d, strength, draw)
        precision = jnp.where(hold, state.precision, precision)
        return State(cores, covariances, scales, correlations, precision, effects, sides)


def _rebalanced(key, network: Network, cores, covariances, roots, precisions, pivot: str, draw):
    """(cores, covariances, roots of squares) of CP with columns moved by `side.rebalance`."""
    rows = {name: to_rows(network, name, root) for name, root in roots.items()}
    energies = {name: precisions[name] * (r**2).sum(0) for name, r in rows.items()}
    logs = side.rebalance(key, energies, {name: len(r) for name, r in rows.items()}, pivot, draw)
    by = {name: jnp.exp(log)[None] for name, log in logs.items()}

    def scaled(arrays):
        return {n: from_rows(network, n, to_rows(network, n, a) * by[n]) for n, a in arrays.items()}

    spreads = {n: a * by[n][:, :, None] * by[n][:, None, :] for n, a in covariances.items()}
    return scaled(cores), spreads, scaled(roots)


def pick_scales(
    key: Key[Array, ""],
    network: Network,
    prior: ScalePrior,
    variance: float,
    scales: Mapping[str, Array],
    roots: Mapping[str, Array],
    draw: float | Array,
) -> dict[str, Array]:
    """Bond -> v, one bond after another: conditional draws, or modes where `draw` is 0.

    Args:
        key: for the draws.
        network: the tensor.
        prior: of the scales.
        variance: sigma_core^2.
        scales: bond -> v so far.
        roots: core -> root of the (expected) square of each entry.
        draw: 1 to draw, 0 for the mode.
    """
    new = dict(scales)
    for k, bond in enumerate(network.bonds):
        energy, count = bond_energy(network, roots, new, bond, variance), network.bond_count(bond)
        drawn = conditional(prior)(jax.random.fold_in(key, k), new[bond], energy, count)
        new[bond] = jnp.maximum(jnp.where(draw > 0, drawn, prior.mode(energy, count)), LOWEST_SCALE)
    return new


def prior_precision(network: Network, name: str, scales: Mapping[str, Array], variance: float) -> Float[Array, "p"]:
    """`1 / (sigma_core^2 * product of v over shrunk_by)`, one number for each bond index of the core."""
    _, bonds = split_legs(network, network.core[name])
    terms = [(1 / scales[b], (b,)) for b in network.shrunk_by(name)]
    free = [b for b in bonds if b not in network.shrunk_by(name)]
    dtype = jnp.result_type(*scales.values()) if scales else jnp.zeros(()).dtype
    terms += [(jnp.full(network.size[b], 1.0, dtype), (b,)) for b in free]
    product = contract(terms, bonds) if terms else jnp.ones((), dtype)
    return (product / variance).reshape(-1)


def pick_precision(key: Key[Array, ""], count: Array, residual: Array, draw: float | Array) -> Float[Array, ""]:
    """Of the noise: Gamma(count / 2, residual / 2) drawn, or `count / residual`."""
    shape = 0.5 * count + _SHAPE
    best = shape / (0.5 * residual + _RATE)
    drawn = jnp.exp(draw_log_gamma(key, shape) - jnp.log(shape)) * best
    return jnp.minimum(jnp.where(draw > 0, drawn, best), HIGHEST_PRECISION)


@partial(quick_jit, static_argnames="model")
def sweeps(
    model: Conjugate, keys: Key[Array, "n"], state: State, data: Observations, how: How, hold: Array
) -> tuple[State, State]:
    """As many sweeps as there are keys: the last state, and what each of them left but covariances."""

    def one(state, now):
        key, still = now
        state = model.sweep(key, state, data, how, still)
        return state, state._replace(covariances={})

    return jax.lax.scan(one, state, (keys, hold))


def refreshed(model: Conjugate, state: State, data: Observations) -> Observations:
    """Counts with the dispersion that goes with the rates so far; other observations as they are."""
    return _refreshed(model, state, data) if model.likelihood == "poisson" else data


@partial(quick_jit, static_argnames="model")
def _refreshed(model: Conjugate, state: State, data: Observations) -> Observations:
    return replace(data, weight=jnp.where(data.weight > 0, dispersion(jnp.add(*model.values(state, data))), 0.0))
