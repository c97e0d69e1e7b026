"""Tensor posteriors small enough for NUTS, and the functionals by which samplers are compared on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models.completion import LAYER, CompletionModel
from bayestensor.models.likelihoods import Gaussian
from bayestensor.models.noncentred import Noncentred, noncentred
from bayestensor.priors import LogUniform
from bayestensor.ranks.explore import rank_posterior, shares
from bayestensor.tensor.contract import dense
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.initialise import initialise

SHAPE, NOISE, TRUE_RANK, MAX_RANK = (5, 5, 5), 0.3, 2, 3
PRIOR = LogUniform(1e-2, 10.0)


@dataclass(frozen=True)
class Known:
    """Gaussian noise of known sd."""

    sd: float = NOISE

    def initial(self):
        return {}

    def log_prior(self, parameters):
        return jnp.asarray(0.0)

    def log_prob(self, parameters, outputs, targets):
        return jax.scipy.stats.norm.logpdf(targets, outputs, self.sd).sum(axis=1)


@dataclass(frozen=True)
class Problem:
    """70 % of a 5 x 5 x 5 tensor of rank 2 and variance 1, noise sd 0.3, fitted at rank 3."""

    model: CompletionModel
    data: tuple
    moved: Noncentred  # with draws of the scales given the data
    sparing: Noncentred  # without

    def starts(self, key, chains, third=0.0):
        """(z, u) [chain, ...]: prior draws of z, v = 1, but e^third for the third index of every bond."""
        log_v = jnp.zeros(MAX_RANK).at[-1].set(third)

        def start(key):
            at = self.moved.from_position(self.model.initial_position(key))
            scaled = {"log_scales": {bond: log_v for bond in at["log_scales"]}}
            return at | {"log_scales": self.moved.from_position(at | scaled)["log_scales"]}

        return jax.jit(jax.vmap(start))(jax.random.split(key, chains))

    def functionals(self, draws):
        """Name -> [chain, draw, ...]: entries of X, slice norms as shares (descending), rank by bond, noise, density."""

        def of(at):
            position = self.moved.to_position(at)
            tensors = self.model.tensors(position)
            norms = {f"slices {b}": -jnp.sort(-x) for b, x in shares(tensors)[LAYER].items()}
            out = {"entries": dense(tensors[LAYER]).ravel(), **norms, **position["likelihood"]}
            return out | {"log density": self.moved.posterior.log_density(at, self.data)}

        positions = type(draws)(draws.map(self.moved.to_position, 500), draws.stats)
        ranks = rank_posterior(self.model, positions)[LAYER]
        return draws.map(of, 500) | {f"rank {bond}": x.ranks.astype(float) for bond, x in ranks.items()}


def problem(name, seed=0, known=True):
    network, truth = FORMATS[name](SHAPE, (), MAX_RANK), FORMATS[name](SHAPE, (), TRUE_RANK)
    rng = np.random.default_rng(seed)
    x = np.asarray(dense(initialise(jax.random.key(seed + 5), truth, 1.0)))
    coords = np.argwhere(rng.random(SHAPE) < 0.7)
    values = (x / x.std())[tuple(coords.T)] + NOISE * rng.normal(size=len(coords))
    model = CompletionModel(network, PRIOR, Known() if known else Gaussian(NOISE))
    data = jnp.asarray(coords), jnp.asarray(values, jnp.float32)
    return Problem(model, data, noncentred(model, len(coords), data), noncentred(model, len(coords)))


def compared(got, reference):
    """Largest |mean difference| / sd, smallest and largest sd ratio of entries, largest rank total variation."""
    x, y = (f["entries"].reshape(-1, math.prod(SHAPE)) for f in (got, reference))
    ratio = x.std(0) / y.std(0)
    counts = [
        [np.bincount(f[name].astype(int).ravel(), minlength=MAX_RANK + 1) / f[name].size for f in (got, reference)]
        for name in reference
        if name.startswith("rank")
    ]
    return {
        "mean": float((np.abs(x.mean(0) - y.mean(0)) / y.std(0)).max()),
        "least sd": float(ratio.min()),
        "largest sd": float(ratio.max()),
        "ranks": float(max(0.5 * np.abs(a - b).sum() for a, b in counts)),
    }
