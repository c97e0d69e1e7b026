"""Tensorized layers against Flax's own with the same effective weight, in every format: one table of laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bayestensor.models.likelihoods import Categorical
from bayestensor.models.neural import NeuralModel
from bayestensor.nn.attention import LinearGeneral, MultiHeadAttention, TransformerBlock
from bayestensor.nn.conv import Conv, cheapest, convolve, splits
from bayestensor.nn.embedding import Embed
from bayestensor.nn.linear import MLP
from bayestensor.nn.recurrent import GRUCell, LSTMCell, recur
from bayestensor.nn.weight import TensorWeight
from bayestensor.priors import LogUniform
from bayestensor.tensor.contract import matrix
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.network import Core, Factored, Network
from bayestensor.tensor.sized import conv_network, embed_network, linear_network

RNG = np.random.default_rng(0)


def floats(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@dataclass(frozen=True)
class Subject:
    """`ours(format)` is a layer, `twin()` Flax's with arrays of the same names."""

    ours: Callable[[str], nnx.Module]
    twin: Callable[[], nnx.Module]
    inputs: tuple
    call: Callable[..., Any] = lambda layer, *inputs: layer(*inputs)


def conv(size, strides=1, padding="SAME", channels=(6, 4), bias=True):
    """6 -> 4 channels, or others."""
    into, out = channels

    def ours(format):
        network = conv_network(out, into, size, format, 3)
        return Conv(network, size, strides=strides, padding=padding, use_bias=bias, rngs=nnx.Rngs(0))

    return ours, lambda: nnx.Conv(into, out, size, strides, padding=padding, use_bias=bias, rngs=nnx.Rngs(1))


def cell(kind, gates):
    def ours(format):
        networks = (linear_network(gates * 6, width, format, 3, 2) for width in (8, 6))
        return kind(*networks, rngs=nnx.Rngs(0))

    return ours


def attention(format):
    query = linear_network(12, 8, format, 3, 2)
    out = linear_network(10, 12, format, 3, 2)
    return MultiHeadAttention(3, query, out=out, rngs=nnx.Rngs(0))


def step(layer, c, h, x):
    (c, h), y = layer((c, h), x)
    return jnp.stack([c, h, y])


MASK = jnp.tril(jnp.ones((1, 1, 5, 5), bool))
ATTENTION = (attention, lambda: nnx.MultiHeadAttention(3, 8, 12, 10, decode=False, rngs=nnx.Rngs(1)))
SUBJECTS: dict[str, Subject] = {
    "conv 2d": Subject(*conv((3, 3)), (floats(2, 5, 4, 6),)),
    "conv 2d, strides, valid": Subject(*conv((3, 2), (2, 1), "VALID"), (floats(2, 6, 5, 6),)),
    "conv 2d, padding, no bias": Subject(*conv((2, 3), 2, ((1, 0), 2), bias=False), (floats(2, 5, 4, 6),)),
    "conv 2d, one channel": Subject(*conv((3, 3), channels=(1, 4)), (floats(3, 5, 4, 1),)),
    "conv 1d": Subject(*conv(3), (floats(2, 7, 6),)),
    "conv 1d, strides, padding": Subject(*conv((4,), 3, 2), (floats(2, 7, 6),)),
    "embedding": Subject(
        lambda format: Embed(embed_network(12, 6, format, 3, 2), rngs=nnx.Rngs(0)),
        lambda: nnx.Embed(12, 6, rngs=nnx.Rngs(1)),
        (jnp.asarray([[0, 11, 3], [3, 7, 0]]),),
    ),
    "embedding, attend": Subject(
        lambda format: Embed(embed_network(12, 6, format, 3, 2), rngs=nnx.Rngs(0)),
        lambda: nnx.Embed(12, 6, rngs=nnx.Rngs(1)),
        (floats(3, 6),),
        lambda layer, query: layer.attend(query),
    ),
    "LSTM cell": Subject(
        cell(LSTMCell, 4),
        lambda: nnx.OptimizedLSTMCell(8, 6, rngs=nnx.Rngs(1)),
        (floats(3, 6), floats(3, 6), floats(3, 8)),
        step,
    ),
    "GRU cell": Subject(
        cell(GRUCell, 3),
        lambda: nnx.GRUCell(8, 6, rngs=nnx.Rngs(1)),
        (floats(3, 6), floats(3, 8)),
        lambda layer, h, x: layer(h, x)[1],
    ),
    "attention": Subject(*ATTENTION, (floats(2, 5, 8),)),
    "attention, masked, keys apart": Subject(
        *ATTENTION, (floats(2, 5, 8), floats(2, 5, 8)), lambda layer, q, k: layer(q, k, mask=MASK)
    ),
}


def compiled(function, *arguments):
    """One call: XLA's optimisation would cost more than it gains."""
    return jax.jit(function).lower(*arguments).compile({"xla_backend_optimization_level": 0})(*arguments)


def randomised(layer, seed=0):
    """Biases are 0 at the start, where no test could see them swapped."""
    rng = np.random.default_rng(seed)
    state = nnx.state(layer, nnx.Param)
    moved = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32) if not np.any(np.asarray(a)) else a, state
    )
    nnx.update(layer, moved)
    return layer


def effective(layer) -> dict[str, Any]:
    """Dotted path -> dense matrix of each network, or array of each other parameter."""
    networks = {path: m for path, m in nnx.iter_modules(layer) if isinstance(m, TensorWeight)}
    found = {".".join(map(str, path)): matrix(weight.tensor) for path, weight in networks.items()}
    for path, leaf in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
        if not any(path[: len(own)] == own for own in networks):
            found[".".join(map(str, path))] = leaf[...]
    return found


FAST = {(name, "tensor_train") for name in ("conv 2d", "conv 1d, strides, padding", "embedding", "LSTM cell")}
FAST |= {("conv 2d", "cp"), ("conv 2d, one channel", "tt_matrix"), ("attention, masked, keys apart", "tt_matrix")}
EVERY = [
    pytest.param(name, format, marks=[] if (name, format) in FAST else [pytest.mark.slow])
    for name in SUBJECTS
    for format in ([*FORMATS, "svd_spatial"] if name.startswith("conv 2d") else FORMATS)
]


@pytest.mark.promoting
@pytest.mark.parametrize(("name", "format"), EVERY)
def test_forward_and_gradients_equal_flax(name, format):
    """Outputs, gradients of every core and bias (through the dense weight, by the chain rule), and of the inputs."""
    subject = SUBJECTS[name]
    ours, twin = randomised(subject.ours(format)), subject.twin()
    ours_def, params = nnx.split(ours, nnx.Param)
    twin_def, twin_params, rest = nnx.split(twin, nnx.Param, ...)
    shapes = {".".join(map(str, path)): leaf[...].shape for path, leaf in nnx.to_flat_state(twin_params)}
    inputs = subject.inputs

    def by_ours(params, inputs):
        return subject.call(nnx.merge(ours_def, params), *inputs)

    def by_twin(params, inputs):
        weights = effective(nnx.merge(ours_def, params))
        assert set(weights) == set(shapes)
        turned = {name: (w.T if name.endswith("kernel") else w).reshape(shapes[name]) for name, w in weights.items()}
        flat = [(path, leaf.replace(turned[".".join(map(str, path))])) for path, leaf in nnx.to_flat_state(twin_params)]
        return subject.call(nnx.merge(twin_def, nnx.from_flat_state(flat), rest), *inputs)

    target = jnp.asarray(
        np.random.default_rng(1).normal(size=jax.eval_shape(by_twin, params, inputs).shape), jnp.float32
    )

    def loss(function):
        def of(params, floating):
            y = function(params, floating or inputs)
            return jnp.sum(y * target), y

        return jax.value_and_grad(of, argnums=(0, 1), has_aux=True)

    floating = inputs if all(jnp.issubdtype(x.dtype, jnp.floating) for x in inputs) else ()
    ((_, y), found), ((_, expected_y), expected) = compiled(
        lambda *at: [loss(f)(*at) for f in (by_ours, by_twin)], params, floating
    )
    np.testing.assert_allclose(y, expected_y, rtol=2e-4, atol=2e-4)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-4, atol=2e-4 * scale), found, expected)
    if "masked" not in name and "attention" not in name:  # a key's bias moves all scores alike: its gradient is 0
        assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(found))


# --- convolutions: which way --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [*FORMATS, "svd_spatial"])
def test_a_split_kernel_is_the_same_kernel(format):
    """The two networks, contracted with each other over the bonds between, are the whole one."""
    network = conv_network(4, 6, (3, 2), format, 3)
    cores = {core.name: RNG.normal(size=network.core_shape(core.name)) for core in network.cores}
    whole = as_matrix(network, cores).reshape(4, 3, 2, 6)
    found = splits(network, (3, 2))
    along = {"cp": [0, 1], "tucker": [0, 1], "svd_spatial": [1], "tt_matrix": [], "svd": []}  # else on one core
    assert [parts.axes for parts in found] == along.get(format, [0])
    for inner, outer, axes in found:
        between = inner.rows  # the tensors share these modes
        assert between == outer.cols[-len(between) :]
        first = as_matrix(inner, cores).reshape(-1, (1, 3)[axes], 6)
        second = as_matrix(outer, cores).reshape(4, (3, 1)[axes], 2, len(first))
        product = np.einsum("ohwb,bki->ohkwi", second, first).reshape(4, 3, 2, 6)
        np.testing.assert_allclose(product, whole, rtol=1e-9, atol=1e-9)


def as_matrix(network, cores):
    """By NumPy's einsum over the legs."""
    letters = {leg: chr(97 + k) for k, leg in enumerate(network.size)}
    spell = lambda legs: "".join(letters[leg] for leg in legs)  # noqa: E731
    terms = ",".join(spell(core.legs) for core in network.cores)
    arrays = [cores[core.name] for core in network.cores]
    return np.einsum(f"{terms}->{spell(network.modes)}", *arrays).reshape(network.matrix_shape)


def way(channels, format, rank, size=(3, 3)):
    """What is counted cheapest on a hundred images of 10 x 10: (axes of the window gone along first, seconds)."""
    parts, seconds = cheapest(conv_network(channels, channels, size, format, rank), size, 100, (10, 10), (10, 10))
    return None if parts is None else parts.axes, seconds


def test_few_bonds_go_before_the_window_and_many_after():
    (thin, less), (wide, more) = way(64, "tensor_train", 4), way(64, "tensor_train", 64)
    assert (thin, wide) == (0, None) and less < more
    assert way(64, "svd_spatial", 8)[0] == 1
    assert way(64, "cp", 16, (7, 7))[0] == 1 and way(64, "cp", 16, (1, 3))[0] == 0  # 7 + 7 pixels against 49


@pytest.mark.promoting
@pytest.mark.parametrize("format", ["svd_spatial", pytest.param("tucker", marks=pytest.mark.slow)])
def test_every_way_is_the_same_convolution(format, monkeypatch):
    """Whole windows, channels first, one axis first: outputs and gradients of cores and images, strided and padded."""
    geometry = ((3, 2), (2, 1), ((1, 0), (0, 2)))
    network = conv_network(4, 6, (3, 2), format, 3)
    cores = {core.name: floats(*network.core_shape(core.name)) for core in network.cores}
    x, target = floats(2, 6, 5, 6), floats(2, 3, 6, 4)

    def flax(cores, x):
        kernel = matrix(Factored(network, cores)).T.reshape(3, 2, 6, 4)
        return jax.lax.conv_general_dilated(x, kernel, *geometry[1:], dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def by(parts):
        def ours(cores, x):
            monkeypatch.setattr("bayestensor.nn.conv.cheapest", lambda *_: (parts, 0.0))
            return convolve(Factored(network, cores), x, *geometry)

        return ours

    ways = [flax, *map(by, (None, *splits(network, (3, 2))))]
    both = lambda way: jax.vjp(way, cores, x)  # noqa: E731
    expected, *found = compiled(lambda: [(both(way)[0], both(way)[1](target)) for way in ways])
    assert len(found) == (2 if format == "svd_spatial" else 3)
    for one in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), one, expected)


MIXED = Network(  # input channels split over a core of their own and one with the window
    (Core("a", ("o", "r")), Core("b", ("r", "k", "j0", "s")), Core("c", ("s", "j1"))),
    {"o": 4, "k": 9, "j0": 2, "j1": 3, "r": 2, "s": 2},
    rows=("o",),
    cols=("k", "j0", "j1"),
)
ACROSS = Network(  # a mode of 6 holds three window positions and two channels
    (Core("a", ("o", "r")), Core("b", ("r", "j0", "s")), Core("c", ("s", "j1"))),
    {"o": 4, "j0": 6, "j1": 9, "r": 2, "s": 2},
    rows=("o",),
    cols=("j0", "j1"),
)


@pytest.mark.promoting
@pytest.mark.parametrize("network", [MIXED, ACROSS])
def test_a_kernel_that_cannot_be_split_still_convolves(network):
    assert splits(network, (3, 3)) == ()
    layer = Conv(network, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
    twin = nnx.Conv(6, 4, (3, 3), use_bias=False, rngs=nnx.Rngs(1))
    twin.kernel[...] = matrix(layer.kernel.tensor).T.reshape(3, 3, 6, 4)
    x = floats(2, 5, 4, 6)
    ours, flax = compiled(lambda x: (layer(x), twin(x)), x)
    np.testing.assert_allclose(ours, flax, rtol=1e-4, atol=1e-4)


def test_leading_axes_are_a_batch():
    layer = Conv(conv_network(4, 6, (3, 3)), (3, 3), rngs=nnx.Rngs(0))
    x = floats(2, 3, 5, 4, 6)
    whole, alone = compiled(lambda x: (layer(x), layer(x[1, 2])), x)
    assert whole.shape == (2, 3, 5, 4, 4)
    np.testing.assert_allclose(alone, whole[1, 2], rtol=1e-4, atol=1e-5)


# --- pruning, priors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "conv 2d",
        "embedding",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("LSTM cell", "GRU cell", "attention")),
    ],
)
def test_every_network_of_a_layer_has_a_prior_and_can_be_cut(name):
    layer = SUBJECTS[name].ours("tensor_train")
    model = NeuralModel(layer, LogUniform(), Categorical())
    position = model.initial_position()
    networks = [m for _, m in nnx.iter_modules(layer) if isinstance(m, TensorWeight)]
    assert len(model.kernels) == len(networks) > 0
    kept = {n: {b: np.arange(r)[:2] for b, r in t.network.ranks.items()} for n, t in model.tensors(position).items()}
    cuts = model.cuts(position, kept)
    smaller = compiled(lambda position: jax.tree.map(lambda array, cut: cut(array), position, cuts), position)
    for n, tensor in model.tensors(smaller).items():
        assert tensor.network.ranks == {bond: len(indices) for bond, indices in kept[n].items()}
    inputs = SUBJECTS[name].inputs
    y = compiled(lambda position: SUBJECTS[name].call(model.module(position), *inputs), smaller)
    whole = jax.eval_shape(lambda position: SUBJECTS[name].call(model.module(position), *inputs), position)
    assert np.isfinite(y).all() and y.shape == whole.shape


# --- sequences ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promoting
@pytest.mark.parametrize(("kind", "gates"), [(LSTMCell, 4), (GRUCell, 3)])
@pytest.mark.parametrize(("format", "reverse"), [("tt_matrix", False), ("cp", True)])  # W_h formed, and not
def test_recur_is_flax_rnn(kind, gates, format, reverse):
    layer = randomised(cell(kind, gates)(format))
    x = floats(2, 4, 8)
    graphdef, state = nnx.split(layer)

    def both(state, x):
        layer = nnx.merge(graphdef, state)
        return recur(layer, x, reverse=reverse), nnx.RNN(layer)(x, reverse=reverse, keep_order=True)

    ours, flax = compiled(both, state, x)
    np.testing.assert_allclose(ours, flax, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.promoting
def test_a_causal_block_does_not_look_ahead():
    feed = MLP([linear_network(16, 8, rank=3), linear_network(8, 16, rank=3)], activation="gelu", rngs=nnx.Rngs(0))
    square = linear_network(8, 8, "tt_matrix", 3, 2)
    block = TransformerBlock(MultiHeadAttention(2, square, out=square, rngs=nnx.Rngs(1)), feed, 8, rngs=nnx.Rngs(2))
    x = floats(1, 5, 8)
    moved = x.at[0, 3].set(-x[0, 3])  # a constant shift would be normalised away
    mask = jnp.tril(jnp.ones((1, 1, 5, 5), bool))
    before, after, free, free_moved, causal = compiled(
        lambda x, z: (block(x, mask), block(z, mask), block(x), block(z), block(x, is_causal=True)), x, moved
    )
    np.testing.assert_allclose(before[0, :3], after[0, :3], rtol=1e-5, atol=1e-6)
    assert (np.abs(before - after)[0, 3:].max(axis=1) > 1e-3).all()
    assert np.abs(free - free_moved)[0, 0].max() > 1e-4  # without a mask it does
    np.testing.assert_allclose(causal, before, rtol=1e-5, atol=1e-6)


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("out", "into"), [(1, 1), (10, 625), (503, 512), (503, 499), (4096, 96), (7, 1)])
def test_any_widths_have_a_network(format, out, into):
    network = linear_network(out, into, format, 4)
    assert network.matrix_shape == (out, into)
    if format in ("tensor_train", "tt_matrix", "tucker", "hierarchical_tucker"):
        full = FORMATS[format](*([network.size[leg] for leg in side] for side in (network.rows, network.cols)), "full")
        assert all(rank <= full.ranks[bond] for bond, rank in network.ranks.items())


@pytest.mark.parametrize("format", [*FORMATS, "svd_spatial"])
@pytest.mark.parametrize(("out", "into", "size"), [(20, 1, (5, 5)), (50, 20, (5, 5)), (128, 67, (3, 3)), (7, 11, 3)])
def test_any_channels_have_a_kernel(format, out, into, size):
    if format == "svd_spatial" and size == 3:
        with pytest.raises(ValueError, match="a window of two axes"):
            conv_network(out, into, size, format, 4)
        return
    window = size if isinstance(size, int) else int(np.prod(size))
    network = conv_network(out, into, size, format, 4)
    assert network.matrix_shape == (out, window * into)


def test_a_prime_vocabulary_gets_rows_that_factorise():
    network = embed_network(10_007, 64, rank=4)
    rows, features = network.matrix_shape
    assert 10_007 < rows <= 10_207 and features == 64
    assert max(network.size[leg] for leg in network.rows) < 40
    assert embed_network(4096, 64).matrix_shape[0] == 4096  # already good
    assert embed_network(10**7, 128, rank=4).matrix_shape == (10_160_640, 128)  # found without trying every number


SQUARE = linear_network(8, 8, "tt_matrix", 3, 2)
BAD = [
    (lambda: Conv(SQUARE, (3, 3), rngs=nnx.Rngs(0)), "8 columns"),
    (lambda: Conv(SQUARE, (2, 2, 2), rngs=nnx.Rngs(0)), "one or two axes"),
    (lambda: Conv(SQUARE, (2, 2), padding="CAUSAL", rngs=nnx.Rngs(0)), "padding is 'CAUSAL'; 'SAME', 'VALID'"),
    (lambda: Conv(SQUARE, (2, 2), padding=-1, rngs=nnx.Rngs(0)), "padding is -1"),
    (lambda: Conv(SQUARE, (2, 2), strides=(1, 2, 1), rngs=nnx.Rngs(0)), "strides are"),
    (lambda: Conv(SQUARE, (2, 2), rngs=nnx.Rngs(0))(floats(1, 4, 4, 3)), r"takes \(..., height, width, 2\)"),
    (lambda: Conv(SQUARE, (2, 2), padding="VALID", rngs=nnx.Rngs(0))(floats(1, 1, 4, 2)), "does not fit"),
    (lambda: Embed(SQUARE, rngs=nnx.Rngs(0))(floats(3)), "whole numbers"),
    (lambda: LSTMCell(SQUARE, SQUARE, rngs=nnx.Rngs(0)), "4 x hidden rows"),
    (lambda: MultiHeadAttention(3, SQUARE, out=SQUARE, rngs=nnx.Rngs(0)), "3 heads on a query of 8 rows"),
    (lambda: LinearGeneral(SQUARE, (8,), (2, 3), rngs=nnx.Rngs(0)), r"\(8,\) -> \(2, 3\)"),
    (lambda: linear_network(8, 8, "tensor_tran"), "no format 'tensor_tran'; there are cp"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
