"""Tensorized layers against dense layers that hold the same effective weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bayestensor.nn.linear import ACTIVATIONS, MLP, Linear
from bayestensor.nn.weight import TensorWeight
from bayestensor.tensor.contract import matrix
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.initialise import core_variance
from bayestensor.tensor.surgery import keep

IN, OUT = (3, 4), (2, 3)  # 12 -> 6
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 12)), jnp.float32)


def network(name, rank=3, rows=OUT, cols=IN):
    return FORMATS[name](rows, cols, rank)


def with_bias(layer, seed=0):
    layer.bias[...] = jnp.asarray(np.random.default_rng(seed).normal(size=layer.bias.shape), jnp.float32)
    return layer


@pytest.mark.parametrize("name", FORMATS)
def test_forward_and_gradients_equal_a_dense_twin(name):
    layer = with_bias(Linear(network(name), rngs=nnx.Rngs(0)))
    target = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)
    graphdef, params = nnx.split(layer, nnx.Param)

    def ours(params, x):
        merged = nnx.merge(graphdef, params)
        return jnp.sum((merged(x) - target) ** 2), merged(x)

    def dense(params, x):
        merged = nnx.merge(graphdef, params)
        y = x @ matrix(merged.kernel.tensor).T + jnp.broadcast_to(merged.bias[...], (5, 6))
        return jnp.sum((y - target) ** 2), y

    close = {"rtol": 2e-4, "atol": 2e-4}
    both = jax.jit(lambda *at: [jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(*at) for f in (ours, dense)])
    ((_, y), found), ((_, y_dense), expected) = both(params, X)
    np.testing.assert_allclose(y, y_dense, **close)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), found, expected)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("shape", [(12,), (1, 12), (2, 3, 12), (0, 12)])
def test_leading_axes_are_a_batch(shape):
    layer = with_bias(Linear(network("tt_matrix"), rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)
    expected = np.asarray(x).reshape(-1, 12) @ np.asarray(matrix(layer.kernel.tensor)).T + np.asarray(layer.bias[...])
    np.testing.assert_allclose(layer(x), expected.reshape(*shape[:-1], 6), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_smaller_arrays_make_a_smaller_layer(name):
    layer = Linear(network(name), rngs=nnx.Rngs(0))
    whole = layer.kernel.tensor
    kept = {bond: np.arange(rank)[::2] for bond, rank in whole.network.ranks.items()}
    smaller = keep(whole, kept)
    for core, array in smaller.cores.items():
        layer.kernel.cores[core] = nnx.Param(array)
    assert layer.kernel.tensor.network.ranks == {bond: len(indices) for bond, indices in kept.items()}
    assert layer.kernel.network == whole.network  # the declaration stays
    np.testing.assert_allclose(
        jax.jit(lambda layer, x: layer(x))(layer, X), X @ matrix(smaller).T, rtol=1e-4, atol=1e-5
    )


def test_bias_is_optional():
    without = Linear(network("cp"), use_bias=False, rngs=nnx.Rngs(0))
    assert without.bias is None
    weights = jax.tree.leaves(nnx.state(without, nnx.Param))
    assert sum(leaf.size for leaf in weights) == without.kernel.network.num_parameters
    assert (np.asarray(Linear(network("cp"), rngs=nnx.Rngs(0)).bias[...]) == np.zeros(6)).all()


def test_split_and_merge_give_the_same_layer():
    layer = MLP([network("tucker"), (6, 4)], rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    again = nnx.merge(graphdef, state)
    np.testing.assert_array_equal(layer(X), again(X))
    assert again.layers[0].kernel.network == layer.layers[0].kernel.network
    pure = nnx.to_pure_dict(state)
    np.testing.assert_array_equal(layer(X), nnx.merge(graphdef, nnx.State(pure))(X))


def test_random_streams_decide_the_start():
    first, same, other = (Linear(network("cp"), rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
    a, b, c = (np.asarray(layer.kernel.cores["factor0"][...]) for layer in (first, same, other))
    assert (a == b).all() and (a != c).any()
    both = MLP([network("cp", cols=OUT), network("cp", cols=OUT)], rngs=nnx.Rngs(0))
    two = [np.asarray(layer.kernel.cores["factor0"][...]) for layer in both.layers]
    assert (two[0] != two[1]).all()


def test_the_start_has_the_variance_asked_for():
    """Of 4,096 x 50 entries of W over 50 seeds, all of one CP tensor: its mean square varies by about 8 % of sd."""
    declared = FORMATS["cp"]((8, 8), (8, 8), 64)
    squares = jax.jit(jax.vmap(lambda key: jnp.mean(matrix(Linear(declared, rngs=nnx.Rngs(key)).kernel.tensor) ** 2)))(
        jax.random.split(jax.random.key(0), 50)
    )
    assert abs(float(squares.mean()) / (2 / 64) - 1) < 0.15
    assert TensorWeight(declared, 0.3, rngs=nnx.Rngs(0)).core_variance == core_variance(declared, 0.3)
    assert Linear(declared, rngs=nnx.Rngs(0)).kernel.core_variance == core_variance(declared, 2 / 64)


def test_a_variance_of_zero_is_refused_not_replaced():
    with pytest.raises(ValueError, match="variance"):
        Linear(network("cp"), variance=0.0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_mlp_is_its_layers_in_turn(activation):
    model = MLP([network("tt_matrix"), (6, 5), (5, 2)], activation=activation, rngs=nnx.Rngs(0))
    by_hand = {
        "relu": lambda z: np.maximum(z, 0),
        "tanh": np.tanh,
        "silu": lambda z: z / (1 + np.exp(-z)),
        "gelu": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    }[activation]
    first, *dense = model.layers
    y = by_hand(np.asarray(X) @ np.asarray(matrix(first.kernel.tensor)).T)
    y = by_hand(y @ np.asarray(dense[0].kernel[...]))
    y = y @ np.asarray(dense[1].kernel[...])
    np.testing.assert_allclose(model(X), y, rtol=1e-4, atol=1e-5)


def test_biases_go_where_they_are_wanted():
    model = MLP([network("cp"), (6, 5)], use_bias=[False, True], rngs=nnx.Rngs(0))
    assert model.layers[0].bias is None and model.layers[1].bias is not None


BAD = [
    ({"layers": []}, "0 layers"),
    ({"layers": [(12, 6)], "use_bias": [True, False]}, "1 layers and 2 of use_bias"),
    ({"layers": [(12, 6)], "use_bias": []}, "1 layers and 0 of use_bias"),
    ({"layers": [(12, 6)], "activation": "rellu"}, "'rellu'; it is one of relu, gelu"),
    ({"layers": [network("cp"), (5, 2)]}, "layer 0 has 6 outputs and layer 1 takes 5"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**arguments, rngs=nnx.Rngs(0))
