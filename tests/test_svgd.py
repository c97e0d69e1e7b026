"""SVGD: its direction against the definition, and the spread of its particles against the target's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.inference.base import Posterior
from bayestensor.inference.sample import sample, stream
from bayestensor.inference.stein import affine, groups, interact
from bayestensor.inference.svgd import svgd

# BlackJAX and ArviZ rely on dtype and rank promotion
pytestmark = pytest.mark.promoting


def particles(n=7, seed=0):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    return {
        "core": jax.random.normal(a, (n, 2, 3)),
        "other": 3 + jax.random.normal(b, (n, 5)),
        "scale": jax.random.normal(c, (n,)),
    }


def posterior(blocks=None):
    return Posterior(lambda p: jnp.zeros(()), lambda p, batch: 0.0 * batch, 1, blocks=blocks)


def by_definition(x, g, temperature):
    """Sum over j of k(x_j, x_i) g_j + T grad_{x_j} k(x_j, x_i), autodiff on pairs, h^2 by the median over pairs."""
    n = len(x)
    distance = np.array([((x[i] - x[j]) ** 2).sum() for i in range(n) for j in range(i)])
    h2 = np.median(distance) / (2 * np.log(n + 1))

    def k(a, b):
        return jnp.exp(-((a - b) ** 2).sum() / (2 * h2))

    return np.stack(
        [sum(k(x[j], x[i]) * g[j] + temperature * jax.grad(k)(x[j], x[i]) for j in range(n)) for i in range(n)]
    )


KERNELS = {  # kernel, blocks -> columns (of core 0..5, other 6..10, scale 11) that share a kernel
    "all": ("all", None, [range(12)]),
    "leaf": ("leaf", None, [range(6), range(6, 11), [11]]),
    "blocks": ("blocks", lambda p: {"core": 1, "other": 0, "scale": 1}, [[*range(6), 11], range(6, 11)]),
    "size 4": (4, None, [range(4), [4, 5], range(6, 10), [10], [11]]),
    "size 1": (1, None, [[i] for i in range(12)]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_direction_is_the_definition(name):
    kernel, blocks, columns = KERNELS[name]
    at, g = particles(), particles(seed=1)
    members = groups(kernel, posterior(blocks), jax.tree.map(lambda x: x[0], at))
    got = jax.jit(lambda at, g: interact(members, kernel, at, g, at, temperature=0.5))(at, g)

    def flat(tree):
        return np.concatenate([np.asarray(x).reshape(7, -1) for x in jax.tree.leaves(tree)], axis=1)

    x, g, drift = flat(at), flat(g), flat(got.drift)
    for group in columns:
        group = list(group)
        np.testing.assert_allclose(drift[:, group], by_definition(x[:, group], g[:, group], 0.5), rtol=2e-3, atol=2e-4)


def test_noise_has_the_kernel_as_its_covariance():
    """40,000 draws: an entry has se under 0.005, so an error of 0.06 is caught with probability 0.999."""
    at = {"x": jax.random.normal(jax.random.key(0), (5, 3))}
    members = groups("all", posterior(), {"x": at["x"][0]})
    noise = jax.vmap(lambda xi: interact(members, "all", at, at, {"x": xi}).noise["x"])
    draws = jax.jit(noise)(jax.random.normal(jax.random.key(1), (40_000, 5, 3)))
    got = np.einsum("tid,tjd->ij", draws, draws) / draws.shape[0] / 3
    x = np.asarray(at["x"])
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)
    h2 = np.median(distance[np.triu_indices(5, 1)]) / (2 * np.log(6))
    np.testing.assert_allclose(got, np.exp(-distance / (2 * h2)), atol=0.04)


def test_affine_part_is_the_definition():
    at, g, xi = particles(), particles(seed=1), jax.random.normal(jax.random.key(2), (7, 7))
    drift, noise, rate = affine(at, g, xi, 0.5)

    def flat(tree):
        return np.concatenate([np.asarray(x).reshape(7, -1) for x in jax.tree.leaves(tree)], axis=1).astype(float)

    x = flat(at) - flat(at).mean(0)
    covariance = x.T @ x / 7
    np.testing.assert_allclose(flat(drift), flat(g) @ covariance + 0.5 * 13 / 7 * x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(flat(noise), np.asarray(xi) @ x / 7**0.5, rtol=1e-4, atol=1e-4)
    a = (flat(g) - flat(g).mean(0)) @ x.T / 7
    np.testing.assert_allclose(rate, np.linalg.norm(a) + ((a - a.T) ** 2).sum() / 2, rtol=1e-4)


def test_the_sweep_is_slowed_down_where_the_gradient_is_not_linear():
    """On a Gaussian, however wide the particles lie, the rate is |C H|; at two modes it grows with the gap squared."""
    x = {"x": jax.random.normal(jax.random.key(0), (40, 6))}
    xi, side = jnp.zeros((40, 40)), jnp.where(jnp.arange(40) % 2, 1.0, -1.0)[:, None]
    h = jnp.linspace(1.0, 3.0, 6)

    def rate(x, g):
        return float(affine(x, g, xi, 1.0)[2])

    for wide in (0.1, 1.0, 100.0):
        at = {"x": 5.0 + wide * x["x"]}
        c = np.cov(np.asarray(at["x"]).T, ddof=0)
        np.testing.assert_allclose(
            rate(at, {"x": -h * at["x"]}), np.linalg.norm(_root(c) @ np.diag(h) @ _root(c)), rtol=1e-2
        )
    gaps = [rate({"x": x["x"] + gap * side}, {"x": -x["x"]}) for gap in (10.0, 100.0)]
    assert gaps[0] > 10 * rate(x, {"x": -x["x"]})
    assert 50 < gaps[1] / gaps[0] < 200


def _root(c):
    values, vectors = np.linalg.eigh(c)
    return vectors * np.sqrt(values) @ vectors.T


@pytest.mark.parametrize("kernel", ["blocks", 2])
def test_particles_that_coincide_in_a_group_feel_no_repulsion_there(kernel):
    """The mean of equal numbers is off by rounding, and that over a bandwidth of 0 is anything."""
    at = {
        "same": jnp.full((50, 2), 1.2039728),
        "other": jnp.repeat(jax.random.normal(jax.random.key(0), (5, 2)), 10, 0),
    }
    g = {"same": jnp.ones((50, 2)), "other": jnp.ones((50, 2))}
    members = groups(kernel, posterior(), jax.tree.map(lambda x: x[0], at))
    for modes in (False, True):
        drift = jax.jit(lambda at, modes=modes: interact(members, kernel, at, g, several_modes=modes).drift)(at)
        np.testing.assert_allclose(drift["same"], 50.0, rtol=1e-3)
        assert np.abs(drift["other"]).max() < 1e5


def gaussian(covariance):
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    return Posterior(lambda x: -0.5 * x @ (precision @ x), lambda x, batch: 0.0 * batch, 1)


def spread(covariance, seed=0, **settings):
    """Mean over coordinates of the particles' variance ratio, over the draws of two chains, and `Draws`."""
    d = len(covariance)
    start_key, run_key = jax.random.split(jax.random.key(seed))
    start = jax.random.normal(start_key, (2, 50, d))
    engine = svgd(gaussian(covariance), **settings)
    draws, _ = sample(
        engine, run_key, start, jnp.zeros(1), draws=200, thin=10, burn_in=1000, chunk=200, parallel="vmap"
    )
    return ((draws.positions**2).mean((0, 1, 2)) / np.diag(covariance)).mean(), draws


COVARIANCES = {
    "identity": np.eye,
    "all correlated 0.9": lambda d: 0.1 * np.eye(d) + 0.9,
    "neighbours correlated 0.9": lambda d: 0.9 ** np.abs(np.subtract.outer(np.arange(d), np.arange(d))),
}


@pytest.mark.parametrize("name", COVARIANCES)
@pytest.mark.parametrize("d", [pytest.param(2, marks=pytest.mark.slow), 20, pytest.param(200, marks=pytest.mark.slow)])
def test_default_particles_keep_their_spread(name, d):
    """2 x 50 particles, 2,000 steps: se 0.01 to 0.04, so a ratio of 0.65 or 1.35 is caught with probability 0.999."""
    got, draws = spread(COVARIANCES[name](d))
    assert 0.8 < got < 1.2
    assert not draws.stats["collapsed"].any()
    assert 0.9 < draws.stats["variance_ratio"][:, -1].mean() < 1.1


def test_plain_particles_collapse_and_say_so():
    with pytest.warns(UserWarning, match=r"50 particles in 20 dimensions have collapsed"):
        got, draws = spread(np.eye(20), noisy=False, kernel="all")
    assert got < 0.5
    assert abs(draws.stats["variance_ratio"][:, -1].mean() - got) < 0.1


def test_temperature_scales_the_variance():
    got, draws = spread(np.eye(2), temperature=0.25)
    assert 0.8 < got / 0.25 < 1.2
    assert 0.9 < draws.stats["variance_ratio"][:, -1].mean() < 1.1


@pytest.mark.parametrize("wide", [0.0, 30.0, 1000.0])
def test_particles_that_start_too_wide_are_drawn_in(wide):
    """Of sd 3 or 100 on a posterior of sd 0.1, where a stride of the sweep would pass the mode by 45 (10^5) of its sds
    more than it came with; and of sd 0 at 1.2, as the noise of a completion's prior draws. 20 particles, 2,000 steps:
    se 0.05."""
    start = 0.1 * wide * jax.random.normal(jax.random.key(0), (1, 20, 5)) + (1.2039728 if wide == 0 else 0)
    run = {"draws": 200, "thin": 10, "burn_in": 1000, "chunk": 200, "parallel": "vmap"}
    draws, _ = sample(svgd(gaussian(0.01 * np.eye(5))), jax.random.key(1), start, jnp.zeros(1), **run)
    assert not draws.stats["nonfinite"].any()
    assert 0.8 < (draws.positions**2).mean() / 0.01 < 1.2


def test_a_particle_thrown_out_after_burn_in_comes_back():
    """exp(-x^4 / 4) has sd 0.8; explicit steps of the frozen scale overshoot from |x| about 9 on, ever farther."""
    quartic = Posterior(lambda x: -0.25 * (x**4).sum(), lambda x, batch: 0.0 * batch, 1)
    engine = svgd(quartic, burn_in=200)
    start = 0.5 * jax.random.normal(jax.random.key(0), (1, 20, 3))
    *_, run = sample(engine, jax.random.key(1), start, jnp.zeros(1), draws=1, burn_in=200, chunk=1, parallel="vmap")
    thrown = run._replace(states=run.states._replace(particles=run.states.particles.at[0, 0].set(30.0)))
    (piece,) = stream(engine, thrown, jnp.zeros(1), draws=1, thin=400, chunk=1, parallel="vmap")
    assert not piece.info.nonfinite.any()
    assert np.abs(piece.positions).max() < 5


def test_a_step_out_of_the_support_is_undone():
    """N(0, 1) cut off at 2, where the density has no gradient that leads back: the next step starts from within."""
    cut = Posterior(lambda x: jnp.where(jnp.abs(x) < 2, -0.5 * x**2, -jnp.inf).sum(), lambda x, batch: 0.0 * batch, 1)
    start = jnp.linspace(-1, 1, 5).reshape(1, 5, 1)
    run = {"draws": 400, "burn_in": 200, "chunk": 400, "parallel": "vmap"}
    with pytest.warns(UserWarning, match="steps undone"):
        draws, _ = sample(svgd(cut, burn_in=200), jax.random.key(0), start, jnp.zeros(1), **run)
    assert draws.stats["finite"].mean() > 0.5
    assert draws.positions[:, -100:].std() > 0.5


@pytest.mark.parametrize(("burn_in", "told", "spread"), [(20, True, 0.01), (500, False, 0.1)])
def test_particles_at_two_modes_spread_within_both(burn_in, told, spread):
    """Modes of sd 0.1, 141 sds apart in 50 dimensions, 10 particles each: none is swept across. 20 x 50 x 100 numbers
    of which a few hundred are independent: se of the ratio about 0.05. The particles' covariance is that of the modes:
    with the sweep at its full rate nearly all steps are not finite, whoever told it (`several_modes`) or not. Untold,
    the median rule makes particles of one mode move as one: they keep the spread that they come with."""
    centre = np.float32(1.0)
    halves = [Posterior(lambda x, s=s: -0.5 * ((x - s) ** 2).sum() / 0.01, lambda x, b: 0.0 * b, 1) for s in (1, -1)]
    both = Posterior(lambda x: jnp.logaddexp(*(one.log_prior(x) for one in halves)), lambda x, b: 0.0 * b, 1)
    sign = jnp.where(jnp.arange(20) % 2, 1.0, -1.0)[None, :, None]
    start = sign * centre + spread * jax.random.normal(jax.random.key(0), (1, 20, 50))
    run = {"draws": 100, "thin": 10, "burn_in": max(burn_in, 500), "chunk": 100, "parallel": "vmap"}
    draws, _ = sample(svgd(both, several_modes=told, burn_in=burn_in), jax.random.key(1), start, jnp.zeros(1), **run)
    assert not draws.stats["nonfinite"].any()
    assert 0.8 < ((draws.positions - np.asarray(sign)) ** 2).mean() / 0.01 < 1.25
    assert np.isnan(draws.stats["variance_ratio"]).all() == told and not draws.stats["collapsed"].any()


@functools.cache
def narrow():
    """20 particles on a posterior of sd 0.022, batches of 100 in 2,000."""
    data = 1 + jax.random.normal(jax.random.key(0), (2000, 5))
    target = Posterior(lambda x: -0.5 * (x**2).sum() / 100, lambda x, batch: -0.5 * ((batch - x) ** 2).sum(-1), 2000)
    return svgd(target), data, data.sum(0) / 2000.01, 1 / 2000.01


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.001, 0.01, 1.0])
def test_shared_minibatches_do_not_inflate_the_particles(spread):
    """Starts far narrower and far wider than the posterior; se of the ratio about 0.025."""
    engine, data, mean, variance = narrow()
    start = mean + spread * jax.random.normal(jax.random.key(1), (8, 20, 5))
    settings = {"burn_in": 2000, "batch_size": 100, "chunk": 300, "parallel": "vmap"}
    draws, _ = sample(engine, jax.random.key(2), start, data, draws=300, thin=20, **settings)
    got = ((draws.positions - mean) ** 2).mean() / variance
    assert 0.85 < got < 1.15
    assert abs(draws.stats["inflation"].mean() / got - 1) < 0.15


def test_the_first_steps_stay_near_a_narrow_mode():
    """Scale 1 in the first step would throw the particles about 40 posterior sds away."""
    engine, data, mean, variance = narrow()
    start = mean + 0.01 * jax.random.normal(jax.random.key(1), (1, 20, 5))
    run = {"draws": 20, "batch_size": 100, "chunk": 20, "parallel": "vmap"}
    with pytest.warns(UserWarning, match="steps that adapt"):
        draws, _ = sample(engine, jax.random.key(2), start, data, **run)
    assert np.abs(draws.positions - np.asarray(mean)).max() < 8 * variance**0.5


def test_the_step_allocates_at_most_twice_the_particles():
    """XLA's own count for the plain step on 20 x 50,000, beside arguments and results."""
    n, d = 20, 50_000
    target = Posterior(lambda x: -0.5 * (x**2).sum(), lambda x, batch: 0.0 * batch, 1)
    engine = svgd(target, noisy=False, kernel="all", parallel="vmap")
    state = jax.eval_shape(engine.init, jax.random.key(0), jax.ShapeDtypeStruct((n, d), jnp.float32))
    step = jax.jit(engine.step).lower(jax.random.key(0), state, jax.ShapeDtypeStruct((1,), jnp.float32))
    assert step.compile().memory_analysis().temp_size_in_bytes <= 2 * n * d * 4, "twice the particles"
