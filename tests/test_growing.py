"""Starts and births: subspaces of sparse tensors, components the residual asks for, components that repeat another."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.estimators import TensorCompletion, growing
from bayestensor.estimators.counting import seen_noise, standing_out
from bayestensor.estimators.fitting import default_sweeps
from bayestensor.estimators.growing import _newborns, free_places, grow, with_component
from bayestensor.estimators.inputs import Observed, read
from bayestensor.estimators.networks import default_network
from bayestensor.estimators.spectral import compressed
from bayestensor.estimators.starting import repeated, settle
from bayestensor.models.conjugate import Conjugate, sweeps
from bayestensor.models.state import GIBBS, MAP, VARIATIONAL
from bayestensor.priors import InverseGamma
from bayestensor.tensor.contract import dense
from bayestensor.tensor.formats import FORMATS, cp
from bayestensor.tensor.network import Factored
from bayestensor.tensor.observations import Entries, Grid

SHAPE, NOISE = (12, 10, 8), 0.1


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def factors(shape, rank, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, rank)) for n in shape], rng


def known_factors(rank, columns, seed=0):
    """(model of a rank, state from some columns of the truth and zeros, data, observed, values): half is hidden."""
    whole, rng = factors(SHAPE, 3, seed)
    noisy = np.einsum("ir,jr,kr->ijk", *whole) + NOISE * rng.normal(size=SHAPE)
    given = read(np.where(rng.random(SHAPE) < 0.5, noisy, np.nan))
    model = Conjugate(cp(SHAPE, rank=rank), InverseGamma(1.0, 0.01), 1.0)
    start = {f"factor{k}": np.pad(f[:, columns], ((0, 0), (0, rank - len(columns)))) for k, f in enumerate(whole)}
    data = Grid.build(*given.arrays(given.values))
    return model, model.start(start, 1 / NOISE**2), data, given, given.values


def living(model, state, given):
    noise = float(seen_noise(model.network, state.precision, len(given.values)))
    return int((standing_out(model.network, state.cores, noise)["rank"] > 0).sum())


@pytest.mark.parametrize("rank", [2, 3], ids=["all live", "one dead"])
def test_a_component_that_the_start_lacks_is_born(rank):
    model, state, data, given, values = known_factors(rank, [0, 2])
    state = settle(model, state, data, 10, VARIATIONAL, np.random.default_rng(1))
    assert living(model, state, given) == 2
    model, state = grow(model, state, data, given, values, 20, True, np.random.default_rng(0))
    assert living(model, state, given) == 3
    assert model.network.ranks == {"rank": 3}
    assert float(state.precision) ** -0.5 == pytest.approx(NOISE, rel=0.2)  # 480 entries less 90 numbers


def test_no_component_is_born_of_noise():
    # the root of what the best rank-one fit to noise explains is 0.7 to 0.95 of its bound, and 1.1 of that is asked for
    model, state, _, given, values = known_factors(3, [0, 1, 2])
    assert _newborns(model, state, given, values, free_places(model, state, len(values), True)) == []


@pytest.mark.parametrize("format", ["tucker", "tensor_train"])
def test_a_component_is_born_in_any_format(format):
    """The start has two of three rank-one terms, as two indices of each bond; the third is dead."""
    model, _, data, given, values = known_factors(3, [0, 2])
    whole, _ = factors(SHAPE, 3, 0)
    model = replace(model, network=FORMATS[format](SHAPE, rank=3))
    shapes = {c.name: model.network.core_shape(c.name) for c in model.network.cores}
    state = model.start({name: np.zeros(shape) for name, shape in shapes.items()}, 1 / NOISE**2)
    for k, column in enumerate((0, 2)):
        places = dict.fromkeys(model.network.bonds, k)
        model, state = with_component(model, state, [f[:, column] for f in whole], places)
    np.testing.assert_allclose(
        dense(Factored(model.network, state.cores)),
        np.einsum("ir,jr,kr->ijk", *(f[:, [0, 2]] for f in whole)),
        atol=1e-9,
    )
    state = settle(model, state, data, 10, VARIATIONAL, np.random.default_rng(1))
    before = float(state.precision)
    model, state = grow(model, state, data, given, values, 20, True, np.random.default_rng(0))
    assert before**-0.5 > 3 * NOISE and float(state.precision) ** -0.5 == pytest.approx(NOISE, rel=0.2)
    assert set(model.network.ranks.values()) == {3}


def test_a_newborn_is_the_columns_given_and_changes_nothing_else():
    model, state, *_ = known_factors(2, [0, 1])
    columns = factors(SHAPE, 1, 5)[0]
    larger, grown = with_component(model, state, [c[:, 0] for c in columns], {"rank": 2})
    old, new = ([np.asarray(s.cores[f"factor{k}"]) for k in range(3)] for s in (state, grown))
    assert larger.network.ranks == {"rank": 3}
    assert all((b[:, :2] == a).all() for a, b in zip(old, new, strict=True))
    np.testing.assert_allclose(
        np.einsum("i,j,k->ijk", *(f[:, 2] for f in new)), np.einsum("ir,jr,kr->ijk", *columns), rtol=1e-10
    )
    assert {k: v.shape[1:] for k, v in grown.covariances.items()} == dict.fromkeys(state.covariances, (3, 3))


@pytest.mark.parametrize("angle", [0.3, np.pi / 2], ids=["split", "apart"])
def test_what_repeats_a_stronger_component_is_named(angle):
    model, state, _, given, _ = known_factors(3, [0, 1])
    cores = {}
    for k, (name, core) in enumerate(state.cores.items()):  # the third is half the first, turned by an angle
        first = np.asarray(core)[:, 0]
        aside = np.random.default_rng(k).normal(size=len(first))
        aside -= first * (aside @ first) / (first @ first)
        turned = np.cos(angle) * first + np.sin(angle) * aside * np.linalg.norm(first) / np.linalg.norm(aside)
        cores[name] = jnp.asarray(core).at[:, 2].set(jnp.asarray(0.8 * turned))
    found = repeated(model, state._replace(cores=cores), len(given.values))
    assert found.tolist() == [False, False, angle < 1]


@pytest.mark.parametrize("shuffled", [False, True])
def test_subspaces_of_few_entries(shuffled):
    # 10,000 of 192,000 entries, 10 dB: cosines of 0.80 and more in every mode; of shuffled values 0.2 and less
    shape, rank = (80, 60, 40), 2
    whole, rng = factors(shape, rank, 3)
    flat = rng.choice(np.prod(shape), 10_000, replace=False)
    coords = np.stack(np.unravel_index(flat, shape), axis=1)
    x = np.prod([f[coords[:, k]] for k, f in enumerate(whole)], axis=0).sum(1)
    y = x + 0.3 * x.std() * rng.normal(size=len(x))
    small = compressed(coords, rng.permutation(y) if shuffled else y, shape, [rank] * 3)
    for basis, factor in zip(small.bases, whole, strict=True):
        cosines = np.linalg.svd(np.linalg.qr(factor)[0].T @ np.linalg.qr(basis)[0])[1]
        assert (cosines.max() < 0.5) if shuffled else (cosines.min() > 0.7)


def test_a_sweep_without_covariances_is_one_with_none_that_count():
    model, state, _, given, values = known_factors(3, [0, 1, 2])
    data = Entries.build(model.network, given.coords, values)
    state = state._replace(covariances={k: jnp.zeros_like(v) for k, v in state.covariances.items()})
    for how in (GIBBS, MAP):
        chance = model.chance(np.random.default_rng(1), 1, len(values), how is GIBBS)
        full, plain = (
            sweeps(model, chance, start, data, how, np.zeros(1, bool))[0]
            for start in (state, state._replace(covariances={}))
        )
        assert plain.covariances == {}
        for a, b in zip(jax.tree.leaves(full._replace(covariances={})), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8)


@pytest.mark.slow
def test_a_long_list_starts_from_its_spectrum_and_finds_the_rank(monkeypatch):
    # 40,000 of 3 million entries, 10 dB, 1,800 numbers: sd of the error 0.07 of the tensor's
    monkeypatch.setattr(growing, "_TOO_DEAR", 0.0)
    shape, rank = (200, 150, 100), 4
    whole, rng = factors(shape, rank, 1)
    coords = np.stack(np.unravel_index(rng.choice(np.prod(shape), 41_000, replace=False), shape), axis=1)
    x = np.prod([f[coords[:, k]] for k, f in enumerate(whole)], axis=0).sum(1)
    y = x + x.std() / 10**0.5 * rng.normal(size=len(x))
    shown, held = slice(0, 40_000), slice(40_000, None)
    model = TensorCompletion(max_rank=8, smooth=(), num_draws=20, burn_in=10, warm_up=20, chains=2, random_state=0)
    model.fit(coords[shown], y[shown], shape)
    assert model.rank_ == rank and len(np.unique(model.draws_.stats["noise"])) == 20  # two chains, no draw shared
    assert np.linalg.norm(model.predict(coords[held]) - x[held]) < 0.12 * np.linalg.norm(x[held])


@pytest.mark.parametrize(("entries", "sweeps"), [(10**6, (100, 60)), (2 * 10**6, (50, 30)), (10**8, (16, 6))])
def test_lists_above_a_million_entries_get_fewer_sweeps(entries, sweeps):
    values = np.broadcast_to(0.0, entries)
    assert default_sweeps(Observed((10**4, 10**4, 10**3), values, values)) == sweeps


def test_a_ring_of_default_ranks_is_closed():
    assert default_network("tensor_ring", (9, 8, 7), 504, "auto").ranks == {"b0": 4, "b1": 4, "b2": 4}  # 24 r^2 <= 504
