"""Laws of tensor regression: equations of one core, its draws, noise and remainder, the estimator and its inputs."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from sklearn.base import clone

from bayestensor.estimators import TensorRegressor, covariates
from bayestensor.estimators.left_out import left_out_density
from bayestensor.estimators.remainder import Plan, build, build_remainder, log_evidence
from bayestensor.estimators.stacking import SPREADS, _log_density, dealt, elected, mixture_weights, narrowed
from bayestensor.models import regression
from bayestensor.models.coefficient import (
    Coefficient,
    CoefficientState,
    Family,
    core_sd,
)
from bayestensor.models.regression import RATIOS, Centred, independent_share, noise_numbers, pick_noise
from bayestensor.models.rows import CORRELATIONS
from bayestensor.models.whitened import row_space_draw, unknown_space_draw
from bayestensor.priors import InverseGamma
from bayestensor.tensor import design as equations
from bayestensor.tensor.formats import FORMATS, cp
from bayestensor.tensor.initialise import core_variance, initialise

ROWS, COLS = (3, 4), (2, 3)


def _weighted_data(seed, n, cols):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, *ROWS)), rng.uniform(0.5, 2, (n, *cols)), rng.normal(size=(n, *cols))


SLOW = ("block_term", "hierarchical_tucker", "tensor_ring", "svd")  # three seconds of compilation each


@pytest.mark.parametrize("format", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in sorted(FORMATS)])
def test_the_equations_of_a_core_are_those_of_its_gradient(format):
    cols = COLS if format in ("cp", "tt_matrix") else COLS[:1]
    network = FORMATS[format](ROWS, cols, rank=2)
    x, weight, target = _weighted_data(0, 5, cols)
    with jax.enable_x64(True):
        cores = initialise(jax.random.key(1), network, dtype=jnp.float64).cores

        @jax.jit
        def both(cores, x, weight, target):
            eta = partial(equations.responses, network)
            gradients = {name: jax.jacobian(lambda c, n=name: eta(cores | {n: c}, x))(cores[name]) for name in cores}
            found = {}
            for name in cores:
                near, far = equations.core_covariates(network, cores, name, x)
                normal = equations.normal_equations(network, name, near, far, weight, target)
                w = equations.by_system(network, name, weight)
                found[name] = (*normal, equations.design(network, name, near, far), w)
            return eta(cores, x), gradients, found

        eta, gradients, found = jax.tree.map(np.asarray, both(cores, x, weight, target))
        place = {
            name: np.asarray(equations.to_systems(network, name, jnp.arange(core.size).reshape(core.shape)))
            for name, core in cores.items()
        }
        back = {name: equations.from_systems(network, name, jnp.asarray(at)) for name, at in place.items()}
    for name, (gram, moment, design, w) in found.items():
        gradient = gradients[name].reshape(weight.size, -1)
        np.testing.assert_allclose(gradient @ np.asarray(cores[name]).ravel(), eta.ravel(), atol=1e-10)
        np.testing.assert_array_equal(np.ravel(back[name]), np.arange(cores[name].size))
        full = gradient.T @ (weight.ravel()[:, None] * gradient)
        at = place[name].reshape(len(gram), -1)
        for system, rows in enumerate(at):
            np.testing.assert_allclose(gram[system], full[np.ix_(rows, rows)], atol=1e-10)
            np.testing.assert_allclose((design.T * w[system]) @ design, gram[system], atol=1e-10)
            full[np.ix_(rows, rows)] = 0
        np.testing.assert_allclose(full, 0, atol=1e-10)  # the systems are independent
        np.testing.assert_allclose(moment, (gradient.T @ target.ravel())[at], atol=1e-10)


def test_both_ways_to_draw_have_the_mean_and_covariance_of_the_joint_gaussian():
    rng = np.random.default_rng(0)
    n, u, b = 4, 6, 2
    rows, weight, target = rng.normal(size=(n, u)), rng.uniform(0.5, 2, (b, n)), rng.normal(size=(b, n))
    weight[1, 2] = target[1, 2] = 0  # a datum that a system does not see
    gram = np.einsum("nu,bn,nv->buv", rows, weight, rows)
    moment = target @ rows
    with jax.enable_x64(True):

        def by_unknowns(noise):
            return unknown_space_draw(jnp.asarray(gram), jnp.asarray(moment), noise.reshape(b, u))

        def by_rows(noise):
            first, second = noise[: b * u].reshape(b, u), noise[b * u :].reshape(b, n)
            return row_space_draw(*map(jnp.asarray, (rows, weight, target)), first, second)

        for draw, size in ((by_unknowns, b * u), (by_rows, b * u + b * n)):
            found = jax.jit(lambda e, f=draw: (*f(e), jax.jacobian(lambda e: f(e)[0])(e)))(jnp.zeros(size))
            mean, log_z, root = map(np.asarray, found)
            for system in range(b):
                seen = weight[system] > 0
                aim = (target[system] / np.sqrt(np.where(seen, weight[system], 1)))[seen]
                scaled = (np.sqrt(weight[system])[:, None] * rows)[seen]
                density = scipy.stats.multivariate_normal.logpdf(aim, cov=np.eye(len(aim)) + scaled @ scaled.T)
                noise_alone = scipy.stats.norm.logpdf(aim).sum()
                np.testing.assert_allclose(log_z[system], density - noise_alone, atol=1e-10)
                covariance = np.linalg.inv(np.eye(u) + gram[system])
                np.testing.assert_allclose(mean[system], covariance @ moment[system], atol=1e-10)
                np.testing.assert_allclose(root[system] @ root[system].T, covariance, atol=1e-10)


def test_a_sweep_keeps_the_prior_when_data_are_drawn_from_it():
    """Joint distribution test (Geweke, JASA 99, 2004): prior draw, data, one sweep: the state is a prior draw again.

    4,000 pairs, two-sample KS on four statistics: p < 1e-5 in none of them but by a chance of 4e-5; data of three times
    the standard deviation that the sweep believes are seen.
    """
    network = cp((3,), (2,), rank=2)
    model = Coefficient(network, InverseGamma(3.0, 3.0), core_variance(network, 1.0), ("factor0",))
    family = [part[::8] for part in covariates.autoregressions(np.eye(3))]

    def one(key, numbers, sd, family):
        scale_key, core_key, member_key, x_key, y_key = jax.random.split(key, 5)
        scales = {"rank": model.prior.sample(scale_key, (2,), jnp.float64)}
        cores, unit = initialise(core_key, network, 1.0, dtype=jnp.float64).cores, core_variance(network, 1.0) ** -0.5
        cores = {k: c * unit * core_sd(network, k, scales, model.variance)[None] for k, c in cores.items()}
        member = jax.random.randint(member_key, (), 0, len(family.log_det))
        cores["factor0"] = family.root[member] @ cores["factor0"]
        state = CoefficientState(cores, scales, {"factor0": member})
        x = jax.random.normal(x_key, (6, 3), jnp.float64)
        eta = equations.responses(network, cores, x)
        y = eta + sd * jax.random.normal(y_key, eta.shape, eta.dtype)
        after = model.move(numbers, state, x, jnp.ones_like(y), y, {"factor0": family}, 1.0)
        return statistics(state), statistics(after)

    def statistics(state):
        w = equations.responses(network, state.cores, jnp.eye(3, dtype=jnp.float64))
        lag = (state.cores["factor0"][1:] * state.cores["factor0"][:-1]).sum()
        return jnp.stack([state.scales["rank"].sum(), (w**2).sum(), lag, state.member["factor0"].astype(lag.dtype)])

    with jax.enable_x64(True):
        run = jax.jit(
            lambda now, sd: jax.lax.map(
                lambda now: one(*now, sd, Family(*map(jnp.asarray, family))), now, batch_size=500
            )
        )
        keys, numbers = jax.random.split(jax.random.key(0), 8000), model.numbers(np.random.default_rng(0), 8000, (6, 2))
        found = {sd: [np.asarray(a) for a in run((jax.random.clone(keys), numbers), sd)] for sd in (1.0, 3.0)}
    for sd, (before, after) in found.items():
        p = [scipy.stats.ks_2samp(a, b).pvalue for a, b in zip(before[:4000].T, after[4000:].T, strict=True)]
        assert (min(p) < 1e-5) == (sd > 1), p


@pytest.mark.parametrize("kind", ["linear", "smooth", None, Plan("leading", 0.0), Plan("leading", 1.0, 100.0)])
@pytest.mark.parametrize("p", [3, 12])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_remainder_is_its_kernel(kind, p, weighted):
    rng = np.random.default_rng(1)
    x, y, weight = rng.normal(size=(8, p)), rng.normal(size=(8, 2)), np.ones(8)
    weight = rng.uniform(0.3, 3.0, 8) if weighted else weight
    total = weight.sum()
    x, y = (x - weight @ x / total) / math.sqrt(p), y - weight @ y / total
    found = build(kind, x, weight) if isinstance(kind, Plan) else build_remainder(kind, x, y, weight)
    at, own = found.at(x)
    kernel = at @ (found.vectors.T / found.half[None])
    np.testing.assert_allclose(at * found.half[:, None], found.vectors * found.spectrum, atol=1e-9)
    np.testing.assert_allclose(own, np.diagonal(kernel), atol=1e-9)
    np.testing.assert_allclose(weight @ kernel, 0, atol=1e-9)  # centred: the intercept is not its business
    if kind is None:
        assert not kernel.any()
        projection, scaled = found.vectors @ found.vectors.T, found.half[:, None] * x
        np.testing.assert_allclose(projection @ scaled, scaled, atol=1e-9)
        return
    # the evidence against the density of y itself, its mean and its noise integrated out, all in n dimensions
    expected = 0.0
    for column in y.T:
        terms = []
        for ratio in RATIOS[::8]:
            turned = np.linalg.svd(np.ones((8, 1)))[0][:, 1:]  # an orthonormal basis of what sums to zero
            covariance = turned.T @ (np.diag(1 / weight) + ratio * kernel) @ turned
            z, power = turned.T @ column, 0.5 * (total - 1)
            terms.append(-0.5 * np.linalg.slogdet(covariance)[1] - power * np.log(z @ np.linalg.solve(covariance, z)))
        expected += np.logaddexp.reduce(terms) + 0.5 * (np.log(total / 8) - np.log(weight).sum())  # of ratio 0 nothing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bayestensor.estimators.remainder.RATIOS", RATIOS[::8])
        assert abs(log_evidence(found, y) - expected) < 1e-4


def test_kernels_are_weighed_by_the_density_of_their_mixture_of_data_left_out():
    """Weights against a general optimiser; the density of a fold against matrices of all n; draws dealt by weight."""
    rng = np.random.default_rng(8)
    log_p, weight = 2 * rng.normal(size=(4, 50)), rng.uniform(0, 2, 50)
    found = mixture_weights(log_p, weight, 500)
    limits = {"bounds": [(0, 1)] * 4, "constraints": {"type": "eq", "fun": lambda w: w.sum() - 1}}
    best = scipy.optimize.minimize(lambda w: -weight @ np.log(w @ np.exp(log_p)), np.full(4, 0.25), **limits)
    np.testing.assert_allclose(found, best.x, atol=2e-3)
    kept, weights, total = elected(np.concatenate([log_p, log_p - 1e-3]), weight)  # each of them twice
    assert abs(total - weight @ np.log(weights @ np.exp(log_p[kept]))) < 1e-9
    assert max(kept) < 4 and total > -best.fun - 1.5  # 3 may bring half less

    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    rest, fold, plan = np.arange(9), np.arange(9, 12), Plan("leading", 0.8, 2.0)
    x0, y0 = x[rest] - x[rest].mean(axis=0), y[rest] - y[rest].mean(axis=0)
    ones = np.ones(12)
    remainder = build(plan, x0, ones[rest])
    at, own = remainder.at(x[fold] - x[rest].mean(axis=0))
    kernel, cross = remainder.at(x0)[0] @ remainder.vectors.T, at @ remainder.vectors.T
    ratios, expected = RATIOS[::8], np.zeros((2, 3, 2))
    for c, k in itertools.product(range(2), range(2)):
        log_w, log_q = [], []
        for ratio in ratios:
            covariance = np.eye(9) + ratio * kernel
            energy = y0[:, k] @ np.linalg.solve(covariance, y0[:, k])
            log_w.append(-0.5 * np.linalg.slogdet(covariance)[1] - 4 * np.log(energy))
            gain = ratio * np.linalg.solve(covariance, cross.T).T
            spread = 1 + 1 / 9 + ratio * own - ratio * (gain * cross).sum(1)
            mean, sd = y[rest, k].mean() + gain @ y0[:, k], np.sqrt(spread * energy / 8)
            log_q.append(scipy.stats.norm.logpdf(y[fold, k], mean, sd * (1.0, 0.8)[c]))
        log_w = np.array(log_w) - np.logaddexp.reduce(log_w)
        expected[c, :, k] = np.logaddexp.reduce(log_w[:, None] + np.array(log_q), axis=0)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("remainder", "stacking"):
            patch.setattr(f"bayestensor.estimators.{module}.RATIOS", ratios)
        found = _log_density(plan, x, y, ones, rest, fold)[[0, SPREADS.index(0.8)]]
        np.testing.assert_allclose(found, expected, atol=1e-2)  # ratios below e^-8 are cut

    hands = dealt([0.62, 0.31, 0.07], 400)
    assert [sum(map(len, mine)) for mine in hands] == [250, 125, 25]
    np.testing.assert_array_equal(np.sort(np.concatenate([h for mine in hands for h in mine])), np.arange(400))


def test_a_mixture_of_calibrated_densities_is_narrowed_where_they_differ():
    """`y = a + b + c + noise` by one who knows a + b and one who knows a + c (Gneiting, Ranjan, EJS 7, 2013), and alike.

    Both are calibrated, their half-and-half mixture has a variance of 2.5 where errors have 1.5. Of the second response
    they say the same: c = 1 there. 3,000 data tell spreads 0.1 apart by 10 or more in log density.
    """
    rng = np.random.default_rng(9)
    parts = rng.normal(size=(4, 3000))
    y, means = parts.sum(axis=0), parts[0][None] + parts[1:3]
    scaled = np.asarray(SPREADS)[:, None, None] * math.sqrt(2)
    first = scipy.stats.norm.logpdf(y[None, None], means[None], scaled)
    second = scipy.stats.norm.logpdf(y[None, None], means[:1][None] + 0 * means[None], scaled)
    kept, weights, spreads = narrowed(np.stack([first, second], axis=-1), np.ones(3000))
    assert sorted(kept) == [0, 1] and np.abs(weights - 0.5).max() < 0.1
    assert spreads[0] < 0.85 and spreads[1] == 1


def test_noise_and_ratio_are_drawn_from_their_posterior():
    """20,000 draws against the posterior on the grid: shares within 5 standard errors (false alarm 1e-5 in all)."""
    rng = np.random.default_rng(2)
    m = 6
    residual, spectrum, lost, count = rng.normal(size=m) * 2, np.geomspace(0.1, 3, m), 1.5, 8.0
    log_p, rates = [], []
    for ratio in RATIOS:
        energy = lost + (residual**2 / (1 + ratio * spectrum)).sum()
        rates.append(energy / 2)
        log_p.append(-0.5 * np.log1p(ratio * spectrum).sum() - count / 2 * np.log(energy))
    p = np.exp(np.array(log_p) - np.logaddexp.reduce(log_p))
    with jax.enable_x64(True):
        arrays = map(jnp.asarray, (np.zeros((m, 1)), residual, spectrum, lost, count, 1.0))
        data = Centred(*arrays, {})

        numbers = noise_numbers(np.random.default_rng(0), 20_000, data)
        precision, ratio = jax.lax.map(jax.jit(lambda now: pick_noise(now, data.y, data, 1.0)), numbers)
    precision, at = np.asarray(precision), np.searchsorted(RATIOS, np.asarray(ratio))
    shares = np.bincount(at, minlength=len(RATIOS)) / len(at)
    assert (np.abs(shares - p) < 5 * np.sqrt(p * (1 - p) / len(at)) + 1e-3).all()
    # given the ratio the precision is Gamma(count / 2, energy / 2)
    u = scipy.stats.gamma.cdf(precision, count / 2, scale=1 / np.array(rates)[at])
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-5
    assert (
        scipy.stats.kstest(scipy.stats.gamma.cdf(precision, 3.0, scale=1 / np.array(rates)[at]), "uniform").pvalue
        < 1e-5
    )


def test_bases_lose_nothing_and_carry_the_autoregression():
    rng = np.random.default_rng(3)
    x = np.einsum("nr,ir->ni", rng.normal(size=(7, 3)), rng.normal(size=(20, 3)))[:, :, None] * rng.normal(
        size=(7, 1, 4)
    )
    bases = covariates.mode_bases(x.reshape(7, -1), (20, 4))
    assert [b.shape for b in bases] == [(20, 8), (4, 4)]
    small = covariates.project(x.reshape(7, -1), (20, 4), bases)
    np.testing.assert_allclose(covariates.expand(np.moveaxis(small, 0, -1), bases), np.moveaxis(x, 0, -1), atol=1e-6)
    roots, inverses, log_dets = covariates.autoregressions(bases[0])
    lag = np.abs(np.arange(20)[:, None] - np.arange(20))
    for root, inverse, log_det, rho in zip(roots, inverses, log_dets, CORRELATIONS, strict=True):
        covariance = bases[0].T @ rho**lag @ bases[0]
        np.testing.assert_allclose(root @ root.T, covariance, atol=1e-10)
        np.testing.assert_allclose(inverse @ root, np.eye(8), atol=1e-8)
        np.testing.assert_allclose(2 * log_det, np.linalg.slogdet(covariance)[1], atol=1e-8)


FAST = {"num_draws": 100, "burn_in": 50, "smooth": (), "random_state": 0}


@pytest.mark.parametrize("remainder", [None, "linear"])
@pytest.mark.parametrize("weighted", [False, True])
def test_with_fixed_scales_it_is_bayesian_ridge(remainder, weighted):
    """Vector covariates, one component, v held at 1: W ~ N(0, I), and only the noise is left to integrate, by a grid.

    With a linear remainder the sum of both is ridge of variance `1 + ratio / precision`. A datum of weight w has noise
    of variance `1 / (w precision)`, and the likelihood w factors sqrt(precision). 400 draws: the error of the mean is
    about 1/20 of the posterior's sd; a quarter of it, and 15 % of the sd, are allowed. Weights taken to be 1 are seen.
    """
    rng = np.random.default_rng(4)
    n, p = 25, 6
    x, x_new = rng.normal(size=(n, p)), rng.normal(size=(5, p))
    y = x @ rng.normal(size=p) + rng.normal(size=n)
    weight = np.where(np.arange(n) % 2, 2.5, 0.1) if weighted else np.ones(n)
    y = y + 3 * (np.arange(n) % 2 == 0) * weighted  # those of little weight are of another kind
    model = TensorRegressor(prior=InverseGamma(1e7, 1e7), remainder=remainder, **FAST | {"num_draws": 200})
    mean, sd = model.fit(x, y, sample_weight=weight if weighted else None).predict(x_new, return_std=True)

    def exact(weight):
        centre, mu, total = weight @ x / weight.sum(), weight @ y / weight.sum(), weight.sum()
        scale, unit = math.sqrt(weight @ (y - mu) ** 2 / total), math.sqrt(weight @ ((x - centre) ** 2).sum(1) / total)
        a, z = (np.concatenate([x, x_new]) - centre) / unit, (y - mu) / scale
        factors = np.broadcast_to(model._remainder.weights if remainder else 1.0, p)
        log_p, means, squares = [], [], []
        for precision in np.geomspace(0.5, 60, 80):
            for ratio in RATIOS[::2] if remainder else [0.0]:
                whole = a @ np.diag(1 + ratio / precision * factors**2) @ a.T + 1e5  # the intercept's variance
                k = whole[:n, :n] + np.diag(1 / (weight * precision))
                gain = np.linalg.solve(k, whole[:n, n:]).T
                means.append(gain @ z)
                squares.append(np.diagonal(whole)[n:] - (gain * whole[n:, :n]).sum(1) + 1 / precision)
                fit = z @ np.linalg.solve(k, z) - (total - n) * np.log(precision)
                log_p.append(-0.5 * np.linalg.slogdet(k)[1] - 0.5 * fit)
        w = np.exp(np.array(log_p) - np.logaddexp.reduce(log_p))
        found = w @ np.array(means)
        return mu + scale * found, scale * np.sqrt(w @ (np.array(squares) + np.array(means) ** 2) - found**2)

    right, right_sd = exact(weight)
    error = np.abs(mean - right) / right_sd
    assert error.max() < 0.15, error
    np.testing.assert_allclose(sd, right_sd, rtol=0.15)
    wrong, wrong_sd = exact(np.ones(n))
    assert (np.abs(mean - wrong) / wrong_sd).max() > 0.3 or not weighted


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    w = np.einsum("ir,jr,kr->ijk", *(rng.normal(size=(n, 2)) for n in (6, 5, 3)))
    x = rng.normal(size=(160, 6, 5))
    y = 3 + np.einsum("nij,ijk->nk", x, w) + 0.5 * rng.normal(size=(160, 3))
    fit = TensorRegressor(**FAST).fit(x[:80], y[:80])
    return w, x, y, fit


def test_it_finds_coefficient_rank_noise_and_interval(problem):
    w, x, y, fit = problem
    assert fit.coef_.shape == w.shape and np.linalg.norm(fit.coef_ - w) < 0.1 * np.linalg.norm(w)
    assert fit.rank_ == np.argmax(fit.rank_posterior_["rank"]) == 2
    assert set(fit.diagnostics_["r_hat"]) == {"predictions", "noise"}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fit)).predict(x[80:]), fit.predict(x[80:]))
    assert (np.abs(fit.noise_ / 0.5 - 1) < 0.3).all()
    assert fit.score(x[80:], y[80:]) > 0.97
    lower, upper = fit.predict_interval(x[80:], 0.9)
    # 240 entries: sd of the coverage 0.02; intervals of half the width would cover 0.59
    assert 0.83 < np.mean((y[80:] >= lower) & (y[80:] <= upper)) < 0.97
    mean, sd = fit.predict(x[80:], return_std=True)
    draws = fit.sample(x[80:], 400)
    assert np.abs(draws.mean(0) - mean).max() < 6 * sd.max() / 20
    gaussian = scipy.stats.norm.logpdf(y[80:], mean, sd).mean()
    assert abs(fit.log_score(x[80:], y[80:]) - gaussian) < 0.05
    assert fit.draws_.shape == (2, 100)
    assert abs(sum(weight for weight, _, _ in fit.diagnostics_["kernels"]) - 1) < 1e-9
    left_out = fit.diagnostics_["left_out_density"]
    assert (fit.diagnostics_["remainder"][0] is None) == (left_out["without"] > left_out["with"])


@pytest.mark.slow
def test_the_remainder_is_kept_where_data_left_out_ask_for_it():
    """A sine and a square of two covariates need it; three glowing substances (see the notebook) do better without.

    With a linear remainder forced upon them the second have rank 0, the low rank alone says nothing of the first.
    """
    rng = np.random.default_rng(2)
    x, small = rng.normal(size=(160, 5, 4)), np.full((5, 4), 0.05)
    small[0, 0] = small[1, 1] = 1
    y = np.sin(2 * x[:, 0, 0]) + x[:, 1, 1] ** 2
    kept, alone = (TensorRegressor(remainder=r, **FAST).fit(x[:80] * small, y[:80]) for r in ("auto", None))
    assert kept.diagnostics_["remainder"][0] == "smooth" and kept.score(x[80:] * small, y[80:]) > 0.8
    assert alone.score(x[80:] * small, y[80:]) < 0.3

    emission, excitation = np.linspace(0, 1, 40)[:, None], np.linspace(0, 1, 12)[None]
    places = ((0.35, 0.14, 0.45, 0.13), (0.15, 0.11, 0.38, 0.11), (0.65, 0.17, 0.82, 0.15))
    glow = [np.exp(-(((emission - a) / b) ** 2) / 2 - ((excitation - c) / d) ** 2 / 2) for a, b, c, d in places]
    amount = rng.gamma(4.0, 0.25, size=(60, 3))
    x = (1 + 0.03 * rng.normal(size=(60, 1, 1))) * np.einsum("nk,kij->nij", amount, glow)
    x += 0.02 * rng.normal(size=x.shape)
    settings = FAST | {"burn_in": 200, "smooth": "auto"}
    fits = [TensorRegressor(remainder=r, **settings).fit(x, amount[:, :2]) for r in ("auto", "linear")]
    assert [fit.rank_ for fit in fits] == [2, 0]
    assert fits[0].diagnostics_["remainder"][0] is None


@pytest.mark.parametrize("kind", ["flat with shape", "a column", "units", "order and weight 0", "repeated"])
def test_the_form_of_the_data_does_not_matter(problem, kind):
    _, x, y, fit = problem
    model, factor = clone(fit), 1e25 if kind == "units" else 1.0
    if kind == "flat with shape":
        model.set_params(shape=(6, 5)).fit(x[:80].reshape(80, -1), y[:80])
        np.testing.assert_array_equal(model.predict(x[80:].reshape(80, -1)), fit.predict(x[80:]))
    elif kind == "a column":
        column, vector = (clone(fit).fit(x[:80], part).predict(x[80:]) for part in (y[:80, :1], y[:80, 0]))
        assert column.shape == (80, 1)
        np.testing.assert_array_equal(column[:, 0], vector)
    elif kind == "order and weight 0":
        order = np.random.default_rng(1).permutation(100)
        model.fit(x[:100][order], y[:100][order], sample_weight=(order < 80).astype(float))
        np.testing.assert_array_equal(model.predict(x[80:]), fit.predict(x[80:]))
    elif kind == "repeated":
        times = np.random.default_rng(2).integers(0, 3, 80)
        model.fit(x[:80], y[:80], sample_weight=times)
        other = clone(fit).fit(np.repeat(x[:80], times, axis=0), np.repeat(y[:80], times, axis=0))
        np.testing.assert_array_equal(model.predict(x[80:]), other.predict(x[80:]))
    else:
        model.fit(x[:80] / factor, y[:80] * factor)
        np.testing.assert_allclose(model.predict(x[80:] / factor) / factor, fit.predict(x[80:]), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tucker", "tensor_train", "tt_matrix"])
def test_other_formats_and_tensor_responses_do(problem, format):
    _, x, y, _ = problem
    y = np.stack([y[:, :2], -y[:, :2]], axis=2)
    model = TensorRegressor(format=format, max_rank=3, remainder=None, **FAST).fit(x[:80], y[:80])
    assert model.predict(x[80:]).shape == (80, 2, 2) and model.coef_.shape == (6, 5, 2, 2)
    assert model.score(x[80:], y[80:]) > 0.95
    assert set(model.rank_posterior_) == set(model.network_.bonds)


def test_the_mode_alone(problem):
    _, x, y, _ = problem
    model = TensorRegressor(inference="map", **FAST).fit(x[:80], y[:80])
    assert model.draws_.shape == (1, 1) and model.score(x[80:], y[80:]) > 0.95


def test_constant_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 3))
    flat = TensorRegressor(**FAST).fit(x, np.full(10, 7.0))
    np.testing.assert_allclose(flat.predict(x), 7.0, atol=1e-3)
    still = TensorRegressor(**FAST).fit(np.ones((10, 3)), np.arange(10.0))
    np.testing.assert_allclose(still.predict(np.ones((2, 3))), 4.5, atol=1e-6)
    lower, upper = still.predict_interval(np.ones((2, 3)))
    assert (lower < 2).all() and (upper > 7).all()


def test_the_density_of_a_datum_left_out_is_that_of_the_other_data():
    """W ~ N(0, 1), a remainder and a free intercept, noise and ratio known: `p(y_i | rest)` by one matrix of all n.

    Noise of variance `1 / (weight precision)`, that of the datum left out `1 / precision`. 4,000 quantiles of the
    posterior of W, 12 data: to 0.02. The density of the datum by the posterior that has seen it is another by 0.05.
    """
    rng = np.random.default_rng(7)
    n, precision, ratio = 12, 4.0, 3.0
    x, weight = rng.normal(size=(n, 4)) / 2, rng.uniform(0.5, 2.0, n)
    y = rng.normal(size=(n, 1))
    x, y = (a - weight @ a / weight.sum() for a in (x, y))
    remainder = build_remainder("smooth", x, y, weight)
    kernel = remainder.at(x)[0] @ (remainder.vectors.T / remainder.half[None])
    plain = (np.diag(1 / weight) + ratio * kernel) / precision
    z = x[:, :1]
    whole = plain + z @ z.T + 1e8  # the intercept's variance
    expected = []
    for i in range(n):
        rest = np.arange(n) != i
        gain = np.linalg.solve(whole[np.ix_(rest, rest)], whole[rest, i])
        variance = whole[i, i] - gain @ whole[rest, i] + (1 - 1 / weight[i]) / precision
        expected.append(scipy.stats.norm.logpdf(y[i, 0], gain @ y[rest, 0], math.sqrt(variance)))
    turned = np.linalg.svd(np.ones((n, 1)))[0][:, 1:]
    inverse = turned @ np.linalg.inv(turned.T @ plain @ turned) @ turned.T
    variance = 1 / (1 + (z.T @ inverse @ z).item())
    w = variance * (z.T @ inverse @ y).item() + math.sqrt(variance) * scipy.stats.norm.ppf(
        (np.arange(4000) + 0.5) / 4000
    )
    cores = {"factor0": w[:, None, None], "factor1": np.ones((4000, 1, 1))}
    draws = {"cores": cores, "precision": np.full((4000, 1), precision), "ratio": np.full((4000, 1), ratio)}
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr("bayestensor.estimators.left_out._MOST_DRAWS", 4000)
        turned_z, turned_y = (remainder.vectors.T @ (remainder.half[:, None] * a) for a in (z, y))
        arrays = (turned_z, turned_y, remainder.spectrum, np.zeros(1), weight.sum() - 1, 1.0)
        data = Centred(*map(jnp.asarray, map(covariates.filled, arrays[:3])), *map(jnp.asarray, arrays[3:]), {})
        found, seen = (
            left_out_density(cp((1,), (1,), rank=1), draws, replace(data, share=share), remainder, y)
            for share in (data.share, 0 * data.share)  # a posterior of a likelihood to the power 0 has not seen it
        )
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.abs(seen - expected).max() > 0.05


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
def test_the_share_of_independent_responses_is_that_of_their_correlation(r):
    """50 responses of correlation r worth `50 / (1 + 49 r^2)`: 400 data give it to 10 %, 5 standard errors at r = 0.5.

    The errors are those of a ridge regression, `sqrt(1 + ratio s_j)` too large; 200 rows of padding say nothing.
    """
    rng = np.random.default_rng(5)
    z = math.sqrt(r) * rng.normal(size=(400, 1)) + math.sqrt(1 - r) * rng.normal(size=(400, 50))
    spectrum, ratio = rng.uniform(0, 9, 400), np.full(50, 2.0)
    pad = [(0, 200), (0, 0)]
    residual = np.pad(3 * z * np.sqrt(1 + 2 * spectrum)[:, None], pad)
    with jax.enable_x64(True):
        arrays = (np.pad(np.ones((400, 1)), pad), residual, np.pad(spectrum, (0, 200)), np.zeros(50), 399.0, 1.0)
        data = Centred(*map(jnp.asarray, arrays), {})
        found = float(jax.jit(independent_share)(data.y, jnp.asarray(ratio), data))
    assert abs(found * (1 + 49 * r**2) - 1) < 0.1


@pytest.mark.slow
def test_what_responses_share_by_chance_is_no_signal(monkeypatch):
    """30 data of 80 covariates, 100 responses that are three shared errors: predictions stay at the mean.

    Counted as 100 independent responses (the fault) they make an error half as large again.
    """
    rng = np.random.default_rng(6)
    x = rng.normal(size=(130, 10, 8))
    y = rng.normal(size=(130, 3)) @ rng.normal(size=(3, 100)) + 0.3 * rng.normal(size=(130, 100))
    errors = []
    for share in (independent_share, lambda *_: jnp.ones(())):
        monkeypatch.setattr(regression, "independent_share", share)
        jax.clear_caches()
        fit = TensorRegressor(max_rank=4, **FAST).fit(x[:30], y[:30])
        errors.append(np.sqrt(((fit.predict(x[30:]) - y[30:]) ** 2).mean() / y[30:].var()))
    assert errors[0] < 1.1 and errors[1] > 1.3, errors


X, Y = np.random.default_rng(0).normal(size=(12, 6)), np.arange(12.0)
BAD = {
    "length": ({}, X, Y[:5], "inconsistent"),
    "nan in X": ({}, np.where(np.arange(6) == 2, np.nan, X), Y, "NaN"),
    "inf in y": ({}, X, np.where(Y > 10, np.inf, Y), "infinity"),
    "one datum": ({}, X[:1], Y[:1], "minimum of 2"),
    "shape": ({"shape": (4, 2)}, X, Y, "6 columns; shape="),
    "shape of a tensor": ({"shape": (3, 2)}, X.reshape(12, 2, 3), Y, "one covariate tensor has shape"),
    "no shape": ({"shape": 6}, X, Y, "sizes of one covariate tensor"),
    "inference": ({"inference": "mcmc"}, X, Y, "inference is 'mcmc'"),
    "remainder": ({"remainder": "rbf"}, X, Y, "remainder is 'rbf'"),
    "format": ({"format": "parafac"}, X, Y, "format is 'parafac'"),
    "draws": ({"num_draws": 1}, X, Y, "num_draws is 1"),
    "smooth": ({"smooth": (3,)}, X, Y, "smooth names modes"),
    "complex X": ({}, X + 1j, Y, "[Cc]omplex"),
    "complex y": ({}, X, Y + 1j, "[Cc]omplex"),
    "words in X": ({}, np.where(X > 0, "high", X.astype(object)), Y, "could not convert"),
    "words in y": ({}, X, np.array(["a"] * 12, object), "could not convert"),
    "no response": ({}, X, np.empty((12, 0)), "minimum of 1"),
    "no covariate": ({}, np.empty((12, 0)), Y, "minimum of 1"),
    "a number": ({}, 3.0, Y, "[Ee]xpected 2D"),
    "rank": ({"max_rank": 0}, X, Y, "rank"),
    "weights too small": ({}, X, Y, "sum to 0.12; more than 1", np.full(12, 0.01)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    params, x, y, message, *weight = BAD[case]
    with pytest.raises(ValueError, match=message):
        TensorRegressor(**FAST | params).fit(x, y, *weight)


def test_other_shapes_are_refused_at_prediction(problem):
    _, x, _, fit = problem
    with pytest.raises(ValueError, match="the fit had"):
        fit.predict(x.transpose(0, 2, 1))
