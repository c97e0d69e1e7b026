"""The closed-form fit behind the estimators: a warm-up that finds basin and rank, then draws."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.estimators.inputs import Observed
from bayestensor.models.conjugate import GIBBS, MAP, VARIATIONAL, Conjugate, How, State, sweeps
from bayestensor.priors import InverseGamma
from bayestensor.priors.base import ScalePrior
from bayestensor.ranks.select import RANK_THRESHOLD, host_slice_norms
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.initialise import core_variance, initialise
from bayestensor.tensor.network import Network
from bayestensor.tensor.normal import Entries, Grid, Observations, row_shape, split_legs
from bayestensor.typing import Array, Key

_FIRST_PRECISION = 100.0  # of data of mean square 1: taken as 20 dB until the fit can tell
_HELD = 10  # sweeps for which it is taken so
_PORTION = 10  # sweeps of one call
_MOST_STARTS = 16
_WORTH_STARTS = 1e10  # multiplications that the starts may take together, a second or three
_SETTLED = 1.05  # growth of the noise precision in one call below which the warm-up has arrived
_NEARLY_EXACT = 1e5  # noise precision, 50 dB, above which split components are looked for
_WORTH_A_CUT = 2e10  # multiplications saved that pay for compiling the smaller shape
_WIDEST = {"cp": 40}  # largest default rank; of the other formats 10
_LARGEST_BLOCK = 400  # most unknowns of one row's normal equations that 'auto' asks for


@dataclass(frozen=True)
class Plan:
    """How to fit: the parameters of the estimator."""

    prior: ScalePrior | None
    smooth: Any
    inference: str
    num_draws: int
    burn_in: int
    warm_up: int


@dataclass(frozen=True, eq=False)
class Fit:
    """What a fit leaves: network, cores [chain, draw, ...], noise precision and ranks by draw."""

    network: Network
    cores: dict[str, np.ndarray]
    precision: np.ndarray
    rank_posterior: dict[str, np.ndarray]
    diagnostics: dict[str, Any]


def default_network(format: str, shape: tuple[int, ...], count: int, max_rank: Any) -> Network:
    """The network of a format over a shape, of the largest rank allowed.

    'auto' is the largest rank with no more parameters than observations, at most 40 for CP and 10 for the others, no
    bond larger than any tensor of this shape needs, and no row of normal equations above 400 unknowns.

    Raises:
        ValueError: no such format, or a rank that is none.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; one of {', '.join(FORMATS)} is needed")
    rows, cols = tuple(shape), tuple[int, ...]()
    if format == "tt_matrix":  # pairs modes: the first half are rows
        cut = (len(shape) + 1) // 2
        rows, cols = tuple(shape[:cut]), (*shape[cut:], *(1,) * (2 * cut - len(shape)))
    build = FORMATS[format]
    if max_rank != "auto":
        return build(rows, cols, rank=max_rank)
    full = build(rows, cols, rank="full").ranks

    def capped(rank: int) -> Network:
        return build(rows, cols, rank={bond: max(1, min(rank, size)) for bond, size in full.items()})

    best = capped(1)
    for rank in range(2, _WIDEST.get(format, 10) + 1):
        tried = capped(rank)
        block = max(row_shape(tried, core.name)[1] for core in tried.cores)
        if tried.num_parameters > count or block > _LARGEST_BLOCK:
            break
        best = tried
    return best


def default_prior(network: Network) -> InverseGamma:
    """`InverseGamma(0.1 D, 1e-6 D)`, D the smallest number of core entries tied to one index of a bond.

    A tenth of the entries speaks against each index, so that one which fits only noise goes (InverseGamma(0.5, 0.005)
    kept 21 components of a full 30x30x30 tensor of rank 6 at 10 dB, this one 6); it weighs less than Cheng et al.'s
    generalised hyperbolic prior (IEEE TSP 70, 2022), whose pull is that of min(shape) / sum(shape), a third there.
    """
    count = min((network.bond_count(bond) for bond in network.bonds), default=1)
    return InverseGamma(0.1 * count, 1e-6 * count)


def smooth_cores(network: Network, smooth: Any) -> tuple[str, ...]:
    """Cores whose rows are an autoregression: those with the mode as their one mode leg.

    Raises:
        ValueError: a mode that is none, or that shares its cores.
    """
    lone = {}
    for core in network.cores:
        open_, _ = split_legs(network, core)
        if len(open_) == 1:
            lone[network.modes.index(open_[0])] = core.name
    if isinstance(smooth, str):
        if smooth != "auto":
            raise ValueError(f"smooth is {smooth!r}; 'auto' or a tuple of modes (0, 1, ...) is needed")
        return tuple(name for mode, name in lone.items() if network.shape[mode] > 2)
    wrong = [mode for mode in smooth if mode not in lone]
    if wrong:
        raise ValueError(f"smooth names modes {wrong}; this network can have {sorted(lone)} smooth")
    return tuple(lone[mode] for mode in smooth if network.shape[mode] > 1)


def closed_form_fit(network: Network, given: Observed, values: np.ndarray, plan: Plan, key: Key[Array, ""]) -> Fit:
    """Find basin and rank by mean-field sweeps from several starts, cut dead slices, then draw."""
    began = time.perf_counter()
    data = observations(network, given, values)
    model = Conjugate(
        network, plan.prior or default_prior(network), core_variance(network, 1.0), smooth_cores(network, plan.smooth)
    )
    start_key, warm_key, draw_key = jax.random.split(key, 3)
    model, state, ranks = _warm_up(*_best_start(model, data, given, plan, start_key), data, given, plan, warm_key)
    if plan.inference == "gibbs":
        state, trace = _draws(model, state, data, plan, draw_key)
    else:
        trace = _from_mean_field(state, plan.num_draws if plan.inference == "variational" else 1, draw_key, model)
    cores = {name: np.asarray(core) for name, core in trace.cores.items()}
    if not all(np.isfinite(core).all() for core in cores.values()):
        raise FloatingPointError("the fit is not finite: rescale the data, or choose a smaller max_rank")
    diagnostics = {
        "seconds": time.perf_counter() - began,
        "ranks": ranks,
        "correlations": {name: np.mean(rho, axis=0) for name, rho in trace.correlations.items()},
    }
    precision = np.asarray(trace.precision)
    return Fit(
        model.network, {k: v[None] for k, v in cores.items()}, precision, rank_shares(model.network, cores), diagnostics
    )


def _best_start(model: Conjugate, data: Observations, given: Observed, plan: Plan, key) -> tuple[Conjugate, State]:
    """Mean-field sweeps from as many random starts as are cheap; the one of the best `_score`."""
    count = len(given.values)
    share = _WORTH_STARTS / (plan.warm_up * _work(model.network, given))
    best: tuple[float, State] | None = None
    for start_key in jax.random.split(key, max(1, min(_MOST_STARTS, int(share)))):
        first_key, warm_key = jax.random.split(start_key)
        cores = initialise(first_key, model.network, dtype=jnp.float64).cores
        state = model.start(cores, _FIRST_PRECISION)
        for part, keys in enumerate(_portions(warm_key, plan.warm_up)):
            hold = jnp.arange(_PORTION) < (_HELD - part * _PORTION)
            state, _ = sweeps(model, keys, state, data, _how(plan), hold)
        score = _score(model, state, count)
        if best is None or score < best[0]:
            best = score, state
    assert best is not None
    return model, best[1]


def _warm_up(
    model: Conjugate, state: State, data: Observations, given: Observed, plan: Plan, key
) -> tuple[Conjugate, State, list[dict[str, int]]]:
    """Cut, and sweep on while the noise still falls, at most as long again as the warm-up was."""
    ranks = [dict(model.network.ranks)]
    smaller, cut = model.keep(state, _alive(model, state))
    left = plan.warm_up + plan.burn_in + plan.num_draws
    if left * (_work(model.network, given) - _work(smaller.network, given)) > _WORTH_A_CUT:
        model, state = smaller, cut
        ranks.append(dict(model.network.ranks))
    key, settle_key = jax.random.split(key)
    state = _settle(model, state, data, plan, settle_key)
    count = len(given.values)
    while float(state.precision) > _NEARLY_EXACT:
        key, trial_key = jax.random.split(key)
        trial = _settle(model, _without_weakest(model, state), data, plan, trial_key)
        if _score(model, trial, count) >= _score(model, state, count):
            break
        state = trial
    return model, state, ranks


def _settle(model: Conjugate, state: State, data: Observations, plan: Plan, key) -> State:
    """Sweeps until the noise no longer falls."""
    still = jnp.zeros(_PORTION, bool)
    for keys in _portions(key, 2 * plan.warm_up):
        before = float(state.precision)
        state, _ = sweeps(model, keys, state, data, _how(plan), still)
        if before <= float(state.precision) < _SETTLED * before:
            break
    return state


def _score(model: Conjugate, state: State, count: int) -> float:
    """Akaike's `n log(noise variance) + 2 parameters`, of the living slices: the lower the better."""
    alive = {bond: len(kept) for bond, kept in _alive(model, state).items()}
    size = model.network.resized(alive).num_parameters
    return 2 * size - count * math.log(float(state.precision))


def _without_weakest(model: Conjugate, state: State) -> State:
    """The state with its weakest living slice zero, and the noise taken as large as at the start.

    Without noise to weigh against, a component split over two is as good as one to the sweeps, and never merges.
    """
    norms, total = host_slice_norms(model.network, {k: np.asarray(v) for k, v in state.cores.items()})
    living = {b: np.where(norm > RANK_THRESHOLD * total, norm, np.inf) for b, norm in norms.items()}
    bond = min(living, key=lambda b: float(living[b].min()))
    index = int(np.argmin(living[bond]))
    cores = {}
    for core in model.network.cores:
        array = np.array(state.cores[core.name])
        if bond in core.legs:
            np.moveaxis(array, core.legs.index(bond), 0)[index] = 0
        cores[core.name] = jnp.asarray(array)
    return state._replace(cores=cores, precision=jnp.asarray(_FIRST_PRECISION, state.precision.dtype))


def _how(plan: Plan) -> How:
    return MAP if plan.inference == "map" else VARIATIONAL


def observations(network: Network, given: Observed, values: np.ndarray) -> Observations:
    """Arrays where they are the cheaper form, else the list."""
    if given.dense:
        full, observed = given.arrays(values)
        return Grid.build(full.reshape(network.shape), observed.reshape(network.shape))
    extra = len(network.modes) - len(given.shape)
    coords = np.pad(given.coords, ((0, 0), (0, extra)))
    return Entries.build(network, coords, values)


def noise_variance(precision: np.ndarray) -> float:
    """Posterior mean of the noise variance."""
    return float(np.mean(1 / precision))


def rank_shares(network: Network, cores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bond -> share of the draws whose rank is 0, 1, 2, ..."""
    counts: dict[str, list[int]] = {bond: [] for bond in network.bonds}
    for k in range(len(next(iter(cores.values())))):
        norms, total = host_slice_norms(network, {name: core[k] for name, core in cores.items()})
        for bond, norm in norms.items():
            counts[bond].append(int(np.sum(norm > RANK_THRESHOLD * total)))
    return {bond: np.bincount(n, minlength=network.size[bond] + 1) / len(n) for bond, n in counts.items()}


def _alive(model: Conjugate, state: State) -> dict[str, np.ndarray]:
    norms, total = host_slice_norms(model.network, {k: np.asarray(v) for k, v in state.cores.items()})
    kept = {}
    for bond, norm in norms.items():
        alive = np.flatnonzero(norm > RANK_THRESHOLD * total)
        kept[bond] = alive if len(alive) else np.array([int(np.argmax(norm))])
    return kept


def _draws(model: Conjugate, state: State, data: Observations, plan: Plan, key) -> tuple[State, State]:
    """Burn in and draw."""
    hold, traces = jnp.zeros(_PORTION, bool), []
    for keys in _portions(key, plan.burn_in + plan.num_draws):
        state, trace = sweeps(model, keys, state, data, GIBBS, hold)
        traces.append(jax.tree.map(np.asarray, trace))
    return state, jax.tree.map(lambda *a: np.concatenate(a)[plan.burn_in :][: plan.num_draws], *traces)


def _portions(key: Key[Array, ""], sweeps: int) -> list[Array]:
    """Keys of at least as many sweeps, in portions of one length: one compiled program runs them all."""
    portions = -(-sweeps // _PORTION)
    return list(jax.random.split(key, (portions, _PORTION)))


def _work(network: Network, given: Observed) -> float:
    """Multiplications of one sweep, near enough: a gram for every observation (or entry), a root for every row."""
    entries = math.prod(given.shape) if given.dense else len(given.values)
    shapes = [row_shape(network, core.name) for core in network.cores]
    return sum(entries * p**2 / 2 + 4 * q * p**3 for q, p in shapes)


def _from_mean_field(state: State, n: int, key, model: Conjugate) -> State:
    """The mean itself where n is 1, else draws of every core from its own posterior."""
    from bayestensor.tensor.normal import from_rows, to_rows

    cores = {}
    for k, (name, core) in enumerate(state.cores.items()):
        if n == 1:
            cores[name] = core[None]
            continue
        root = jnp.linalg.cholesky(state.covariances[name] + 1e-12 * jnp.eye(state.covariances[name].shape[-1])[None])
        noise = jax.random.normal(jax.random.fold_in(key, k), (n, *root.shape[:2]))
        rows = to_rows(model.network, name, core)[None] + jnp.einsum("qpr,nqr->nqp", root, noise)
        cores[name] = jnp.stack([from_rows(model.network, name, r) for r in rows])
    precision = jnp.broadcast_to(state.precision, n)
    return State(cores, {}, {}, {k: v[None] for k, v in state.correlations.items()}, precision)
