"""LeNet by config: the network against Flax's own layers, and a run whose files all predict alike."""

from __future__ import annotations

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bayestensor.data import load_dataset
from bayestensor.errors import ConfigError
from bayestensor.experiment import config as configs
from bayestensor.experiment import predict, run
from bayestensor.experiment.check import check
from bayestensor.experiment.export import export
from bayestensor.experiment.folder import open_run
from bayestensor.experiment.saved import load_run
from bayestensor.models.convnet import ConvNet
from bayestensor.models.stage import Stage
from bayestensor.tensor.contract import matrix
from bayestensor.tensor.sized import conv_network, linear_network

pytestmark = [pytest.mark.promoting, pytest.mark.slow]  # Optax relies on promotion; convolutions take long to compile

MODEL = {"name": "lenet5", "channels": [4, 6], "kernel_size": 3, "padding": "SAME", "hidden": [12]}
RAW = {
    "name": "small",
    "data": {"name": "digits", "scaling": "standard"},
    "model": MODEL | {"conv_rank": 4, "rank": 4, "hidden_bias": False},
    "engine": {"name": "map", "optimizer": {"name": "adam", "learning_rate": 0.01}, "temperature": 0.5},
    "train": {"epochs": 2, "batch_size": 64},
    "prune": {"epochs": [1], "max_params": 400},
    "dense_twin": True,
}


@pytest.mark.parametrize("padding", ["SAME", pytest.param("VALID", marks=pytest.mark.slow)])
def test_a_convnet_is_flax_layers_in_turn(padding):
    """Odd sizes, so that pooling leaves a row and a column out; convolution and pooling by Flax and XLA themselves."""
    first = Stage((9, 7, 1), 3, 2, padding, 2)
    second = Stage(first.out_shape, 4, 2, "SAME", 1)
    width = int(np.prod(second.out_shape))
    networks = [
        conv_network(3, 1, (2, 2), rank=2),
        conv_network(4, 3, (2, 2), "cp", 3),
        linear_network(5, width, rank=2),
    ]
    stages = list(zip((first, second), networks[:2], strict=True))
    model = ConvNet(stages, [networks[2], (5, 3)], activation="tanh", rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 63)), jnp.float32)

    def flax(x):
        z = x.reshape(6, 9, 7, 1)
        for stage, layer in zip((first, second), model.layers, strict=False):
            twin = nnx.Conv(stage.in_shape[2], stage.out_channels, (2, 2), padding=stage.padding, rngs=nnx.Rngs(1))
            twin.kernel[...] = matrix(layer.kernel.tensor).T.reshape(twin.kernel.shape)
            z = nnx.max_pool(jnp.tanh(twin(z)), (stage.pool,) * 2, strides=(stage.pool,) * 2)
        z = jnp.tanh(z.reshape(6, -1) @ matrix(model.layers[2].kernel.tensor).T)
        return (z @ model.layers[3].kernel[...]).reshape(2, 3, 3)

    ours, theirs = jax.jit(lambda x: (model(x), flax(x)))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    dense = ConvNet([(first, None), (second, None)], [(width, 2)], rngs=nnx.Rngs(0))
    plain = nnx.Conv(1, 3, (2, 2), padding=padding, rngs=nnx.Rngs(1))
    plain.kernel[...] = dense.layers[0].kernel[...]
    image = x.reshape(6, 9, 7, 1)
    np.testing.assert_allclose(*jax.jit(lambda z: (dense.layers[0](z), plain(z)))(image), rtol=1e-4, atol=1e-5)


def test_caffe_lenet_has_its_430500_weights():
    raw = {
        "name": "x",
        "data": {"name": "mnist"},
        "model": {"name": "lenet5", "hidden_bias": False, "output_bias": False},
    }
    layers = check(configs.build(raw))
    assert [layer.dense_parameters for layer in layers] == [500, 25_000, 400_000, 5_000]
    assert [layer.times for layer in layers] == [24 * 24, 8 * 8, 1, 1]
    dense = check(configs.build({**raw, "model": raw["model"] | {"format": "dense"}}))
    assert [layer.network for layer in dense] == [None] * 4
    assert sum(layer.flops(1) for layer in dense) == 2 * (500 * 576 + 25_000 * 64 + 400_000 + 5_000)


RESNET = {  # batch normalisation, strides and shortcuts
    "model": {"name": "resnet", "depth": 8, "rank": 4},
    "train": {"epochs": 2, "batch_size": 64},
    "prune": {"epochs": [1], "max_params": 3_400},
    "dense_twin": False,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("lenet") / "run"
    return out, run.run(configs.build(RAW), out)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    out = tmp_path_factory.mktemp("resnet") / "run"
    return out, run.run(configs.build(RAW | RESNET), out)


def test_a_run_cuts_convolutions_too(finished):
    out, summary = finished
    assert summary["params_final"] <= 400 < summary["params_initial"]
    convolution = summary["layers"][1]
    assert convolution["shape"] == [6, 36] and convolution["params_final"] < convolution["params_initial"]
    assert convolution["flops_dense"] == 2 * 6 * 36 * 16
    assert summary["params_dense"] == sum(n * (m + 1) for n, m in ([4, 9], [6, 36], [12, 24], [10, 12]))
    assert summary["dense_twin"]["params"] == summary["params_dense"]
    assert (out / "report.html").exists()


def test_a_residual_run_counts_its_normalisation(residual):
    """Three times two convolutions of 16, 32 and 64 channels, a first one and a head; two numbers a channel besides."""
    _, summary = residual
    widths = [(1, 16), (16, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)]
    dense = sum(9 * into * out + 2 * out for into, out in widths) + 64 * 10 + 10
    assert summary["params_dense"] == dense and summary["params_final"] <= 3_400 < summary["params_initial"]
    assert sum(layer["params_final"] for layer in summary["layers"]) == summary["params_final"]
    assert [layer["flops_dense"] // 2 for layer in summary["layers"]] == [
        9 * into * out * side**2 for (into, out), side in zip(widths, (8, 8, 8, 4, 4, 2, 2), strict=True)
    ] + [640]


@pytest.mark.parametrize("which", ["finished", "residual"])
def test_every_file_of_a_run_predicts_alike(which, request, tmp_path):
    """The model file by JAX, the export by NumPy alone and as StableHLO; the accuracy is the one measured."""
    out, summary = request.getfixturevalue(which)
    data = load_dataset("digits")
    p = load_run(out).predict(data.x_test)
    assert np.mean(p.argmax(1) == data.y_test) == pytest.approx(summary["test_accuracy"])
    export(out, tmp_path / "export")
    spec, arrays = predict.load(tmp_path / "export")
    np.testing.assert_allclose(predict.probabilities(spec, arrays, data.x_test), p, rtol=1e-3, atol=1e-5)
    assert predict.probabilities(spec, arrays, data.x_test[:0]).shape == (0, 10)
    exported = jax.export.deserialize((tmp_path / "export" / "model.stablehlo").read_bytes())
    logits = exported.call(jnp.asarray(data.x_test[:7].reshape(7, 64), jnp.float32))
    np.testing.assert_allclose(jax.nn.softmax(logits), p[:7], rtol=1e-3, atol=1e-5)
    if which == "residual":
        return
    twin = load_run(out / "twin")
    spec, arrays = dict(twin.spec), dict(twin.arrays)  # dense convolutions
    np.testing.assert_allclose(
        predict.probabilities(spec, arrays, data.x_test[:50]), twin.predict(data.x_test[:50]), rtol=1e-3, atol=1e-5
    )


class Stop(Exception):
    """A kill."""


class Stopping:
    """Stops the run after its first measured epoch."""

    def __getattr__(self, name):
        def heard(*facts):
            if name == "evaluated":
                raise Stop

        return heard


@pytest.mark.parametrize("which", ["finished", "residual"])
def test_a_stop_changes_nothing(which, request, tmp_path):
    out, (before, summary) = tmp_path / "run", request.getfixturevalue(which)
    config = configs.build(RAW | (RESNET if which == "residual" else {}) | {"dense_twin": False})
    with pytest.raises(Stop):
        run.run(config, out, progress=Stopping())
    assert run.resume(out)["ranks"] == summary["ranks"]
    found, expected = (np.load(open_run(path).model_stem.with_suffix(".npz")) for path in (out, before))
    for name in expected.files:
        np.testing.assert_array_equal(found[name], expected[name])


BAD = [
    ({"model": MODEL | {"kernel_size": 9, "padding": "VALID"}}, "model.channels: images of 8x8 leave nothing"),
    ({"model": MODEL | {"channels": []}}, "model.channels"),
    ({"model": MODEL, "prune": {"epochs": [1], "max_flops": 10_000}}, "prune.max_flops: counted for linear layers"),
    ({"model": MODEL | {"shapes": [[[8], [12]], [[12], [10]]]}}, "model.shapes.0.0: .* product 24, layers.2's input"),
    ({"model": MODEL | {"conv_format": "cpp"}}, "model.conv_format: .*cp"),
    ({"model": {"name": "lenet"}}, "model.name: .*lenet5"),
    ({"model": MODEL | {"pool": [2]}}, "model.pool: given 1 entries; expected one number, or 2"),
    ({"model": MODEL | {"average": 3}}, "model.average: images of 2x2 are no whole number of squares of 3"),
    ({"model": {"name": "resnet", "depth": 21}}, "model.depth: depth is 21; it is 6 n"),
    ({"model": {"name": "resnet"}, "prune": {"epochs": [1], "max_ms": 1.0}}, "prune.max_ms: not measured with batch"),
]


@pytest.mark.parametrize(("sections", "message"), BAD)
def test_what_does_not_fit_is_refused_in_one_line(sections, message):
    with pytest.raises(ConfigError, match=message):
        configs.build(RAW | {"prune": {}} | sections)
