"""Texts from files made here: tokens, slots and vocabulary by hand; damaged and missing files are named."""

from __future__ import annotations

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.data import text
from bayestensor.data.augment import drop_words
from bayestensor.data.base import DataError


def piece(words, entity=None):
    return {"text": words} | ({} if entity is None else {"entity": entity})


TRAIN = {
    "GetWeather": [
        [piece("Will it rain in "), piece("New York", "city"), piece("?")],
        [piece("sunny", "condition"), piece(" it is")],
    ],
    "PlayMusic": [[piece("Play "), piece("café", "song")]],
}
TEST = {
    "GetWeather": [[piece("Rain in "), piece("York", "city")]],
    "PlayMusic": [[piece("Play it, "), piece("Sam", "name")]],
}


@pytest.fixture
def snips(tmp_path, monkeypatch):
    """The set's files with two intents, under their names, and their checksums in the table."""
    sums = {}
    (tmp_path / "text" / "snips").mkdir(parents=True)
    for intent in TRAIN:
        own = []
        for name, part in ((f"train_{intent}_full.json", TRAIN), (f"validate_{intent}.json", TEST)):
            encoding = "latin-1" if name == "train_PlayMusic_full.json" else "utf-8"
            data = json.dumps({intent: [{"data": item} for item in part[intent]]}, ensure_ascii=False).encode(encoding)
            (tmp_path / "text" / "snips" / name).write_bytes(data)
            own.append(hashlib.sha256(data).hexdigest())
        sums[intent] = tuple(own)
    monkeypatch.setattr(text, "SNIPS", sums)
    return tmp_path


def test_utterances_become_tokens_slots_and_intents(snips):
    data = text.load_snips(snips, length=6)
    assert data.intents == ("GetWeather", "PlayMusic") and data.num_classes == 2
    assert data.words[:3] == ("", "?", "it") and set(data.words[2:]) == set(
        ["will", "it", "rain", "in", "new", "york", "?", "sunny", "is", "play", "café"]
    )
    assert data.slots == ("O", "B-city", "B-condition", "B-song", "I-city")
    told = [[data.words[k] for k in row] for row in data.x_train]
    assert told == [
        ["will", "it", "rain", "in", "new", "york"],  # cut after six
        ["sunny", "it", "is", "", "", ""],
        ["play", "café", "", "", "", ""],
    ]
    slots = [[data.slots[k] for k in row] for row in data.slots_train]
    assert slots[0] == ["O", "O", "O", "O", "B-city", "I-city"] and slots[1][:2] == ["B-condition", "O"]
    assert data.y_train.tolist() == [0, 0, 1] and data.y_test.tolist() == [0, 1]
    assert [data.words[k] for k in data.x_test[0]] == ["rain", "in", "york", "", "", ""]
    assert data.x_test[1].tolist()[2:5] == [1, 1, 0]  # a comma and Sam are unknown
    assert data.slots_test[1].max() == 0  # so is the slot
    assert data.x_train.dtype == data.slots_train.dtype == data.y_train.dtype == np.int32


def test_shakespeare_is_indices_into_its_alphabet(tmp_path, monkeypatch):
    stored = b"To be, or not to be!\n"
    (tmp_path / "input.txt").write_bytes(stored)
    monkeypatch.setattr(text, "SHAKESPEARE", hashlib.sha256(stored).hexdigest())
    found = text.load_shakespeare(tmp_path)
    assert len(found.train) == 18 and len(found.test) == 3
    assert "".join(found.alphabet[k] for k in [*found.train, *found.test]).encode() == stored


def test_files_that_are_not_the_published_ones_are_refused(snips, tmp_path):
    path = snips / "text" / "snips" / "validate_PlayMusic.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"snips: .*validate_PlayMusic.json is not the published file"):
        text.load_snips(snips)


def test_files_that_are_missing_are_named(tmp_path, monkeypatch):
    def offline(url, sha256, into):
        raise OSError("no network")

    monkeypatch.setattr(text, "retrieve", offline)
    with pytest.raises(DataError, match=r"tinyshakespeare: input.txt is missing .* put https://\S+input.txt into"):
        text.load_shakespeare(tmp_path)


def test_rare_words_are_dropped_more_often_than_frequent_ones():
    """Words seen 1, 4 and 100 times, 4,000 tokens each, at alpha 1: shares 1/2, 1/5, 1/101 within 5 standard errors (0.04,
    0.032, 0.008), which chance misses once in 500,000 runs. Those at the default alpha (1/5, 1/17, 1/401) are further off
    for the first two."""
    counts = jnp.asarray([7.0, 0.0, 1.0, 4.0, 100.0])
    tokens = jnp.tile(jnp.asarray([0, 2, 3, 4], jnp.int32), (4000, 1))
    seen = np.asarray(jax.jit(drop_words)(jax.random.key(0), tokens, counts, 1.0))
    assert (seen[:, 0] == text.PADDING).all()
    assert ((seen == tokens) | (seen == text.UNKNOWN)).all()
    shares = (seen[:, 1:] == text.UNKNOWN).mean(0)
    expected = np.array([1 / 2, 1 / 5, 1 / 101])
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)).all()
