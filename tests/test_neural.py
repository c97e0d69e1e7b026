"""A Flax model as a posterior: every weight counted once, minibatches unbiased, cuts equal to zeroing."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx

from bayestensor.inference.base import Posterior, map_positions
from bayestensor.inference.map import map_estimate
from bayestensor.models.likelihoods import Categorical, Gaussian
from bayestensor.models.neural import NeuralModel, layer_name
from bayestensor.models.shrinkage import log_prior_cores, log_prior_scales, mode_scales
from bayestensor.nn.linear import MLP, Linear
from bayestensor.priors import HalfCauchy, InverseGamma, LogUniform
from bayestensor.tensor import formats

TT, CP = formats.tt_matrix((2, 3), (3, 4), 3), formats.cp((5,), (2, 3), 4)  # 12 -> 6 -> 5
PRIORS = {"layers.0": InverseGamma(0.7, 0.2), "layers.1": HalfCauchy(0.5)}
RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(8, 12)), RNG.integers(0, 4, 8)


def neural(prior=PRIORS, likelihood=None, layers=(TT, CP, (5, 4))):
    return NeuralModel(MLP(list(layers), rngs=nnx.Rngs(0)), prior, likelihood or Categorical(), weight_sd=2.0)


def away(position, seed=1, dtype=jnp.float32):
    """The position with every array moved somewhere generic."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a) + 0.5 * rng.normal(size=a.shape), dtype), position)


# --- the density --------------------------------------------------------------------------------------------------


def test_the_prior_is_the_sum_of_its_parts(x64):
    model = neural(likelihood=Gaussian(0.5), layers=(TT, CP))
    position = away(model.initial_position(), dtype=jnp.float64)
    weights, total = position["weights"]["layers"], 0.0
    for k, name in enumerate(PRIORS):
        tensor = model.tensors(position)[name]
        variance = model.kernels[name].variance
        assert variance == model.module(position).layers[k].kernel.core_variance
        total += log_prior_cores(tensor, position["log_scales"][name], variance)
        total += log_prior_scales(PRIORS[name], position["log_scales"][name])
        total += scipy.stats.norm.logpdf(np.asarray(weights[k]["bias"]), 0, 2.0).sum()
    total += scipy.stats.norm.logpdf(float(position["likelihood"]["log_noise"]), np.log(0.5), 2.0)
    np.testing.assert_allclose(jax.jit(model.log_prior)(position), total, rtol=1e-10)


def test_every_number_of_a_position_enters_the_prior():
    model = neural(likelihood=Gaussian())
    position = away(model.initial_position())
    gradient = jax.jit(jax.grad(model.log_prior))(position)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert (np.asarray(leaf) != 0).all(), jax.tree_util.keystr(path)
    weights = jax.tree.leaves(position["weights"])
    networks = sum(tensor.network.num_parameters for tensor in model.tensors(position).values())
    assert model.num_free(position) == sum(leaf.size for leaf in weights) - networks == 6 + 5 + 5 * 4 + 4


def test_all_batches_of_an_epoch_average_to_the_whole_density(x64):
    model = neural()
    posterior, position = model.posterior(8), away(model.initial_position(), dtype=jnp.float64)
    x, y = jnp.asarray(X), jnp.asarray(LABELS)
    density = jax.jit(posterior.log_density)
    whole = density(position, (x, y))
    logits = np.asarray(jax.jit(model.apply)(position, x))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    by_hand = float(model.log_prior(position)) + log_p[np.arange(8), LABELS].sum()
    np.testing.assert_allclose(whole, by_hand, rtol=1e-10)
    parts = [density(position, (x[k : k + 2], y[k : k + 2])) for k in range(0, 8, 2)]
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-10)
    assert np.std(parts) > 1e-3  # the batches do differ
    half = posterior.log_density(position, (x, y), prior_weight=0.5)
    np.testing.assert_allclose(whole - half, 0.5 * model.log_prior(position), rtol=1e-10)


def test_a_fault_in_the_scaling_would_show(x64):
    """A posterior that forgets N / batch, as the check above would see it."""

    class Forgetful(Posterior):
        def log_density(self, position, batch, prior_weight=1.0):
            return prior_weight * self.log_prior(position) + self.log_likelihood(position, batch).sum()

    model = neural()
    position = away(model.initial_position(), dtype=jnp.float64)
    wrong = Forgetful(model.log_prior, model.log_likelihood, 8)
    x, y = jnp.asarray(X), jnp.asarray(LABELS)
    density = jax.jit(wrong.log_density)
    parts = [density(position, (x[k : k + 2], y[k : k + 2])) for k in range(0, 8, 2)]
    assert abs(np.mean(parts) - density(position, (x, y))) > 1


@pytest.mark.parametrize("likelihood", [Categorical(), Gaussian(0.7)])
def test_likelihoods_agree_with_scipy(likelihood, x64):
    outputs = RNG.normal(size=(6, 3))
    if isinstance(likelihood, Categorical):
        targets = RNG.integers(0, 3, 6)
        p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        expected = [scipy.stats.multinomial.logpmf(np.eye(3)[y], 1, row) for row, y in zip(p, targets, strict=True)]
    else:
        targets = RNG.normal(size=(6, 3))
        expected = scipy.stats.norm.logpdf(targets, outputs, 0.7).sum(1)
    parameters = jax.tree.map(lambda a: a.astype(float), likelihood.initial())
    found = likelihood.log_prob(parameters, jnp.asarray(outputs), jnp.asarray(targets))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [(Gaussian(), (5,)), (Gaussian(), (5, 2)), (Categorical(), (5, 1)), (Categorical(), (4,))],
)
def test_targets_of_another_shape_are_refused_not_broadcast(likelihood, targets):
    with pytest.raises(ValueError, match="targets have shape"):
        likelihood.log_prob(likelihood.initial(), jnp.zeros((5, 1)), jnp.zeros(targets))


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_is_positive(noise):
    with pytest.raises(ValueError, match="noise_scale"):
        Gaussian(noise)


# --- scales -------------------------------------------------------------------------------------------------------


def test_closed_form_scales_go_layer_by_layer_with_each_layers_prior():
    model = neural()
    position = away(model.initial_position())
    moved = jax.jit(lambda p: model.mode_scales(p, 0.3))(position)
    for name, tensor in model.tensors(position).items():
        scales, variance = position["log_scales"][name], model.kernels[name].variance
        expected = mode_scales(PRIORS[name], tensor, scales, variance, 0.3)
        for bond, v in expected.items():
            np.testing.assert_allclose(moved["log_scales"][name][bond], v, rtol=1e-4, atol=1e-5)
    assert moved["weights"] is not None and set(moved) == set(position)


def test_scales_are_clipped_to_floor_and_support():
    priors = {"layers.0": LogUniform(1e-2, 1e1), "layers.1": HalfCauchy()}
    model = neural(priors)
    position = model.initial_position()
    ends = jnp.asarray([-50.0, 0.0, 50.0])
    position["log_scales"] = {"layers.0": {"b1": ends}, "layers.1": {"rank": jnp.append(ends, 3.0)}}
    scales = model.clip_scales(position, 1e-6)["log_scales"]
    np.testing.assert_allclose(scales["layers.0"]["b1"], [2 * np.log(1e-2), 0, 2 * np.log(10.0)], rtol=1e-6)
    np.testing.assert_allclose(scales["layers.1"]["rank"], [np.log(1e-6), 0, 50, 3], rtol=1e-6)
    np.testing.assert_allclose(
        model.clip_scales(position, 1e-2)["log_scales"]["layers.0"]["b1"][0], np.log(1e-2), rtol=1e-6
    )


# --- cuts ---------------------------------------------------------------------------------------------------------

KEEP = {"layers.0": {"b1": np.array([0, 2])}, "layers.1": {"rank": np.array([1, 3])}}
GONE = {"layers.0": {"b1": [1]}, "layers.1": {"rank": [0, 2]}}


def zeroed(model, tree):
    """The dropped slices of every core of a tree like the position set to 0; the scales stay as they are."""
    tree = jax.tree.map(lambda a: a, tree)
    for name, kernel in model.kernels.items():
        cores = tree["weights"]["layers"][kernel.path[1]]["kernel"]["cores"]
        for core in kernel.network.cores:
            for bond, gone in GONE[name].items():
                if bond in core.legs:
                    at = (slice(None),) * core.legs.index(bond) + (np.array(gone),)
                    cores[core.name] = cores[core.name].at[at].set(0)
    return tree


def cut(model, position, tree):
    return map_positions(tree, position, model.cuts(position, KEEP))


def test_a_cut_model_answers_like_one_whose_slices_are_zero():
    model = neural()
    position = away(model.initial_position())
    smaller = cut(model, position, position)
    assert {name: t.network.ranks for name, t in model.tensors(smaller).items()} == {
        "layers.0": {"b1": 2},
        "layers.1": {"rank": 2},
    }
    apply, x = jax.jit(model.apply), jnp.asarray(X, jnp.float32)
    np.testing.assert_allclose(apply(smaller, x), apply(zeroed(model, position), x), rtol=1e-4, atol=1e-5)
    assert np.abs(apply(smaller, x) - apply(position, x)).max() > 1e-2
    for name, bonds in KEEP.items():
        for bond, kept in bonds.items():
            np.testing.assert_array_equal(smaller["log_scales"][name][bond], position["log_scales"][name][bond][kept])


OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "sgd with momentum": optax.sgd(1e-2, momentum=0.9),
    "chain": optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(1e-2)),
    "two optimisers": optax.multi_transform(
        {"a": optax.adam(1e-2), "b": optax.sgd(1e-2, momentum=0.9)},
        {"weights": "a", "log_scales": "b", "likelihood": "a"},
    ),
}


@pytest.mark.promoting
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimiser_state_is_cut_along(name, x64):
    """`cut(step(s)) == step(cut(s))` where the dropped slices and their moments are 0, scales kept at rest.

    A zero slice of one bond of CP or of a two-core train has zero likelihood gradient where all cores of that slice
    are zero, and zero prior gradient: it stays 0 through a step, so a step and a cut commute. Were moments reset, or
    cut at other indices, the steps would differ.
    """
    model = neural()
    posterior = model.posterior(8)
    engine = map_estimate(posterior, OPTIMIZERS[name], temperature=1.0)
    batch = (jnp.asarray(X), jnp.asarray(LABELS))
    step = jax.jit(lambda state: engine.step(jax.random.key(0), state, batch)[0])
    position = away(model.initial_position(), dtype=jnp.float64)
    state = engine.init(jax.random.key(0), zeroed(model, position))
    state = step(step(state))  # moments that are not 0 where slices live
    before = engine.position(state)
    after_cut = step(cut(model, before, state))
    cut_after = cut(model, before, step(state))
    found, expected = (jax.tree_util.tree_leaves_with_path(tree) for tree in (after_cut, cut_after))
    assert len(found) == len(expected) > len(jax.tree.leaves(position))
    for (path, a), (_, b) in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=jax.tree_util.keystr(path))
    reset = engine.init(jax.random.key(0), cut(model, before, before))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), step(reset).position, after_cut.position)
    assert max(jax.tree.leaves(moved)) > 1e-4  # the check would see a reset


class Odd(NamedTuple):
    """A state with stacks of positions, placeholders, and what looks like a position and is none."""

    stacked: dict
    placeholders: dict
    count: jax.Array
    empty: tuple
    other: dict


def test_parts_shaped_like_the_position_are_cut_and_nothing_else():
    model = neural()
    position = model.initial_position()
    stacked = jax.tree.map(lambda a: jnp.stack([a, a + 1]), position)
    ones = jax.tree.map(lambda a: jnp.zeros((1,)), position)
    state = Odd(stacked, ones, jnp.zeros(3), (), {"weights": jnp.zeros(3), "b1": jnp.zeros(3)})
    smaller, alone = cut(model, position, state), cut(model, position, position)
    for pair, single in zip(jax.tree.leaves(smaller.stacked), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(pair[0], single)
    assert jax.tree.map(jnp.shape, smaller[1:]) == jax.tree.map(jnp.shape, state[1:])


BAD_CUTS = [
    ({"layers.7": {"b1": np.array([0])}}, r"no tensorized layer \['layers.7'\]; .*'layers.0', 'layers.1'"),
    ({"layers.2": {}}, "no tensorized layer"),  # a dense one
    ({"layers.0": {"rank": np.array([0])}}, "'rank' is no bond"),
    ({"layers.0": {"b1": np.array([], int)}}, "keep no index"),
    ({"layers.0": {"b1": np.array([3])}}, "below 3"),
]


@pytest.mark.parametrize(("keep", "message"), BAD_CUTS)
def test_cuts_that_cannot_be_made(keep, message):
    model = neural()
    with pytest.raises(ValueError, match=message):
        model.cuts(model.initial_position(), keep)


# --- names and priors ---------------------------------------------------------------------------------------------


def test_layers_have_names():
    assert layer_name(("layers", 0, "kernel")) == "layers.0"
    assert layer_name(("head",)) == "head"
    alone = NeuralModel(Linear(TT, rngs=nnx.Rngs(0)), HalfCauchy(), Categorical())
    assert list(alone.kernels) == ["kernel"]
    dense = NeuralModel(MLP([(3, 2)], rngs=nnx.Rngs(0)), HalfCauchy(), Categorical())
    assert dense.kernels == {} and dense.cuts(dense.initial_position(), {}) is not None


def test_priors_are_shared_or_one_a_layer():
    assert neural(HalfCauchy(0.1)).priors == dict.fromkeys(PRIORS, HalfCauchy(0.1))
    assert neural().priors == PRIORS
    with pytest.raises(ValueError, match=r"priors name the layers \['layers.0'\]; the model's are"):
        neural({"layers.0": HalfCauchy()})


def test_one_improper_prior_makes_an_improper_posterior():
    class Improper(HalfCauchy):
        proper = False

    assert neural().posterior(3).proper
    assert not neural(PRIORS | {"layers.1": Improper()}).posterior(3).proper
