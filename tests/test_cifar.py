"""CIFAR-10 from tiny files with their own checksums; augmentation of images with channels."""

from __future__ import annotations

import hashlib
import lzma

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor import data
from bayestensor.data import cifar
from bayestensor.data.augment import flip_images, shift_images

RNG = np.random.default_rng(0)


@pytest.fixture
def few_cifar(tmp_path, monkeypatch):
    """Three records a file; every pixel tells its plane, row and column: 100 plane + 3 row + column."""
    pixels = 100 * np.arange(3)[:, None, None] // 2 + 3 * np.arange(32)[:, None] + np.arange(32)
    records = [bytes([label]) + pixels.astype(np.uint8).tobytes() for label in (7, 0, 9)]
    plain = b"".join(records)
    monkeypatch.setattr(cifar, "FILES", dict.fromkeys(cifar.FILES, hashlib.sha256(plain).hexdigest()))
    for name in cifar.FILES:
        packed = name.endswith(("1", "t_batch"))
        (tmp_path / f"{name}.bin{'.xz' if packed else ''}").write_bytes(lzma.compress(plain) if packed else plain)
    return tmp_path, pixels.astype(np.uint8)


def test_cifar_planes_become_channels(few_cifar):
    folder, pixels = few_cifar
    loaded = data.load_dataset("cifar10", folder)
    assert loaded.x_train.shape == (15, 32, 32, 3) and loaded.x_test.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(loaded.x_test[1, 5, 9], pixels[:, 5, 9])
    assert loaded.y_train.tolist() == [7, 0, 9] * 5


def test_cifar_files_that_are_missing_or_damaged_are_named(few_cifar):
    folder, _ = few_cifar
    path = folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(data.DataError, match=r"data_batch_3.bin is damaged: 9219 bytes"):
        data.load_dataset("cifar10", folder)
    path.unlink()
    with pytest.raises(data.DataError, match=r"data_batch_3.bin is missing"):
        data.load_dataset("cifar10", folder)
    (folder / "data_batch_3.bin.xz").write_bytes(b"no xz at all")
    with pytest.raises(data.DataError, match=r"data_batch_3.bin.xz cannot be read"):
        data.load_dataset("cifar10", folder)


def test_channels_move_together():
    planes = RNG.normal(size=(8, 6, 5, 3)).astype(np.float32)
    moved = shift_images(jax.random.key(0), jnp.asarray(planes), 2)
    for channel in range(3):
        alone = shift_images(jax.random.key(0), jnp.asarray(planes[..., channel]), 2)
        np.testing.assert_array_equal(moved[..., channel], alone)
    assert (np.asarray(moved) != planes).any()


def test_about_half_of_the_images_are_mirrored_whole():
    """Of 400 fair coins, 200 within 5 sd (50) but for 6e-7: a coin of 0.63 or 0.37 is caught with probability 0.5."""
    images = RNG.normal(size=(400, 3, 4, 2)).astype(np.float32)
    flipped = np.asarray(flip_images(jax.random.key(0), jnp.asarray(images)))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(flipped[~mirrored], images[~mirrored])
    assert abs(mirrored.sum() - 200) < 50
