"""The saved model: exactly its parameters, and three forwards that agree."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.errors import RunError
from bayestensor.experiment import config as configs
from bayestensor.experiment import folder as folders
from bayestensor.experiment import model_file, predict
from bayestensor.experiment.check import check
from bayestensor.experiment.export import export
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.initialise import core_variance

SUBJECTS = {
    "dense": ("dense", None),
    **{name: (name, [[[4, 4, 4], [3, 2, 5]], [[3, 10], [2, 5]]]) for name in FORMATS},
    "tt_matrix": ("tt_matrix", [[[4, 4, 4], [3, 2, 5]], [[3, 10], [2, 5]]]),
    "one_mode": ("tensor_train", [[[64], [30]], [[30], [10]]]),
    "size_one_modes": ("tensor_ring", [[[64, 1], [1, 30]], [[1, 30], [10]]]),
}
ACTIVATION = dict(zip(SUBJECTS, [*model_file.ACTIVATIONS] * 3, strict=False))


def trained(path: Path, subject: str) -> tuple[folders.RunFolder, dict, dict]:
    """A run folder with a saved model of random parameters."""
    model_format, shapes = SUBJECTS[subject]
    model = {"name": "mlp", "hidden": [30], "format": model_format, "rank": 2, "shapes": shapes, "hidden_bias": False}
    config = configs.build(
        {"name": "x", "data": {"name": "digits"}, "model": model | {"activation": ACTIVATION[subject]}}
    )
    layers = check(config)
    arrays = {}
    rng = np.random.default_rng(0)
    for layer in layers:
        if layer.network is None:
            arrays[f"{layer.name}.kernel"] = rng.normal(size=(layer.out_features, layer.in_features)) / 8
        else:
            sd = core_variance(layer.network, 2 / layer.in_features) ** 0.5
            for core in layer.network.cores:
                arrays[f"{layer.name}.{core.name}"] = sd * rng.normal(size=layer.network.core_shape(core.name))
        if layer.bias:
            arrays[f"{layer.name}.bias"] = rng.normal(size=layer.out_features)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    entries = [model_file.layer_spec(layer.name, layer.network, layer.bias, layer.activation) for layer in layers]
    spec = model_file.model_spec(entries, (8, 8), 10, shift=2.0, scale=16.0)
    run = folders.create(path, config)
    model_file.save_model(run.model_stem, spec, arrays)
    return run, spec, arrays


def oracle(spec, arrays, x):
    """Dense matrices in float64, activations by their definitions."""
    from scipy.special import expit

    functions = {
        "relu": lambda z: np.where(z > 0, z, 0),
        "tanh": np.tanh,
        "silu": lambda z: z * expit(z),
        "gelu": lambda z: z * expit(2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)),  # (1 + tanh t) / 2 = expit(2 t)
        None: lambda z: z,
    }
    h = (x.reshape(len(x), -1).astype(np.float64) - 2) / 16
    for layer in spec["layers"]:
        name, network = layer["name"], model_file.layer_network(layer)
        if network is None:
            kernel = arrays[f"{name}.kernel"]
        else:
            letters = {leg: k for k, leg in enumerate(network.size)}
            terms = []
            for core in network.cores:
                terms += [arrays[f"{name}.{core.name}"].astype(np.float64), [letters[leg] for leg in core.legs]]
            kernel = np.einsum(*terms, [letters[leg] for leg in network.modes], optimize=True).reshape(
                network.matrix_shape
            )
        h = functions[layer["activation"]](h @ kernel.T + (arrays[f"{name}.bias"] if layer["bias"] else 0))
    return h


@pytest.mark.parametrize("subject", SUBJECTS)
def test_numpy_jax_and_stablehlo_agree(tmp_path, subject):
    run, spec, arrays = trained(tmp_path / "run", subject)
    out = export(run.path, tmp_path / "out")
    x = np.random.default_rng(0).integers(0, 17, (5, 8, 8)).astype(np.float32)
    expected = oracle(spec, arrays, x)
    close = dict(rtol=0, atol=2e-5 * np.abs(expected).max())

    module_spec = importlib.util.spec_from_file_location("exported_predict", out / "predict.py")
    exported = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(exported)
    read_spec, read_arrays = exported.load(out)
    np.testing.assert_allclose(exported.logits(read_spec, read_arrays, x), expected, **close)
    read_spec, read_arrays = model_file.load_model(out / "model")
    in_jax = jax.jit(lambda x: model_file.apply(read_spec, read_arrays, x))(jnp.asarray(x.reshape(5, 64)))
    np.testing.assert_allclose(in_jax, expected, **close)
    program = jax.export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    for n in (5, 1) if subject == "tt_matrix" else (5,):  # any batch size
        np.testing.assert_allclose(program.call(x[:n].reshape(n, 64)), expected[:n], **close)
    assert set(program.platforms) == {"cpu", "cuda"}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_file_holds_the_parameters_and_nothing_else(tmp_path, subject):
    run, _, arrays = trained(tmp_path / "run", subject)
    with np.load(run.path / "model.npz", allow_pickle=False) as archive:
        saved = {name: archive[name] for name in archive.files}
    assert {name: array.shape for name, array in saved.items()} == {name: array.shape for name, array in arrays.items()}
    assert all(array.dtype == np.float32 for array in saved.values())
    count = sum(array.size for array in saved.values())
    assert count == sum(layer.parameters for layer in check(run.config()))
    assert (run.path / "model.npz").stat().st_size <= 1.1 * 4 * count + 8192


def test_the_predictor_needs_numpy_alone(tmp_path):
    """An interpreter whose only package is NumPy, started in the exported folder."""
    run, spec, arrays = trained(tmp_path / "run", "tt_matrix")
    out = export(run.path, tmp_path / "out")
    site = tmp_path / "site"
    site.mkdir()
    packages = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (packages / name).exists():
            (site / name).symlink_to(packages / name)
    x = np.random.default_rng(0).integers(0, 17, (300, 8, 8)).astype(np.float32)  # more than one batch of the script
    np.save(tmp_path / "x.npy", x)
    environment = {"PYTHONPATH": str(site), "PATH": os.environ["PATH"]}

    def python(*arguments):
        return subprocess.run(
            [sys.executable, "-S", *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=tmp_path
        )

    assert python("-c", "import jax").returncode != 0  # the isolation isolates
    done = python(out / "predict.py", "x.npy", "-o", "p.npy")
    assert done.returncode == 0, done.stderr
    p, logits = np.load(tmp_path / "p.npy"), oracle(spec, arrays, x)
    np.testing.assert_allclose(p, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)
    done = python(out / "predict.py", "x.npy")
    assert list(map(int, done.stdout.split())) == logits.argmax(1).tolist()
    np.save(tmp_path / "x.npy", x[:, :3])
    done = python(out / "predict.py", "x.npy")
    assert done.returncode == 2
    assert done.stderr == "predict.py: inputs have shape (300, 3, 8); expected (n, 8, 8)\n"
    assert python(out / "predict.py", "absent.npy").returncode == 2


def test_the_predictor_finds_its_own_order_where_none_is_stored(tmp_path):
    _, spec, arrays = trained(tmp_path / "run", "tucker")
    x = np.random.default_rng(0).normal(size=(3, 8, 8))
    assert "path" not in json.dumps(spec)
    np.testing.assert_allclose(predict.logits(spec, arrays, x), oracle(spec, arrays, x), atol=1e-4)
    assert predict.logits(spec, arrays, x[:0]).shape == (0, 10)


def test_models_that_do_not_fit_are_refused(tmp_path):
    run, spec, arrays = trained(tmp_path / "run", "tt_matrix")
    wrong = {
        "extra": (arrays | {"mask": np.zeros(3)}, r"holds arrays .*mask"),
        "missing": ({name: array for name, array in arrays.items() if name != "layers.1.bias"}, "holds arrays"),
        "shape": (
            arrays | {"layers.1.bias": np.zeros(9)},
            r"layers.1.bias is float32 \(9,\); expected float32 \(10,\)",
        ),
        "nan": (arrays | {"layers.1.bias": np.full(10, np.nan)}, "layers.1.bias has entries that are not finite"),
    }
    for changed, message in wrong.values():
        with pytest.raises(RunError, match=message):
            model_file.save_model(tmp_path / "other", spec, changed)
        assert not list(tmp_path.glob("other*"))
    for change, message in (
        ({"format_version": 3}, "format version 3"),
        ({"classes": 9}, "expected 9 classes"),
        ({"input_shape": [7, 8]}, "takes 64 inputs; 56 come in"),
        ({"layers": 3}, "damaged"),
    ):
        (run.path / "model.json").write_text(json.dumps(spec | change))
        with pytest.raises(RunError, match=message):
            export(run.path, tmp_path / "out")
    (run.path / "model.json").write_text("{")
    with pytest.raises(RunError, match=r"model.json: damaged"):
        export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_parameters_are_refused(tmp_path):
    """The archive's own CRC sees a flip of any bit of any array."""
    run, _, arrays = trained(tmp_path / "run", "tt_matrix")
    whole = (run.path / "model.npz").read_bytes()
    rng, harmless = np.random.default_rng(0), 0
    for _ in range(50):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (run.path / "model.npz").write_bytes(content)
        with contextlib.suppress(RunError):  # refused, or a bit that says nothing
            _, read = model_file.load_model(run.model_stem)
            harmless += 1
            assert all(np.array_equal(read[name], array) for name, array in arrays.items())
    assert harmless < 25
    (run.path / "model.npz").unlink()
    with pytest.raises(RunError, match=r"model.npz: no such file"):
        model_file.load_model(run.model_stem)


def test_export_overwrites_nothing(tmp_path):
    run, _, _ = trained(tmp_path / "run", "dense")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="nothing is overwritten"):
        export(run.path, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
