"""Laws of the scale priors, as a table of priors x laws, against scipy's densities and quadrature in float64."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from scipy.integrate import cumulative_trapezoid

from bayestensor.priors import (
    PRIORS,
    CumulativeShrinkage,
    Gamma,
    GeneralisedHyperbolic,
    HalfCauchy,
    InverseGamma,
    LogUniform,
    ScalePrior,
    conditional,
)
from bayestensor.priors.log_concave import sample_log_concave

TABLE = [
    LogUniform(),
    LogUniform(0.3, 2.0),
    HalfCauchy(0.1),
    InverseGamma(),
    InverseGamma(2.0, 0.3),
    Gamma(),
    Gamma(2.5, 0.7),
    GeneralisedHyperbolic(0.7, 0.2, 0.5),
    CumulativeShrinkage(1.5, 2.0, 1.0, 0.1),
]


class Mixture:
    """Slab and spike of a bond of one index."""

    def __init__(self, p):
        self.share = p.alpha / (p.alpha + 1)
        self.laws = [st.invgamma(p.shape, scale=b * p.scale) for b in (1.0, p.spike)]

    def logpdf(self, v):
        slab, spike = (law.logpdf(v) for law in self.laws)
        return np.logaddexp(np.log(self.share) + slab, np.log1p(-self.share) + spike)


# scipy's law of s (or of v) for each prior
ORACLE = {
    LogUniform: lambda p: ("s", st.loguniform(p.s_min, p.s_max)),
    HalfCauchy: lambda p: ("s", st.halfcauchy(scale=p.eta)),
    InverseGamma: lambda p: ("v", st.invgamma(p.shape, scale=p.scale)),
    Gamma: lambda p: ("s", st.gamma(p.shape, scale=1 / p.rate)),
    GeneralisedHyperbolic: lambda p: (
        "v",
        st.geninvgauss(-p.shape, 2 * np.sqrt(p.scale * p.rate), scale=np.sqrt(p.scale / p.rate)),
    ),
    CumulativeShrinkage: lambda p: ("v", Mixture(p)),
}
# (M, D): mode inside, dead slice, live slice, at an end of a truncated support, one entry, many entries
ENTRIES = [(20.0, 20.0), (1e-6, 8.0), (3e4, 1e5), (0.5, 1.0), (1e6, 5.0), (1e-4, 300.0), (2e-3, 40.0)]
EXTREMES = [(1e-30, 1.0), (1e-30, 1e6), (1e12, 1.0), (1e12, 1e6), (1e-12, 3.0), (1.0, 1.0), (7.0, 2.0)]
ALPHA = 1e-4  # a sound draw fails one KS test in 10,000 by chance; keys are fixed, so a green run stays green
DRAWS = 4000  # KS then rejects a distance of 0.045 with probability above 0.9


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


each_prior = pytest.mark.parametrize(
    "prior",  # cumulative shrinkage is dear to compile
    [pytest.param(p, marks=pytest.mark.slow) if isinstance(p, CumulativeShrinkage) else p for p in TABLE],
    ids=str,
)
each_entries = pytest.mark.parametrize("entries", ENTRIES, ids=lambda e: f"M={e[0]:g},D={e[1]:g}")


def log_density(prior, log_v):
    """Of bonds of one index: a prior may couple those of one bond."""
    return prior.log_density(log_v[..., None])[..., 0]


def mode(prior, energy, count):
    return prior.mode(energy[..., None], count)[..., 0]


def log_posterior(prior, log_v, energy, count):
    return log_density(prior, log_v) - 0.5 * count * log_v - 0.5 * energy * jnp.exp(-log_v)


def cdf_of(log_p_at, centre, low, high):
    """(cdf of log v, integral) by the trapezoidal rule in float64; the grid is fine at the centre and the ends."""
    reach = np.concatenate([[0.0], np.geomspace(1e-9, 200.0, 20_000)])
    x = np.concatenate([centre + reach, centre - reach, low + reach, high - reach, np.linspace(low, high, 10_001)])
    x = np.unique(x[(x >= low) & (x <= high)])  # nan, from an infinite end, drops out
    with jax.enable_x64(True):
        log_p = np.asarray(log_p_at(jnp.asarray(x)))
    mass = cumulative_trapezoid(np.exp(log_p - log_p.max()), x, initial=0.0)
    return lambda at: np.interp(at, x, mass / mass[-1]), np.exp(log_p.max() + np.log(mass[-1]))


def prior_cdf(prior):
    low, high = max(prior.support[0], -90.0), min(prior.support[1], 90.0)
    return cdf_of(partial(log_density, prior), 0.0, low, high)


def conditional_cdf(prior, energy, count):
    with jax.enable_x64(True):
        centre = float(jnp.log(mode(prior, jnp.asarray(energy, float), count)))
    reach = 3.0 + 60.0 / np.sqrt(count)
    low, high = max(centre - reach, prior.support[0]), min(centre + reach, prior.support[1])

    def relative(x):  # to the centre: D log v itself is too large for exp
        return log_posterior(prior, x, energy, count) - log_posterior(prior, jnp.asarray(centre), energy, count)

    return cdf_of(relative, centre, low, high)[0]


def ks_p_value(draws, cdf):
    return st.kstest(np.log(np.asarray(draws, np.float64)), cdf).pvalue


@partial(jax.jit, static_argnums=0)
def prior_draws(prior, key):
    return prior.sample(key, (DRAWS, 1))[:, 0]


def settled(prior, key, energy, count):
    """The ends of DRAWS independent chains of conditional draws, all from v = 1: an identity map would show."""
    v, energy = jnp.ones((DRAWS, 1)), jnp.full((DRAWS, 1), energy, jnp.float32)
    for sweep in jax.random.split(key, 25 if isinstance(prior, HalfCauchy) else 1):  # the others draw independently
        v = prior.sample_conditional(sweep, v, energy, count)
    return v[:, 0]


# --- densities -------------------------------------------------------------------------------------------------


@each_prior
def test_density_integrates_to_one(prior):
    # the half-Cauchy and inverse-gamma tails beyond exp(+-90) hold less than 1e-15 of the mass
    assert prior_cdf(prior)[1] == pytest.approx(1.0, abs=2e-5)


@each_prior
def test_density_is_scipys_times_the_jacobian(prior):
    variable, law = ORACLE[type(prior)](prior)
    inner = [max(prior.support[0], -12.0) + 0.01, min(prior.support[1], 12.0) - 0.01]
    x = np.linspace(*inner, 41)
    with jax.enable_x64(True):
        ours = np.asarray(log_density(prior, jnp.asarray(x)))
    expected = law.logpdf(np.exp(x / 2)) + x / 2 - np.log(2) if variable == "s" else law.logpdf(np.exp(x)) + x
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)


@each_prior
def test_density_has_the_shape_of_the_bond_and_finite_gradients(prior):
    log_v = jnp.linspace(-2.0, 1.0, 6).reshape(2, 3)
    terms = prior.log_density(log_v)
    assert terms.shape == log_v.shape
    assert terms.dtype == jnp.float32
    assert jnp.isfinite(jax.grad(lambda x: prior.log_density(x).sum())(log_v)).all()


def test_log_uniform_is_minus_infinity_outside_and_finite_at_its_rounded_ends():
    prior = LogUniform(3e-3, 50.0)
    ends = jnp.log(jnp.asarray([prior.s_min**2, prior.s_max**2], jnp.float32))
    assert jnp.isfinite(prior.log_density(ends)).all()
    assert (prior.log_density(ends + jnp.asarray([-0.01, 0.01])) == -jnp.inf).all()


# --- modes -----------------------------------------------------------------------------------------------------


def mode_fault(prior, v, energy, count):
    """How far v is from the maximum in log v: the scaled gradient, and the best gain on a grid; 0 at the mode."""
    with jax.enable_x64(True):
        target = partial(log_posterior, prior, energy=energy, count=count)
        x = jnp.log(jnp.asarray(v, jnp.float64))
        slope = float(jax.grad(target)(x)) / (count + 1)
        low, high = prior.support
        at_low, at_high = float(x) <= low + 1e-9, float(x) >= high - 1e-9
        outward = (at_low and slope < 0) or (at_high and slope > 0)
        grid = np.clip(float(x) + np.concatenate([np.linspace(-30, 30, 601), np.linspace(-0.1, 0.1, 201)]), low, high)
        here = float(target(x))
        gain = float(np.max(np.asarray(target(jnp.asarray(grid))))) - here
    return max(0.0 if outward else abs(slope), gain / (abs(here) + count))


@each_prior
@pytest.mark.parametrize("entries", ENTRIES + EXTREMES, ids=str)
def test_mode_zeroes_the_gradient_and_is_the_maximum(prior, entries):
    with jax.enable_x64(True):
        v = mode(prior, jnp.asarray(entries[0], jnp.float64), entries[1])
    assert mode_fault(prior, v, *entries) < 1e-9


@pytest.mark.parametrize(
    ("prior", "published"),
    [
        (LogUniform(), lambda m, d: m / (d + 1)),
        (HalfCauchy(), lambda m, d: (m - d + np.sqrt(m**2 + (2 * d + 8) * m + d**2)) / (2 * d + 4)),
        (InverseGamma(), lambda m, d: (m + 0.02) / (d + 1 + 2)),
        (Gamma(), lambda m, d: max(np.roots([5.0, d - 1 + 1, 0, -m]).real) ** 2),
    ],
    ids=lambda value: "published" if callable(value) else str(value),
)
def test_mode_check_rejects_the_formulas_of_other_parametrisations(prior, published):
    # seeded fault: the papers' modes (in s or in v) are off by one or two in D
    assert mode_fault(prior, published(20.0, 20.0), 20.0, 20.0) > 1e-3


@each_prior
def test_mode_in_float32_agrees_with_float64(prior):
    energy = np.logspace(-25, 18, 87)
    for count in (1.0, 2.0, 37.0, 1e6):
        with jax.enable_x64(True):
            expected = np.asarray(mode(prior, jnp.asarray(energy), count))
        ours = np.asarray(jax.jit(partial(mode, prior))(jnp.asarray(energy, jnp.float32), count))
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-37)


@each_prior
def test_mode_of_a_slice_of_zeros_is_finite_and_at_the_bottom(prior):
    mode = prior.mode(jnp.zeros(3), jnp.asarray([1.0, 4.0, 1e6]))
    assert jnp.isfinite(mode).all()
    assert (mode <= prior.mode(jnp.full(3, 1e-3), jnp.asarray([1.0, 4.0, 1e6]))).all()
    assert (mode >= 0).all()


# --- draws -----------------------------------------------------------------------------------------------------


@each_prior
def test_prior_draws_follow_the_density(prior):
    # rejects a law at KS distance 0.045 with probability above 0.9: for example log v shifted by 0.11 sd
    v = prior_draws(prior, jax.random.key(1))
    assert v.dtype == jnp.float32
    assert ks_p_value(v, prior_cdf(prior)[0]) > ALPHA


@each_prior
@each_entries
def test_conditional_draws_follow_the_posterior(prior, entries):
    energy, count = entries
    v = settled(prior, jax.random.key(2), energy, count)
    low, high = (np.float32(np.exp(end / 2)) ** 2 for end in prior.support)
    assert ((v >= low * 0.9999) & (v <= high * 1.0001)).all()
    assert ks_p_value(v, conditional_cdf(prior, energy, count)) > ALPHA


@each_prior
def test_conditional_check_rejects_a_count_off_by_a_tenth(prior):
    # seeded fault: at D = 60 the mean of log v moves by 0.1, half its sd; KS distance 0.2 against 0.035 to reject
    energy, count = 60.0, 60.0
    v = settled(prior, jax.random.key(3), energy, 0.9 * count)
    assert ks_p_value(v, conditional_cdf(prior, energy, count)) < ALPHA


@each_prior
@pytest.mark.parametrize("count", [1, 6, 40])
def test_prior_entries_conditional_return_the_prior(prior, count):
    # Geweke: v ~ prior, M ~ v chi^2_D, v' ~ p(v' | M) has the prior's law; sees a shift of log v by 0.11 prior sd
    # with probability above 0.9
    v_key, key = jax.random.split(jax.random.key(4))
    v = prior_draws(prior, v_key)
    energy = v * np.random.default_rng(count).chisquare(count, DRAWS).astype(np.float32)
    again = prior.sample_conditional(key, v[:, None], energy[:, None], float(count))[:, 0]
    assert ks_p_value(again, prior_cdf(prior)[0]) > ALPHA
    assert (again != v).mean() > 0.99


@each_prior
def test_conditional_draws_stay_positive_and_finite_at_extremes(prior):
    energy = jnp.resize(jnp.asarray([0.0, 1e-30, 1e-12, 1.0, 1e12, 1e25], jnp.float32), (DRAWS, 1))
    for count in (1.0, 1000.0, 1e8):
        v = prior.sample_conditional(jax.random.key(5), jnp.full_like(energy, 1e-8), energy, count)
        assert jnp.isfinite(jnp.log(v)).all()
        assert jnp.isfinite(prior.log_density(jnp.log(v))).all()


@each_prior
def test_a_key_gives_its_draw_again_and_each_index_its_own(prior):
    v = energy = jnp.ones((DRAWS, 1))
    first = prior.sample_conditional(jax.random.key(6), v, energy, 4.0)
    assert (first == prior.sample_conditional(jax.random.key(6), v, energy, 4.0)).all()
    assert len(np.unique(first)) > 0.99 * DRAWS


# --- the log-concave sampler -----------------------------------------------------------------------------------

LOG_CONCAVE = {
    "normal": (lambda y: 0.5 * y**2, np.inf, np.inf, st.norm().cdf),
    "tiny normal": (lambda y: 0.5 * (y * 1e6) ** 2, np.inf, np.inf, st.norm(scale=1e-6).cdf),
    "normal cut at 0": (lambda y: 0.5 * y**2, 0.0, np.inf, st.halfnorm().cdf),
    "normal in a slit": (lambda y: 0.5 * y**2, 0.01, 0.03, st.uniform(-0.01, 0.04).cdf),
    "steep exponential": (lambda y: 1e8 * y, 0.0, 1.0, st.expon(scale=1e-8).cdf),
    "cut exponential": (lambda y: -2.0 * y, 1.5, 0.0, lambda y: np.expm1(2 * y + 3) / np.expm1(3)),
    "flat": (lambda y: 0.0 * y, 2.0, 3.0, st.uniform(-2, 5).cdf),
    "log of exponential": (lambda y: jnp.expm1(y) - y, np.inf, np.inf, lambda y: st.expon().cdf(np.exp(y))),
}


@pytest.mark.parametrize("name", LOG_CONCAVE)
def test_log_concave_sampler(name):
    drop, left, right, cdf = LOG_CONCAVE[name]
    ends = jnp.full(DRAWS, left, jnp.float32), jnp.full(DRAWS, right, jnp.float32)
    delta = np.asarray(jax.jit(lambda key: sample_log_concave(key, drop, *ends))(jax.random.key(7)))
    assert st.kstest(delta, cdf).pvalue > ALPHA
    assert (delta >= -left).all()
    assert (delta <= right).all()


def test_log_concave_sampler_shows_nan_instead_of_hanging():
    bad = jnp.asarray([jnp.nan, 1.0])
    draw = sample_log_concave(jax.random.key(0), lambda y: bad * y**2, jnp.full(2, jnp.inf), jnp.full(2, jnp.inf))
    assert jnp.isnan(draw[0])
    assert jnp.isfinite(draw[1])


# --- the contract ----------------------------------------------------------------------------------------------


@each_prior
def test_priors_are_static_values_of_the_protocol(prior):
    assert isinstance(prior, ScalePrior)
    assert prior.proper
    assert prior == dataclasses.replace(prior)
    assert hash(prior) == hash(dataclasses.replace(prior))
    first = dataclasses.fields(prior)[0].name
    assert prior != dataclasses.replace(prior, **{first: 1.01 * getattr(prior, first)})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(prior, first, 1.0)


def test_table_lists_every_prior():
    assert set(PRIORS.values()) == {type(prior) for prior in TABLE} == set(ORACLE)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), "1", None, True, 1e-30])
def test_bad_hyperparameters_are_refused_by_name(name, bad):
    for hyperparameter in dataclasses.fields(PRIORS[name]):
        with pytest.raises(ValueError, match=rf"{PRIORS[name].__name__}: {hyperparameter.name} must be"):
            PRIORS[name](**{hyperparameter.name: bad})


def test_log_uniform_refuses_ends_in_the_wrong_order():
    with pytest.raises(ValueError, match="s_min must be below s_max"):
        LogUniform(2.0, 1.0)


def test_a_prior_without_a_conditional_is_refused_with_a_way_out():
    class Bare(Gamma):
        has_conditional = False

    with pytest.raises(ValueError, match=r"Bare has no conditional draw.*by gradient"):
        conditional(Bare())
    same = [
        draw(jax.random.key(0), jnp.ones(9), jnp.ones(9), 4.0)
        for draw in (conditional(TABLE[0]), TABLE[0].sample_conditional)
    ]
    assert (same[0] == same[1]).all()
