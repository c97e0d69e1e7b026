"""CIFAR-10 from its binary version."""

from __future__ import annotations

import hashlib
import lzma
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bayestensor.data.base import DataError, Dataset
from bayestensor.data.files import ENVIRONMENT, data_folder

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
RECORD = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane
FILES = {  # sha256 of each .bin
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}


def load_cifar10(data_dir: str | Path | None = None) -> Dataset:
    """50,000 and 10,000 images of 32 x 32 x 3 bytes in ten classes (Krizhevsky 2009), from .bin or .bin.xz files.

    Raises:
        DataError: a file is missing, or not the published one.
    """
    folder = data_folder(data_dir)
    with ThreadPoolExecutor() as pool:  # lzma and hashlib let go of the interpreter lock
        parts = list(pool.map(lambda name: _batch(name, FILES[name], folder), FILES))
    x, y = (np.concatenate([part[k] for part in parts[:-1]]) for k in range(2))
    return Dataset("cifar10", x, y, *parts[-1], num_classes=10, highest=255.0)


def _batch(name: str, sha256: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(images (n, 32, 32, 3), labels (n,)) of one file."""
    within = (folder / "cifar-10" / FOLDER, folder / "cifar10" / FOLDER, folder / FOLDER, folder)
    places = [place / (name + end) for place in within for end in (".bin", ".bin.xz")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError(
            f"cifar10: {name}.bin is missing; unpack {SOURCE} in {folder / 'cifar-10'}, or name another folder by "
            f"{ENVIRONMENT} or --data-dir"
        )
    try:
        plain = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    except (OSError, lzma.LZMAError) as error:
        raise DataError(f"cifar10: {path} cannot be read ({error})") from error
    if hashlib.sha256(plain).hexdigest() != sha256:
        raise DataError(
            f"cifar10: {path} is damaged: {len(plain)} bytes, of a sha256 that is not {sha256[:12]}...; "
            f"take it from {SOURCE}"
        )
    records = np.frombuffer(plain, np.uint8).reshape(-1, RECORD)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int32)
