"""Texts as whole numbers: SNIPS utterances, their intents and slots, and tiny Shakespeare by characters."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bayestensor.data.base import DataError, Dataset
from bayestensor.data.files import ENVIRONMENT, data_folder, retrieve

PADDING, UNKNOWN = 0, 1  # tokens: behind the end of an utterance, and a word that no training utterance has
_WORD = re.compile(r"\w+|[^\w\s]")
SNIPS_MIRROR = "https://raw.githubusercontent.com/sonos/nlu-benchmark/master/2017-06-custom-intent-engines/"
SHAKESPEARE_MIRROR = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SNIPS = {  # intent: sha256 of its training file, and of its test file
    "AddToPlaylist": (
        "fee1b4645352e70ed8a40f1f87c3b53fc3bf75f8ebc82252a22b82c107e75b01",
        "14cc9ee49ae477b1452632a6e835498cf4c32da397b16967c82abb3e50403e83",
    ),
    "BookRestaurant": (
        "7677e82cd6e9a8191f0a4502568c786278c984900b4796d3628e46f1abf73ef4",
        "4f7258ccc768b777b2eb8916532db9aa50dbd058ddf1ffb0dc59218963e7442a",
    ),
    "GetWeather": (
        "86f414b2ad8a993134d85d16e25e5d337beae47cef993c0af2a5f440405c60f6",
        "60c095e193655d6ca92be220fed3926ca25e18cd70c85664145efe25d80993af",
    ),
    "PlayMusic": (
        "901ddbe9781d1fdb8196e789c543f80df3d29ca6e237da64947905adcc0312e4",
        "922212775e26259d5bffeaf79b6048d070ca017d229df00b2cc9800f71c75d20",
    ),
    "RateBook": (
        "bb43e4b74134300d5766f6b420d0357a63402987a225f6dc92c806c9c040ce04",
        "c1f8b4114da0bb5e8afd78a8062766e18b2eabb0e717539598db01b09d04619b",
    ),
    "SearchCreativeWork": (
        "87b3432de48c71c205aa5238b41d9e3f2d70bdfcd0bea2427544fb9e4bd5e5bb",
        "8a5e830eddb185d3e4a9d27ded140a145d04766bdce0e58834676ede32d13e77",
    ),
    "SearchScreeningEvent": (
        "5447e9440c02e2fb08c3ae16b9f58a4d1332b4bc77fd34691402b02aa4399765",
        "81e1445713e03c7c3e615353c5f3fee05f369fe9834100b9b9735900a96b9498",
    ),
}


@dataclass(frozen=True, eq=False)
class Utterances(Dataset):
    """SNIPS: x (n, length) tokens, y (n,) intents, and a slot for every token, all as int32.

    Attributes:
        words: token -> word, "" and "?" for padding and unknown words.
        intents: class -> name.
        slots: slot -> name: "O" outside (and at padding), "B-city" at the first token of a city, "I-city" inside.
        slots_train, slots_test: (n, length).
    """

    words: tuple[str, ...]
    intents: tuple[str, ...]
    slots: tuple[str, ...]
    slots_train: np.ndarray
    slots_test: np.ndarray


@dataclass(frozen=True)
class Characters:
    """A text as int32 indices into `alphabet`, the last tenth of it held apart for testing."""

    alphabet: str
    train: np.ndarray
    test: np.ndarray


def load_snips(data_dir: str | Path | None = None, length: int = 36) -> Utterances:
    """13,784 training and 700 test utterances of seven intents (Coucke et al. 2018, arXiv 1805.10190).

    Words are lower case, punctuation apart. The vocabulary is the training part's, the most frequent first: in a
    tensorized table rare words then share slices of the cores with each other. Utterances of more than `length` tokens
    are cut; one reaches the default.

    Raises:
        DataError: a file is missing, or not the published one.
    """
    intents = tuple(SNIPS)
    parts: dict[str, list] = {"train": [], "test": []}
    for label, (intent, sums) in enumerate(SNIPS.items()):
        names = (f"train_{intent}_full.json", f"validate_{intent}.json")
        for part, name, sha256 in zip(parts, names, sums, strict=True):
            stored = _verified("snips", name, sha256, f"{SNIPS_MIRROR}{intent}/", data_dir)
            encoding = "latin-1" if name == "train_PlayMusic_full.json" else "utf-8"
            parts[part] += [(_tokens(item["data"]), label) for item in json.loads(stored.decode(encoding))[intent]]
    counts = Counter(word for tokens, _ in parts["train"] for word, _ in tokens)
    words = ("", "?", *sorted(counts, key=lambda word: (-counts[word], word)))
    tags = ("O", *sorted({tag for tokens, _ in parts["train"] for _, tag in tokens} - {"O"}))
    (x, slots, y), (x_test, slots_test, y_test) = (_arrays(parts[part], words, tags, length) for part in parts)
    return Utterances(
        "snips", x, y, x_test, y_test, len(intents), float(len(words) - 1), words, intents, tags, slots, slots_test
    )


def load_shakespeare(data_dir: str | Path | None = None) -> Characters:
    """Tiny Shakespeare (Karpathy 2015): 1,003,854 training and 111,540 test characters, 65 distinct.

    Raises:
        DataError: the file is missing, or not the published one.
    """
    stored = _verified("tinyshakespeare", "input.txt", SHAKESPEARE, SHAKESPEARE_MIRROR, data_dir)
    codes = np.frombuffer(stored, np.uint8)
    alphabet, indices = np.unique(codes, return_inverse=True)
    train = len(codes) * 9 // 10
    text = indices.astype(np.int32)
    return Characters("".join(map(chr, alphabet)), text[:train], text[train:])


def _verified(set_name: str, name: str, sha256: str, mirror: str, data_dir: str | Path | None) -> bytes:
    """The bytes of a file in `<dir>/<set>`, `<dir>/text/<set>` or `<dir>`, downloaded where it is missing."""
    folder = data_folder(data_dir)
    places = [folder / set_name / name, folder / "text" / set_name / name, folder / name]
    path = next((place for place in places if place.is_file()), None)
    try:
        stored = (path or retrieve(mirror + name, sha256, folder / set_name)).read_bytes()
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; pooch's wrong checksum is a ValueError
        raise DataError(
            f"{set_name}: {name} is missing or unreadable and not to be downloaded here ({type(error).__name__}); put "
            f"{mirror}{name} into {folder / set_name}, or name another folder by {ENVIRONMENT} or --data-dir"
        ) from error
    if hashlib.sha256(stored).hexdigest() != sha256:
        raise DataError(f"{set_name}: {path} is not the published file, of sha256 {sha256[:12]}...; delete it")
    return stored


def _tokens(pieces: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(word, tag) of each token of an utterance that comes in pieces, some with an entity."""
    found = []
    for piece in pieces:
        entity = piece.get("entity")
        for k, word in enumerate(_WORD.findall(piece["text"].lower())):
            found.append((word, "O" if entity is None else f"{'I' if k else 'B'}-{entity}"))
    return found


def _arrays(items: list, words: tuple[str, ...], tags: tuple[str, ...], length: int) -> tuple[np.ndarray, ...]:
    """Tokens (n, length), slots (n, length) and labels (n,)."""
    number, tag_number = {w: k for k, w in enumerate(words)}, {t: k for k, t in enumerate(tags)}
    x, slots = np.full((len(items), length), PADDING, np.int32), np.zeros((len(items), length), np.int32)
    for row, (tokens, _) in enumerate(items):
        for k, (word, tag) in enumerate(itertools.islice(tokens, length)):
            x[row, k], slots[row, k] = number.get(word, UNKNOWN), tag_number.get(tag, 0)
    return x, slots, np.array([label for _, label in items], np.int32)
