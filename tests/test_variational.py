"""Variational inference against Gaussians whose best factorised approximation is known, and the closed form of scales."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats

from bayestensor.inference.base import Posterior
from bayestensor.inference.sample import sample
from bayestensor.inference.variational import second_moment, variational
from bayestensor.priors import InverseGamma

pytestmark = pytest.mark.promoting  # Optax relies on dtype promotion

NUM, NOISE = 200, 0.5
X = np.random.default_rng(0).normal(size=(NUM, 3)) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.5, 0.3], [0.0, 0.0, 1.0]])
Y = X @ np.array([1.0, -1.0, 0.5]) + NOISE * np.random.default_rng(1).normal(size=NUM)
DATA = tuple(jnp.asarray(x, jnp.float32) for x in (X, Y))
PRECISION = np.eye(3) + X.T @ X / NOISE**2
MEAN = np.linalg.solve(PRECISION, X.T @ Y / NOISE**2)


def log_likelihood(position, batch):
    x, y = batch
    return -0.5 * ((y - x @ position["weight"]) / NOISE) ** 2


REGRESSION = Posterior(lambda p: -0.5 * (p["weight"] ** 2).sum(), log_likelihood, NUM)


def fitted(engine, start, data, steps, batch_size=None, chains=1, draws=4000):
    """The states after learning, and draws of the frozen q."""
    starts = jax.tree.map(lambda x: jnp.stack([x] * chains), start)
    settings = {"burn_in": steps, "batch_size": batch_size, "chunk": 1000, "parallel": "vmap"}
    found, run = sample(engine, jax.random.key(0), starts, data, draws=draws, **settings)
    return run.states, found


def test_the_best_factorised_gaussian():
    """KL(q || p) is least at the mean and at 1 / diag(precision), 0.55 and 0.64 of two posterior variances here.

    The pairs make the mean's gradient exact; its cosine leaves 2 % in the sd. 4,000 draws: se of a variance 2.2 %, so one
    off by 20 % is caught with probability 0.99.
    """
    state, draws = fitted(variational(REGRESSION, burn_in=2500, pairs=4), {"weight": jnp.zeros(3)}, DATA, 2500)
    sd = 1 / np.sqrt(np.diag(PRECISION))
    np.testing.assert_allclose(state.mean["weight"][0], MEAN, atol=1e-2 * sd.min())
    np.testing.assert_allclose(np.exp(state.log_sd["weight"][0]), sd, rtol=0.05)
    assert (sd**2 < 0.7 * np.diag(np.linalg.inv(PRECISION))).any()  # what mean-field leaves out is not nothing
    w = draws.positions["weight"][0]
    np.testing.assert_allclose(w.var(0), sd**2, rtol=0.15)
    np.testing.assert_allclose(np.corrcoef(w.T), np.eye(3), atol=0.08)  # 5 se: q has no correlations
    assert abs(np.corrcoef(w[:-1, 0], w[1:, 0])[0, 1]) < 0.08  # nor its draws with one another
    assert not draws.stats["adapting"].any()


@pytest.mark.slow
def test_batches_leave_the_mean_unbiased():
    """5,000 steps in batches of 50 of 200 leave 0.07 posterior sd in each of 4 chains, 0.035 in their mean: a bias of
    0.25 sd is caught with probability 0.99."""
    engine = variational(REGRESSION, burn_in=5000)
    state, _ = fitted(engine, {"weight": jnp.zeros(3)}, DATA, 5000, batch_size=50, chains=4, draws=4)
    sd = 1 / np.sqrt(np.diag(PRECISION))
    assert (np.abs(state.mean["weight"].mean(0) - MEAN) < 0.15 * sd).all()


def test_the_bound_is_the_evidence_where_q_can_be_the_posterior():
    """On independent coordinates the ELBO has no gap: log p(data), from the normal law of the data.

    40,000 draws of sd 1: se 0.005, so a bound that is 0.035 off is caught with probability 0.99.
    """
    y = jnp.array([[0.3, -1.0], [1.2, 0.4]])

    def normal(x, sd):
        return -0.5 * (x / sd) ** 2 - jnp.log(sd) - 0.5 * jnp.log(2 * jnp.pi)

    target = Posterior(
        lambda p: normal(p["x"], 1.0).sum(), lambda p, batch: normal(batch - p["x"], 0.5).sum(axis=1), len(y)
    )
    _, draws = fitted(variational(target, burn_in=1500), {"x": jnp.zeros(2)}, y, 1500, draws=40_000)
    law = scipy.stats.multivariate_normal(np.zeros(2), 0.25 * np.eye(2) + 1)  # of the two data of one coordinate
    evidence = law.logpdf(np.asarray(y).T).sum()
    np.testing.assert_allclose(draws.stats["elbo"].mean(), evidence, atol=0.02)


def test_scales_take_their_closed_form_with_the_variances():
    """y ~ N(w, 1), w ~ N(0, v): m = v / (v + 1) y, s^2 = v / (v + 1), v = mode under sum (m^2 + s^2); solved by scipy.

    Without the variances v would be less by two thirds.
    """
    y = np.linspace(-1, 1.2, 12)
    prior, count = InverseGamma(2.0, 0.5), 12

    def log_prior(p):
        v = jnp.exp(p["log_v"])
        return -0.5 * ((p["w"] ** 2).sum() / v + count * p["log_v"]) + prior.log_density(p["log_v"][None]).sum()

    def mode(p):
        return p | {"log_v": jnp.log(prior.mode((p["w"] ** 2).sum()[None], float(count))[0])}

    target = Posterior(log_prior, lambda p, batch: -0.5 * (batch - p["w"]) ** 2, count)
    engine = variational(
        target,
        burn_in=2500,
        pairs=4,
        points=("log_v",),
        closed_form=lambda mean, variance: mode(second_moment(mean, variance)),
        position="mean",
    )
    state, _ = fitted(
        engine, {"w": jnp.asarray(y, jnp.float32), "log_v": jnp.zeros(())}, jnp.asarray(y, jnp.float32), 2500, draws=4
    )

    def fixed_point(v, with_variance=1.0):
        share = v / (v + 1)
        energy = ((share * y) ** 2).sum() + with_variance * count * share
        return (energy + 2 * 0.5) / (count + 2 * 2.0) - v

    v = scipy.optimize.brentq(fixed_point, 1e-6, 10.0)
    wrong = scipy.optimize.brentq(lambda v: fixed_point(v, 0.0), 1e-6, 10.0)
    assert abs(wrong / v - 1) > 0.3
    assert float(jnp.exp(state.mean["log_v"][0])) == pytest.approx(v, rel=0.03)
    np.testing.assert_allclose(state.mean["w"][0], v / (v + 1) * y, atol=0.03)
    np.testing.assert_allclose(np.exp(2 * state.log_sd["w"][0]), v / (v + 1), rtol=0.1)


def test_point_estimates_have_no_spread_and_move_by_gradient():
    engine = variational(REGRESSION, burn_in=50, points=("weight",), optimiser=optax.adam(0.05))
    state, draws = fitted(engine, {"weight": jnp.zeros(3)}, DATA, 50)
    assert np.ptp(draws.positions["weight"], axis=1).max() == 0
    assert (np.asarray(state.mean["weight"]) != 0).all()


BAD = {
    "burn-in": ({"burn_in": 0}, "burn_in = 0"),
    "sd": ({"initial_sd": 0.0}, "initial_sd = 0.0; a positive"),
    "points": ({"points": "weight"}, r"\('weight',\)"),
    "closed form": ({"closed_form": lambda m, v: m}, "name them in points"),
    "position": ({"position": "mode"}, "position = 'mode'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_get_one_clear_message(case):
    settings, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        variational(REGRESSION, **settings)


def test_unknown_point_is_refused_at_the_start():
    with pytest.raises(ValueError, match=r"points names \['scale'\]; the position's parts are \['weight'\]"):
        variational(REGRESSION, points=("scale",)).init(jax.random.key(0), {"weight": jnp.zeros(3)})
