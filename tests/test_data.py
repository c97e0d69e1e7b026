"""Loaders on tiny idx files with their own checksum table: every way a file can be wrong, splits, scaling."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from bayestensor import data
from bayestensor.data import files, images
from bayestensor.data.base import DataError

SHAPES = {"x_train": (12, 3, 3), "y_train": (12,), "x_test": (5, 3, 3), "y_test": (5,)}
RNG = np.random.default_rng(0)
ARRAYS = {role: RNG.integers(0, 10, shape, dtype=np.uint8) for role, shape in SHAPES.items()}


def idx_bytes(array):
    """Written out by hand from the format's description."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\x00\x00\x08" + bytes([array.ndim]) + sizes + array.tobytes()


PLAIN = {role: idx_bytes(array) for role, array in ARRAYS.items()}
PACKED = {role: gzip.compress(plain, mtime=0) for role, plain in PLAIN.items()}
TABLE = {
    role: files.IdxFile(
        images.MNIST[role].name,
        SHAPES[role],
        hashlib.sha256(PACKED[role]).hexdigest(),
        hashlib.sha256(PLAIN[role]).hexdigest(),
    )
    for role in SHAPES
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(images, "MNIST", TABLE)
    monkeypatch.delenv(files.ENVIRONMENT, raising=False)

    def no_network(url, sha256, into):
        raise OSError(f"name resolution of {url} failed\nsecond line")

    monkeypatch.setattr(files, "retrieve", no_network)


def write(folder, packed=True, **replaced):
    folder.mkdir(parents=True, exist_ok=True)
    for role, content in (PACKED if packed else PLAIN).items():
        content = replaced.get(role, content)
        if content is not None:
            (folder / (TABLE[role].name + (".gz" if packed else ""))).write_bytes(content)


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


# --- reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("packed", "nested"), list(product([True, False], [True, False])))
def test_reads_both_layouts_plain_and_gz(tmp_path, packed, nested):
    write(tmp_path / "mnist" if nested else tmp_path, packed)
    loaded = data.load_dataset("mnist", tmp_path)
    for role, array in ARRAYS.items():
        np.testing.assert_array_equal(getattr(loaded, role), array)
    assert loaded.input_shape == (3, 3)
    assert loaded.y_train.dtype == np.int32


def test_folder_comes_from_the_argument_then_the_environment(tmp_path, monkeypatch):
    write(tmp_path / "there")
    monkeypatch.setenv(files.ENVIRONMENT, str(tmp_path / "there"))
    assert data.load_dataset("mnist").name == "mnist"
    with pytest.raises(DataError, match="missing"):
        data.load_dataset("mnist", tmp_path / "elsewhere")


def test_a_gz_packed_by_someone_else_is_as_good(tmp_path):
    write(tmp_path, x_train=gzip.compress(PLAIN["x_train"], compresslevel=1, mtime=77))
    np.testing.assert_array_equal(data.load_dataset("mnist", tmp_path).x_train, ARRAYS["x_train"])


def test_fashion_mnist_has_a_folder_and_a_table_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FASHION_MNIST", TABLE)
    write(tmp_path / "fashion-mnist")
    assert data.load_dataset("fashion_mnist", tmp_path).name == "fashion_mnist"
    with pytest.raises(DataError, match="missing"):
        data.load_dataset("mnist", tmp_path)


def flipped(content, at=-20):
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


PLAIN_X = PLAIN["x_train"]
DAMAGE = {
    "truncated gz": (True, PACKED["x_train"][:-30], "cut off"),
    "empty gz": (True, b"", "cut off"),
    "no gz at all": (True, PLAIN_X, "not a sound gzip"),
    "a web page": (True, b"<html>404 Not Found</html>", "not a sound gzip"),
    "bit flip in gz": (True, flipped(PACKED["x_train"]), "not a sound gzip|wrong in content"),
    "wrong magic in gz": (True, gzip.compress(b"\x00\x00\x0d" + PLAIN_X[3:]), "magic number 00000d03"),
    "bomb": (True, gzip.compress(PLAIN_X + bytes(10**7)), r"bytes or more where|or more"),
    "other images": (True, gzip.compress(flipped(PLAIN_X)), "wrong in content"),
    "labels for images": (True, PACKED["y_train"], "magic number 00000801"),
    "truncated plain": (False, PLAIN_X[:-1], f"{len(PLAIN_X) - 1} bytes where {len(PLAIN_X)}"),
    "truncated header": (False, PLAIN_X[:9], "its header says"),
    "empty plain": (False, b"", "magic number missing"),
    "too long": (False, PLAIN_X + b"\x00", "or more"),
    "bit flip in plain": (False, flipped(PLAIN_X), "wrong in content"),
    "bit flip in sizes": (False, flipped(PLAIN_X, 7), r"its header says \(13, 3, 3\) where \(12, 3, 3\)"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line(tmp_path, name):
    packed, content, reason = DAMAGE[name]
    write(tmp_path, packed, x_train=content)
    with pytest.raises(DataError, match=reason) as error:
        data.load_dataset("mnist", tmp_path)
    message = one_line(error)
    assert str(tmp_path / TABLE["x_train"].name) in message
    assert "expected" in message
    assert "delete it" in message


def test_every_single_bit_flip_of_a_small_file_is_refused(tmp_path):
    # in the plain form; a flip in a gzip header that leaves the content alone is let through
    for at in range(len(PLAIN["y_test"])):
        write(tmp_path, packed=False, y_test=flipped(PLAIN["y_test"], at))
        with pytest.raises(DataError):
            data.load_dataset("mnist", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    write(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        data.load_dataset("mnist", tmp_path)


# --- downloading -----------------------------------------------------------------------------------------------


def test_no_network_says_which_files_to_put_where(tmp_path):
    write(tmp_path / "mnist", x_train=None, y_test=None)
    with pytest.raises(DataError) as error:
        data.load_dataset("mnist", tmp_path)
    message = one_line(error)
    assert "train-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz" in message
    assert "train-labels" not in message
    assert str(tmp_path / "mnist") in message
    assert files.ENVIRONMENT in message


def test_only_what_is_missing_is_downloaded_and_it_is_verified(tmp_path, monkeypatch):
    asked = []

    def network(url, sha256, into):
        asked.append(url)
        assert sha256 == TABLE["x_test"].sha256_gz
        into.mkdir(exist_ok=True)
        (into / url.rsplit("/", 1)[1]).write_bytes(PACKED["x_test"])
        return into / url.rsplit("/", 1)[1]

    monkeypatch.setattr(files, "retrieve", network)
    write(tmp_path, x_test=None)
    np.testing.assert_array_equal(data.load_dataset("mnist", tmp_path).x_test, ARRAYS["x_test"])
    assert asked == [images.MNIST_MIRROR + "t10k-images-idx3-ubyte.gz"]


def test_retrieve_checks_and_moves_into_place(tmp_path, monkeypatch):
    import pooch

    monkeypatch.undo()

    def serve(self, url, output_file, pooch, check_only=False):
        from pathlib import Path

        Path(output_file).write_bytes(PACKED["x_test"])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", serve)
    path = files.retrieve("https://example.org/a.gz", TABLE["x_test"].sha256_gz, tmp_path / "set")
    assert path == tmp_path / "set" / "a.gz"
    assert path.read_bytes() == PACKED["x_test"]
    with pytest.raises(ValueError, match="does not match"):
        files.retrieve("https://example.org/b.gz", TABLE["x_train"].sha256_gz, tmp_path / "set")
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["a.gz"]


# --- the sets --------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    ours, theirs = data.load_dataset("digits"), load_digits()
    assert (len(ours.x_train), len(ours.x_test)) == (1437, 360)
    pairs = {(x.tobytes(), int(y)) for x, y in zip(theirs.images.astype(np.uint8), theirs.target, strict=True)}
    both = zip(np.concatenate([ours.x_train, ours.x_test]), np.concatenate([ours.y_train, ours.y_test]), strict=True)
    assert {(x.tobytes(), int(y)) for x, y in both} == pairs
    assert (np.bincount(ours.y_test) >= 34).all()
    np.testing.assert_array_equal(data.load_dataset("digits").y_test, ours.y_test)


def test_loading_digits_imports_neither_jax_nor_scikit_learn():
    # a first training step has two seconds: a second of them would go to sklearn.datasets
    script = (
        "import sys; from bayestensor import data; data.load_dataset('digits'); print({*sys.argv} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "jax", "sklearn", "pooch"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_unknown_set_lists_the_known():
    with pytest.raises(ValueError, match="no data set 'cifar'; there are digits, mnist, fashion_mnist"):
        data.load_dataset("cifar")


REAL, PUBLISHED = os.environ.get(files.ENVIRONMENT), images.MNIST  # read before the fixture hides them


@pytest.mark.skipif(not REAL, reason=f"{files.ENVIRONMENT} is not set")
@pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1307), ("fashion_mnist", 0.2860)])
def test_real_files(monkeypatch, name, mean):
    monkeypatch.setattr(images, "MNIST", PUBLISHED)
    loaded = data.load_dataset(name, REAL)
    assert loaded.x_train.shape == (60000, 28, 28)
    assert loaded.x_test.shape == (10000, 28, 28)
    assert (np.unique(loaded.y_test) == np.arange(10)).all()
    assert loaded.x_train.mean() / 255 == pytest.approx(mean, abs=1e-4)  # the mean everybody quotes


# --- scaling and splits ----------------------------------------------------------------------------------------


def bytes_set(n=3000, classes=7):
    x = RNG.integers(0, 256, (n, 4, 2), dtype=np.uint8)
    x[0, 0] = 0, 255
    y = RNG.choice(classes, n, p=np.arange(1, classes + 1) / 28).astype(np.int32)
    return data.Dataset("t", x, y, x[:50] // 2, y[:50], num_classes=classes, highest=255.0)


def test_scalings():
    raw = bytes_set()
    for how, expected in {
        "unit": lambda x: x / 255,
        "signed": lambda x: x / 127.5 - 1,
        "standard": lambda x: (x - raw.x_train.mean()) / raw.x_train.std(),
    }.items():
        out = data.scaled(raw, how)
        assert out.x_train.dtype == out.x_test.dtype == np.float32
        np.testing.assert_allclose(out.x_train, expected(raw.x_train.astype(float)), atol=1e-6)
        np.testing.assert_allclose(out.x_test, expected(raw.x_test.astype(float)), atol=1e-6)  # training constants
        assert out.y_train is raw.y_train
    assert data.scaled(raw, "unit").x_train.max() == 1.0
    assert data.scaled(raw, "signed").x_train.min() == -1.0


def test_a_constant_set_is_not_divided_by_zero():
    flat = bytes_set()
    flat.x_train[:] = 9
    assert (data.scaled(flat, "standard").x_train == 0).all()


def test_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match="'units'; one of unit, signed, standard"):
        data.scaled(bytes_set(), "units")


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("held_out", [1, 137, 0.2, 2999])
def test_splits_are_a_partition_and_repeat(held_out, stratified):
    labels = bytes_set().y_train
    kept, out = data.split_indices(labels, held_out, seed=3, stratified=stratified)
    assert len(out) == (600 if held_out == 0.2 else held_out)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, out])), np.arange(3000))  # none twice, none lost
    np.testing.assert_array_equal(out, data.split_indices(labels, held_out, seed=3, stratified=stratified)[1])
    if 1 < held_out < 2999 or held_out == 0.2:
        assert not np.array_equal(out, data.split_indices(labels, held_out, seed=4, stratified=stratified)[1])


def test_stratified_splits_give_each_class_its_share():
    labels = bytes_set().y_train
    _, out = data.split_indices(labels, 300, seed=0)
    assert (np.abs(np.bincount(labels[out]) - np.bincount(labels) / 10) < 1).all()
    _, loose = data.split_indices(labels, 300, seed=0, stratified=False)
    assert (np.abs(np.bincount(labels[loose]) - np.bincount(labels) / 10) >= 1).any()


def test_hold_out_never_touches_the_test_part():
    raw = bytes_set()
    part = data.hold_out(raw, 500, seed=1)
    kept, out = data.split_indices(raw.y_train, 500, seed=1)
    np.testing.assert_array_equal(part.x_train, raw.x_train[kept])
    np.testing.assert_array_equal(part.x_test, raw.x_train[out])
    np.testing.assert_array_equal(part.y_test, raw.y_train[out])
    assert part.name == "t/validation"


@pytest.mark.parametrize("held_out", [0, 3000, -1, 0.0, 1.0, 1e-9, 2.5, float("nan")])
def test_an_empty_part_is_refused(held_out):
    with pytest.raises(ValueError, match=r"held_out is .* of 3000 data"):
        data.split_indices(bytes_set().y_train, held_out)
