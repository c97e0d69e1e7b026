"""Sequence classifiers: padding says nothing, order does, every weight is a network, and they can learn."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bayestensor.fit import fit_map
from bayestensor.models.likelihoods import Categorical
from bayestensor.models.neural import NeuralModel
from bayestensor.models.sequence import bilstm, transformer_decoder, transformer_encoder
from bayestensor.nn.recurrent import LSTMCell, recur
from bayestensor.priors import LogUniform
from bayestensor.tensor.sized import linear_network

pytestmark = pytest.mark.promoting  # Flax relies on promotion
VOCABULARY, LENGTH, CLASSES = 30, 6, 3
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(1, VOCABULARY, (4, LENGTH)).astype(np.int32)).at[1, 3:].set(0).at[2, 1:].set(0)

MODELS = {
    "bilstm": lambda format, rngs: bilstm(VOCABULARY, 8, 6, CLASSES, format=format, rank=3, rngs=rngs),
    "transformer": lambda format, rngs: transformer_encoder(
        VOCABULARY, LENGTH, 8, CLASSES, heads=2, hidden=12, blocks=1, format=format, rank=3, rngs=rngs
    ),
}


def calls(model, *inputs):
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, xs: [nnx.merge(graphdef, state)(x) for x in xs])
    return run.lower(state, inputs).compile({"xla_backend_optimization_level": 0})(state, inputs)


@pytest.mark.parametrize("format", ["tt_matrix", pytest.param("dense", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_padding_says_nothing_and_order_something(name, format):
    model = MODELS[name](format, nnx.Rngs(0))
    swapped = TOKENS.at[0, 0].set(TOKENS[0, 1]).at[0, 1].set(TOKENS[0, 0])
    shorter, other = TOKENS[1:2, :3], TOKENS.at[1, 2].set(TOKENS[1, 2] % (VOCABULARY - 1) + 1)
    nothing = jnp.zeros((1, LENGTH), jnp.int32)
    y, y_swapped, y_other, y_short, y_nothing = calls(model, TOKENS, swapped, other, shorter, nothing)
    np.testing.assert_allclose(y_short[0], y[1], rtol=1e-4, atol=1e-5)
    assert np.abs(y_swapped[0] - y[0]).max() > 1e-4 and np.abs(y_other[1] - y[1]).max() > 1e-4
    assert y.shape == (4, CLASSES) and np.isfinite(y_nothing).all()


@pytest.mark.slow
def test_a_decoder_tells_the_next_token_from_those_before():
    """After a change of token 3, what is said at places 0 to 2 stays; chance is log 5 = 1.61 nats a token, and a cyclic
    text leaves nothing to guess after its first two tokens."""
    cycles = (np.arange(9) * RNG.integers(1, 3, (200, 1)) + RNG.integers(0, 5, (200, 1))).astype(np.int32) % 5
    model = transformer_decoder(5, 8, 8, heads=2, hidden=12, blocks=1, rank=4, rngs=nnx.Rngs(0))
    x, y = cycles[:, :-1], cycles[:, 1:]
    fit = fit_map(model, x, y, epochs=40, batch_size=50, temperature=0.01, optimizer=optax.adam(0.02))
    log_p = jax.nn.log_softmax(fit.predict(x))
    said = np.take_along_axis(np.asarray(log_p), y[..., None], -1)[..., 0]
    np.testing.assert_allclose(Categorical().log_prob({}, log_p, jnp.asarray(y)), said.sum(1), rtol=1e-4)
    assert -said[:, 1:].mean() < 0.3
    changed = x.copy()
    changed[:, 3] = (x[:, 3] + 1) % 5
    moved = np.abs(np.asarray(fit.predict(changed)) - np.asarray(fit.predict(x))).max((0, 2))
    assert (moved[:3] < 1e-5).all() and (moved[3:] > 1e-2).all()


def test_a_masked_step_zeroes_the_carry():
    cell = LSTMCell(linear_network(24, 8, rank=3, order=2), linear_network(24, 6, rank=3, order=2), rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(2, 5, 8)), jnp.float32)
    mask = jnp.asarray([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1]], bool)
    found = jax.jit(lambda x: recur(cell, x, mask=mask))(x)
    np.testing.assert_array_equal(found[0, 3], 0)
    alone = jax.jit(lambda x: recur(cell, x))(x[:, 4:])
    np.testing.assert_allclose(found[0, 4], alone[0, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_every_large_weight_is_a_network(name):
    abstract = nnx.eval_shape(lambda: MODELS[name]("tensor_train", nnx.Rngs(0)))
    model = NeuralModel(abstract, LogUniform(), Categorical())
    expected = {
        "bilstm": {"embed.embedding", "head"} | {f"{c}.dense_{k}" for c in ("forwards", "backwards") for k in "ih"},
        "transformer": {
            "embed.embedding",
            "positions.embedding",
            "head",
            "blocks.0.feed_forward.layers.0",
            "blocks.0.feed_forward.layers.1",
        }
        | {f"blocks.0.attention.{part}" for part in ("query", "key", "value", "out")},
    }
    assert set(model.kernels) == expected[name]


@pytest.mark.parametrize("build", [bilstm, partial(transformer_encoder, heads=2)])
def test_a_table_rank_is_that_of_the_tokens_embedding_alone(build):
    sizes = (VOCABULARY, 8, 8, CLASSES) if build is bilstm else (VOCABULARY, LENGTH, 8, CLASSES)
    one, two = (
        NeuralModel(
            nnx.eval_shape(lambda: build(*sizes, rank=1, **options, rngs=nnx.Rngs(0))), LogUniform(), Categorical()
        )
        for options in ({}, {"table_rank": 2})
    )
    changed = [name for name in one.networks if one.networks[name] != two.networks[name]]
    assert changed == ["embed.embedding"] and set(two.networks["embed.embedding"].ranks.values()) == {2}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_they_learn_which_word_comes_first(name):
    """Class 0 or 1 by which of tokens 1 and 2 comes first among others: no bag of words can tell. Chance is 50 %."""
    rng = np.random.default_rng(1)
    x = rng.integers(3, VOCABULARY, (600, LENGTH)).astype(np.int32)
    y = rng.integers(0, 2, 600).astype(np.int32)
    for row, label in zip(x, y, strict=True):
        first, second = np.sort(rng.choice(LENGTH, 2, replace=False))
        row[first], row[second] = (1, 2) if label == 0 else (2, 1)
    fit = fit_map(MODELS[name]("tt_matrix", nnx.Rngs(0)), x[:500], y[:500], epochs=60, batch_size=50, temperature=0.01)
    assert (fit.predict(x[500:]).argmax(1) == y[500:]).mean() > 0.85
    assert fit.prune().num_parameters <= fit.num_parameters
