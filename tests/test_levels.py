"""Levels: the common factor of one bond's scales against another's, which the tensor does not tell, in closed-form sweeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bayestensor.models import gauge
from bayestensor.models.conditionals import pick_levels
from bayestensor.models.conjugate import Conjugate
from bayestensor.models.rows import CORRELATIONS
from bayestensor.models.state import GIBBS, Chance
from bayestensor.priors import InverseGamma
from bayestensor.tensor.contract import dense
from bayestensor.tensor.formats import block_term, tensor_train
from bayestensor.tensor.network import Factored
from bayestensor.tensor.observations import Grid

NETWORKS = {
    "train": tensor_train((3, 2, 2), rank=2),
    "block term": block_term((3, 2), rank=2),  # one bond shrinks three cores, the others two
}
PRIOR, DRAWS = InverseGamma(3.0, 2.0), 10_000


def prior_draw(key, network, variance=1.0):
    """(cores, scales), independent draws from the prior."""
    v_key, z_key = jax.random.split(key)
    v_keys, z_keys = (jax.random.split(k, 8) for k in (v_key, z_key))
    scales = {b: PRIOR.sample(v_keys[k], (size,)) for k, (b, size) in enumerate(network.ranks.items())}
    cores = {}
    for k, core in enumerate(network.cores):
        sd = jnp.sqrt(variance) * jnp.ones(network.core_shape(core.name))
        for bond in network.shrunk_by(core.name):
            sd *= jnp.sqrt(scales[bond])[tuple(slice(None) if leg == bond else None for leg in core.legs)]
        cores[core.name] = sd * jax.random.normal(z_keys[k], sd.shape)
    return cores, scales


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tensor_stays_and_the_prior_of_the_scales_rises(name):
    network = NETWORKS[name]

    @jax.jit
    def moved(key):
        cores, scales = prior_draw(key, network)
        scales[network.bonds[0]] /= 1e4  # far off the level
        new, by = pick_levels(jax.random.fold_in(key, 1), network, PRIOR, scales, 0.0)
        tensors = [dense(Factored(network, c)) for c in (cores, {n: a * by[n] for n, a in cores.items()})]
        return tensors, [sum(PRIOR.log_density(jnp.log(v)).sum() for v in s.values()) for s in (scales, new)], by, {
            bond: new[bond] / scales[bond] for bond in scales
        }  # fmt: skip

    (before, after), (low, high), by, ratios = moved(jax.random.key(0))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * np.abs(before).max())
    assert high > low + 1
    for core in network.cores:  # entries in units of their prior sd are as they were, whatever the index
        expected = np.prod([float(ratios[bond][-1]) for bond in network.shrunk_by(core.name)])
        assert float(by[core.name]) ** 2 == pytest.approx(expected, rel=1e-4)


def stationarity():
    """Smallest Holm-adjusted p after two Gibbs sweeps from prior draws, with data simulated from them.

    If sweeps leave the posterior as it is, they leave the joint law of state and data, hence the prior (Geweke 2004).
    """
    network = NETWORKS["train"]
    model = Conjugate(network, PRIOR, 0.7)
    count = network.num_parameters

    def read(cores, scales):
        first, last = cores["core0"] / jnp.sqrt(scales["b1"])[None], cores["core1"][0, 0, 0]
        return *(jnp.log(v[0]) for v in scales.values()), (first**2).sum(), first[0, 0], last, *dense(
            Factored(network, cores)
        )[0, 0]  # fmt: skip

    @jax.jit
    @jax.vmap
    def one(key):
        keys = jax.random.split(key, 5)
        cores, scales = prior_draw(keys[0], network, model.variance)
        y = dense(Factored(network, cores)) + jax.random.normal(keys[1], network.shape)
        data = Grid(jnp.ones_like(y), y, jnp.asarray(float(y.size)), (y**2).sum())
        state = model.start(cores, 1.0)._replace(scales=scales, covariances={})
        for sweep_key in keys[2:4]:
            own, normal_key = jax.random.split(sweep_key)
            bits, normal = jax.random.key_data(own), jax.random.normal(normal_key, (count,))
            chance = Chance(bits, normal, jnp.zeros((len(CORRELATIONS), 0)), jnp.ones(()))
            state = model.sweep(chance, state, data, GIBBS, jnp.asarray(True))
        return read(state.cores, state.scales), read(*prior_draw(keys[4], network, model.variance))

    after, other = jax.tree.map(np.asarray, one(jax.random.split(jax.random.key(5), DRAWS)))
    p = [scipy.stats.ks_2samp(x, y).pvalue for x, y in zip(after, other, strict=True)]
    p.append(scipy.stats.kstest(after[3], "norm", args=(0, model.variance**0.5)).pvalue)
    return min(1.0, len(p) * min(p))


@pytest.mark.slow
def test_sweeps_with_levels_leave_the_posterior_as_it_is():
    """Two samples of 10,000: a shift of 0.05 sd in any of 8 marginals is caught with probability 0.9."""
    assert stationarity() > 0.01


@pytest.mark.slow
def test_levels_that_leave_the_cores_behind_are_rejected(monkeypatch):
    def faulty(key, network, prior, scales, draw):
        new, by = pick_levels(key, network, prior, scales, draw)
        return new, dict.fromkeys(by, 1.0)

    monkeypatch.setattr(gauge, "pick_levels", faulty)
    assert stationarity() < 0.01  # ten seeds had 0.001 to 6e-8
