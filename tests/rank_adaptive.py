"""Simulation-based calibration of the whole rank-adaptive model: scales, cores, noise and rank, by SGHMC.

Everything is drawn from the prior, data from that, and posterior draws from the data alone: the chain starts at an
independent prior draw. One program runs all data sets side by side.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.inference.sghmc import sghmc
from bayestensor.models.completion import LAYER, CompletionModel
from bayestensor.models.likelihoods import Gaussian
from bayestensor.models.noncentred import noncentred
from bayestensor.priors import LogUniform
from bayestensor.ranks.explore import shares
from bayestensor.ranks.select import RANK_THRESHOLD
from bayestensor.tensor.contract import dense, norm
from bayestensor.tensor.formats import FORMATS

SHAPE, MAX_RANK, NOISE, SPREAD = (4, 3, 3), 3, 0.5, 0.3
PRIOR = LogUniform(0.05, 2.0)
COORDS = np.argwhere(np.random.default_rng(0).random(SHAPE) < 0.75)
ENTRIES = (0, 9, 17, 23, 35)  # of the flat tensor


@dataclass(frozen=True)
class Noise(Gaussian):
    """`log noise ~ N(log noise_scale, SPREAD^2)`: proper, and no data set without noise."""

    def log_prior(self, parameters):
        return jax.scipy.stats.norm.logpdf(parameters["log_noise"], jnp.log(self.noise_scale), SPREAD)


def prior_draw(model, key):
    """(z, u) from the prior."""
    z_key, v_key, noise_key = jax.random.split(key, 3)
    at = noncentred(model, 1).from_position(model.initial_position(jax.random.key(0)))
    z_keys = dict(zip(at["cores"], jax.random.split(z_key, len(at["cores"])), strict=True))
    v_keys = dict(zip(at["log_scales"], jax.random.split(v_key, len(at["log_scales"])), strict=True))
    scales = {b: jnp.log(PRIOR.sample(v_keys[b], x.shape)) for b, x in at["log_scales"].items()}
    u = noncentred(model, 1).from_position(at | {"log_scales": scales})["log_scales"]
    z = {name: jax.random.normal(z_keys[name], z.shape) for name, z in at["cores"].items()}
    noise = jnp.log(NOISE) + SPREAD * jax.random.normal(noise_key)
    return {"cores": z, "log_scales": u, "likelihood": {"log_noise": noise}}


def functionals(model, position, data):
    """Numbers that no gauge can change."""
    tensor = model.tensors(position)[LAYER]
    x, total = dense(tensor).ravel(), norm(tensor)
    out = {f"entry {k}": x[k] for k in ENTRIES}
    for bond, share in shares({LAYER: tensor})[LAYER].items():
        norms = -jnp.sort(-share)
        out |= {f"log slice {bond} {k}": jnp.log(total * norms[k]) for k in range(MAX_RANK)}
        out[f"rank {bond}"] = (share > RANK_THRESHOLD).sum()
    out["noise"] = position["likelihood"]["log_noise"]
    return out | {"log likelihood": model.log_likelihood(position, data).sum()}


def without_a_prior_term(posterior):
    """The fault: the first core's z has no prior."""
    dropped = lambda at: posterior.log_prior(at) + 0.5 * (next(iter(at["cores"].values())) ** 2).sum()  # noqa: E731
    return dataclasses.replace(posterior, log_prior=dropped)


@functools.cache
def simulate(format="cp", simulations=300, draws=15, thin=300, burn_in=3000, seed=0, drop_prior=False):
    """Statistics name -> (truth[n], draws[n, L]).

    `thin` is for the log likelihood, whose draws 50 steps apart correlate by 0.6: the ranks of a calibrated chain would
    pile up at both ends.
    """
    coords = jnp.asarray(COORDS)
    model = CompletionModel(FORMATS[format](SHAPE, (), MAX_RANK), PRIOR, Noise(NOISE))

    def one(key):
        truth_key, data_key, start_key, run_key = jax.random.split(key, 4)
        plain = noncentred(model, len(COORDS))
        truth = plain.to_position(prior_draw(model, truth_key))
        noise = jnp.exp(truth["likelihood"]["log_noise"])
        values = model.apply(truth, coords) + noise * jax.random.normal(data_key, (len(COORDS),))
        data = coords, values
        moved = noncentred(model, len(COORDS), data)
        posterior = without_a_prior_term(moved.posterior) if drop_prior else moved.posterior
        engine = sghmc(
            posterior, step_size=0.1, friction=0.1, burn_in=burn_in, precondition="leaf", conditional_every=20
        )
        state = engine.init(start_key, prior_draw(model, jax.random.fold_in(start_key, 1)))

        def steps(state, first, number):
            step = lambda t, state: engine.step(jax.random.fold_in(run_key, t), state, data)[0]  # noqa: E731
            return jax.lax.fori_loop(first, first + number, step, state)

        def kept(state, draw):
            state = steps(state, burn_in + draw * thin, thin)
            return state, functionals(model, moved.to_position(state.position), data)

        state, found = jax.lax.scan(kept, steps(state, 0, burn_in), jnp.arange(draws))
        return functionals(model, truth, data), found, state.nonfinite

    keys = jax.random.split(jax.random.key(seed), simulations)
    truth, found, nonfinite = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))
    return {name: (truth[name], found[name]) for name in truth}, nonfinite


def with_fault(statistics, width=1.0, shift=0.0):
    """The same draws, too narrow by `width` about their mean or off by `shift` of their sd."""

    def faulty(draws):
        mean, sd = draws.mean(1, keepdims=True), draws.std(1, keepdims=True)
        return mean + width * (draws - mean) + shift * sd

    return {
        name: (truth, draws if name.startswith("rank") else faulty(draws))
        for name, (truth, draws) in statistics.items()
    }
