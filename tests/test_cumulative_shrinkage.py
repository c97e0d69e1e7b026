"""The prior that couples the indices of a bond, against sums over every choice of slab and spike."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from bayestensor.estimators import TensorCompletion, TensorRegressor
from bayestensor.priors import CumulativeShrinkage, named_prior

PRIOR = CumulativeShrinkage(3.0, 2.0, 2.0, 0.05)
DRAWS = 20_000
pytestmark = pytest.mark.usefixtures("x64")


def all_in_slab(indices, size, alpha):
    """E[product of w_r over the indices], `w_r = prod over l <= r of u_l`, `E[u^n] = alpha / (alpha + n)`."""
    return math.prod(alpha / (alpha + sum(r >= place for r in indices)) for place in range(size))


def allocations(size, alpha):
    """Every choice of slab (1) and spike (0), and its probability by inclusion and exclusion."""
    for which in itertools.product((0, 1), repeat=size):
        slab, rest = ([r for r in range(size) if which[r] == kind] for kind in (1, 0))
        subsets = itertools.chain.from_iterable(itertools.combinations(rest, n) for n in range(len(rest) + 1))
        yield np.array(which), sum((-1) ** len(more) * all_in_slab([*slab, *more], size, alpha) for more in subsets)


def law(prior, which):
    return st.invgamma(prior.shape, scale=prior.scale * np.where(which, 1.0, prior.spike))


@pytest.mark.parametrize("x", [[0.3, -2.0, -3.0, 0.8], [-3.0, 1.0, 1.0, 1.0]], ids=str)
def test_density_sums_over_all_choices_and_its_terms_are_the_chain_rule(x):
    x = np.array(x)
    expected = [
        math.log(sum(p * np.prod(law(PRIOR, c).pdf(np.exp(x[:n])) * np.exp(x[:n])) for c, p in allocations(n, 3.0)))
        for n in range(1, len(x) + 1)
    ]
    np.testing.assert_allclose(np.cumsum(PRIOR.log_density(jnp.asarray(x))), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, -1], ids=["sound", "backwards"])
def test_prior_entries_conditional_return_the_prior(order):
    # Geweke over three indices: v ~ prior, M ~ v chi^2_2, v' ~ p(v' | M) has the prior's law. 20,000 draws reject a KS
    # distance of 0.02 between the two samples with probability above 0.9; a conditional that takes the last index for
    # the first is refused
    v_key, key = jax.random.split(jax.random.key(1))
    before = PRIOR.sample(v_key, (DRAWS, 3))
    energy = before * np.random.default_rng(1).chisquare(2, before.shape).astype(np.float32)
    after = PRIOR.sample_conditional(key, before, energy[:, ::order], 2.0)[:, ::order]
    before, after = (np.log(np.asarray(v)) for v in (before, after))
    views = [lambda x, k=k: x[:, k] for k in range(3)] + [lambda x: x[:, 0] + x[:, 2], lambda x: x.min(1)]
    least = min(st.ks_2samp(view(before), view(after)).pvalue for view in views)
    assert least > 1e-4 if order == 1 else least < 1e-6


@pytest.mark.parametrize(
    "energy", [[200.0, 1.0, 30.0, 150.0], [1.0, 2.0, 400.0, 0.1], [20.0, 25.0, 90.0, 2.0]], ids=str
)
def test_mode_is_stationary_and_near_the_highest_of_all_choices(energy):
    energy, count = jnp.asarray(energy), 90.0

    def density(x):
        return PRIOR.log_density(x).sum() - 0.5 * (count * x + energy * jnp.exp(-x)).sum()

    x = jnp.log(PRIOR.mode(energy, count))
    np.testing.assert_allclose(jax.grad(density)(x) / count, 0, atol=1e-6)
    ends = [(energy + 2 * PRIOR.scale * np.where(c, 1.0, PRIOR.spike)) / (count + 4) for c, _ in allocations(4, 3.0)]
    assert density(x) > max(float(density(jnp.log(v))) for v in ends) - 1e-9


def test_a_spike_that_is_none_is_refused():
    with pytest.raises(ValueError, match="spike must be below 1"):
        CumulativeShrinkage(spike=1.0)


def test_a_prior_by_its_name():
    assert named_prior("cumulative_shrinkage") == CumulativeShrinkage()
    assert named_prior(PRIOR) is PRIOR
    for estimator, data in (
        (TensorCompletion, [np.ones((3, 3))]),
        (TensorRegressor, [np.ones((4, 2, 2)), np.arange(4)]),
    ):
        with pytest.raises(ValueError, match=r"'cusp'; a prior, or one of .*cumulative_shrinkage"):
            estimator(prior="cusp").fit(*data)


@pytest.mark.slow
def test_ranks_of_a_completion_and_of_a_regression_are_found():
    # 60 numbers from 580 entries behind noise of a tenth: error 0.03 of the tensor
    rng = np.random.default_rng(0)
    truth = np.einsum("ir,jr,kr->ijk", *(rng.normal(size=(n, 2)) for n in (12, 10, 8)))
    seen = np.where(rng.random(truth.shape) < 0.6, truth + 0.1 * truth.std() * rng.normal(size=truth.shape), np.nan)
    short = {"prior": "cumulative_shrinkage", "max_rank": 5, "num_draws": 40, "random_state": 0}
    fit = TensorCompletion(smooth=(), burn_in=20, **short).fit(seen)
    assert fit.rank_ == 2
    assert fit.rrse(truth) < 0.1
    x = rng.normal(size=(300, 6, 5))
    y = np.einsum("nij,ir,jr->n", x, *(rng.normal(size=(n, 2)) for n in (6, 5)))
    assert TensorRegressor(**short).fit(x, y + 0.1 * y.std() * rng.normal(size=300)).rank_ == 2
