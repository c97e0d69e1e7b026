"""`load_run` and `bayestensor predict`: the model of a run, single or a mixture, on raw inputs; bad ends in one line."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from test_export import oracle, trained

from bayestensor import cli
from bayestensor.errors import RunError
from bayestensor.experiment import model_file, predict
from bayestensor.experiment.export import export
from bayestensor.experiment.saved import load_run

RNG = np.random.default_rng(0)
X = RNG.integers(0, 17, (300, 8, 8))  # more than the exported script takes at once
MEMBERS = 3
SUBJECTS = ["tt_matrix", "mixture of tt_matrix", "mixture of dense"]


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """name -> (run folder of random parameters, class probabilities of X by dense float64 algebra)."""
    made = {}
    for name in SUBJECTS:
        run, spec, arrays = trained(tmp_path_factory.mktemp("runs") / "run", name.split()[-1])
        each = [arrays]
        if name.startswith("mixture"):
            each = [
                {k: (a + k_th * RNG.normal(size=a.shape) / 4).astype(np.float32) for k, a in arrays.items()}
                for k_th in range(MEMBERS)
            ]
            spec = spec | {"members": MEMBERS}
            model_file.save_model(run.model_stem, spec, {k: np.stack([one[k] for one in each]) for k in arrays})
        run.write_summary({})
        made[name] = run.path, np.mean([softmax(oracle(spec, one, X)) for one in each], axis=0)
    return made


@pytest.fixture(scope="module")
def saved(finished):
    return {name: load_run(path) for name, (path, _) in finished.items()}


def call(*arguments):
    return CliRunner().invoke(cli.main, list(map(str, arguments)))


@pytest.mark.parametrize("name", SUBJECTS)
def test_probabilities_are_those_of_the_mixture(finished, saved, name):
    p = finished[name][1]
    assert saved[name].members == (MEMBERS if name.startswith("mixture") else 1)
    for x in (X, X.reshape(300, 64), X.astype(np.float64)):
        np.testing.assert_allclose(saved[name].predict(x), p, atol=2e-5)
    np.testing.assert_allclose(saved[name].predict(X[:2]), p[:2], atol=2e-5)
    assert saved[name].predict(X[:0]).shape == (0, 10)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_command_prints_classes_or_writes_probabilities(finished, tmp_path, name):
    path, p = finished[name]
    np.save(tmp_path / "x.npy", X)
    done = call("predict", path, tmp_path / "x.npy")
    assert done.exit_code == 0, done.output
    sure = np.sort(p, axis=1)[:, -1] - np.sort(p, axis=1)[:, -2] > 1e-4
    assert sure.mean() > 0.95
    np.testing.assert_array_equal(np.array(done.stdout.split(), int)[sure], p.argmax(1)[sure])
    assert call("predict", path, tmp_path / "x.npy", "-o", tmp_path / "new" / "p.npy").exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "new" / "p.npy"), p, atol=2e-5)


@pytest.mark.parametrize("name", SUBJECTS)
def test_exports_predict_the_same(finished, tmp_path, name):
    path, p = finished[name]
    out = export(path, tmp_path / "out")
    np.testing.assert_allclose(predict.probabilities(*predict.load(out), X), p, atol=2e-5)
    program = jax.export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    for n in (300, 1):
        logits = np.asarray(program.call(X[:n].reshape(n, 64).astype(np.float32)))
        np.testing.assert_allclose(softmax(logits), p[:n], atol=2e-5)


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    return path


BAD_INPUTS = {
    "another width": (np.zeros((5, 9, 9)), ["(5, 9, 9)", "(n, 8, 8)"]),
    "one input without its axis": (np.zeros((8, 8)), ["(8, 8)", "(n, 8, 8)"]),
    "a number": (np.float32(3), ["()", "(n, 8, 8)"]),
    "NaN": (np.where(np.arange(128) == 70, np.nan, 0.0).reshape(2, 8, 8), ["1 of 2 inputs", "not finite"]),
    "words": (np.array(["a", "b"]), ["real numbers"]),
    "complex numbers": (np.zeros((1, 64), complex), ["real numbers"]),
    "pickled objects": (np.array([{}, 1], dtype=object), ["damaged, or no .npy file"]),
    "text": (b"1,2,3\n", ["damaged, or no .npy file"]),
    "nothing": (b"", ["damaged, or no .npy file"]),
}


def refused(done, *fragments):
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(fragment in done.stderr for fragment in fragments), done.stderr


@pytest.mark.parametrize("what", BAD_INPUTS)
def test_bad_inputs_end_with_one_line(finished, tmp_path, what):
    content, fragments = BAD_INPUTS[what]
    inputs = write(tmp_path / "x.npy", content)
    out = tmp_path / "p.npy"
    refused(call("predict", finished["tt_matrix"][0], inputs, "-o", out), *fragments)
    assert not out.exists()


def test_bad_places_end_with_one_line(finished, tmp_path):
    path, inputs = finished["tt_matrix"][0], write(tmp_path / "x.npy", X)
    (tmp_path / "empty").mkdir()
    refused(call("predict", tmp_path / "nowhere", inputs), "nowhere", "no such folder")
    refused(call("predict", tmp_path / "empty", inputs), "not a run folder", "config.yaml")
    refused(call("predict", path, tmp_path / "absent.npy"), "absent.npy", "No such file")
    refused(call("predict", path, tmp_path / "empty"), "empty", "Is a directory")
    refused(call("predict", path, inputs, "-o", inputs), "x.npy", "nothing is overwritten")
    refused(call("predict", path, inputs, "-o", inputs / "p.npy"), "p.npy", "cannot be")
    np.testing.assert_array_equal(np.load(inputs), X)


def test_a_run_that_is_not_finished_or_damaged_is_refused(tmp_path):
    run, _, _ = trained(tmp_path / "run", "tt_matrix")
    with pytest.raises(RunError, match="not finished; go on with: bayestensor resume"):
        load_run(run.path)
    run.write_summary({})
    with pytest.raises(RunError, match="engine map leaves no draws"):
        load_run(run.path).draws()
    content = (run.path / "model.npz").read_bytes()
    (run.path / "model.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"model.npz: damaged"):
        load_run(run.path)
