"""bfloat16 and gradient checkpointing: the same gradients, to rounding and to the last bits, in less memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bayestensor.models.convnet import ConvNet
from bayestensor.models.likelihoods import Categorical
from bayestensor.models.neural import NeuralModel
from bayestensor.models.sequence import bilstm, transformer_encoder
from bayestensor.models.stage import Stage
from bayestensor.nn.linear import MLP
from bayestensor.nn.remat import rematerialise
from bayestensor.priors import LogUniform
from bayestensor.tensor.sized import conv_network, linear_network

pytestmark = pytest.mark.promoting  # Flax relies on promotion
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 9, (6, 5)).astype(np.int32))
IMAGES = jnp.asarray(RNG.normal(size=(6, 32)), jnp.float32)
Y = jnp.arange(6) % 3


def convnet(rngs):
    """Smooth: a rounding that turns a relu off changes a gradient of six images by a quarter."""
    first = Stage((4, 4, 2), 3, 3, "SAME", 1, norm=True)
    second = Stage(first.out_shape, 4, 3, "SAME", 1, stride=2, norm=True, add=0)
    networks = [conv_network(s.out_channels, s.in_shape[2], (3, 3), "cp", 3) for s in (first, second)]
    return ConvNet(list(zip((first, second), networks, strict=True)), [(4, 3)], activation="gelu", average=0, rngs=rngs)


MODELS = {
    "mlp": (lambda rngs: MLP([linear_network(8, 32, rank=3), (8, 8), (8, 3)], rngs=rngs), IMAGES),
    "convnet": (convnet, IMAGES),
    "bilstm": (lambda rngs: bilstm(9, 4, 4, 3, rank=2, rngs=rngs), TOKENS),
    "encoder": (lambda rngs: transformer_encoder(9, 5, 8, 3, heads=2, blocks=1, rank=2, rngs=rngs), TOKENS),
}


def gradient(model, position, x):
    def loss(position):
        return -model.log_likelihood(position, (x, Y)).mean()

    lowered = jax.jit(jax.value_and_grad(loss)).lower(position)
    return lowered.compile({"xla_backend_optimization_level": 0})(position)


def distance(a, b):
    a, b = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same_in_bfloat16_and_computed_again(name):
    """bfloat16 has 8 bits: a unit in the last place is 0.4 %, and a gradient of ten operations some percent off; one that
    ran in float32 after all would be within 1e-5."""
    make, x = MODELS[name]
    plain = NeuralModel(make(nnx.Rngs(0)), LogUniform(), Categorical())
    narrow = NeuralModel(make(nnx.Rngs(0)), LogUniform(), Categorical(), compute_dtype=jnp.bfloat16)
    again = NeuralModel(rematerialise(make(nnx.Rngs(0))), LogUniform(), Categorical())
    position = plain.initial_position()
    (value, expected), (rough, found), (same, recomputed) = (gradient(m, position, x) for m in (plain, narrow, again))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert abs(rough - value) < 0.05 and 1e-4 < distance(found, expected) < 0.1
    np.testing.assert_allclose(same, value, rtol=1e-5)
    assert distance(recomputed, expected) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_keeps_less(name):
    """Numbers that the backward pass is handed, weights included; nothing in a BiLSTM is computed again."""
    make, x = MODELS[name]
    model = make(nnx.Rngs(0))

    def kept(again):
        graphdef, state = nnx.split(rematerialise(model, again))
        pull = jax.eval_shape(lambda state: jax.vjp(lambda state: nnx.merge(graphdef, state)(x), state)[1], state)
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert kept(True) == kept(False) if name == "bilstm" else kept(True) < 0.8 * kept(False)
