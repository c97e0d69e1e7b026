"""Verdicts on draws, and the gauge-invariant quantities that they are passed on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayestensor as bt
from bayestensor.inference.diagnostics import diagnose, stragglers
from bayestensor.inference.draws import Draws
from bayestensor.models.completion import CompletionModel
from bayestensor.models.likelihoods import Gaussian
from bayestensor.ranks.functionals import functionals

pytestmark = pytest.mark.promoting  # ArviZ relies on dtype and rank promotion

NETWORK = bt.cp((4, 3), (5,), 3)
MODEL = CompletionModel(NETWORK, bt.HalfCauchy(), Gaussian(0.1))
RNG = np.random.default_rng(0)
COORDS = np.argwhere(RNG.random((4, 3, 5)) < 0.5)
DATA = (jnp.asarray(COORDS), jnp.asarray(RNG.normal(size=len(COORDS)), jnp.float32))


def prior_draws(chains=3, draws=40):
    keys = jax.random.split(jax.random.key(0), chains * draws)
    positions = jax.jit(jax.vmap(MODEL.initial_position))(keys)
    return Draws(jax.tree.map(lambda x: np.asarray(x).reshape(chains, draws, *x.shape[1:]), positions))


def in_another_gauge(draws, scale):
    """The same tensors: columns in another order in every draw, signs turned in pairs, weight moved between factors."""
    lead, rng = draws.shape, np.random.default_rng(1)
    order = rng.permuted(np.broadcast_to(np.arange(3), (*lead, 3)), axis=-1)
    sign = rng.choice([-1.0, 1.0], (*lead, 1, 3)).astype(np.float32)
    cores = {k: np.take_along_axis(v, order[..., None, :], axis=-1) for k, v in draws.positions["cores"].items()}
    cores["factor0"], cores["factor1"] = cores["factor0"] * sign * scale, cores["factor1"] * sign / scale
    scales = {"rank": np.take_along_axis(draws.positions["log_scales"]["rank"], order, axis=-1)}
    return Draws({**draws.positions, "cores": cores, "log_scales": scales})


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_functionals_do_not_know_the_gauge(scale):
    draws = prior_draws()
    values, again = (functionals(MODEL, d, DATA) for d in (draws, in_another_gauge(draws, np.float32(scale))))
    assert set(values) == {"log density", "predictions", "norm tensor", "slices tensor.rank", "log_noise"}
    for name, x in values.items():
        if name != "log density" or scale == 1:
            np.testing.assert_allclose(again[name], x, rtol=2e-4, atol=1e-5)
    moved = np.abs(again["log density"] - values["log density"]).max()
    assert (moved > 1) == (scale != 1)  # the prior of the factors, which every chain shares


def test_functionals_say_what_they_are_named():
    draws = prior_draws()
    values = functionals(MODEL, draws, DATA, predict=lambda p: MODEL.apply(p, DATA[0][:5]))
    one = jax.tree.map(lambda x: jnp.asarray(x[1, 7]), draws.positions)
    tensor = MODEL.tensors(one)["tensor"]
    np.testing.assert_allclose(values["predictions"][1, 7], bt.entries(tensor, DATA[0][:5]), rtol=1e-4, atol=1e-6)
    density = MODEL.posterior(len(COORDS)).log_density(one, DATA)
    np.testing.assert_allclose(values["log density"][1, 7], density, rtol=1e-5)
    norms = np.sort(bt.slice_norms(tensor, "rank"))[::-1]
    np.testing.assert_allclose(values["slices tensor.rank"][1, 7], norms, rtol=1e-4)
    dead = {k: v * np.array([1.0, 1.0, 1e-6], np.float32) for k, v in draws.positions["cores"].items()}
    assert functionals(MODEL, Draws({**draws.positions, "cores": dead}), DATA)["slices tensor.rank"].shape[-1] == 2


def test_raw_positions_are_refused():
    draws = prior_draws()
    for raw in (draws, draws.positions):
        with pytest.raises(ValueError, match=r"raw positions.*R-hat is meaningless"):
            diagnose(raw)


def test_what_never_moves_has_agreed_and_what_sticks_apart_has_not():
    x = RNG.normal(size=(4, 500))
    ranks = np.full((4, 500, 2), 3.0)
    still = diagnose({"x": x, "rank": ranks})
    assert still.converged, str(still)
    assert still.rhat["rank"] == 1.0
    ranks[3, :, 1] = 4.0
    stuck = diagnose({"x": x, "rank": ranks})
    assert not stuck.converged
    assert stuck.rhat["rank"] == np.inf
    assert "rank: R-hat inf" in str(stuck)


def test_a_chain_of_another_spread_is_seen():
    """Rank-normalised split R-hat folds: four chains of equal mean, one with three times the sd, 1.1 against 1.00."""
    x = RNG.normal(size=(4, 1000))
    x[0] *= 3
    assert diagnose({"x": x}).rhat["x"] > 1.05


def log_densities(seed=0, chains=6, draws=400, keep=0.5):
    """-chi^2(20) / 2 of a Gaussian AR(1): sd 3.2, an autocorrelation of keep^2."""
    noise = np.random.default_rng(seed).normal(size=(draws, chains, 20))
    x = [noise[0]]
    for xi in noise[1:]:
        x.append(keep * x[-1] + (1 - keep**2) ** 0.5 * xi)
    return -0.5 * (np.stack(x, axis=1) ** 2).sum(-1)


STRAGGLING = {  # draws that are 50 sd lower (of each chain, by number) -> late, away
    "none": ({}, {}, []),
    "one draw": ({1: slice(1)}, {1: 1}, []),
    "one hundredth": ({1: slice(4)}, {1: 4}, []),
    "two chains, a tenth and over half": ({0: slice(40), 5: slice(250)}, {0: 40, 5: 250}, []),
    "one chain, to its end": ({3: slice(None)}, {}, [3]),
    "half of the chains, to their ends": ({0: slice(None), 2: slice(None), 5: slice(None)}, {}, [0, 2, 5]),
    "one late, one away": ({2: slice(30), 4: slice(None)}, {2: 30}, [4]),
}


@pytest.mark.parametrize("case", STRAGGLING)
def test_chains_that_come_in_late_or_not_at_all_are_named(case):
    """Deterministic but for the range of those that agree, 7 sd wide here."""
    lower, late, away = STRAGGLING[case]
    x = log_densities()
    for chain, which in lower.items():
        x[chain, which] -= 50 * x[chain].std()
    found = stragglers(x)
    assert (found.late, found.away) == (late, away)
    verdict = diagnose({"a model's log density": x}, rhat_limit=np.inf, ess_limit=0)
    assert verdict.converged == (not lower)
    for chains, said in ((late, "came in late"), (away, "stayed away")):
        line = "\n".join(line for line in verdict.advice if said in line)
        assert bool(line) == bool(chains)
        assert all(str(c) in line.split(said)[0] for c in chains)


@pytest.mark.parametrize(("chains", "draws", "keep"), [(2, 50, 0.5), (4, 400, 0.9), (8, 100, 0.0), (50, 20, 0.5)])
def test_no_chain_that_agrees_is_named(chains, draws, keep):
    """100 sets each; a rule that named one in 30 of them would pass all with probability 0.03."""
    for seed in range(100):
        found = stragglers(log_densities(seed, chains, draws, keep))
        assert not found.late, (seed, found)
        assert not found.away, (seed, found)


def test_the_one_chain_that_disagrees_is_named():
    x = np.random.default_rng(0).normal(size=(4, 500, 3))
    x[2, :, 1] += 1
    assert "but for chain 2, without which it is 1.00" in str(diagnose({"x": x}))
    x[1, :, 1] -= 1
    verdict = str(diagnose({"x": x}))
    assert "disagree" in verdict
    assert "but for" not in verdict


def test_points_are_not_taken_for_draws():
    """An ensemble's members stand still."""
    x = np.repeat(np.random.default_rng(0).normal(size=(4, 1)), 100, axis=1)
    (line, *_) = diagnose({"log density": x}).advice
    assert "are points, no draws" in line


def test_a_stack_of_particles_counts_its_undone_steps_once():
    """Two stacks of 5 particles, 2 and 3 steps undone: `unstack` repeats each number 5 times."""
    stats = {"nonfinite": np.repeat([[2], [3]], 5, axis=0), "particles": np.full((10, 1), 5)}
    x = np.random.default_rng(0).normal(size=(10, 100))
    assert diagnose({"x": x}, stats).figures["undone_steps"] == 5


def test_few_effective_draws_are_seen():
    """An AR(1) of coefficient 0.99 has 1/200 of its draws' worth: about 20 of 4,000."""
    noise = RNG.normal(size=(4, 1000))
    x = np.empty_like(noise)
    x[:, 0] = noise[:, 0] / (1 - 0.99**2) ** 0.5
    for t in range(1, 1000):
        x[:, t] = 0.99 * x[:, t - 1] + noise[:, t]
    verdict = diagnose({"x": x})
    assert not verdict.converged
    assert verdict.ess_bulk["x"] < 100
    assert "effective size" in str(verdict)


@pytest.mark.parametrize(
    ("stats", "advice"),
    [
        ({"kinetic_temperature": 1.5}, "unmeasured gradient noise"),
        ({"kinetic_temperature": 0.5}, "step_size is too large"),
        ({"inflation": 1.3}, "inflates the variance 1.30 times"),
        ({"variance_ratio": 0.3}, "particles have collapsed"),
        ({"variance_ratio": 1.5}, "particles are too wide"),
        ({"acceptance": 0.3}, "acceptance is 0.30"),
        ({"nonfinite": 2}, "8 steps were undone"),
        ({"diverging": 1}, "2000 divergences"),
        ({"adapting": 1}, "come from burn-in"),
    ],
)
def test_an_engines_own_troubles_are_named(stats, advice):
    x = np.random.default_rng(0).normal(size=(4, 500))
    verdict = diagnose({"x": x}, {name: np.full((4, 500), value) for name, value in stats.items()})
    assert not verdict.converged
    assert advice in str(verdict)
