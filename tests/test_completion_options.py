"""Laws of what can stand beside the network: likelihoods of answers and counts, effects, conformal intervals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from completing import FAST
from sklearn.base import clone

from bayestensor.estimators import TensorCompletion
from bayestensor.estimators.held_out import conformal_quantile, held_out
from bayestensor.estimators.inputs import read
from bayestensor.estimators.prediction import Posterior
from bayestensor.estimators.progress import Told
from bayestensor.models import effects as beside
from bayestensor.models.augment import augmented, dispersion, polya_gamma, polya_gamma_mean, polya_gamma_sum
from bayestensor.models.noise import EVEN, pick_shares, reweighted
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.observations import Entries, Grid


def test_polya_gamma_draws_turn_the_logistic_function_into_a_gaussian():
    # E exp(-omega x^2 / 2) = cosh(c / 2) / cosh(sqrt(c^2 + x^2) / 2); 40 000 draws, five standard errors: false alarm
    # 6e-6 in all; terms too large by 5 % move the means by seven or more
    c, x = np.array([0.0, 1.0, 4.0, 12.0]), np.array([4.0, 4.0, 8.0, 14.0])
    with jax.enable_x64(True):
        omega = np.asarray(jax.jit(polya_gamma)(jax.random.key(0), jnp.broadcast_to(jnp.asarray(c), (40_000, 4))))
    assert (omega > 0).all()
    for draws, wanted in (
        (omega, np.asarray(polya_gamma_mean(jnp.asarray(c)))),
        (np.exp(-0.5 * omega * x**2), np.cosh(c / 2) / np.cosh(np.sqrt(c**2 + x**2) / 2)),
    ):
        assert (np.abs(draws.mean(0) - wanted) < 5 * draws.std(0) / 200).all()


def test_yes_and_no_are_predicted_by_probabilities():
    from scipy.special import expit, logit
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(0)
    log_odds = np.einsum("ir,jr,kr->ijk", *(1.6 * rng.normal(size=(n, 2)) for n in (12, 10, 8)))
    values = (rng.random(log_odds.shape) < expit(log_odds)).astype(float)
    observed = rng.random(log_odds.shape) < 0.7
    fit = TensorCompletion(**FAST, likelihood="bernoulli").fit(np.where(observed, values, np.nan))
    probability = fit.predict()
    held = values[~observed]
    losses = [log_loss(held, p[~observed]) for p in (expit(log_odds), probability, np.full(values.shape, held.mean()))]
    # 288 hidden entries, standard error of a loss 0.03: what is known of the truth is most of what can be known
    assert losses[1] < losses[0] + 0.4 * (losses[2] - losses[0])
    np.testing.assert_allclose(fit.score(np.where(observed, np.nan, values)), -losses[1], rtol=1e-6)
    lower, upper = fit.predict_interval(0.9)
    assert ((lower >= 0) & (lower <= upper) & (upper <= 1)).all() and np.isfinite(logit(probability)).all()
    with pytest.raises(ValueError, match="must be 0 or 1"):
        clone(fit).fit(log_odds)


def test_sums_of_polya_gamma_draws_have_their_laplace_transform():
    # as above, to the power b; a gamma law of the same two moments is rejected
    b = np.array([5.0, 5.0, 20.0, 100.0, 3000.0])
    c, x = np.array([0.0, -3.0, 0.05, 3.0, -7.0]), np.array([2.0, 3.0, 1.0, 0.8, 0.3])
    with jax.enable_x64(True):
        both = jax.jit(lambda k, b, c: (polya_gamma_sum(k, b, c), polya_gamma_sum(jax.random.clone(k), b, c, 0.0)))
        draws = both(jax.random.key(0), *(jnp.broadcast_to(jnp.asarray(a), (40_000, 5)) for a in (b, c)))
    omega, mean = map(np.asarray, draws)
    np.testing.assert_allclose(mean[0], b * np.asarray(polya_gamma_mean(jnp.asarray(c))), rtol=1e-5)
    found, wanted = np.exp(-0.5 * omega * x**2), (np.cosh(c / 2) / np.cosh(np.sqrt(c**2 + x**2) / 2)) ** b
    assert (np.abs(found.mean(0) - wanted) < 5 * found.std(0) / 200).all()
    assert (np.abs(omega.mean(0) - mean[0]) < 5 * omega.std(0) / 200).all()


@pytest.mark.parametrize("counts", [[0, 1, 0], [3], [20, 30]], ids=str)
def test_the_posterior_of_a_log_rate_is_right(counts):
    """Against quadrature: the mean within 0.1 sd, the sd 0 to 8 % wide (5 % of variance is meant to be added).

    1,000 chains of 60 draws: standard errors 0.01 sd and 1 %. With h following x, the first case is off by 0.4 sd.
    """
    grid, y = np.linspace(-14, 9, 40_001), np.array(counts, float)
    log_p = y.sum() * grid - len(y) * np.exp(grid) - grid**2 / 8
    p = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
    mean, sd = p @ grid, np.sqrt(p @ grid**2 - (p @ grid) ** 2)
    rate = max(y.mean(), 1 / 3)

    @jax.jit
    def chains(key):
        h = jnp.full((1000, len(y)), dispersion(jnp.log(rate)))
        numbers = jnp.zeros(()), jnp.zeros(())
        data = Grid(h, jnp.broadcast_to(jnp.asarray(y), h.shape), *numbers)

        def one(x, key):
            hidden, noise = jax.random.split(key)
            seen = augmented("poisson", hidden, data, jnp.broadcast_to(x[:, None], h.shape), jnp.ones(()), 1.0)
            precision = seen.weight.sum(1) + 0.25
            x = seen.target.sum(1) / precision + jax.random.normal(noise, x.shape) / jnp.sqrt(precision)
            return x, x

        return jax.lax.scan(one, jnp.full(1000, jnp.log(rate)), jax.random.split(key, 120))[1][60:]

    with jax.enable_x64(True):
        draws = np.asarray(chains(jax.random.key(1)))
    assert abs(draws.mean() - mean) < 0.1 * sd
    assert -0.02 < draws.std() / sd - 1 < 0.08


@pytest.mark.parametrize("kind", ["grid", "entries"])
def test_effects_are_their_conditional_means_and_leave_the_rest_to_the_network(kind):
    rng, shape = np.random.default_rng(0), (4, 3, 5)
    y, x, weight = rng.normal(size=shape), rng.normal(size=shape), rng.uniform(0.5, 2, size=shape)
    seen, network = rng.random(shape) < 0.6, FORMATS["cp"](shape, (), rank=1)
    names, precision = (beside.CONSTANT, network.modes[0], network.modes[2]), 3.0
    with jax.enable_x64(True):
        if kind == "grid":
            data, at = Grid.build(y, seen, weight), x
        else:
            data, at = Entries.build(network, np.argwhere(seen), y[seen], weight[seen]), x[seen]

        @jax.jit
        def both(data, at):
            start = beside.start(names, network.size, 0.3, jnp.float64)
            key, noise = jax.random.key(0), jnp.asarray(precision)
            found, total = beside.update(key, start, data, network.modes, at, noise, 0.0)
            return found, beside.taken_off(data, found, network.modes, total)

        found, left = both(data, at)
    w, sums, lines = np.where(seen, weight, 0), np.full(shape, 0.3), {}
    for name in sorted(found.values):  # one after the other, as the sweep takes them
        axes = (0, 1, 2) if name == beside.CONSTANT else tuple(k for k in range(3) if network.modes[k] != name)
        before = 0.3 if name == beside.CONSTANT else 0.0
        own = 0.01 if name == beside.CONSTANT else 10.0
        variance = 1 / (precision * w.sum(axes) + own)
        moved = variance * precision * (w * (y - x - sums + before)).sum(axes)
        np.testing.assert_allclose(found.values[name], moved, rtol=1e-12)
        np.testing.assert_allclose(found.variances[name], variance, rtol=1e-12)
        sums = sums + np.expand_dims(moved - before, axes)
        lines[name] = np.expand_dims(variance, axes)
    energy = (w * ((y - sums) ** 2 + sum(lines.values()))).sum()
    np.testing.assert_allclose(left.energy, energy, rtol=1e-12)
    target = (w * (y - sums))[() if kind == "grid" else seen]
    np.testing.assert_allclose(left.target, target, atol=1e-12)


def test_effects_are_drawn_from_their_conditionals():
    # 4,000 draws: standardised, their variance has se 0.022; draws without noise, or of twice the variance, are seen
    rng, shape = np.random.default_rng(0), (4, 3, 5)
    y, x, seen = rng.normal(size=shape), rng.normal(size=shape), rng.random(shape) < 0.6
    network = FORMATS["cp"](shape, (), rank=1)
    names, precision = (beside.CONSTANT, network.modes[1]), 3.0
    with jax.enable_x64(True):
        data, at = Grid.build(y, seen), jnp.asarray(x)

        def one(key):
            start = beside.start(names, network.size, 0.0, jnp.float64)
            return beside.update(key, start, data, network.modes, at, jnp.asarray(precision), 1.0)[0]

        drawn = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))
    constant, offsets = (np.asarray(drawn.values[name]) for name in names)
    left, count = np.where(seen, y - x, 0), seen.sum((0, 2))
    z = [(constant - precision * left.sum() / (precision * seen.sum() + 0.01)) * np.sqrt(precision * seen.sum() + 0.01)]
    mean = precision * (left.sum((0, 2)) - count * constant[:, None]) / (precision * count + 10)
    z += list(((offsets - mean) * np.sqrt(precision * count + 10)).T)
    for each in z:
        assert abs(each.mean()) < 5 / np.sqrt(4000) and abs(each.var() - 1) < 0.11
    assert np.abs(np.corrcoef(z) - np.eye(4)).max() < 0.08
    assert not any(np.asarray(v).any() for v in drawn.variances.values())


def test_counts_with_effects_are_predicted_by_rates_and_their_intervals_are_quantiles_of_counts():
    from scipy.special import logsumexp
    from scipy.stats import poisson

    rng, shape = np.random.default_rng(0), (12, 10, 8)
    log_rate = 0.5 + np.einsum("ir,jr,kr->ijk", *(0.7 * rng.normal(size=(n, 2)) for n in shape))
    log_rate = log_rate + 0.7 * rng.normal(size=(12, 1, 1)) + 0.7 * rng.normal(size=(1, 10, 1))
    values, observed = rng.poisson(np.exp(log_rate)).astype(float), rng.random(shape) < 0.6
    fit = TensorCompletion(**FAST, likelihood="poisson", effects=(0, 1)).fit(np.where(observed, values, np.nan))
    density = [poisson.logpmf(values, r)[~observed].mean() for r in (np.exp(log_rate), values[observed].mean())]
    score = fit.score(np.where(observed, np.nan, values))
    # 384 hidden counts: standard error of a mean log density 0.05; most of what can be known of the truth is known
    assert score > density[0] - 0.25 * (density[0] - density[1])
    draws = fit.sample(40)
    mixture = logsumexp(poisson.logpmf(values, draws), axis=0) - np.log(40)
    np.testing.assert_allclose(score, mixture[~observed].mean(), rtol=1e-9)
    np.testing.assert_allclose(fit.predict(return_std=True)[1] ** 2, draws.mean(0) + draws.var(0), rtol=1e-8)
    for end, p in zip(fit.predict_interval(0.9), (0.05, 0.95), strict=True):
        assert (poisson.cdf(end, draws).mean(0) >= p - 1e-12).all()
        assert ((poisson.cdf(end - 1, draws).mean(0) < p) | (end == 0)).all()
    assert set(fit.effects_) == {"constant", *fit.network_.modes[:2]}
    with pytest.raises(ValueError, match="must be a count"):
        clone(fit).fit(values + 0.5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 5e6])
def test_quantiles_of_counts_of_any_size_are_found(scale):
    from scipy.stats import poisson

    network, rng = FORMATS["cp"]((51, 1), (), rank=1), np.random.default_rng(0)
    log_rates = np.log(scale) + rng.normal(size=(10, 51)) * np.repeat([0.01, 0.5, 1.0], 17)
    cores = {core.name: np.zeros((10, *(network.size[leg] for leg in core.legs))) for core in network.cores}
    draws = Posterior(network, cores, {network.modes[0]: log_rates}, np.ones(10), (51, 1), "poisson")
    probabilities = 0.05, 0.5, 0.95
    for p, count in zip(probabilities, draws.quantiles(probabilities), strict=True):
        rates = np.exp(log_rates)[:, :, None]
        assert (poisson.cdf(count, rates).mean(0) >= p).all() and (poisson.cdf(count - 1, rates).mean(0) < p).all()


def test_what_is_held_out_is_a_share_of_entries_or_of_whole_fibres():
    rng = np.random.default_rng(0)
    given = read(np.where(rng.random((6, 5, 40)) < 0.7, 1.0, np.nan))
    assert held_out(given, 0.2, "random", 0).sum() == np.ceil(0.2 * len(given.values))
    rows = held_out(given, 0.2, 2, 0)
    away, kept = ({tuple(x) for x in given.coords[r][:, :2]} for r in (rows, ~rows))
    assert len(away) == 6 and not away & kept
    for by in ("mode", 3, True):
        with pytest.raises(ValueError, match="conformal_by"):
            held_out(given, 0.2, by, 0)
    with pytest.raises(ValueError, match="none or all"):
        held_out(given, 0.999, 2, 0)


def test_conformal_intervals_cover_where_the_model_is_wrong():
    # noise is a unit normal on one entry in sixteen and a fiftieth of that elsewhere: intervals of a t of its variance
    # cover too much. 480 hidden entries and 48 to correct by: sd of the coverage 0.045; uncorrected it is 0.89 at 0.7
    rng = np.random.default_rng(0)
    truth = np.einsum("ir,jr,kr->ijk", *(rng.normal(size=(n, 2)) for n in (12, 10, 8)))
    noisy = truth + rng.normal(size=truth.shape) * np.where(rng.random(truth.shape) < 1 / 16, 1.0, 0.02)
    observed = rng.random(truth.shape) > 0.5
    fit = TensorCompletion(**FAST, conformal=0.1).fit(np.where(observed, noisy, np.nan))
    inside = [
        np.mean(((noisy >= low) & (noisy <= high))[~observed])
        for low, high in (fit.conformal_interval(0.7), fit.predict_interval(0.7))
    ]
    assert abs(inside[0] - 0.7) < 0.13 < inside[1] - 0.7
    assert len(fit.residuals_) == np.ceil(0.1 * observed.sum())
    with pytest.raises(ValueError, match="too few"):
        fit.conformal_interval(0.99)
    assert conformal_quantile(np.arange(1.0, 10.0), 0.9) == 9.0 and conformal_quantile(np.arange(1.0, 10.0), 0.5) == 5.0
    with pytest.raises(ValueError, match="no entries were left out"):
        fit.set_params(conformal=0.0).conformal_interval()


@pytest.mark.slow
def test_a_slice_without_an_observation_is_filled_by_a_smooth_mode():
    rng, t = np.random.default_rng(0), np.linspace(0, 2 * np.pi, 40)
    truth = np.einsum(
        "ir,jr,kr->ijk", rng.normal(size=(8, 2)), rng.normal(size=(7, 2)), np.stack([np.sin(t), np.cos(t)], 1)
    )
    holed = truth + 0.05 * rng.normal(size=truth.shape)
    holed[:, :, 17] = np.nan
    errors, widths = [], []
    for smooth in ((), (2,)):
        fit = TensorCompletion(**FAST | {"smooth": smooth}).fit(holed)
        assert fit.diagnostics_["empty_slices"] == {2: [17]}
        low, high = fit.predict_interval(0.9)
        inside = ((truth >= low) & (truth <= high))[:, :, 17]
        assert inside.mean() > 0.75  # from its prior or its neighbours, the slice is uncertain and says so
        errors.append(np.linalg.norm((fit.predict() - truth)[:, :, 17]) / np.linalg.norm(truth[:, :, 17]))
        widths.append(np.mean((high - low)[:, :, 17]))
    assert errors[0] > 0.6 and errors[1] < 0.25 and widths[1] < 0.5 * widths[0]


@pytest.mark.slow
def test_the_format_of_the_data_is_chosen():
    rng, shape = np.random.default_rng(0), (12, 12, 12)
    cores = [rng.normal(size=s) for s in ((12, 3), (3, 12, 3), (3, 12))]
    truth = np.einsum("ia,ajb,bk->ijk", *cores)
    holed = np.where(rng.random(shape) < 0.5, truth + 0.3 * rng.normal(size=shape), np.nan)
    fit = TensorCompletion(**FAST | {"format": "auto"}).fit(holed)
    scores = fit.diagnostics_["formats"]
    assert fit.format_ == max(scores, key=scores.__getitem__) == "tensor_train"  # CP of rank 3 or less cannot hold it
    assert set(fit.rank_) == set(fit.network_.bonds)


@pytest.mark.parametrize("kind", ["grid", "entries"])
def test_shares_of_noise_are_their_conditional_law(kind):
    """4,000 draws, means within 6 standard errors: shapes or rates off by 5 % are seen (a false alarm in 10^8)."""
    rng, shape = np.random.default_rng(0), (4, 3, 5)
    y, x, weight = rng.normal(size=shape), rng.normal(size=shape), rng.uniform(0.5, 2, size=shape)
    seen, network, precision = rng.random(shape) < 0.6, FORMATS["cp"](shape, (), rank=1), 3.0
    with jax.enable_x64(True):
        if kind == "grid":
            data, at = Grid.build(y, seen, weight), x
        else:
            data, at = Entries.build(network, np.argwhere(seen), y[seen], weight[seen]), x[seen]
        keys = jax.random.split(jax.random.key(0), 4000)
        draw = jax.jit(jax.vmap(lambda key: pick_shares(key, data, 2, jnp.asarray(at), precision)))
        draws = np.asarray(draw(keys))
        once = reweighted(data, jnp.asarray(draws[0]), 2)
    number, energy = seen.sum((0, 1)), (seen * weight * (y - x) ** 2).sum((0, 1))
    a, b = EVEN + 0.5 * number, EVEN + 0.5 * precision * energy
    assert (np.abs(draws.mean(0) - a / b) < 6 * np.sqrt(a) / b / np.sqrt(4000)).all()
    assert (np.abs(draws.var(0) / (a / b**2) - 1) < 0.3).all()
    np.testing.assert_allclose(once.energy, (seen * weight * draws[0] * y**2).sum(), rtol=1e-10)
    np.testing.assert_allclose(np.asarray(once.target).sum(), (seen * weight * draws[0] * y).sum(), rtol=1e-10)


def test_noise_of_its_own_is_found_for_each_slice():
    """Scales from 0.07 to 1.1: each within a factor of 1.7 and 90 % intervals right for the noisy and the quiet half.

    Some 200 hidden entries a half: standard error of a coverage 0.02. One scale for all covers 0.99 and 0.7 or so.
    """
    rng, sd = np.random.default_rng(0), np.geomspace(0.07, 1.1, 6)
    x = np.einsum("ir,jr,kr->ijk", *(rng.normal(size=(n, 2)) for n in (12, 10, 6)))
    y, seen = x + sd * rng.normal(size=x.shape), rng.random(x.shape) < 0.5
    fit = TensorCompletion(**FAST, noise_by=2).fit(np.where(seen, y, np.nan))
    assert (np.abs(np.log(fit.noise_ / sd)) < np.log(1.7)).all()
    lower, upper = fit.predict_interval(0.9)
    inside = np.where(seen, np.nan, (lower <= y) & (y <= upper))
    for half in (inside[..., :3], inside[..., 3:]):
        assert 0.82 < np.nanmean(half) < 0.97
    coords = np.argwhere(~seen)
    np.testing.assert_allclose(fit.predict_interval(0.9, coords)[0], lower[~seen], rtol=1e-6)
    np.testing.assert_allclose(
        fit.predict(coords, return_std=True)[1], fit.predict(return_std=True)[1][~seen], rtol=1e-6
    )


@pytest.mark.parametrize("burn_in", [10, "auto"])
def test_progress_comes_to_its_end(burn_in, monkeypatch):
    """Sweeps told of are those foretold, also where burning in ends early."""
    foretold, done = [], []
    monkeypatch.setattr(Told, "drawing", lambda _, sweeps: foretold.append(sweeps))
    monkeypatch.setattr(Told, "swept", lambda _, sweeps: done.append(sweeps))
    x = np.einsum("i,j,k->ijk", *(np.arange(1.0, n) for n in (9, 8, 7)))
    TensorCompletion(**FAST | {"burn_in": burn_in}, chains=2).fit(x + np.random.default_rng(0).normal(size=x.shape))
    assert foretold == [sum(done)] and len(done) > 4
