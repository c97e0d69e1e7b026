"""ResNets: sizes as published, batch statistics as functions of weights and data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bayestensor as bt
from bayestensor.compression.report import count
from bayestensor.models.convnet import calibrated, resnet, uncalibrated
from bayestensor.models.likelihoods import Categorical
from bayestensor.models.neural import NeuralModel
from bayestensor.priors import LogUniform

pytestmark = pytest.mark.promoting  # Flax relies on promotion
X = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (56, 0.85)])
def test_sizes_are_those_of_the_paper(depth, millions):
    dense, small = (
        nnx.eval_shape(lambda f=f: resnet(depth, format=f, rank=8, rngs=nnx.Rngs(0))) for f in ("dense", "tensor_train")
    )
    assert round(count(dense) / 1e6, 2) == millions
    assert count(small) < count(dense) / 8
    kernels = NeuralModel(small, LogUniform(), Categorical()).kernels
    assert len(kernels) == depth - 2  # all but the first convolution and the linear layer


def test_statistics_are_means_over_batches():
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    x = X.reshape(-1, 4)[:50]
    fixed = calibrated(model, x, 16)  # three batches; the last two rows fill none
    z = x @ np.asarray(model.layers[0].kernel[...])
    batches = z[:48].reshape(3, 16, 3)
    mean, variance = batches.mean(1).mean(0), batches.var(1).mean(0)
    np.testing.assert_allclose(fixed.layers[1].mean[...], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fixed(x[:1]), (z[:1] - mean) / np.sqrt(variance + 1e-5), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(model.layers[1].mean[...], 0)  # the model that was given is as it was
    np.testing.assert_array_equal(uncalibrated(fixed)(x), model(x))  # batches have their own again, as a fit asks for
    with pytest.raises(ValueError, match="50 inputs do not fill a batch of 51"):
        calibrated(model, x, 51)


@pytest.mark.slow
def test_a_resnet_is_a_posterior_without_hidden_states():
    """Two calls agree bit by bit, every weight has a gradient, and a fixed model does not look at its batch."""
    neural = NeuralModel(resnet(8, in_shape=(8, 8, 3), rank=3, rngs=nnx.Rngs(0)), LogUniform(), Categorical())
    position, labels = neural.initial_position(), jnp.arange(20) % 10

    def both(position):
        def loss(position):
            return neural.log_likelihood(position, (jnp.asarray(X), labels)).sum()

        return jax.value_and_grad(loss)(position)

    call = jax.jit(both)
    (value, gradient), (again, _) = call(position), call(position)
    assert value == again
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient["weights"]):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
    graphdef, state = nnx.split(calibrated(neural.module(position), X, 10))
    alike = jax.jit(lambda state: [nnx.merge(graphdef, state)(x) for x in (X, X[:2])])(state)
    np.testing.assert_allclose(alike[0][:2], alike[1], rtol=1e-3, atol=1e-4)
    other = jax.jit(lambda position: [neural.apply(position, x) for x in (X, X[:2])])(position)
    assert np.abs(other[0][:2] - other[1]).max() > 1e-2


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match="depth is 21; it is 6 n"):
        resnet(21, rngs=nnx.Rngs(0))


def test_a_fit_predicts_each_input_alike_whatever_comes_with_it():
    model = resnet(8, format="dense", in_shape=(8, 8, 3), rngs=nnx.Rngs(0))
    fit = bt.fit_map(model, X.reshape(20, -1), np.arange(20) % 10, epochs=1, batch_size=10, ramp_epochs=0)
    together = fit.predict(X.reshape(20, -1))
    np.testing.assert_allclose(fit.predict(X[:3].reshape(3, -1)), together[:3], rtol=1e-3, atol=1e-4)
