"""Simulation-based calibration of the closed-form Gibbs sweeps of completion: scales, cores, correlations and noise.

Everything is drawn from the prior, data from that; chains start at an independent prior draw and are nothing but
`models.conjugate.sweeps`: no start is chosen, nothing cut, merged or born. All data sets run side by side.
"""

from __future__ import annotations

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models import conjugate
from bayestensor.models.augment import DEGREES_OF_FREEDOM
from bayestensor.models.compiled import closed_form
from bayestensor.models.conditionals import best_precision
from bayestensor.models.conjugate import Conjugate, sweeps
from bayestensor.models.effects import _CONSTANT_PRECISION as CONSTANT_PRECISION
from bayestensor.models.effects import CONSTANT, SPREAD, effect_names
from bayestensor.models.noise import EVEN
from bayestensor.models.rows import CORRELATIONS
from bayestensor.models.shrinkage import log_prior_cores, log_prior_scales
from bayestensor.models.state import GIBBS, State
from bayestensor.priors import InverseGamma
from bayestensor.tensor.contract import dense
from bayestensor.tensor.core_rows import from_rows, to_rows
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.initialise import core_variance
from bayestensor.tensor.network import Factored
from bayestensor.tensor.normal import normal_equations
from bayestensor.tensor.observations import Entries, Grid

SHAPE, MAX_RANK, PRIOR = (4, 3, 3), 3, InverseGamma(2.0, 1.0)
NOISE = 4.0, 1.0  # shape and rate of the gamma prior of the noise precision: sd about 0.5
SEEN = np.random.default_rng(0).random(SHAPE) < 0.75
ENTRIES = (0, 9, 17, 23, 35)  # of the flat tensor
HIDDEN = 9  # one of them that is not seen
SUBJECTS = {  # format, whether observations are a list, whether rows are autoregressions, likelihood, modes with effects,
    # whether indices of the first mode have noise of their own
    "cp": ("cp", False, False, "gaussian", (), False),
    "tensor_train": ("tensor_train", True, False, "gaussian", (), False),
    "tucker": ("tucker", False, False, "gaussian", (), False),
    "cp, smooth": ("cp", False, True, "gaussian", (), False),
    "cp, student_t, effects": ("cp", False, False, "student_t", (0, 1), False),
    "cp, noise by mode": ("cp", False, False, "gaussian", (), True),
    "cp, bernoulli": ("cp", False, False, "bernoulli", (), False),
}
FAULTS = ("noise exponent", "no Jacobian", "missing entry counted", "stale core")


class Proper(Conjugate):
    """With NOISE for the prior of the noise precision in place of one too vague to draw from."""

    def sweep(self, chance, state, data, how, hold):
        shape, rate = NOISE
        data = dataclasses.replace(data, count=data.count + 2 * shape)  # as many entries more, of squares 2 rate in all

        def best(count, residual):
            return best_precision(count, residual + 2 * rate)

        with mock.patch.object(conjugate, "best_precision", best):
            return super().sweep(chance, state, data, how, hold)


class Stale(Proper):
    """The fault: every core's equations from the cores as they were when the sweep began."""

    def _swept(self, normal, state, data, how):
        at_first = {name: core for name, core in state.cores.items()}

        def equations(network, cores, name, data, covariances=None):
            return normal_equations(network, at_first, name, data, covariances)

        with mock.patch.object(conjugate, "normal_equations", equations):
            return super()._swept(normal, state, data, how)


def model_of(subject, fault=None):
    """The model of a subject; the cores' variance is such that entries of X have variance 1 where every v is 1."""
    format, _, smooth, likelihood, modes, noisy = SUBJECTS[subject]
    network = FORMATS[format](SHAPE, rank=MAX_RANK)
    names = tuple(c.name for c in network.cores) if smooth else ()
    effects = effect_names(likelihood, modes, network.modes, len(SHAPE))
    prior = PRIOR
    if fault == "no Jacobian":  # p(v) where p(log v) = v p(v) belongs
        prior = InverseGamma(PRIOR.shape + 1, PRIOR.scale)
    kind = Stale if fault == "stale core" else Proper
    variance, noise_by = core_variance(network, 1.0), network.modes[0] if noisy else None
    return kind(network, prior, variance, names, likelihood, effects, noise_by=noise_by)


def prior_draw(model, key):
    """State from the prior, of one data set."""
    network = model.network
    keys = iter(jax.random.split(key, 3 + len(network.bonds) + 2 * len(network.cores) + 2 * len(model.effects)))
    scales = {bond: PRIOR.sample(next(keys), (size,), float) for bond, size in network.ranks.items()}
    cores, correlations = {}, {}
    for core in network.cores:
        sd = jnp.full(network.core_shape(core.name), model.variance**0.5)
        for bond in network.shrunk_by(core.name):
            sd *= jnp.sqrt(scales[bond])[tuple(slice(None) if leg == bond else None for leg in core.legs)]
        own, rho_key = jax.random.normal(next(keys), sd.shape), next(keys)
        if core.name in model.smooth:
            z = to_rows(network, core.name, own)
            rho = correlations[core.name] = jax.random.choice(rho_key, jnp.asarray(CORRELATIONS), z.shape[1:])
            rows = [z[0] / jnp.sqrt(1 - rho**2)]
            for k in range(1, len(z)):
                rows.append(rho * rows[-1] + z[k])
            own = from_rows(network, core.name, jnp.stack(rows))
        cores[core.name] = sd * own
    state = model.start(cores, 1.0)
    effects, spreads = dict(state.effects.values), {}
    for name, zero in effects.items():
        v_key, own_key = next(keys), next(keys)
        v = 1 / CONSTANT_PRECISION if name == CONSTANT else SPREAD.sample(v_key, (), float)
        effects[name] = jnp.sqrt(v) * jax.random.normal(own_key, zero.shape)
        spreads |= {} if name == CONSTANT else {name: v}
    shape, rate = NOISE
    precision = jnp.ones(()) if model.discrete else jax.random.gamma(next(keys), shape) / rate
    effects = state.effects._replace(values=effects, scales=spreads)
    noises = {name: jax.random.gamma(next(keys), EVEN, even.shape) / EVEN for name, even in state.noises.items()}
    return State(cores, {}, scales, correlations, precision, effects, {}, noises)


def expected(model, state):
    """Tensor and effects, [entry]."""
    total = dense(Factored(model.network, state.cores))
    for name, value in state.effects.values.items():
        at = model.network.modes.index(name) if name != CONSTANT else 0
        total = total + (
            value if name == CONSTANT else value.reshape([-1 if k == at else 1 for k in range(total.ndim)])
        )
    return total.ravel()


def values_of(model, state, key):
    """Data [entry], hidden entries included."""
    x, (key, weight_key) = expected(model, state), jax.random.split(key)
    if model.likelihood == "bernoulli":
        return (jax.random.uniform(key, x.shape) < jax.nn.sigmoid(x)).astype(x.dtype)
    weight = jnp.ones(x.shape)
    if model.likelihood == "student_t":
        weight = jax.random.gamma(weight_key, DEGREES_OF_FREEDOM / 2, x.shape) / (DEGREES_OF_FREEDOM / 2)
    return x + jax.random.normal(key, x.shape) / jnp.sqrt(precisions(model, state) * weight)


def precisions(model, state):
    """Of the noise, entry by entry."""
    for share in state.noises.values():  # of the first mode
        return jnp.repeat(state.precision * share, np.prod(SHAPE[1:]))
    return state.precision


def functionals(model, state, values):
    """Numbers that no gauge can change."""
    tensor, x = Factored(model.network, state.cores), expected(model, state)
    if model.likelihood == "bernoulli":
        each = values * x - jax.nn.softplus(x)
    elif model.likelihood == "student_t":
        each = jax.scipy.stats.t.logpdf(values, DEGREES_OF_FREEDOM, x, precisions(model, state) ** -0.5)
    else:
        each = jax.scipy.stats.norm.logpdf(values, x, precisions(model, state) ** -0.5)
    log_likelihood = jnp.where(SEEN.ravel(), each, 0.0).sum()
    logs = {bond: jnp.log(v) for bond, v in state.scales.items()}
    out = {f"entry {k}": x[k] for k in ENTRIES}
    out |= {"norm": (dense(tensor) ** 2).sum(), "log likelihood": log_likelihood}
    out |= {} if model.discrete else {"noise": state.precision}
    out |= {f"log v {bond} {k}": jnp.sort(log_v)[k] for bond, log_v in logs.items() for k in (0, MAX_RANK - 1)}
    out |= {f"correlation {name}": jnp.max(rho) for name, rho in state.correlations.items()}
    out |= {f"noise {name}": row[0] for name, row in state.noises.items()}
    out |= {f"offsets {name}": (row**2).sum() for name, row in state.effects.values.items()}
    if not model.smooth:
        own = log_prior_cores(tensor, logs, model.variance) + log_prior_scales(PRIOR, logs)
        out["log density"] = log_likelihood + own
    return out


def observations(model, values, as_list, fault):
    """(of each data set, how many)."""
    seen = SEEN | ((np.arange(SEEN.size) == HIDDEN) & (fault == "missing entry counted")).reshape(SHAPE)
    values = np.where(SEEN.ravel(), values, 0.0)
    if as_list:
        at = np.flatnonzero(seen)
        data, target = Entries.build(model.network, np.argwhere(seen), values[0, at]), values[:, at]
    else:
        data, target = Grid.build(values[0].reshape(SHAPE), seen), values.reshape(-1, *SHAPE)
    count = seen.sum() * (2.0 if fault == "noise exponent" else 1.0)  # n where n / 2 belongs
    energy, counts = (values**2).sum(1), np.full(len(values), count)
    repeated = jax.tree.map(lambda a: np.broadcast_to(a, (len(values), *np.shape(a))), data)
    return dataclasses.replace(repeated, target=target, energy=energy, count=counts), count


def simulate(subject="cp", simulations=300, draws=15, thin=60, burn_in=1500, seed=0, fault=None, from_truth=False):
    """Statistics name -> (truth[n], draws[n, L]).

    `burn_in` is for the few data sets of which the noise is a thousandth: an entry that was not seen is then found
    slowly from a start elsewhere (after 300 sweeps one seed of three had Holm's p of 6e-4, after 2,000 sweeps 0.7).
    """
    with closed_form():
        model, target = model_of(subject), model_of(subject, fault)
        drawn = jax.jit(jax.vmap(lambda key: prior_draw(model, key)))
        truth_key, data_key, start_key = jax.random.split(jax.random.key(seed), 3)
        truth = drawn(jax.random.split(truth_key, simulations))
        values_keys = jax.random.split(data_key, simulations)
        values = np.asarray(jax.jit(jax.vmap(lambda *a: values_of(model, *a)))(truth, values_keys))
        read = jax.jit(jax.vmap(lambda *a: functionals(model, *a)))
        state = truth if from_truth else drawn(jax.random.split(start_key, simulations))
        state = state._replace(
            effects=state.effects._replace(variances=jax.tree.map(jnp.zeros_like, state.effects.values))
        )
        data, count = observations(target, values, SUBJECTS[subject][1], fault)
        hold, rng = np.full(thin, model.discrete), np.random.default_rng([seed, 1])
        run = jax.vmap(lambda *a: sweeps(target, *a, GIBBS, hold)[0])
        found = []
        for part in range(-burn_in // thin, draws):
            chance = target.chance(rng, simulations * thin, count + 2 * NOISE[0], True)
            chance = jax.tree.map(lambda a: a.reshape(simulations, thin, *a.shape[1:]), chance)
            state = run(chance, state, data)
            if part >= 0:
                found.append(jax.tree.map(np.asarray, read(state, values)))
        exact = jax.tree.map(np.asarray, read(truth, values))
        return {name: (exact[name], np.stack([f[name] for f in found], axis=1)) for name in exact}
