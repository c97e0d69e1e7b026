"""Every score against an independent formula: loops, integrals, scikit-learn, XLA's own count."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats as st
import sklearn.metrics as sk

from bayestensor.metrics import classification as cl
from bayestensor.metrics import cost
from bayestensor.metrics import regression as rg

RNG = np.random.default_rng(0)
N, CLASSES, MEMBERS = 200, 4, 7
LOG_PROBS = scipy.special.log_softmax(2 * RNG.normal(size=(MEMBERS, N, CLASSES)), axis=2)
PROBS = np.exp(LOG_PROBS).mean(axis=0)
LABELS = np.array([RNG.choice(CLASSES, p=p) for p in PROBS])

# --- classification --------------------------------------------------------------------------------------------


def loop_ece(bins):
    total = 0.0
    for k in range(bins):
        inside = [i for i in range(N) if k / bins < max(PROBS[i]) <= (k + 1) / bins]
        if inside:
            gap = np.mean([PROBS[i].argmax() == LABELS[i] for i in inside]) - np.mean([max(PROBS[i]) for i in inside])
            total += len(inside) / N * abs(gap)
    return total


CLASSIFICATION = {
    "mixture log likelihood": (
        lambda: cl.log_likelihood(LOG_PROBS, LABELS).mixture,
        lambda: -sk.log_loss(LABELS, PROBS),
    ),
    "members' log likelihood": (
        lambda: cl.log_likelihood(LOG_PROBS, LABELS).members,
        lambda: np.mean([-sk.log_loss(LABELS, np.exp(member)) for member in LOG_PROBS]),
    ),
    "accuracy": (lambda: cl.accuracy(PROBS, LABELS), lambda: sk.accuracy_score(LABELS, PROBS.argmax(1))),
    "brier": (
        lambda: cl.brier(PROBS, LABELS),
        lambda: np.mean([sum((PROBS[i, c] - (c == LABELS[i])) ** 2 for c in range(CLASSES)) for i in range(N)]),
    ),
    "ece, 15 bins": (lambda: cl.expected_calibration_error(PROBS, LABELS), lambda: loop_ece(15)),
    "ece, 7 bins": (lambda: cl.expected_calibration_error(PROBS, LABELS, 7), lambda: loop_ece(7)),
    "confusion": (lambda: cl.confusion_matrix(PROBS, LABELS), lambda: sk.confusion_matrix(LABELS, PROBS.argmax(1))),
    "entropy": (lambda: cl.predictive_entropy(PROBS), lambda: st.entropy(PROBS, axis=1)),
    "auroc": (
        lambda: cl.ood_auroc(PROBS[:50, 0].round(1), PROBS[50:90, 1].round(1)),
        lambda: np.mean([(b > a) + 0.5 * (b == a) for a in PROBS[:50, 0].round(1) for b in PROBS[50:90, 1].round(1)]),
    ),
}


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_classification_scores(name):
    ours, expected = (f() for f in CLASSIFICATION[name])
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_mixture_beats_its_members_and_survives_certainty():
    both = cl.log_likelihood(LOG_PROBS, LABELS)
    assert both.mixture > both.members
    certain = np.log(
        np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), where=np.eye(2).reshape(2, 1, 2) > 0, out=np.full((2, 1, 2), -np.inf)
    )
    assert cl.log_likelihood(certain, [0]).mixture == pytest.approx(np.log(0.5))
    assert np.isneginf(cl.mixture(certain[:1])[0, 1])
    assert cl.predictive_entropy([[1.0, 0.0]]) == 0.0


def test_reliability_counts_every_datum_once_edges_included():
    probs = np.array([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25]])
    diagram = cl.reliability(probs, np.array([0, 0, 1]), bins=4)
    np.testing.assert_array_equal(diagram.counts, [0, 1, 1, 1])
    np.testing.assert_allclose(diagram.confidence[1:], [0.5, 0.75, 1.0])
    np.testing.assert_allclose(diagram.accuracy[1:], [1.0, 0.0, 1.0])
    assert np.isnan(diagram.accuracy[0])


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (PROBS[0], LABELS, "shape"),
        (PROBS, LABELS[:-1], "shape"),
        (PROBS, LABELS + 1, "from 0 to 3"),
        (PROBS, LABELS - 1, "from 0 to 3"),
        (PROBS, LABELS.astype(float), "whole numbers"),
        (3 * PROBS, LABELS, "logits"),
        (np.where(PROBS.max() == PROBS, np.nan, PROBS), LABELS, "sum to 1"),
        (PROBS[:0], LABELS[:0], "n > 0"),
    ],
)
@pytest.mark.parametrize("score", [cl.accuracy, cl.brier, cl.expected_calibration_error, cl.confusion_matrix])
def test_classification_refuses(score, probs, labels, message):
    with pytest.raises(ValueError, match=message):
        score(probs, labels)


# --- regression ------------------------------------------------------------------------------------------------

Y = RNG.normal(size=30)
MEAN, SD = RNG.normal(size=30), np.exp(RNG.normal(size=30))
SAMPLES = RNG.normal(size=(9, 30))


def integral_crps(cdf, y, steps):
    """The definition: integral of (F(x) - [x >= y])^2, split at the steps."""
    points = np.unique([-60.0, *steps, y, 60.0])
    parts = itertools.pairwise(points)
    return sum(scipy.integrate.quad(lambda x: (cdf(x) - (x >= y)) ** 2, a, b, limit=200)[0] for a, b in parts)


def test_gaussian_crps_is_the_integral():
    expected = [
        integral_crps(st.norm(m, s).cdf, y, [m - 3 * s, m, m + 3 * s]) for m, s, y in zip(MEAN, SD, Y, strict=True)
    ]
    assert rg.crps_gaussian(MEAN, SD, Y) == pytest.approx(np.mean(expected), abs=1e-7)


def test_sample_crps_is_the_integral_of_the_empirical_distribution():
    expected = [integral_crps(lambda x, s=SAMPLES[:, i]: np.mean(s <= x), Y[i], SAMPLES[:, i]) for i in range(len(Y))]
    assert rg.crps_samples(SAMPLES, Y) == pytest.approx(np.mean(expected), abs=1e-7)


def test_fair_sample_crps_is_unbiased_where_the_plain_one_is_not():
    # 4 draws, 20,000 cases: standard error about 0.004; the plain score is off by E|X - X'| / 8 = 0.14
    y = RNG.normal(size=20_000)
    draws = RNG.normal(size=(4, 20_000))
    exact = rg.crps_gaussian(np.zeros_like(y), 1.0, y)
    assert rg.crps_samples(draws, y, fair=True) == pytest.approx(exact, abs=0.03)
    assert abs(rg.crps_samples(draws, y) - exact) > 0.1


MEANS, SDS = RNG.normal(size=(5, 30)), np.exp(0.3 * RNG.normal(size=(5, 30)))


def mixture_cdf(i, sds=SDS):
    return lambda x: np.mean(st.norm.cdf(x, MEANS[:, i], np.broadcast_to(sds, SDS.shape)[:, i]))


@pytest.mark.parametrize("sds", [SDS, 0.7, SDS[:, 0]], ids=["all", "one", "one a draw"])
def test_mixture_crps_is_the_integral(sds):
    whole = sds[:, None] if np.ndim(sds) == 1 else sds
    expected = [integral_crps(mixture_cdf(i, whole), Y[i], np.sort(MEANS[:, i])) for i in range(8)]
    assert rg.crps_mixture(MEANS[:, :8], sds[:, :8] if np.ndim(sds) == 2 else sds, Y[:8]) == pytest.approx(
        np.mean(expected), abs=1e-7
    )


def test_mixture_crps_has_the_gaussian_and_the_draws_as_limits():
    assert rg.crps_mixture(MEANS[:1], SDS[:1], Y) == pytest.approx(rg.crps_gaussian(MEANS[0], SDS[0], Y), rel=1e-12)
    assert rg.crps_mixture(SAMPLES, 1e-9, Y) == pytest.approx(rg.crps_samples(SAMPLES, Y), abs=1e-8)


def test_mixture_interval_holds_its_mass():
    lower, upper = rg.mixture_interval(MEANS, SDS, 0.8)
    for i in range(30):
        np.testing.assert_allclose([mixture_cdf(i)(lower[i]), mixture_cdf(i)(upper[i])], [0.1, 0.9], atol=1e-9)
    np.testing.assert_allclose(rg.mixture_interval(MEANS[:1], SDS[:1]), rg.gaussian_interval(MEANS[0], SDS[0]))


def test_regression_log_likelihood_of_the_mixture_and_of_its_members():
    own = st.norm.logpdf(Y, MEANS, SDS)
    both = rg.log_likelihood(own)
    assert both.mixture == pytest.approx(np.log(st.norm.pdf(Y, MEANS, SDS).mean(0)).mean())
    assert both.members == pytest.approx(own.mean())
    assert both.mixture > both.members


def test_one_draw_scores_the_absolute_error():
    assert rg.crps_samples(SAMPLES[:1], Y) == pytest.approx(np.abs(SAMPLES[0] - Y).mean())


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_cover_as_they_say(level):
    # 40,000 data: standard error of the coverage at most 0.0025
    truth = 1.5 + 2 * RNG.normal(size=40_000)
    ends = rg.gaussian_interval(np.full_like(truth, 1.5), 2.0, level)
    assert rg.coverage(*ends, truth) == pytest.approx(level, abs=0.01)
    assert rg.width(*ends) == pytest.approx(4 * st.norm.ppf(0.5 + level / 2))
    lower, upper = rg.sample_interval(1.5 + 2 * RNG.normal(size=(20_000, 1)), level)
    assert rg.coverage(
        np.broadcast_to(lower, truth.shape), np.broadcast_to(upper, truth.shape), truth
    ) == pytest.approx(level, abs=0.02)


def test_rrse():
    assert rg.rrse(MEAN.reshape(5, 6), Y.reshape(5, 6)) == pytest.approx(
        np.sqrt(((MEAN - Y) ** 2).sum() / (Y**2).sum())
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rg.crps_gaussian(MEAN, -SD, Y), "sd must be positive"),
        (lambda: rg.crps_gaussian(MEAN[:, None], SD, Y), "shapes differ"),
        (lambda: rg.crps_samples(SAMPLES.T, Y), "draws"),
        (lambda: rg.crps_samples(SAMPLES[:1], Y, fair=True), "at least 2 draws"),
        (lambda: rg.crps_mixture(MEANS, -SDS, Y), "positive, one for all"),
        (lambda: rg.crps_mixture(MEANS, SDS[:2], Y), "like the means"),
        (lambda: rg.log_likelihood(Y), "members, n"),
        (lambda: rg.sample_interval(SAMPLES, 90), "between 0 and 1"),
        (lambda: rg.rrse(Y, 0 * Y), "all zeros"),
        (lambda: rg.rrse([], []), "nothing to score"),
    ],
)
def test_regression_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- cost ------------------------------------------------------------------------------------------------------


def test_latency_is_the_median_after_warm_up():
    naps = iter([0.2, 0.01, 0.15, 0.01])  # the first warms up; one outlier of three must not count
    assert 0.01 <= cost.latency(lambda: time.sleep(next(naps)), repeats=3, warmup=1) < 0.1
