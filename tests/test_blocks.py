"""Cores drawn block by block: the same conditional law as in one piece, for every format."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.estimators import TensorCompletion
from bayestensor.models import blocks as blockwise
from bayestensor.models.rows import row_posterior
from bayestensor.tensor.core_rows import row_shape, split_legs, to_rows
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.normal import normal_equations
from bayestensor.tensor.observations import Entries, Grid

NAMES = ("cp", "tucker", "tensor_train", "tensor_ring", "hierarchical_tucker", "block_term")
SHAPE = (5, 4, 6)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise, "LARGEST", 3)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_hold_every_index_once_and_no_more_than_they_may(name, small_blocks):
    network = FORMATS[name](SHAPE, (), rank=4)
    assert blockwise.is_blocked(network)
    for core in network.cores:
        _, bonds = split_legs(network, core)
        times = np.zeros([network.size[bond] for bond in bonds])
        for block in blockwise.blocks(network, core.name):
            times[tuple(block[bond] for bond in bonds)] += 1
            assert math.prod(cut.stop - cut.start for cut in block.values()) <= 3
        assert (times == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "entries"])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_come_to_the_one_solution(name, kind, small_blocks):
    """Block after block to their conditional means is Gauss-Seidel: it ends where the whole system is solved."""
    rng, network = np.random.default_rng(0), FORMATS[name](SHAPE, (), rank=4 if name == "cp" else 2)
    y, seen = rng.normal(size=SHAPE), rng.random(SHAPE) < 0.7
    with jax.enable_x64(True):
        full = np.where(seen, y, 0.0).reshape(network.shape)
        coords = np.argwhere(seen.reshape(network.shape))
        grid = Grid.build(full, seen.reshape(network.shape))
        data = grid if kind == "grid" else Entries.build(network, coords, full[tuple(coords.T)])
        cores = {c.name: jnp.asarray(rng.normal(size=network.core_shape(c.name))) for c in network.cores}
        core = max(network.cores, key=lambda c: row_shape(network, c.name)[1])
        q, p = row_shape(network, core.name)
        d, pull = jnp.asarray(rng.uniform(2, 4, p)), jnp.asarray(rng.normal(size=(q, p)))
        gram, moment = normal_equations(network, cores, core.name, data, None)
        wanted, _ = row_posterior(0.3 * gram, 0.3 * moment + pull, d, jnp.zeros((q, p)))

        def one(array, _):
            system = 0.3, d, pull, jnp.zeros((q, p)), None
            return blockwise.draw_blocks(network, {**cores, core.name: array}, core.name, data, *system)

        array, left = jax.jit(lambda array: jax.lax.scan(one, array, None, length=200))(cores[core.name])
        np.testing.assert_allclose(to_rows(network, core.name, array), wanted, rtol=1e-6, atol=1e-8)
        square = (wanted[:, :, None] * wanted[:, None, :] * gram).sum() - 2 * (moment * wanted).sum()
        np.testing.assert_allclose(left[-1], data.energy + square, rtol=1e-8)


@pytest.mark.slow
def test_a_tensor_is_completed_block_by_block(monkeypatch):
    """Rank, error and intervals as in one piece; 500 hidden entries, standard error of a coverage 0.014."""
    rng = np.random.default_rng(1)
    core, factors = rng.normal(size=(2, 2, 2)), [rng.normal(size=(n, 2)) for n in (11, 10, 9)]
    x = np.einsum("abc,ia,jb,kc->ijk", core, *factors)
    y, seen = x + 0.1 * x.std() * rng.normal(size=x.shape), rng.random(x.shape) < 0.5
    monkeypatch.setattr(blockwise, "LARGEST", 40)
    fit = TensorCompletion(format="tucker", max_rank=4, num_draws=40, random_state=0).fit(np.where(seen, y, np.nan))
    assert blockwise.is_blocked(fit.network_) and set(fit.rank_.values()) == {2}
    assert np.linalg.norm((fit.predict() - x)[~seen]) < 0.08 * np.linalg.norm(x[~seen])
    lower, upper = fit.predict_interval(0.9)
    assert 0.84 < np.mean(((lower <= y) & (y <= upper))[~seen]) < 0.96


def test_mean_field_refuses_what_it_cannot_hold(small_blocks):
    with pytest.raises(ValueError, match="too many for 'variational'"):
        TensorCompletion(format="tucker", max_rank=2, inference="variational").fit(np.ones((4, 4, 4)))
