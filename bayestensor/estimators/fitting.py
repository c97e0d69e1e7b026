"""The closed-form fit behind the estimators: a warm-up that finds basins and ranks, then draws from each."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bayestensor.estimators.counting import rank_shares, seen_noise
from bayestensor.estimators.growing import grow, spectral_start, starts_by_spectrum
from bayestensor.estimators.inputs import Observed
from bayestensor.estimators.networks import side_features, smooth_cores
from bayestensor.estimators.progress import Told, told
from bayestensor.estimators.starting import (
    PORTION,
    best_starts,
    cut,
    portions,
    settle,
    settled,
    work,
    worth_a_chain,
)
from bayestensor.models.blocks import LARGEST, is_blocked
from bayestensor.models.conjugate import Conjugate, refreshed, sweeps
from bayestensor.models.effects import effect_names
from bayestensor.models.state import GIBBS, MAP, VARIATIONAL, How, State
from bayestensor.priors import InverseGamma
from bayestensor.priors.base import ScalePrior
from bayestensor.tensor.core_rows import from_rows, is_joint, to_rows
from bayestensor.tensor.initialise import core_variance
from bayestensor.tensor.network import Network
from bayestensor.tensor.observations import Entries, Grid, Observations

_WORTH_A_PROGRAM = 1e7  # multiplications of a sweep that pay for compiling draws without covariances
_MOST_CHAINS = 4
_DRIFT = 0.02  # of the noise precision in a portion, beside what chance does, at which a chain is taken to have arrived
_WORTH_ENTRIES = 1e6  # in a list, up to which as many sweeps as for any other
_WORTH_CHAINS = 2e11  # multiplications that the chains may take together, some twenty seconds


@dataclass(frozen=True)
class Plan:
    """How to fit: the parameters of the estimator."""

    prior: ScalePrior | None
    smooth: Any
    inference: str
    num_draws: int
    burn_in: int
    warm_up: int
    chains: Any = "auto"
    likelihood: str = "gaussian"
    effects: Any = ()
    side: Any = None
    noise_by: int | None = None
    early: bool = False  # whether burning in may end before `burn_in` sweeps
    verbose: bool = False


@dataclass(frozen=True, eq=False)
class Fit:
    """What a fit leaves: network, cores and effects [chain, draw, ...], noise, ranks by draw."""

    network: Network
    cores: dict[str, np.ndarray]
    effects: dict[str, np.ndarray]  # constant and offsets under their modes' names
    noise: np.ndarray  # standard deviation, [chain, draw], or [chain, draw, index of the mode that has its own]
    rank_posterior: dict[str, np.ndarray]
    diagnostics: dict[str, Any]


def default_prior(network: Network) -> InverseGamma:
    """`InverseGamma(0.03 D, 1e-4 D)`, D the smallest number of core entries tied to one index of a bond.

    The rate leaves an index that nothing speaks for a little life, below the noise and not counted, from which it can
    come back: at 1e-6 D indices die before the others have found their places, and Birmingham's parking counts, half
    hidden, are predicted with an error of 0.024 in place of 0.020.
    """
    count = min((network.bond_count(bond) for bond in network.bonds), default=1)
    return InverseGamma(0.03 * count, 1e-4 * count)


def closed_form_fit(network: Network, given: Observed, values: np.ndarray, plan: Plan, rng: np.random.Generator) -> Fit:
    """Find basins and ranks by mean-field sweeps from several starts, cut dead slices, then draw from each."""
    began = time.perf_counter()
    data = observations(network, given, values)
    sides = side_features(network, plan.side)
    smooth = tuple(name for name in smooth_cores(network, plan.smooth) if name not in dict(sides))
    model = Conjugate(
        network,
        plan.prior or default_prior(network),
        core_variance(network, 1.0),
        smooth,
        plan.likelihood,
        effect_names(plan.likelihood, plan.effects, network.modes, len(given.shape)),
        sides,
        None if plan.noise_by is None else network.modes[plan.noise_by],
    )
    blocked = is_blocked(network)
    if blocked and plan.inference == "variational":
        raise ValueError(f"max_rank gives a core's rows more than {LARGEST} unknowns: too many for 'variational'")
    how = MAP if blocked or plan.inference == "map" else VARIATIONAL
    with told(plan.verbose) as bar:
        model, states, ranks = _starts(model, data, given, values, plan, how, rng)
        each = -(-plan.num_draws // len(states))
        bar.drawing(len(states) * (plan.burn_in + each))

        def drawn(chain) -> State:
            own, state = chain
            if plan.inference == "gibbs":
                return _draws(model, state, data, given, plan, each, own, bar)
            return _from_mean_field(state, plan.num_draws if plan.inference == "variational" else 1, own, model)

        traces = [drawn(chain) for chain in zip(rng.spawn(len(states)), states, strict=True)]
    trace = jax.tree.map(lambda *draws: np.stack(draws), *traces)
    cores = trace.cores
    if not all(np.isfinite(core).all() for core in cores.values()):
        raise FloatingPointError("the fit is not finite: rescale the data, or choose a smaller max_rank")
    diagnostics = {
        "seconds": time.perf_counter() - began,
        "ranks": ranks,
        "correlations": {name: np.mean(rho, axis=(0, 1)) for name, rho in trace.correlations.items()},
    }
    noise = trace.precision**-0.5
    for share in trace.noises.values():
        noise = noise[..., None] * share**-0.5
    variance = (noise**2).reshape(-1, *noise.shape[2:])
    if plan.noise_by is not None:
        variance = variance @ given.counts(plan.noise_by) / len(given.values)
    precision = 1 / variance
    if model.discrete:  # what an entry tells of its log odds or log rate, at the mean
        mean = values.mean()
        precision = np.full(len(precision), max(mean if plan.likelihood == "poisson" else mean * (1 - mean), 1e-6))
    flat = {name: core.reshape(-1, *core.shape[2:]) for name, core in cores.items()}
    shares = rank_shares(model.network, flat, seen_noise(model.network, precision, len(given.values)))
    return Fit(model.network, cores, trace.effects.values, noise, shares, diagnostics)


def _starts(
    model: Conjugate, data: Observations, given: Observed, values: np.ndarray, plan: Plan, how: How, rng
) -> tuple[Conjugate, list[State], list[dict[str, int]]]:
    """Where the chains start, settled, and the ranks on the way."""
    chains = 1 if plan.inference != "gibbs" else plan.chains
    ranks = [dict(model.network.ranks)]
    if spectral := starts_by_spectrum(model, given):
        prior_of = default_prior if plan.prior is None else lambda _: model.prior
        model, state = spectral_start(model, prior_of, given, values, plan.warm_up, rng)
        if plan.inference != "variational":
            state, how = state._replace(covariances={}), MAP
        states = [settle(model, state, data, plan.warm_up, how, rng)]
    else:
        chains = default_chains(model.network, given, plan) if chains == "auto" else chains
        states = best_starts(model, data, given, plan.warm_up, how, chains, rng)
        model, states = cut(model, states, given)

    def ready(chain) -> tuple[Conjugate, State]:
        own, state = chain
        if not spectral:
            state = settled(model, state, data, given, plan.warm_up, how, own)
        return grow(model, state, data, given, values, plan.warm_up, len(states) == 1, own)

    found = [ready(chain) for chain in zip(rng.spawn(len(states)), states, strict=True)]
    model, states = found[0][0], [state for _, state in found]  # chains share one shape
    states = worth_a_chain(model, states, len(values))
    if model.network.ranks != ranks[0]:
        ranks.append(dict(model.network.ranks))
    if spectral and chains != "auto":
        states = states * chains
    return model, states, ranks


def observations(network: Network, given: Observed, values: np.ndarray) -> Observations:
    """Arrays where they are the cheaper form, else the list."""
    if given.dense:
        full, observed = given.arrays(values)
        weights = None if given.weights is None else given.arrays(given.weights)[0].reshape(network.shape)
        return Grid.build(full.reshape(network.shape), observed.reshape(network.shape), weights)
    extra = len(network.modes) - len(given.shape)
    coords = np.pad(given.coords, ((0, 0), (0, extra)))
    return Entries.build(network, coords, values, given.weights)


def default_sweeps(given: Observed) -> tuple[int, int]:
    """(draws, burn-in): 100 and 60, of a list above a million entries that times `10^6 / entries`, at least 16 and 6.

    One sweep of ten million entries takes some eight seconds: these are the most that leave a fit within minutes.
    """
    share = 1.0 if given.dense else min(1.0, _WORTH_ENTRIES / len(given.values))
    return max(16, round(100 * share)), max(6, round(60 * share))


def default_chains(network: Network, given: Observed, plan: Plan) -> int:
    """As many as take some seconds, at most four: basins differ, and their mixture predicts better than the best."""
    sweeps_each = 2 * plan.warm_up + plan.burn_in
    return max(1, min(_MOST_CHAINS, int(_WORTH_CHAINS / (sweeps_each * work(network, given)))))


def _draws(
    model: Conjugate, state: State, data: Observations, given: Observed, plan: Plan, count: int, rng, bar: Told
) -> State:
    """Burn in and draw: `count` states without covariances.

    Of CP burning in ends early, where the plan allows it, once the noise precision's mean over a portion is that over
    the portion before: chains start at a mode, and some of them are there. Spare slices of other formats still come out
    of the span of the live ones then (trains of ranks 5, 5 at 20 dB: an error of 0.0204 for 0.0197).
    """
    hold, traces, burn_in, before = np.full(PORTION, model.discrete), [], plan.burn_in, 0.0
    data = refreshed(model, state, data)  # and never while drawing
    if isinstance(data, Entries) and work(model.network, given) > _WORTH_A_PROGRAM:
        state = state._replace(covariances={})
    early = plan.early and not model.discrete and is_joint(model.network)
    moves = _DRIFT + math.sqrt(2 / len(given.values))
    for done, chance in enumerate(portions(model, data, rng, plan.burn_in + count, draw=True), start=1):
        state, trace = sweeps(model, chance, state, data, GIBBS, hold)
        traces.append(jax.tree.map(np.asarray, trace))
        mean = float(traces[-1].precision.mean())
        if early and before and abs(math.log(mean / before)) < moves:
            burn_in, early = min(burn_in, done * PORTION), False
        before = mean
        bar.swept(PORTION)
        if done * PORTION >= burn_in + count:
            break
    bar.swept(plan.burn_in + count - done * PORTION)
    return jax.tree.map(lambda *a: np.concatenate(a)[burn_in:][:count], *traces)


def _from_mean_field(state: State, n: int, rng: np.random.Generator, model: Conjugate) -> State:
    """The mean itself where n is 1, else draws of every core from its own posterior."""
    cores, effects = {}, {}
    for name, core in state.cores.items():
        rows = np.asarray(to_rows(model.network, name, core))
        draws = np.broadcast_to(rows, (n, *rows.shape))
        if n > 1:
            spread = np.asarray(state.covariances[name])
            root = np.linalg.cholesky(spread + 1e-12 * np.eye(spread.shape[-1])[None])
            draws = draws + np.einsum("qpr,nqr->nqp", root, rng.standard_normal(draws.shape))
        cores[name] = np.stack([from_rows(model.network, name, draw) for draw in draws])
    for name, value in state.effects.values.items():
        sd = np.sqrt(state.effects.variances[name]) * (n > 1)
        effects[name] = value + sd * rng.standard_normal((n, *value.shape))
    precision = np.broadcast_to(state.precision, n)
    correlations = {k: np.asarray(v)[None] for k, v in state.correlations.items()}
    return State(cores, {}, {}, correlations, precision, state.effects._replace(values=effects), {}, {})
