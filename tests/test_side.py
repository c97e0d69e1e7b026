"""Features of a mode: the map's laws against dense linear algebra, and slices that only features speak for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bayestensor.estimators import TensorCompletion
from bayestensor.models import side
from bayestensor.models.compiled import quick_jit
from bayestensor.models.side import Features

Q, P = 9, 3


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def problem():
    rng = np.random.default_rng(0)
    raw, rows = rng.normal(size=(Q, 2)) * [1.0, 30.0] + 5, jnp.asarray(rng.normal(size=(Q, P)))
    standard = np.column_stack([np.ones(Q), (raw - raw.mean(0)) / raw.std(0)])
    return Features.build(raw, Q, 0), standard, rows, jnp.asarray([0.5, 1.0, 3.0])


def test_the_strength_is_the_most_likely_and_what_it_explains_is_the_collapsed_quadratic_form():
    features, standard, rows, d = problem()
    strength, explained = side.pick_strength(jax.random.key(0), features, rows, d, 0.0)
    grid = 3 / side._SHARES

    def covariance(k):
        return np.eye(Q) + standard @ standard.T / k

    log_p = [
        sum(multivariate_normal(np.zeros(Q), covariance(k) / d[p]).logpdf(rows[:, p]) for p in range(P)) for k in grid
    ]
    assert float(strength) == pytest.approx(grid[np.argmax(log_p)])
    left = np.einsum("qp,qs,sp->p", rows, np.linalg.inv(covariance(float(strength))), rows)
    np.testing.assert_allclose((rows**2).sum(0) - explained, left, rtol=1e-8)


def test_maps_are_drawn_from_ridge_regression():
    # 4,000 draws: means to 0.016 sd and variances to 2.2 %; five of these are allowed
    features, standard, rows, d = problem()
    keys = jax.random.split(jax.random.key(1), 4000)
    strength = jnp.asarray(2.0)
    draws = jax.vmap(lambda key: side.mean(features, side.pick_map(key, features, rows, d, strength, 1.0)))(keys)
    inverse = np.linalg.inv(standard.T @ standard + 2.0 * np.eye(3))
    sd = np.sqrt(np.diag(standard @ inverse @ standard.T)[:, None] / np.asarray(d)[None])
    assert np.abs((draws.mean(0) - standard @ inverse @ standard.T @ rows) / sd).max() < 0.08
    assert np.abs(draws.var(0) / sd**2 - 1).max() < 0.11


def test_columns_are_moved_along_their_orbit_by_the_prior():
    # 4,000 draws of log factors against quadrature: means to 0.016 sd and spreads to 1.1 %; five of these are allowed
    energies, sizes = {"a": jnp.asarray([30.0, 2.0]), "b": jnp.asarray([1.0, 50.0])}, {"a": 12, "b": 5}
    keys = jax.random.split(jax.random.key(2), 4000)
    logs = quick_jit(jax.vmap(lambda key: side.rebalance(key, energies, sizes, "a", 1.0)["a"]))(keys)
    t = np.linspace(-6, 6, 40_001)
    for p in range(2):
        log_p = 7 * t - 0.5 * (float(energies["a"][p]) * np.exp(2 * t) + float(energies["b"][p]) * np.exp(-2 * t))
        weight = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
        mean = (weight * t).sum()
        sd = np.sqrt((weight * (t - mean) ** 2).sum())
        assert abs(float(logs[:, p].mean()) - mean) < 0.08 * sd
        assert abs(float(logs[:, p].std()) / sd - 1) < 0.056


BAD = {
    "rows": ({0: np.ones((3, 2))}, "a row of numbers for each of the 5 indices"),
    "nan": ({0: np.full((5, 1), np.nan)}, "not finite"),
    "mode": ({7: np.ones((5, 1))}, "side names modes"),
    "list": ([np.ones((5, 1))], "a mapping mode"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_features_are_named(case):
    given, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        TensorCompletion(side=given).fit(np.ones((5, 4, 3)))


@pytest.mark.slow
def test_features_predict_slices_without_an_observation_and_shuffled_ones_do_not():
    # five of forty slices hidden whole; features say nine tenths of the factor's variance
    rng, shape = np.random.default_rng(0), (40, 8, 7)
    features = rng.normal(size=(40, 3))
    first = features @ rng.normal(size=(3, 2)) / 3**0.5 + 0.3 * rng.normal(size=(40, 2))
    truth = np.einsum("ir,jr,kr->ijk", first, rng.normal(size=(8, 2)), rng.normal(size=(7, 2)))
    holed = truth + 0.1 * rng.normal(size=shape)
    holed[35:] = np.nan
    errors = {}
    for name, given in (("none", None), ("true", features), ("shuffled", features[rng.permutation(40)])):
        fit = TensorCompletion(
            max_rank=4, smooth=(), side=given if given is None else {0: given}, num_draws=40, burn_in=20, random_state=0
        ).fit(holed)
        low, high = fit.predict_interval(0.9)
        assert ((truth >= low) & (truth <= high))[35:].mean() > 0.75
        errors[name] = np.linalg.norm((fit.predict() - truth)[35:]) / np.linalg.norm(truth[35:])
    assert errors["true"] < 0.5 < 0.8 < min(errors["none"], errors["shuffled"])
