"""DLRM against a dense twin in NumPy; Criteo's format by hand; made-up clicks by what is known of them."""

from __future__ import annotations

import gzip
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import roc_auc_score

import bayestensor as bt
from bayestensor.data.base import DataError
from bayestensor.data.clicks import read_clicks, simulate_clicks
from bayestensor.models.dlrm import DLRM, dlrm
from bayestensor.models.likelihoods import Bernoulli
from bayestensor.models.neural import NeuralModel
from bayestensor.nn.embedding import Embed
from bayestensor.priors import LogUniform
from bayestensor.tensor.contract import matrix

pytestmark = pytest.mark.promoting  # Flax relies on promotion
SIZES = (40, 6, 30)
X = np.stack(
    [np.array([0, 3, -2, 900]), np.array([5, 0, 7, 1]), *(np.array([0, s // 2, s - 1, 1]) for s in SIZES)], axis=1
).astype(np.int32)


def small(format="tt_matrix"):
    return dlrm(2, SIZES, 4, bottom=(5,), top=(7,), format=format, rank=2, least=20, rngs=nnx.Rngs(0))


def by_hand(model, x):
    """The docstring's equation, datum by datum."""
    tables = [matrix(t.embedding.tensor) if isinstance(t, Embed) else t.embedding[...] for t in model.tables]
    relu = lambda z: np.maximum(z, 0)  # noqa: E731
    layer = lambda l, z: z @ np.asarray(l.kernel[...]) + np.asarray(l.bias[...])  # noqa: E731, E741
    out = []
    for row in x:
        first = layer(model.bottom.layers[1], relu(layer(model.bottom.layers[0], np.log1p(np.maximum(row[:2], 0)))))
        z = [first, *(np.asarray(table)[c] for table, c in zip(tables, row[2:], strict=True))]
        pairs = {(i, j): z[i] @ z[j] for j, i in combinations(range(len(z)), 2)}
        inputs = np.concatenate([first, [pairs[i, j] for i in range(len(z)) for j in range(i)]])
        out.append(layer(model.top.layers[1], relu(layer(model.top.layers[0], inputs)))[0])
    return np.array(out)


@pytest.mark.parametrize("format", ["tt_matrix", "tensor_train", "cp", "dense"])
def test_log_odds_are_those_of_the_equation(format):
    model = small(format)
    assert [isinstance(table, Embed) for table in model.tables] == [format != "dense", False, format != "dense"]
    graphdef, state = nnx.split(model)
    found = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, X)
    np.testing.assert_allclose(found, by_hand(model, X), rtol=1e-4, atol=1e-5)


def test_the_likelihood_is_that_of_a_coin():
    odds, y = jnp.asarray([-2.0, 0.0, 3.0, 3.0]), jnp.asarray([0, 1, 1, 0])
    p = 1 / (1 + np.exp(-np.asarray(odds)))
    expected = np.log(np.where(np.asarray(y) == 1, p, 1 - p))
    np.testing.assert_allclose(Bernoulli().log_prob({}, odds, y), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"targets have shape \(4, 1\)"):
        Bernoulli().log_prob({}, odds, y[:, None])


def test_parts_that_do_not_fit_are_refused():
    model = small()
    with pytest.raises(ValueError, match=r"the top takes 10 and gives 1; 4 features and the pairs of 2 tables ask for"):
        DLRM(model.bottom, list(model.tables)[:2], model.top)
    with pytest.raises(ValueError, match="table 1 has 3 features and the bottom gives 4"):
        DLRM(model.bottom, [model.tables[0], nnx.Embed(6, 3, rngs=nnx.Rngs(0))], model.top)
    with pytest.raises(ValueError, match=r"x has shape \(4, 4\); 2 counts and 3 categories a row"):
        model(X[:, 1:])


# --- Criteo's format ----------------------------------------------------------------------------------------

LINE = "\t".join(["1", "5", "-1", *[""] * 10, "2147483647", "05db9164", "", *["ffffffff"] * 24])


@pytest.mark.parametrize("packed", [False, True])
def test_lines_become_counts_and_rows(tmp_path, packed):
    path = tmp_path / ("day_0.gz" if packed else "train.txt")
    text = f"{LINE}\n0{LINE[1:]}\r\n".encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    data = read_clicks(path, [1000] * 25 + [2])
    assert data.y.tolist() == [1, 0] and data.x.dtype == np.int32
    assert data.x[0, :13].tolist() == [5, -1, *[0] * 10, 2147483647]
    assert data.x[0, 13:].tolist() == [1 + 0x05DB9164 % 999, 0, *[1 + 0xFFFFFFFF % 999] * 23, 1]
    assert len(read_clicks(path, 1000, most=1).x) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.replace("\t", ",", 1), r"line 2: 39 fields; expected 40"),
        ("2" + LINE[1:], r"line 2: label '2'; expected 0 or 1"),
        (LINE.replace("-1", "2.5"), r"line 2: number 2 is '2.5'; expected a whole number"),
        (LINE.replace("2147483647", "2147483648"), r"line 2: number 13 is 2147483648; expected one of at most 31 bits"),
        (LINE.replace("05db9164", "05dg9164"), r"line 2: category 1 is '05dg9164'; expected hexadecimal"),
    ],
)
def test_a_malformed_line_is_told_by_its_number(tmp_path, line, message):
    path = tmp_path / "train.txt"
    path.write_text(f"{LINE}\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_clicks(path, 100)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "cut.gz").write_bytes(gzip.compress(f"{LINE}\n".encode())[:-9])
    (tmp_path / "no.gz").write_text(LINE)
    for name, reason in (("empty.txt", "no line"), ("cut.gz", "cannot"), ("no.gz", "cannot"), ("none.txt", "cannot")):
        with pytest.raises(DataError, match=rf"{name} .*{reason}|{name} has {reason}"):
            read_clicks(tmp_path / name, 100)
    with pytest.raises(ValueError, match="26 whole numbers"):
        read_clicks(tmp_path / "none.txt", [100] * 25)


# --- made-up clicks -----------------------------------------------------------------------------------------


def test_made_up_clicks_are_of_the_shape_asked_for():
    """9,000 of 20,000 draws of Zipf's law over 100 rows fall on the first 6 of them, within 3 sd (210) at 5e-3."""
    data = simulate_clicks(20_000, [(5, 20)] * 3, seed=1)
    again = simulate_clicks(20_000, [(5, 20)] * 3, seed=1)
    np.testing.assert_array_equal(data.x, again.x)
    assert (
        data.x.shape == (20_000, 16) and data.sizes == (100,) * 3 and data.x.min() >= 0 and data.x[:, 13:].max() < 100
    )
    share = np.sort(np.bincount(data.x[:, 13], minlength=100))[::-1][:6].sum() / 20_000
    assert abs(share - (1 / np.arange(1, 7)).sum() / (1 / np.arange(1, 101)).sum()) < 0.015
    assert 0.2 < data.y.mean() < 0.45  # mean sigmoid of N(-1, 2^2) is 0.34; the log odds are not normal


@pytest.mark.slow
def test_ranks_fall_to_those_of_the_truth():
    """Tables of true rank 2 begin at 6 (the last bond, to 2 features, at 2). Seed 0 ends at a mean of 2.2, and at the
    full 4 without the prior's weight; AUC by chance is 0.5, by the true odds 0.859."""
    data = simulate_clicks(30_000, [(16, 16)] * 4, rank=2, seed=0, signal=3.0)
    model = dlrm(13, data.sizes, 4, format="tensor_train", rank=6, order=2, least=100, rngs=nnx.Rngs(0))
    x, y, x_test, y_test = data.x[:25_000], data.y[:25_000], data.x[25_000:], data.y[25_000:]
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, 1200))
    fit = bt.fit_map(
        model, x, y, likelihood=Bernoulli(), optimizer=adam, epochs=12, batch_size=250, ramp_epochs=4
    ).prune(bt.norm_lost(0.05))
    ranks = [rank for bonds in fit.ranks.values() for rank in bonds.values()]
    assert len(ranks) == 12 and max(ranks) <= 4 and np.mean(ranks) < 3
    assert roc_auc_score(y_test, data.odds[25_000:]) - roc_auc_score(y_test, np.asarray(fit.predict(x_test))) < 0.06


def test_tables_have_priors_and_can_be_cut():
    model = NeuralModel(small(), LogUniform(), Bernoulli())
    assert set(model.kernels) == {"tables.0.embedding", "tables.2.embedding"}
