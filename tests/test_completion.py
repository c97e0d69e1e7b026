"""Laws of tensor completion: normal equations, conjugate draws, the estimator and its inputs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from completing import FAST
from sklearn.base import clone
from threadpoolctl import threadpool_info, threadpool_limits

from bayestensor.estimators import TensorCompletion
from bayestensor.models.compiled import closed_form
from bayestensor.models.rows import CORRELATIONS, chain_posterior, pick_correlations, row_posterior
from bayestensor.priors.log_gamma import draw_log_gamma
from bayestensor.tensor.core_rows import row_shape, to_rows
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.initialise import initialise
from bayestensor.tensor.normal import normal_equations
from bayestensor.tensor.observations import Entries, Grid

SHAPE = (4, 3, 5, 2)


def _holes(seed=0, shape=SHAPE, share=0.5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.random(shape) > share


def _design(network, cores, name):
    """Gradient of every entry with respect to one core, by numpy: [entries, core]."""
    letter = {leg: chr(97 + k) for k, leg in enumerate(network.size)}
    own = network.core[name].legs
    operands = [(cores[c.name], c.legs) for c in network.cores if c.name != name]
    operands += [(np.eye(network.size[leg]), (leg, leg + "'")) for leg in own if leg in network.modes]
    operands += [(np.ones(network.size[leg]), (leg,)) for leg in own if leg not in network.modes]
    letter |= {leg + "'": letter[leg].upper() for leg in own}
    output = (*network.modes, *(leg + "'" if leg in network.modes else leg for leg in own))
    subscripts = ",".join("".join(letter[x] for x in legs) for _, legs in operands)
    design = np.einsum(f"{subscripts}->{''.join(letter[x] for x in output)}", *(a for a, _ in operands), optimize=True)
    return design.reshape(int(np.prod(network.shape)), -1)


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_normal_equations_are_those_of_the_design_matrix(format):
    rows, cols = (SHAPE[:2], SHAPE[2:]) if format == "tt_matrix" else (SHAPE, ())
    network = FORMATS[format](rows, cols, rank=2)
    values, observed = _holes(shape=network.shape)
    weights = np.random.default_rng(1).uniform(0.5, 2, network.shape)
    with jax.enable_x64(True):
        cores = initialise(jax.random.key(1), network, dtype=jnp.float64).cores
        both = (
            Grid.build(values, observed, weights),
            Entries.build(network, np.argwhere(observed), values[observed], weights[observed]),
        )
        found = jax.jit(lambda c, d: {n: [normal_equations(network, c, n, x) for x in d] for n in c})(cores, both)
    cores = {name: np.asarray(core) for name, core in cores.items()}
    for name, core in cores.items():
        design = _design(network, cores, name)[observed.ravel()]
        np.testing.assert_allclose(design @ core.ravel(), _dense(network, cores)[observed], atol=1e-10)
        q, p = row_shape(network, name)
        place = np.asarray(to_rows(network, name, np.arange(core.size).reshape(core.shape)))
        for gram, moment in found[name]:
            full = np.zeros((core.size, core.size))
            for row in range(q):
                full[np.ix_(place[row], place[row])] = gram[row]
            assert gram.shape == (q, p, p)
            weighted = design * weights[observed][:, None]
            np.testing.assert_allclose(full, weighted.T @ design, atol=1e-10)
            np.testing.assert_allclose(moment, (weighted.T @ values[observed])[place], atol=1e-10)


def _dense(network, cores):
    letter = {leg: chr(97 + k) for k, leg in enumerate(network.size)}
    subscripts = ",".join("".join(letter[x] for x in c.legs) for c in network.cores)
    output = "".join(letter[x] for x in network.modes)
    return np.einsum(f"{subscripts}->{output}", *(cores[c.name] for c in network.cores), optimize=True)


def test_chain_posterior_is_the_joint_gaussian():
    rng = np.random.default_rng(0)
    q, p, rho = 5, 3, np.array([0.7, 0.0, 0.95])
    root = rng.normal(size=(q, p, p))
    gram, moment, d = root @ root.transpose(0, 2, 1), rng.normal(size=(q, p)), np.array([0.5, 1.0, 2.0])
    lags = np.abs(np.arange(q)[:, None] - np.arange(q))
    precision = sum(
        np.kron(np.linalg.inv(r**lags / (1 - r**2)), np.diag(np.where(np.arange(p) == k, d, 0)))
        for k, r in enumerate(rho)
    )
    for k in range(q):
        precision[k * p : (k + 1) * p, k * p : (k + 1) * p] += gram[k]
    covariance = np.linalg.inv(precision)
    with jax.enable_x64(True):
        args, rho = [jnp.asarray(a) for a in (gram, moment, d)], jnp.asarray(rho)
        rows, spread, lag = chain_posterior(*args, jnp.zeros((q, p)), rho)
        alone = row_posterior(*args, jnp.zeros((q, p)))
        # the noise enters linearly: its square is the covariance of a draw, joint over rows
        draw = jax.jacobian(lambda e: chain_posterior(*args, e, rho)[0])(jnp.zeros((q, p))).reshape(q * p, q * p)
    np.testing.assert_allclose(np.ravel(rows), covariance @ moment.ravel(), atol=1e-10)
    np.testing.assert_allclose(draw @ draw.T, covariance, atol=1e-10)
    blocks = covariance.reshape(q, p, q, p)
    for k in range(q):
        np.testing.assert_allclose(spread[k], blocks[k, :, k], atol=1e-10)
        np.testing.assert_allclose(alone[1][k], np.linalg.inv(gram[k] + np.diag(d)), atol=1e-10)
    for k in range(q - 1):
        np.testing.assert_allclose(lag[k], np.diag(blocks[k, :, k + 1]), atol=1e-10)


def test_the_correlation_picked_is_the_most_likely_one():
    from scipy.stats import multivariate_normal

    rng, q, d = np.random.default_rng(0), 30, np.array([0.5, 2.0, 1.0])
    rows = np.stack([np.cumsum(rng.normal(size=q)), rng.normal(size=q), np.full(q, 0.3)], axis=1) / np.sqrt(d)
    lags = np.abs(np.arange(q)[:, None] - np.arange(q))
    brute = [
        [multivariate_normal.logpdf(x, cov=r**lags / (1 - r**2) / di) for r in CORRELATIONS]
        for x, di in zip(rows.T, d, strict=True)
    ]
    with jax.enable_x64(True):
        own, pairs, precisions = ({"core": jnp.asarray(a)} for a in (rows**2, rows[1:] * rows[:-1], d))
        best = pick_correlations(own, pairs, precisions, 0.0)["core"]
    np.testing.assert_allclose(best, CORRELATIONS[np.argmax(brute, axis=1)])


@pytest.mark.parametrize("shape", [0.05, 0.5, 3.0, 400.0])
def test_log_gamma_draws_have_the_right_moments(shape):
    # 20 000 draws: the mean of log g within five standard errors; false alarm 6e-7, a shift of 0.07 sd is seen
    from scipy.special import digamma, polygamma

    with jax.enable_x64(True):
        draws = np.asarray(draw_log_gamma(jax.random.key(3), jnp.full(20_000, shape)))
    sd = np.sqrt(polygamma(1, shape))
    assert abs(draws.mean() - digamma(shape)) < 5 * sd / np.sqrt(20_000)
    assert abs(draws.std() / sd - 1) < 0.08


def test_completion_finds_tensor_noise_and_interval(completed):
    truth, noisy, observed, _, fit = completed
    hidden = ~observed
    precision = fit.draws_.stats["noise"] ** -2  # of 480 entries: 0.065 of itself a draw, and chains that share no draw
    assert precision.shape == (4, 10) and len(np.unique(precision)) == 40
    assert np.ptp(precision.mean(1)) < 0.3 * precision.mean()
    assert np.linalg.norm((fit.predict() - truth)[hidden]) < 0.08 * np.linalg.norm(truth[hidden])
    assert 0.08 < fit.noise_ < 0.12
    lower, upper = fit.predict_interval(0.9)
    # 480 hidden entries: sd of the coverage 0.014; half as wide intervals would cover 0.59
    assert 0.84 < np.mean(((noisy >= lower) & (noisy <= upper))[hidden]) < 0.96
    shares = fit.rank_posterior_["rank"]
    assert fit.rank_ == np.argmax(shares) == 2 and abs(shares.sum() - 1) < 1e-12 and shares[:2].sum() == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_an_exact_tensor_is_solved_and_its_rank_not_split(seed):
    # 300 of 1,000 entries, 84 numbers to find; without a merge of split components ranks of 3 to 5
    rng = np.random.default_rng(seed)
    truth = np.einsum("ir,jr,kr->ijk", *(rng.normal(size=(10, 3)) for _ in range(3)))
    holed = np.where(rng.random(truth.shape) < 0.3, truth, np.nan)
    fit = TensorCompletion(max_rank=5, smooth=(), num_draws=10, burn_in=0, random_state=seed).fit(holed)
    assert fit.rank_ == 3 and fit.draws_.shape == (1, 10)  # nothing uncertain to have several chains for
    assert np.linalg.norm(fit.predict() - truth) < 1e-4 * np.linalg.norm(truth)


@pytest.mark.parametrize("kind", ["masked", "coords", "xarray", "table", "other values behind the mask", "weights"])
def test_every_input_gives_the_same_bits(completed, kind):
    _, _, observed, holed, fit = completed
    coords, values = np.argwhere(observed), holed[observed]
    model = clone(fit)
    if kind == "masked":
        model.fit(np.ma.masked_array(np.nan_to_num(holed), ~observed))
    elif kind == "coords":
        model.fit(coords, values, shape=holed.shape)
    elif kind == "xarray":
        model.fit(pytest.importorskip("xarray").DataArray(holed, dims=("a", "b", "c")))
    elif kind == "table":
        model.fit(pd.DataFrame({"a": coords[:, 0], "b": coords[:, 1], "c": coords[:, 2], "y": values}))
    elif kind == "weights":  # of 0 and 1, for rows in any order
        order = np.random.default_rng(0).permutation(holed.size)
        every, given = np.argwhere(np.ones_like(observed))[order], np.where(observed, holed, 7.0).ravel()[order]
        model.fit(every, given, holed.shape, sample_weight=observed.ravel()[order])
    else:
        model.fit(np.ma.masked_array(np.where(observed, holed, 1e30), ~observed))
    np.testing.assert_array_equal(np.asarray(model.predict()), fit.predict())


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_the_unit_of_the_data_does_not_matter(completed, factor):
    _, _, _, holed, fit = completed
    np.testing.assert_allclose(clone(fit).fit(holed * factor).predict() / factor, fit.predict(), rtol=1e-4, atol=1e-4)


BAD = {
    "all hidden": (np.full((3, 3), np.nan), None, None, "no observed entry"),
    "infinite": (np.array([[1.0, np.inf]]), None, None, "infinity"),
    "complex": (np.ones((2, 2), complex), None, None, "real numbers"),
    "object": (np.array([[None, 1]]), None, None, "real numbers"),
    "out of range": (np.array([[0, 5]]), np.ones(1), (2, 2), "outside the shape"),
    "clash": (np.array([[0, 0], [0, 0]]), np.array([1.0, 2.0]), (2, 2), "occurs with values"),
    "half a coordinate": (np.array([[0.5, 0]]), np.ones(1), (2, 2), "whole numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs_are_named(case):
    x, y, shape, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        TensorCompletion(**FAST).fit(x, y, shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1,), (6,), (6, 1), (2, 2), (1, 1, 1)], ids=str)
def test_the_smallest_tensors_are_completed(shape):
    x = np.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    x[(-1,) * len(shape)] = np.nan if x.size > 1 else 1.0
    fit = TensorCompletion(**FAST).fit(x)
    lower, upper = fit.predict_interval(0.9)
    assert np.shape(fit.predict()) == shape and np.isfinite(fit.predict()).all()
    assert (lower < upper).all() and (lower[np.isfinite(x)] < x[np.isfinite(x)]).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inference", "mcmc"),
        ("likelihood", "normal"),
        ("format", "cpd"),
        ("num_draws", 0),
        ("chains", 0),
        ("smooth", "yes"),
        ("effects", "all"),
        ("effects", (0, 5)),
        ("noise_by", 3),
        ("conformal", 1.0),
    ],
)
def test_bad_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=name if name != "smooth" else "smooth is"):
        TensorCompletion(**{**FAST, name: value}).fit(np.eye(3))


@pytest.mark.parametrize(
    ("weight", "message"),
    [(np.ones((2, 2)), "one weight a row"), (-np.eye(3), "nowhere negative"), (np.zeros((3, 3)), "above 0")],
)
def test_bad_weights_are_named(weight, message):
    with pytest.raises(ValueError, match=message):
        TensorCompletion(**FAST).fit(np.eye(3), sample_weight=weight)


def test_closed_forms_have_64_bits_and_one_lapack_thread():
    blas = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    with threadpool_limits(2, user_api="blas"):
        with closed_form():
            assert jnp.asarray(1.0).dtype == jnp.float64
            assert {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"} == {1}
        assert {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"} == {2}
    assert blas and jnp.asarray(1.0).dtype == jnp.float32
