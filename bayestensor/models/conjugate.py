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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models import side
from bayestensor.models.augment import DISCRETE, augmented, dispersion
from bayestensor.models.blocks import blocks, draw_blocks, is_blocked
from bayestensor.models.compiled import AnyArray, quick_jit
from bayestensor.models.conditionals import (
    HIGHEST_PRECISION,
    best_precision,
    pick_scales,
    precision_shape,
    prior_precision,
)
from bayestensor.models.effects import Effects, spread_out, taken_off, update
from bayestensor.models.effects import start as no_effects
from bayestensor.models.gauge import regauged
from bayestensor.models.noise import pick_shares, reweighted
from bayestensor.models.rows import CORRELATIONS, chain_posterior, innovations, pick_correlations, row_posterior
from bayestensor.models.side import Features, Side
from bayestensor.models.state import Chance, How, State, Swept
from bayestensor.priors.base import ScalePrior
from bayestensor.tensor.core_rows import from_rows, is_joint, row_shape, split_legs, to_rows
from bayestensor.tensor.network import Factored, Network
from bayestensor.tensor.normal import normal_equations
from bayestensor.tensor.observations import Observations
from bayestensor.typing import Array, Bool


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
        noise_by: mode whose indices have a noise scale of their own once draws are made (see `models.noise`).
    """

    network: Network
    prior: ScalePrior
    variance: float
    smooth: tuple[str, ...] = ()
    likelihood: str = "gaussian"
    effects: tuple[str, ...] = ()
    sides: tuple[tuple[str, Features], ...] = ()
    noise_by: str | None = None

    @property
    def discrete(self) -> bool:
        """Whether there is no noise to learn."""
        return self.likelihood in DISCRETE

    def start(self, cores: Mapping[str, AnyArray], precision: float, constant: float = 0.0) -> State:
        """Cores to start from, every scale at 1; offsets at 0 around a constant. All but the cores is NumPy's."""
        cores = {c.name: cores[c.name] for c in self.network.cores}
        dtype: Any = jnp.result_type(*cores.values())
        shapes = self._shapes()
        covariances = {
            n: np.broadcast_to(self.variance * np.eye(p, dtype=dtype), (q, p, p))
            for n, (q, p) in shapes.items()
            if not is_blocked(self.network)
        }
        scales = {bond: np.ones(size, dtype) for bond, size in self.network.ranks.items()}
        correlations = {name: np.full(shapes[name][1], 0.5, dtype) for name in self.smooth}
        effects = no_effects(self.effects, self.network.size, constant, dtype)
        sides = {name: side.start(features, shapes[name][1], dtype) for name, features in self.sides}
        noises = {self.noise_by: np.ones(self.network.size[self.noise_by], dtype)} if self.noise_by else {}
        return State(cores, covariances, scales, correlations, np.asarray(precision, dtype), effects, sides, noises)

    def keep(self, state: State, indices: Mapping[str, np.ndarray]) -> tuple[Conjugate, State]:
        """Model and state with only the given indices of each bond; sigma_core^2 stays what it was."""
        sizes = {bond: len(kept) for bond, kept in indices.items()}
        smaller = replace(self, network=self.network.resized(sizes))

        def cut(array, legs):
            for axis, leg in enumerate(legs):
                array = np.take(np.asarray(array), indices[leg], axis=axis) if leg in indices else array
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

    def chance(self, rng: np.random.Generator, n: int, count: float, draw: bool) -> Chance:
        """Random numbers of n sweeps over `count` observations; where none draws, such as leave the modes alone."""
        shapes = self._shapes()
        sizes = {
            "normal": (n, sum(q * p for q, p in shapes.values())),
            "gumbel": (n, len(CORRELATIONS), sum(shapes[name][1] for name in self.smooth)),
        }
        bits = rng.integers(2**32, size=(n, 2), dtype=np.uint32)
        if not draw:
            return Chance(bits, np.zeros(sizes["normal"]), np.zeros(sizes["gumbel"]), np.ones(n))
        shape = precision_shape(count)
        return Chance(
            bits,
            rng.standard_normal(sizes["normal"]),
            rng.gumbel(size=sizes["gumbel"]),
            rng.standard_gamma(shape, n) / shape,
        )

    def sweep(self, chance: Chance, state: State, data: Observations, how: How, hold: Array) -> State:
        """Hidden variables and effects, every core given the others, then correlations, scales and noise precision.

        Args:
            chance: of this sweep.
            state: where the fit stands.
            data: what was observed, each entry with weight 1.
            how: GIBBS draws everything; VARIATIONAL takes mean-field moments of the cores and puts the rest at the
                maximum of the bound; MAP moves every coordinate to its conditional mode.
            hold: whether the noise precision stays as it is.
        """
        draw, _ = how
        keys = jax.random.split(jax.random.wrap_key_data(chance.bits), 3 + 3 * bool(self.sides))
        scale_key, hidden_key, effect_key, *side_keys = keys
        effects, noises, data = self._effects(hidden_key, effect_key, state, data, draw)
        swept = self._swept(chance.normal, state, data, how)
        correlations = state.correlations
        if self.smooth:
            correlations = pick_correlations(swept.seconds, swept.pairs, swept.precisions, chance.gumbel)
        if self.sides:
            swept, strengths = self._strengths(side_keys[0], swept, draw)
        seconds = swept.seconds | {
            n: innovations(swept.seconds[n], swept.pairs[n], correlations[n]) for n in self.smooth
        }
        roots = {n: from_rows(self.network, n, jnp.sqrt(jnp.maximum(own, 0))) for n, own in seconds.items()}
        precision = chance.gamma * best_precision(data.count, jnp.maximum(swept.residual, 0))
        if self.sides and is_joint(self.network):
            swept, roots = self._rebalanced(side_keys[2], swept, roots, draw)
        scales = pick_scales(scale_key, self.network, self.prior, self.variance, state.scales, roots, draw)
        sides = self._maps(side_keys[1], swept.cores, scales, strengths, draw) if self.sides else {}
        precision = jnp.where(hold, state.precision, jnp.minimum(precision, HIGHEST_PRECISION))
        new = State(swept.cores, swept.covariances, scales, correlations, precision, effects, sides, noises)
        return regauged(jax.random.fold_in(scale_key, len(scales)), self.network, self.prior, self.variance, new, draw)

    def _effects(
        self, hidden_key, effect_key, state: State, data: Observations, draw
    ) -> tuple[Effects, dict[str, AnyArray], Observations]:
        """Constant and offsets given the cores, shares of noise, and what all but the network leave for it."""
        effects, noises, modes = state.effects, state.noises, self.network.modes
        if self.likelihood != "gaussian" or self.effects or self.noise_by:
            x, total = self.values(state, data)
            for name, old in noises.items():
                own, key = modes.index(name), jax.random.fold_in(hidden_key, 1)
                share = jnp.where(draw > 0, pick_shares(key, data, own, x + total, state.precision), old)
                noises, data = {name: share}, reweighted(data, share, own)
            data = augmented(self.likelihood, hidden_key, data, x + total, state.precision, draw)
        if self.effects:
            effects, total = update(effect_key, effects, data, modes, x, state.precision, draw)
            data = taken_off(data, effects, modes, total)
        return effects, noises, data

    def _swept(self, normal, state: State, data: Observations, how: How) -> Swept:
        """Every core given the others, one after another."""
        network, features = self.network, dict(self.sides)
        cores, covariances, shapes = dict(state.cores), dict(state.covariances), self._shapes()
        ends = np.cumsum([q * p for q, p in shapes.values()])
        seconds: dict[str, Array] = {}
        pairs: dict[str, Array] = {}
        precisions: dict[str, Array] = {}
        for (name, (q, p)), piece in zip(shapes.items(), jnp.split(normal, ends[:-1]), strict=True):
            d = precisions[name] = prior_precision(network, name, state.scales, self.variance)
            pull = d[None] * side.mean(features[name], state.sides[name]) if name in features else 0.0
            if len(blocks(network, name)) > 1:
                system = state.precision, d, pull + jnp.zeros((q, p)), piece.reshape(q, p), state.correlations.get(name)
                cores[name], residual = draw_blocks(network, cores, name, data, *system)
                rows = to_rows(network, name, cores[name])
                seconds[name] = rows**2
                pairs |= {name: rows[1:] * rows[:-1]} if name in self.smooth else {}
                continue
            gram, moment = normal_equations(network, cores, name, data, covariances or None)
            scaled = state.precision * gram, state.precision * moment + pull, d, piece.reshape(q, p)
            if name in self.smooth:
                rows, spread, lag = chain_posterior(*scaled, state.correlations[name], how.spreads)
                pairs[name] = rows[1:] * rows[:-1] + (how.spreads * lag[:-1] if covariances else 0.0)
            else:
                rows, spread = row_posterior(*scaled)
            cores[name], seconds[name] = from_rows(network, name, rows), rows**2
            second = rows[:, :, None] * rows[:, None, :]
            if covariances:
                covariances[name] = spread = how.spreads * spread
                seconds[name], second = seconds[name] + jnp.diagonal(spread, axis1=1, axis2=2), second + spread
            residual = data.energy + (second * gram).sum() - 2 * (moment * rows).sum()
        return Swept(cores, covariances, seconds, pairs, precisions, residual)

    def _shapes(self) -> dict[str, tuple[int, int]]:
        return {core.name: row_shape(self.network, core.name) for core in self.network.cores}

    def _strengths(self, key, swept: Swept, draw) -> tuple[Swept, dict[str, Array]]:
        """Core -> strength of its map, and the cores' squares less what the maps then explain."""
        seconds, strengths, places = dict(swept.seconds), {}, list(swept.cores)
        for name, features in self.sides:
            own_key = jax.random.fold_in(key, places.index(name))
            rows, d = to_rows(self.network, name, swept.cores[name]), swept.precisions[name]
            strengths[name], explained = side.pick_strength(own_key, features, rows, d, draw)
            own = seconds[name]
            seconds[name] = own * jnp.maximum(1 - explained / jnp.maximum(own.sum(0), 1e-300), 0)[None]
        return swept._replace(seconds=seconds), strengths

    def _maps(self, key, cores, scales, strengths, draw) -> dict[str, Side]:
        """Core -> map of its features, given its rows."""
        found = {}
        for k, (name, features) in enumerate(self.sides):
            d = prior_precision(self.network, name, scales, self.variance)
            rows, own_key = to_rows(self.network, name, cores[name]), jax.random.fold_in(key, k)
            found[name] = side.pick_map(own_key, features, rows, d, strengths[name], draw)
        return found

    def _rebalanced(self, key, swept: Swept, roots, draw) -> tuple[Swept, dict[str, Array]]:
        """Cores of CP, and the roots of their squares, with columns moved by `side.rebalance`."""
        rows = {name: to_rows(self.network, name, root) for name, root in roots.items()}
        energies = {name: swept.precisions[name] * (r**2).sum(0) for name, r in rows.items()}
        logs = side.rebalance(key, energies, {name: len(r) for name, r in rows.items()}, self.sides[0][0], draw)
        by = {name: jnp.exp(log)[None] for name, log in logs.items()}

        def scaled(arrays):
            return {n: from_rows(self.network, n, to_rows(self.network, n, a) * by[n]) for n, a in arrays.items()}

        spreads = {n: a * by[n][:, :, None] * by[n][:, None, :] for n, a in swept.covariances.items()}
        return swept._replace(cores=scaled(swept.cores), covariances=spreads), scaled(roots)


@partial(quick_jit, static_argnames="model")
def sweeps(
    model: Conjugate, chance: Chance, state: State, data: Observations, how: How, hold: Bool[Array, "n"]
) -> tuple[State, State]:
    """As many sweeps as `chance` has rows: the last state, and what each of them left but covariances."""

    def one(state, now):
        chance, still = now
        state = model.sweep(chance, state, data, how, still)
        return state, state._replace(covariances={})

    return jax.lax.scan(one, state, (chance, hold))


def refreshed(model: Conjugate, state: State, data: Observations) -> Observations:
    """Counts with the dispersion that goes with the rates so far; other observations as they are."""
    return _refreshed(model, state, data) if model.likelihood == "poisson" else data


@partial(quick_jit, static_argnames="model")
def _refreshed(model: Conjugate, state: State, data: Observations) -> Observations:
    return replace(data, weight=jnp.where(data.weight > 0, dispersion(jnp.add(*model.values(state, data))), 0.0))
