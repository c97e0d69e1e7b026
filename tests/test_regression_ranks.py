"""Which indices of a coefficient count, and whether chains agree: the rules that regression and classification share."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.estimators import TensorRegressor
from bayestensor.estimators.chains import _MORE, agreed, is_dear, pruned, split_r_hat, starts
from bayestensor.estimators.coefficient import rank_shares, standing_out
from bayestensor.models.coefficient import PORTION, Coefficient, CoefficientState, portion_numbers
from bayestensor.priors import InverseGamma
from bayestensor.tensor.contract import dense
from bayestensor.tensor.formats import FORMATS, cp
from bayestensor.tensor.network import Factored


def test_noise_at_its_best_does_not_count_and_what_exceeds_it_does():
    """Every entry of a 10 x 8 coefficient seen once: the slice that fits best is the leading singular one.

    Of noise of size 1 it exceeds `sqrt(10) + sqrt(8)` in one matrix of ten (10.2 % of 20,000); of 200, a fifth would be
    five standard errors more. Noise twice as large as the rule is told counts always, and so does a component of 1.7
    times that size.
    """
    rng = np.random.default_rng(0)
    network, x, threshold = cp((10, 8), (), rank=2), np.eye(80).reshape(80, 10, 8), np.sqrt(10) + np.sqrt(8)
    noise = rng.normal(size=(200, 10, 8))
    one = 1.7 * threshold * np.einsum("i,j->ij", np.full(10, 10**-0.5), np.full(8, 8**-0.5))

    def cores(y):
        left, singular, right = np.linalg.svd(y)
        factors = left[:, :, :2] * np.sqrt(singular[:, None, :2]), right.mT[:, :, :2] * np.sqrt(singular[:, None, :2])
        return {"factor0": jnp.asarray(factors[0]), "factor1": jnp.asarray(factors[1])}

    with jax.enable_x64(True):
        rule = jax.jit(jax.vmap(lambda c, w: standing_out(network, c, jnp.asarray(x), w), in_axes=(0, None)))
        weight = jnp.ones(80)
        null, signal, precise = (
            np.asarray(rule(cores(y), w)["rank"])
            for y, w in ((noise, weight), (noise + one, weight), (noise, 4 * weight))
        )
    assert null.any(axis=1).mean() < 0.2
    assert signal[:, 0].all() and signal[:, 1].mean() < 0.2
    assert precise.any(axis=1).all()
    np.testing.assert_allclose(rank_shares({"rank": signal})["rank"][1], 1 - signal[:, 1].mean())


@pytest.mark.parametrize("format", ["cp", "tucker"])
def test_dead_indices_are_cut_and_each_chain_keeps_its_own(format):
    """Two chains with a live second and a live third index: one and one to spare stay, the coefficient to rounding."""
    network = FORMATS[format]((6, 5), (4,), rank=3)
    rng = np.random.default_rng(3)
    cores = {core.name: rng.normal(size=(2, *network.core_shape(core.name))) for core in network.cores}
    for core in network.cores:
        for chain, live in enumerate((1, 2)):
            for axis, leg in enumerate(core.legs):
                if leg in network.bonds:
                    dead = [r for r in range(3) if r != live]
                    np.moveaxis(cores[core.name][chain], axis, 0)[dead] *= 1e-9
    scales = {bond: np.tile(np.arange(3.0), (2, 1)) for bond in network.bonds}
    counted = {bond: np.eye(3, dtype=bool)[1:] for bond in network.bonds}
    model = Coefficient(network, InverseGamma(), 0.7)
    smaller, states = pruned(model, CoefficientState(cores, scales, {}), counted)
    assert set(smaller.network.ranks.values()) == {2} and (smaller.prior, smaller.variance) == (model.prior, 0.7)
    for chain, live in enumerate((1, 2)):
        before, after = (
            np.asarray(dense(Factored(net, {name: jnp.asarray(core[chain]) for name, core in c.items()})))
            for net, c in ((network, cores), (smaller.network, states.cores))
        )
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-6)
        assert all(live in v[chain] for v in states.scales.values())
    assert not is_dear(model, 300) and is_dear(replace(model, network=cp((64, 5), (4,), rank=8)), 300)


def test_r_hat_is_that_of_arviz():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 41)).cumsum(axis=1)
    assert abs(split_r_hat(values[:, 1:]) - float(arviz.rhat(values[:, 1:], method="split"))) < 1e-12
    several = np.stack([values, np.zeros_like(values)], axis=-1)
    assert abs(split_r_hat(several) - split_r_hat(values)) < 1e-12  # what does not move has no say
    assert split_r_hat(np.zeros((2, 10))) == 1.0


def test_every_run_portion_and_chain_has_numbers_of_its_own():
    """No number twice in them and in the starts; how many chains there are beside it is nothing to a chain.

    Generators seeded with plain lists are seen: that of [7, 0, 0] is that of 7, which the starts are drawn from.
    """
    model = Coefficient(cp((3, 2), (), rank=2), InverseGamma(), 1.0, ("factor0",))
    parts = (0, 1, 2**31, *_MORE)
    found = {
        (seed, part): portion_numbers(lambda rng, n: rng.standard_normal(n), seed, part, 5)
        for seed, part in itertools.product((0, 7), parts)
    }
    every = np.concatenate([a.ravel() for a in found.values()])
    begun = np.concatenate([core.ravel() for seed in (0, 7) for core in starts(model, 5, seed).cores.values()])
    assert len(np.unique(every)) == len(every) and not np.isin(begun, every).any()
    np.testing.assert_array_equal(portion_numbers(lambda rng, n: rng.standard_normal(n), 7, 1, 2), found[7, 1][:2])
    for values in portion_numbers(lambda rng, n: model.numbers(rng, n, (5,)), 7, 1, 2):
        assert len(np.unique(values.reshape(2 * PORTION, -1), axis=0)) == 2 * PORTION


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_chains_run_on_until_they_agree_and_are_named_where_they_do_not(rounds, recwarn):
    """Chains 2 apart that come together in the given round: R-hat is 1.7 before it, below 1.05 after it."""
    rng, asked = np.random.default_rng(2), []

    def more(last, draws, at):
        assert at not in [other for *_, other in asked]
        asked.append((np.asarray(last).tolist(), draws, at))
        return rng.normal(size=(2, draws)) + (len(asked) < rounds) * np.array([[0], [2.0]])

    plan = SimpleNamespace(inference="gibbs", chains=2, num_draws=200)
    start = rng.normal(size=(2, 200)) + (rounds > 0) * np.array([[0], [2.0]])
    trace, said, found = agreed(plan, more, start, lambda trace: (trace.sum(), {"noise": trace, "same": 0 * trace}))
    assert trace.shape == (2, 200) and said == trace.sum()
    assert [draws for _, draws, _ in asked] == [400, 800][:rounds]
    assert not asked or asked[0][0] == start[:, -1].tolist()
    assert (found["noise"] < 1.05) == (rounds < 3) and found["same"] == 1
    assert [str(w.message).startswith("R-hat is above 1.05 (noise ") for w in recwarn.list] == [True] * (rounds == 3)
    for other in ({"inference": "map"}, {"chains": 1}):
        assert agreed(SimpleNamespace(**vars(plan) | other), more, start, lambda trace: (0, {}))[2] == {}


@pytest.mark.slow
def test_the_rank_of_a_known_coefficient_is_found():
    """20 coefficients of rank 1, 2, 3 each, 300 data, signal 10 dB above the noise: at least 18 exact.

    A rule that is right in 19 of 20 passes with probability 0.92, one right in 12 of 20 with 4e-3.
    """
    for rank in (1, 2, 3):
        found = []
        for seed in range(20):
            rng = np.random.default_rng([rank, seed])
            x, w = rng.normal(size=(300, 10, 8)), rng.normal(size=(10, rank)) @ rng.normal(size=(rank, 8))
            eta = np.tensordot(x, w, 2)
            y = eta + 10**-0.5 * eta.std() * rng.normal(size=300)
            fit = TensorRegressor(smooth=(), remainder="linear", num_draws=50, burn_in=100, random_state=seed).fit(x, y)
            found.append(fit.rank_)
        assert np.mean(np.array(found) == rank) >= 0.9, found
