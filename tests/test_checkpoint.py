"""Checkpoints and run folders: what comes back is what went in, or an error that names the file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.errors import CheckpointError, RunError
from bayestensor.experiment import config as configs
from bayestensor.experiment import folder as folders
from bayestensor.inference import checkpoint

PICKLED_OR_NOT = np.arange(6, dtype=np.float32).reshape(2, 3)


class State(NamedTuple):
    position: dict
    moments: tuple
    key: jax.Array
    step: jax.Array
    nothing: None
    rate: float
    count: int
    done: bool


def state(seed: int = 0) -> State:
    key = jax.random.key(seed)
    return State(
        position={
            "layer0": {"core0": jnp.asarray(PICKLED_OR_NOT + seed)},
            "file": jnp.zeros((0, 3)),
            "a/b": jnp.float32(2),
        },
        moments=(jnp.ones(3, jnp.bfloat16) / 3, np.arange(3, dtype=np.int64), np.array([True, False])),
        key=jax.random.split(key, 3),
        step=jnp.int32(7),
        nothing=None,
        rate=0.1,
        count=2**40,
        done=False,
    )


def same(a, b) -> bool:
    def bits(leaf):
        leaf = jax.random.key_data(leaf) if checkpoint._is_key(leaf) else leaf
        return (
            type(leaf) if isinstance(leaf, (int, float)) else None,
            np.asarray(leaf).dtype,
            np.asarray(leaf).tobytes(),
        )

    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    return jax.tree.structure(a) == jax.tree.structure(b) and list(map(bits, leaves_a)) == list(map(bits, leaves_b))


def test_round_trip_is_bitwise(tmp_path):
    meta = {"step": 7, "ranks": {"layer0": {"b1": 4}}, "loss": 0.1 + 0.2}
    checkpoint.save(tmp_path / "c", state(), meta)
    tree, read = checkpoint.load(tmp_path / "c", template=state(1))
    assert same(tree, state())
    assert read == meta
    assert float(jax.random.normal(tree.key[1])) == float(jax.random.normal(state().key[1]))
    flat, _ = checkpoint.load(tmp_path / "c")
    assert set(flat) >= {"position/layer0/core0", "position/file", "moments/0", "key", "rate"}
    assert not same(state(), state(1))  # the comparison can tell


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_keep_their_kind(tmp_path, impl):
    key = jax.random.key(3, impl=impl)
    checkpoint.save(tmp_path / "c", {"key": key}, {})
    read = checkpoint.load(tmp_path / "c")[0]["key"]
    assert read.dtype == key.dtype
    assert (jax.random.key_data(read) == jax.random.key_data(key)).all()


def test_sha256sum_reads_the_voucher(tmp_path):
    import hashlib

    checkpoint.save(tmp_path / "c", state(), {})
    digest, name = (tmp_path / "c" / "manifest.sha256").read_text().split()
    assert digest == hashlib.sha256((tmp_path / "c" / name).read_bytes()).hexdigest()


def damaged_is_seen(folder, file, content, original) -> bool:
    """Whether a damaged file is refused, or gives exactly what was saved."""
    (folder / file).write_bytes(content)
    try:
        tree, meta = checkpoint.load(folder, template=state())
    except CheckpointError as error:
        return file in str(error) or "manifest" in str(error)
    return same(tree, original) and meta == {"step": 7}


def test_no_flipped_bit_and_no_truncation_goes_unseen(tmp_path):
    """300 flips and 100 truncations, at random places of random files."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "c"
    checkpoint.save(folder, state(), {"step": 7})
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(whole) == {"arrays.npz", "manifest.json", "manifest.sha256"}
    refused = 0
    for trial in range(400):
        file = str(rng.choice(list(whole)))
        content = bytearray(whole[file])
        if trial < 300:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        else:
            del content[rng.integers(len(content)) :]
        assert damaged_is_seen(folder, file, bytes(content), state())
        with pytest.raises(CheckpointError):
            checkpoint.verify(folder)
        refused += 1
        (folder / file).write_bytes(whole[file])
    assert refused == 400
    checkpoint.verify(folder)


def test_the_damage_test_would_fail_a_checkpoint_that_is_not_vouched_for(tmp_path, monkeypatch):
    """The seeded fault: without the check of hashes, a flipped bit of an array comes back."""
    folder = tmp_path / "c"
    checkpoint.save(folder, state(), {"step": 7})
    content = bytearray((folder / "arrays.npz").read_bytes())
    content[content.index(PICKLED_OR_NOT.tobytes()) + 5] ^= 1
    monkeypatch.setattr(checkpoint, "_read", lambda path: {file.name: file.read_bytes() for file in path.iterdir()})
    monkeypatch.setattr("zipfile.ZipExtFile._update_crc", lambda self, data: None)  # else the archive's own sum sees it
    assert not damaged_is_seen(folder, "arrays.npz", bytes(content), state())


def test_missing_files_are_named(tmp_path):
    for file in ("arrays.npz", "manifest.json", "manifest.sha256"):
        checkpoint.save(tmp_path / file, state(), {})
        (tmp_path / file / file).unlink()
        with pytest.raises(CheckpointError, match=f"{file}: cannot be read"):
            checkpoint.load(tmp_path / file)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_named_and_not_saved(tmp_path, value):
    tree = {"good": jnp.ones(2), "layer0": {"core1": jnp.array([[1.0, value], [value, 0.0]], jnp.bfloat16)}}
    with pytest.raises(CheckpointError, match=r"'layer0/core1' has 2 of 4 entries not finite"):
        checkpoint.save(tmp_path / "c", tree, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tree", "meta", "fragment"),
    [
        ({"a": "text"}, {}, "'a' is str"),
        ({"a": np.array([object()])}, {}, "'a' is ndarray"),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, {}, "both called 'a/b'"),
        ({}, {"x": object()}, "meta"),
        ({}, {"x": float("nan")}, "meta"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, tree, meta, fragment):
    with pytest.raises(CheckpointError, match=fragment):
        checkpoint.save(tmp_path / "c", tree, meta)
    assert list(tmp_path.iterdir()) == []


def test_another_tree_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", {"a": np.ones(3, np.float32)}, {})
    for template, fragment in (
        ({"b": np.ones(3, np.float32)}, r"missing \['b'\], unexpected \['a'\]"),
        ({"a": np.ones(4, np.float32)}, r"'a' has shape \(3,\); expected \(4,\)"),
        ({"a": np.ones(3, np.int32)}, r"'a' has dtype float32; expected int32"),
    ):
        with pytest.raises(CheckpointError, match=fragment):
            checkpoint.load(tmp_path / "c", template)


def test_latest_falls_back_to_the_last_good_one(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    for step in (1, 2, 30):
        checkpoint.save(checkpoint.step_path(tmp_path, step), state(step), {"step": step})
    assert checkpoint.latest(tmp_path) == checkpoint.step_path(tmp_path, 30)
    (checkpoint.step_path(tmp_path, 30) / "arrays.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match="arrays.npz: damaged"):
        assert checkpoint.latest(tmp_path) == checkpoint.step_path(tmp_path, 2)
    for step in (1, 2):
        shutil.rmtree(checkpoint.step_path(tmp_path, step))
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError, match="none of its 1"):
        checkpoint.latest(tmp_path)


def test_only_the_newest_are_kept_up_to_the_one_just_saved(tmp_path):
    (tmp_path / ".partial-left-by-a-kill").mkdir()
    for step in (1, 2, 3, 9):
        checkpoint.save(checkpoint.step_path(tmp_path, step), state(), {}, keep=2)
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["3", "9"]
    checkpoint.save(checkpoint.step_path(tmp_path, 4), state(), {}, keep=2)  # a run that fell back behind step 9
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["3", "4", "9"]


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("fails_at", range(8))
def test_an_interrupted_write_leaves_the_previous_good_one(tmp_path, monkeypatch, fails_at, replaced):
    """Fail at each flush and rename in turn, as a full disk or a kill would."""
    old, new = checkpoint.step_path(tmp_path, 1), checkpoint.step_path(tmp_path, 2)
    checkpoint.save(old, state(1), {"step": 1})
    if replaced:
        checkpoint.save(new, state(2), {"step": 2})
    calls = 0

    def failing(real):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == fails_at + 1:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "rename", failing(os.rename))
    with contextlib.suppress(RunError):  # a folder that cannot be flushed is no error
        checkpoint.save(new, state(2), {"step": 2})
    assert calls > fails_at or fails_at >= 6
    monkeypatch.undo()
    found = checkpoint.latest(tmp_path)
    tree, meta = checkpoint.load(found, template=state())
    assert same(tree, state(meta["step"]))


# --- the run folder -------------------------------------------------------------------------------------------


@pytest.fixture
def config():
    return configs.build({"name": "x", "data": {"name": "digits"}, "seed": 5})


def test_a_run_folder_tells_what_ran(tmp_path, config):
    run = folders.create(tmp_path / "a" / "run", config, data_dir="data")
    again = folders.open_run(tmp_path / "a" / "run")
    assert again.config() == config
    manifest = again.manifest()
    assert manifest["seed"] == 5
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["data_dir"] == os.path.abspath("data")
    assert manifest["device"]["platform"] == jax.devices()[0].platform
    assert manifest["cores"] >= 1
    assert manifest["cpu"]
    run.write_summary({"params_final": np.int64(3), "test_accuracy": jnp.float32(0.5), "nll": float("nan")})
    assert again.summary() == {"params_final": 3, "test_accuracy": 0.5, "nll": None}


def test_metrics_survive_a_kill_and_are_cut_back_on_resume(tmp_path, config):
    run = folders.create(tmp_path / "run", config)
    assert run.metrics() == []
    for step in range(5):
        run.append_metrics({"step": step, "loss": np.float32(step) / 2})
    with run.metrics_file.open("ab") as stream:
        stream.write(b'{"step": 5, "lo')  # torn by a kill
    assert [record["step"] for record in run.metrics()] == [0, 1, 2, 3, 4]
    run.truncate_metrics(2)
    run.append_metrics({"step": 3, "loss": 9.0})
    assert [(record["step"], record["loss"]) for record in run.metrics()] == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 9.0)]
    run.metrics_file.write_text('{"step": 0}\nrubbish\n{"step": 2}\n')
    with pytest.raises(RunError, match="line 2 is damaged"):
        run.metrics()


def test_nothing_is_overwritten_and_no_other_folder_is_a_run(tmp_path, config):
    folders.create(tmp_path / "run", config)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match="nothing is overwritten"):
        folders.create(tmp_path / "run", config)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="nothing is overwritten"):
        folders.create(tmp_path / "file", config)
    with pytest.raises(RunError, match="no such folder"):
        folders.open_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"not a run folder: config.yaml and manifest.json missing"):
        folders.open_run(tmp_path)
    (tmp_path / "run" / "config.yaml").write_text("seed: x")
    with pytest.raises(RunError, match="not a run folder of this version"):
        folders.open_run(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps([1]))
    with pytest.raises(RunError, match="expected a JSON object"):
        folders.RunFolder(tmp_path / "run").manifest()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path, config):
    run = folders.create(tmp_path / "run", config)
    run.metrics_file.symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"metrics.jsonl: cannot be written: No space left on device"):
        run.append_metrics({"step": 0})


def test_an_unwritable_folder_is_one_line(config):
    with pytest.raises(RunError, match="cannot be"):
        folders.create("/proc/nowhere/run", config)
