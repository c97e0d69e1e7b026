"""A tensor observed at coordinates: density, prior, surgery, against loops over entries."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bayestensor.models.completion import CompletionModel
from bayestensor.models.likelihoods import Gaussian
from bayestensor.models.shrinkage import log_prior_cores, log_prior_scales
from bayestensor.priors import HalfCauchy, LogUniform
from bayestensor.tensor.contract import dense
from bayestensor.tensor.formats import cp, tensor_train, tucker

NETWORKS = {"cp": cp((4, 3, 2), rank=3), "train": tensor_train((4, 3, 2), rank=2), "tucker": tucker((4, 3), rank=2)}
PRIOR = HalfCauchy(0.5)


def subject(name):
    model = CompletionModel(NETWORKS[name], PRIOR, Gaussian(0.5), core_variance=0.6)
    rng = np.random.default_rng(0)
    position = model.initial_position(jax.random.key(0))
    return model, jax.tree.map(lambda a: a + 0.3 * jnp.asarray(rng.normal(size=a.shape), jnp.float32), position)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_density_is_that_of_its_parts(name):
    model, position = subject(name)
    shape = NETWORKS[name].shape
    coords = np.stack([np.random.default_rng(1).integers(size, size=5) for size in shape], axis=1)
    values = np.linspace(-1, 1, 5, dtype=np.float32)
    tensor = model.tensors(position)["tensor"]
    x, noise = np.asarray(dense(tensor)), float(jnp.exp(position["likelihood"]["log_noise"]))
    expected = [scipy.stats.norm.logpdf(y, x[tuple(at)], noise) for at, y in zip(coords, values, strict=True)]
    batch = jnp.asarray(coords), jnp.asarray(values)
    np.testing.assert_allclose(jax.jit(model.log_likelihood)(position, batch), expected, rtol=2e-5)
    prior = log_prior_cores(tensor, position["log_scales"], 0.6) + log_prior_scales(PRIOR, position["log_scales"])
    prior += scipy.stats.norm.logpdf(np.log(noise), np.log(0.5), 2.0)
    np.testing.assert_allclose(jax.jit(model.log_prior)(position), prior, rtol=1e-5)
    posterior = model.posterior(7)
    assert posterior.proper and posterior.num_data == 7


def test_the_start_has_the_prior_variance():
    """4,000 tensors of 24 correlated entries: the mean square has se 0.02, so 10 % is caught with probability 0.999."""
    model = CompletionModel(NETWORKS["cp"], PRIOR, Gaussian())
    starts = jax.jit(jax.vmap(lambda key: dense(model.tensors(model.initial_position(key))["tensor"])))
    x = np.asarray(starts(jax.random.split(jax.random.key(1), 4000)))
    assert abs((x**2).mean() - 1) < 0.07
    assert all((np.asarray(v) == 0).all() for v in model.initial_position(jax.random.key(0))["log_scales"].values())


@pytest.mark.parametrize("name", NETWORKS)
def test_cuts_keep_the_named_indices_of_cores_and_scales(name):
    model, position = subject(name)
    bond = NETWORKS[name].bonds[0]
    keep = {"tensor": {bond: np.array([1])}}
    cut = jax.tree.map(lambda f, x: f(x), model.cuts(position, keep), position)
    assert model.tensors(cut)["tensor"].network.ranks == NETWORKS[name].ranks | {bond: 1}
    np.testing.assert_array_equal(cut["log_scales"][bond], position["log_scales"][bond][1:2])
    np.testing.assert_array_equal(cut["likelihood"]["log_noise"], position["likelihood"]["log_noise"])
    with pytest.raises(ValueError, match="one, 'tensor'"):
        model.cuts(position, {"layer0": {}})


def test_scales_go_to_their_mode_and_stay_in_the_support():
    model, position = subject("cp")
    moved = model.mode_scales(position)
    scores = jax.jit(jax.grad(model.log_prior))(moved)["log_scales"]["rank"]
    np.testing.assert_allclose(scores, 0, atol=2e-3)  # CP has one bond: the mode is stationary
    bounded = CompletionModel(NETWORKS["cp"], LogUniform(0.1, 10.0), Gaussian())
    clipped = bounded.clip_scales(position | {"log_scales": {"rank": jnp.array([-50.0, 0.0, 50.0])}})
    np.testing.assert_allclose(clipped["log_scales"]["rank"], [np.log(0.01), 0.0, np.log(100.0)], rtol=1e-6)


def test_a_core_variance_that_is_none_is_refused():
    with pytest.raises(ValueError, match="core_variance = -1"):
        CompletionModel(NETWORKS["cp"], PRIOR, Gaussian(), core_variance=-1.0)
