"""MAP on targets whose mode is known, its schedule, and how it stands still after a step that is not finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayestensor.inference.base import Posterior, all_finite
from bayestensor.inference.map import map_estimate, shrinkage_schedule
from bayestensor.inference.train import Trainer, in_pieces
from bayestensor.models.shrinkage import log_prior_cores, log_prior_scales, mode_scales
from bayestensor.priors import HalfCauchy, InverseGamma
from bayestensor.tensor import formats
from bayestensor.tensor.network import factored

pytestmark = pytest.mark.promoting  # Optax's Adam: a float to the power of a whole number of steps

# y = A w + noise, w ~ N(0, 1.5^2): N = 12 data, 3 weights
RNG = np.random.default_rng(0)
A, NOISE, PRIOR_SD = RNG.normal(size=(12, 3)), 0.5, 1.5
Y = A @ RNG.normal(size=3) + NOISE * RNG.normal(size=12)


def linear():
    def log_likelihood(position, batch):
        a, y = batch
        return jax.scipy.stats.norm.logpdf(y, a @ position["w"], NOISE)

    return Posterior(lambda p: jax.scipy.stats.norm.logpdf(p["w"], 0.0, PRIOR_SD).sum(), log_likelihood, len(Y))


def closed_form(temperature):
    return np.linalg.solve(A.T @ A / NOISE**2 + temperature * np.eye(3) / PRIOR_SD**2, A.T @ Y / NOISE**2)


def descend(engine, position, batch, steps):
    state = engine.init(jax.random.key(0), position)
    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda s: jax.lax.scan(lambda s, key: engine.step(key, s, batch), s, keys))(state)


WHOLE = (jnp.asarray(A, jnp.float32), jnp.asarray(Y, jnp.float32))
START = {"w": jnp.zeros(3)}


@pytest.mark.parametrize("temperature", [0.0, 1.0, 30.0])
@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.05, momentum=0.9), optax.adam(optax.cosine_decay_schedule(0.1, 600))]
)
def test_the_mode_of_a_conjugate_target_is_reached(optimizer, temperature):
    state, info = descend(map_estimate(linear(), optimizer, temperature=temperature), START, WHOLE, 600)
    np.testing.assert_allclose(state.position["w"], closed_form(temperature), rtol=1e-3, atol=1e-4)
    assert int(state.step) == 600 and int(state.failed_at) == -1
    assert info.loss[-1] < info.loss[0]
    apart = np.abs(closed_form(0.0) - closed_form(1.0)).max(), np.abs(closed_form(1.0) - closed_form(30.0)).max()
    assert min(apart) > 2e-3  # a temperature left out would show


def test_the_loss_is_the_negative_log_posterior_over_n():
    posterior = linear()
    _, info = descend(map_estimate(posterior, optax.sgd(0.0)), START, WHOLE, 1)
    np.testing.assert_allclose(info.loss[0], -posterior.log_density(START, WHOLE) / 12, rtol=1e-6)
    np.testing.assert_allclose(info.nll[0], -posterior.log_likelihood(START, WHOLE).mean(), rtol=1e-6)


def test_the_prior_is_off_in_the_warmup_and_full_after_the_ramp():
    at = shrinkage_schedule(2.0, steps_per_epoch=10, warmup_epochs=1.5, ramp_epochs=2.0)
    found = [float(at(jnp.asarray(step))) for step in (0, 15, 20, 25, 35, 1000)]
    np.testing.assert_allclose(found, [0, 0, 0.5, 1.0, 2.0, 2.0], rtol=1e-6)
    at_once = shrinkage_schedule(3.0, 10, warmup_epochs=1.0)
    assert [float(at_once(jnp.asarray(step))) for step in (0, 9, 10)] == [0, 0, 3]
    assert float(shrinkage_schedule(1.0, 10)(jnp.asarray(0))) == 1
    # and the engine asks for it by its own step
    schedule = shrinkage_schedule(1.0, 10, warmup_epochs=1.0)
    posterior = linear()
    _, info = descend(map_estimate(posterior, optax.sgd(0.0), temperature=schedule), START, WHOLE, 11)
    np.testing.assert_allclose(info.loss[:10], info.nll[:10], rtol=1e-6)
    np.testing.assert_allclose(info.loss[10] - info.nll[10], -posterior.log_prior(START) / 12, rtol=1e-5)


FAILURES = {
    "a datum": lambda at, x, y: (x.at[at].set(jnp.nan), y),
    "a gradient whose square overflows": lambda at, x, y: (x, y.at[at].set(1e30)),
}


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("optimizer", [optax.adam(0.01), optax.sgd(0.01)], ids=["adam", "sgd"])
def test_after_a_step_that_is_not_finite_nothing_moves(how, optimizer):
    """Datum 7 is bad; batches of one come in order. Nothing that is not finite may enter position or moments."""
    x, y = FAILURES[how](7, *WHOLE)
    engine = map_estimate(linear(), optimizer)

    def scan(state, n):
        return jax.lax.scan(lambda s, one: engine.step(jax.random.key(0), s, one), state, (x[:n, None], y[:n, None]))[0]

    start = engine.init(jax.random.key(0), START)
    good, after = jax.jit(lambda s: scan(s, 7))(start), jax.jit(lambda s: scan(s, 12))(start)
    assert int(good.failed_at) == -1
    if how == "a datum" or optimizer.init is None or len(jax.tree.leaves(after.opt_state)) > 2:
        assert int(after.failed_at) == 7
        jax.tree.map(np.testing.assert_array_equal, after._replace(failed_at=good.failed_at), good)
    assert bool(all_finite((after.position, after.opt_state)))


def test_the_trainer_names_what_is_not_finite():
    x, y = WHOLE
    posterior = linear()
    trainer = Trainer(
        map_estimate(posterior, optax.adam(0.01)), x.at[5].set(jnp.inf), y, 2, lambda key, raw: raw, jax.random.key(0)
    )
    carry = trainer.advance(trainer.start(START), 0, 0, 6)
    failed = int(carry.state.failed_at)
    order = np.asarray(trainer._order(0))
    assert failed == int(np.flatnonzero(order == 5)[0]) // 2
    names = trainer.not_finite(carry.state, posterior, 0, failed)
    assert names == "log density, inputs, ['w']"
    others = [step for step in range(6) if step != failed]
    assert "gradient is finite" in trainer.not_finite(carry.state, posterior, 0, others[0])


def test_an_epoch_in_chunks_is_the_epoch_at_once():
    x, y = WHOLE
    noisy = lambda key, raw: raw + 0.1 * jax.random.normal(key, raw.shape)  # noqa: E731
    whole, parts = (
        Trainer(map_estimate(linear(), optax.adam(0.01)), x, y, 3, noisy, jax.random.key(0)) for _ in range(2)
    )
    at_once = whole.advance(whole.start(START), 2, 0, 4)
    carry = parts.start(START)
    for first, last in ((0, 1), (1, 3), (3, 4)):
        carry = parts.advance(carry, 2, first, last)
    jax.tree.map(np.testing.assert_array_equal, carry, at_once)
    assert int(carry.state.step) == 4
    orders = [np.asarray(whole._order(epoch)) for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12)) and (orders[0] != orders[1]).any()
    another = Trainer(whole.engine, x, y, 3, noisy, jax.random.key(1))
    assert (np.asarray(another._order(0)) != orders[0]).any()


@pytest.mark.parametrize(("n", "size"), [(7, 3), (6, 3), (2, 3), (3, 3), (7, 1)])
def test_pieces_make_the_whole(n, size):
    x = jnp.arange(2.0 * n).reshape(n, 2)
    found = jax.jit(lambda x: in_pieces(lambda piece: 2 * piece.sum(axis=1, keepdims=True), x, size))(x)
    np.testing.assert_array_equal(found, 2 * np.asarray(x).sum(1, keepdims=True))


@pytest.mark.parametrize("prior", [HalfCauchy(1.0), InverseGamma(1.0, 0.1)])
def test_gradient_and_closed_form_scales_meet_at_a_fixed_point(prior, x64):
    """A rank-2 matrix under noise: both ways end at one mode, where the gradient is zero in cores and scales."""
    network, variance = formats.cp((6,), (5,), 2), 1.0
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(6, 2)) @ rng.normal(size=(2, 5)) + 0.1 * rng.normal(size=(6, 5)))

    def log_prior(p):
        tensor = factored(network, p["cores"])
        return log_prior_cores(tensor, p["v"], variance) + log_prior_scales(prior, p["v"])

    def log_likelihood(p, batch):
        product = p["cores"]["factor0"] @ p["cores"]["factor1"].T
        return jax.scipy.stats.norm.logpdf(batch, product, 0.1).sum(axis=1)

    def closed_form(p):
        return p | {"v": mode_scales(prior, factored(network, p["cores"]), p["v"], variance, 0.1)}

    posterior = Posterior(log_prior, log_likelihood, 6)
    cores = {c.name: jnp.asarray(rng.normal(size=network.core_shape(c.name))) for c in network.cores}
    start = {"cores": cores, "v": {"rank": jnp.zeros(2)}}
    rate = optax.cosine_decay_schedule(0.03, 6000)
    still = optax.multi_transform(
        {"move": optax.adam(rate), "stay": optax.set_to_zero()}, {"cores": "move", "v": "stay"}
    )
    ends = [
        descend(map_estimate(posterior, optimizer, after_step=after), start, matrix, 6000)[0].position
        for optimizer, after in ((optax.adam(rate), None), (still, closed_form))
    ]
    densities = [float(posterior.log_density(end, matrix)) for end in ends]
    np.testing.assert_allclose(densities[0], densities[1], atol=1e-3)
    for end in ends:
        gradient = jax.grad(posterior.log_density)(end, matrix)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 0.1
    np.testing.assert_allclose(np.sort(ends[0]["v"]["rank"]), np.sort(ends[1]["v"]["rank"]), atol=0.02)
