"""Calibration of posteriors under their own prior; seeded faults that the same check rejects.

Conjugate low-rank model, N = 1,000: `X = A B^T` with A (6 x 2) given, `B ~ N(0, noise^2)`, `noise^2 ~ IG(3, 3)`, six
of seven entries a column observed. Per statistic the mean of the normal scores has se 0.032 and their variance 0.045:
with Holm over 33 tests at 0.01 (3.6 se) a shift of 0.2 sd or a width of 0.9 in every entry is found with
probability above 0.98 by any one entry, and there are nine.

Whole rank-adaptive model, N = 300, 15 draws each (`rank_adaptive`), by simulation: a shift of 0.3 sd in a statistic
is found with probability 0.79, a width of 0.8 with 0.65; the faults are in all ten that are not ranks. The closed-form
sweeps of completion are put through the same (`gibbs_calibration`), with faults in the sweep itself.
"""

from __future__ import annotations

import gibbs_calibration
import numpy as np
import pytest
import rank_adaptive
import sbc

SIMULATIONS, DRAWS, RANK, ROWS, COLS = 1000, 127, 2, 6, 4
FACTOR = np.random.default_rng(7).normal(size=(ROWS, RANK))
MASK = np.random.default_rng(8).random((ROWS, COLS)) < 6 / 7


def simulate(seed: int, width: float = 1.0, shift: float = 0.0, drop_prior: bool = False):
    """Statistics name -> (truth[n], draws[n, L]); draws exact (normal-inverse-gamma), or with a seeded fault."""
    random = np.random.default_rng(seed)
    noise2 = 3 / random.gamma(3.0, size=SIMULATIONS)
    b = noise2[:, None, None] ** 0.5 * random.normal(size=(SIMULATIONS, COLS, RANK))
    y = b @ FACTOR.T + noise2[:, None, None] ** 0.5 * random.normal(size=(SIMULATIONS, COLS, ROWS))

    means, roots, misfit = [], [], np.zeros(SIMULATIONS)
    for column in range(COLS):
        design, seen = FACTOR[MASK[:, column]], y[:, column, MASK[:, column]]
        precision = design.T @ design + (1e-6 if drop_prior else 1.0) * np.eye(RANK)
        mean = seen @ design @ np.linalg.inv(precision)
        means.append(mean)
        roots.append(np.linalg.cholesky(np.linalg.inv(precision)))
        misfit += (seen**2).sum(1) - np.einsum("nr,rs,ns->n", mean, precision, mean)
    count = MASK.sum()
    drawn2 = (3 + misfit[:, None] / 2) / random.gamma(3 + count / 2, size=(SIMULATIONS, DRAWS))
    xi = random.normal(size=(SIMULATIONS, DRAWS, COLS, RANK))
    wide = drawn2[..., None] ** 0.5 * np.ones(COLS)
    drawn = np.stack(
        [means[c][:, None] + wide[..., c, None] * ((width * xi[:, :, c] + shift) @ roots[c].T) for c in range(COLS)],
        axis=2,
    )

    def functionals(b, noise2, y):  # leading axes alike
        x = b @ FACTOR.T
        residual = np.where(MASK.T, y - x, 0.0)
        log_likelihood = -0.5 * (residual**2).sum((-2, -1)) / noise2 - 0.5 * count * np.log(noise2)
        norms = np.sort((FACTOR**2).sum(0) ** 0.5 * (b**2).sum(-2) ** 0.5, axis=-1)
        entries = {f"x {i} {c}": b[..., c, :] @ FACTOR[i] for i in (0, 2, 5) for c in (0, 1, 3)}
        return entries | {"noise": noise2, "log likelihood": log_likelihood, "largest slice": norms[..., -1]}

    truth, draws = functionals(b, noise2, y), functionals(drawn, drawn2, y[:, None])
    return {name: (truth[name], draws[name]) for name in truth}


def test_the_conjugate_low_rank_model_is_calibrated():
    assert sbc.smallest_p(simulate(0)) > 0.01


FAULTS = {"sd x 0.9": {"width": 0.9}, "mean + 0.2 sd": {"shift": 0.2}, "dropped prior": {"drop_prior": True}}


@pytest.mark.parametrize("fault", FAULTS)
def test_seeded_faults_are_rejected(fault):
    assert sbc.smallest_p(simulate(0, **FAULTS[fault])) < 0.01


def test_ties_are_broken_at_random():
    """A rank that is 1, 2 or 3: without random ties its ranks would pile up."""
    random = np.random.default_rng(0)
    truth, draws = random.integers(1, 4, 1000), random.integers(1, 4, (1000, 63))
    assert sbc.smallest_p({"rank": (truth, draws)}) > 0.01
    assert sbc.smallest_p({"rank": (truth - 0.5, draws)}) < 1e-6


ADAPTIVE_FAULTS = {"sd x 0.8": {"width": 0.8}, "mean + 0.3 sd": {"shift": 0.3}}


@pytest.mark.slow
@pytest.mark.promoting
def test_the_rank_adaptive_model_is_calibrated():
    statistics, nonfinite = rank_adaptive.simulate()
    assert not nonfinite.any()
    assert sbc.smallest_p(statistics) > 0.01


@pytest.mark.slow
@pytest.mark.promoting
@pytest.mark.parametrize("fault", ADAPTIVE_FAULTS)
def test_faulty_draws_of_the_rank_adaptive_model_are_rejected(fault):
    statistics, _ = rank_adaptive.simulate()
    assert sbc.smallest_p(rank_adaptive.with_fault(statistics, **ADAPTIVE_FAULTS[fault])) < 0.01


@pytest.mark.slow
@pytest.mark.promoting
def test_a_dropped_prior_term_of_the_rank_adaptive_model_is_rejected():
    statistics, _ = rank_adaptive.simulate(drop_prior=True)
    assert sbc.smallest_p(statistics) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["cp", "tensor_train"])
def test_closed_form_sweeps_are_calibrated(subject):
    assert sbc.smallest_p(gibbs_calibration.simulate(subject)) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("fault", gibbs_calibration.FAULTS)
def test_faulty_closed_form_sweeps_are_rejected(fault):
    assert sbc.smallest_p(gibbs_calibration.simulate("cp", fault=fault, thin=20, burn_in=200)) < 1e-5
