"""`fit_map`: a low-rank map found again, with its rank and its noise; and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bayestensor as bt

pytestmark = pytest.mark.promoting  # Optax's Adam: a float to the power of a whole number of steps

RANK, NOISE, N = 3, 0.3, 400


def low_rank_data(seed=0):
    """y = W x + noise: W (8, 12) of rank 3, entries of sd 1."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(8, RANK)) @ rng.normal(size=(RANK, 12)) / np.sqrt(RANK)
    x = rng.normal(size=(N, 12)).astype(np.float32)
    return x, (x @ W.T + NOISE * rng.normal(size=(N, 8))).astype(np.float32), W


@pytest.fixture(scope="module")
def regression():
    x, y, W = low_rank_data()
    model = bt.Linear(bt.tensor_train((8,), (12,), 7), use_bias=False, rngs=nnx.Rngs(0))
    told = []
    fit = bt.fit_map(
        model,
        x,
        y,
        likelihood=bt.Gaussian(),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 100 * 8)),
        epochs=100,
        batch_size=50,
        temperature=5.0,  # at 1 the last slice too many needs ten times the steps to go
        ramp_epochs=10,
        prune_epochs=(60, 80),
        rule=bt.norm_lost(0.05),
        callback=told.append,
    )
    return fit, told, x, y, W


def test_the_true_rank_map_and_noise_are_found(regression):
    """The sd of a noise estimate from 3,200 responses is 1.3 % of it: 10 % is 8 sd, and shows a response lost in
    the sum, a variance taken for an sd, or slices cut that were needed."""
    fit, _, x, _, W = regression
    assert fit.ranks == {"kernel": {"b1": RANK}}
    assert fit.num_parameters == RANK * (8 + 12)
    noise = float(np.exp(fit.position["likelihood"]["log_noise"]))
    assert abs(noise / NOISE - 1) < 0.1
    found = np.asarray(bt.matrix(fit.module.kernel.tensor))
    assert np.linalg.norm(found - W) < 0.05 * np.linalg.norm(W)
    np.testing.assert_allclose(fit.predict(x), x @ found.T, rtol=1e-3, atol=1e-3)


def test_the_history_is_told_epoch_by_epoch(regression):
    fit, told, *_ = regression
    assert told == fit.history
    assert [record["epoch"] for record in told] == list(range(1, 101))
    assert set(told[0]) == {"epoch", "loss", "nll", "num_parameters"}
    parameters = [record["num_parameters"] for record in told]
    assert parameters[58] == 7 * 20 > parameters[59] and parameters[-1] == fit.num_parameters
    assert told[-1]["nll"] < told[0]["nll"]


def test_a_fit_can_be_pruned_afterwards(regression):
    fit, _, x, *_ = regression
    assert fit.prune().ranks == fit.ranks
    smaller = fit.prune(bt.norm_lost(0.6))
    assert smaller.ranks["kernel"]["b1"] < RANK
    assert fit.ranks == {"kernel": {"b1": RANK}}  # the first one is as it was
    assert smaller.predict(x[:3]).shape == (3, 8)
    assert smaller.position["log_scales"]["kernel"]["b1"].shape == (smaller.ranks["kernel"]["b1"],)


def small(**arguments):
    x, y, _ = low_rank_data()
    model = bt.MLP([bt.tt_matrix((2, 4), (3, 4), 3)], rngs=nnx.Rngs(0))
    defaults = {"likelihood": bt.Gaussian(), "epochs": 2, "batch_size": 50, "x": x[:200], "y": y[:200]}
    return bt.fit_map(model, **defaults | arguments)


def test_the_same_seed_gives_the_same_bits():
    first, same, other = (small(seed=seed).position for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))


def test_the_model_sees_batches_as_they_are_prepared():
    x, _, _ = low_rank_data()
    doubled = (small(prepare=lambda key, x: 2 * x), small(x=2 * x[:200]))
    jax.tree.map(np.testing.assert_array_equal, *(fit.position for fit in doubled))


def test_the_last_cut_meets_the_budget():
    """22 weights a rank, 8 biases."""
    fit = small(epochs=3, prune_epochs=(1, 2), max_params=60, rule=bt.norm_lost(1e-6))
    assert [record["num_parameters"] for record in fit.history] == [74, 52, 52]


def test_the_model_that_was_given_can_be_used_again():
    x, y, _ = low_rank_data()
    model = bt.MLP([bt.tt_matrix((2, 4), (3, 4), 3), (8, 8)], rngs=nnx.Rngs(0))
    before = model(jnp.asarray(x[:2]))
    ends = [bt.fit_map(model, x[:100], y[:100], likelihood=bt.Gaussian(), epochs=1, batch_size=50) for _ in range(2)]
    np.testing.assert_array_equal(model(jnp.asarray(x[:2])), before)
    jax.tree.map(np.testing.assert_array_equal, ends[0].position, ends[1].position)


def test_classes_are_the_default():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 12)).astype(np.float32)
    labels = (x[:, 0] > 0).astype(int)
    model = bt.MLP([bt.tt_matrix((2, 2), (3, 4), 2), (4, 2)], rngs=nnx.Rngs(0))
    fit = bt.fit_map(model, x, labels, epochs=30, batch_size=50, optimizer=optax.adam(0.02))
    assert (np.asarray(fit.predict(x)).argmax(1) == labels).mean() > 0.9


BAD = [
    ({"y": np.zeros((199, 8), np.float32)}, "x has 200 rows and y has 199"),
    ({"batch_size": 201}, "batch_size is 201; .* 200 rows"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"epochs": 0}, "epochs is 0"),
    ({"prune_epochs": (3,)}, r"epochs is 2 and prune_epochs \(3,\)"),
    ({"prune_epochs": (0,)}, "prune_epochs"),
    ({"max_params": 10}, "max_params is 10 without prune_epochs"),
    ({"y": np.zeros(200, np.float32)}, r"targets have shape \(50,\)"),
    ({"prior": {"layer": bt.HalfCauchy()}}, r"priors name the layers \['layer'\]; the model's are \['layers.0'\]"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_a_step_that_is_not_finite_is_named():
    x = np.zeros((200, 12), np.float32)
    x[17, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"step [0-3] is not finite in log density, inputs, .*core0.*; lower"):
        small(x=x)


def test_a_fit_never_ends_with_numbers_that_are_not_finite():
    """The last update overflows, and no step comes after it to tell."""
    with pytest.raises(FloatingPointError, match=r"after epoch 1 .*core0.* not finite; lower the learning rate"):
        small(epochs=1, batch_size=200, optimizer=optax.sgd(1e38))


def test_cuts_may_start_from_any_optimiser():
    by_part = {"weights": "adam", "log_scales": "sgd", "likelihood": "adam"}
    several = optax.multi_transform({"adam": optax.adam(1e-3), "sgd": optax.sgd(1e-2, momentum=0.9)}, by_part)
    for optimizer in (several, optax.adafactor(1e-3)):
        fit = small(optimizer=optimizer, prune_epochs=(1,), rule=bt.norm_lost(0.6))
        assert fit.ranks["layers.0"]["b1"] < 3
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(fit.position))
