"""MNIST and Fashion-MNIST from the original idx files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bayestensor.data.base import Dataset
from bayestensor.data.files import IdxFile, read_files

MNIST_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


def _files(*sums: str) -> dict[str, IdxFile]:
    names = {
        "x_train": ("train-images-idx3-ubyte", (60000, 28, 28)),
        "y_train": ("train-labels-idx1-ubyte", (60000,)),
        "x_test": ("t10k-images-idx3-ubyte", (10000, 28, 28)),
        "y_test": ("t10k-labels-idx1-ubyte", (10000,)),
    }
    pairs = zip(sums[::2], sums[1::2], strict=True)
    return {role: IdxFile(*named, *pair) for (role, named), pair in zip(names.items(), pairs, strict=True)}


# a file a pair of lines: the .gz as published, then unpacked
MNIST = _files(
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
FASHION_MNIST = _files(
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)


def load_mnist(data_dir: str | Path | None = None) -> Dataset:
    """60,000 and 10,000 handwritten digits of 28 x 28 bytes (LeCun, Cortes, Burges)."""
    return _load("mnist", MNIST, MNIST_MIRROR, data_dir)


def load_fashion_mnist(data_dir: str | Path | None = None) -> Dataset:
    """60,000 and 10,000 articles of clothing of 28 x 28 bytes (Xiao, Rasul, Vollgraf, arXiv:1708.07747)."""
    return _load("fashion_mnist", FASHION_MNIST, FASHION_MIRROR, data_dir)


def _load(name: str, files: dict[str, IdxFile], mirror: str, data_dir: str | Path | None) -> Dataset:
    arrays = read_files(name, files, mirror, data_dir)
    labels = {role: arrays[role].astype(np.int32) for role in ("y_train", "y_test")}
    return Dataset(name, **(arrays | labels), num_classes=10, highest=255.0)
