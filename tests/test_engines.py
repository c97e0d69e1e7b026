"""Every engine keeps the same contract: a table of engines x laws. A new engine is tested by adding a row."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayestensor.inference.base import Engine, Posterior
from bayestensor.inference.diagnostics import diagnose
from bayestensor.inference.draws import Draws
from bayestensor.inference.ensemble import ensemble
from bayestensor.inference.gradient import centre_at, estimator
from bayestensor.inference.nuts import nuts
from bayestensor.inference.parallel import over
from bayestensor.inference.sample import draw_batch, jitter, sample, start, stream
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.sgld import sgld
from bayestensor.inference.svgd import svgd
from bayestensor.inference.variational import variational

# BlackJAX and ArviZ rely on dtype and rank promotion
pytestmark = pytest.mark.promoting

NUM = 16
X = jax.random.normal(jax.random.key(1), (NUM, 3))
Y = X @ jnp.array([1.0, -1.0, 0.5]) + 0.3 + 0.5 * jax.random.normal(jax.random.key(2), (NUM,))
DATA = (X, Y)
POINT = {"bias": jnp.zeros(()), "weight": jnp.array([0.9, -0.8, 0.4])}


def log_prior(position):
    return -0.5 * sum((x**2).sum() for x in jax.tree.leaves(position))


def log_likelihood(position, batch):
    x, y = batch
    return -0.5 * ((y - x @ position["weight"] - position["bias"]) / 0.5) ** 2


def swap_nothing(key, position):
    return {**position, "bias": position["bias"] + 0 * jax.random.normal(key)}


REGRESSION = Posterior(log_prior, log_likelihood, NUM, conditional_update=swap_nothing)
CENTRE = centre_at(REGRESSION, POINT, DATA)

# name -> (build(posterior) -> Engine, is the position a stack?, does the key matter?, smallest batch)
ENGINES = {
    "sghmc": (lambda p: sghmc(p, burn_in=4), False, True, 4),
    "sghmc, cyclical": (lambda p: sghmc(p, burn_in=4, cycle=3), False, True, 4),
    "sghmc, control variate": (lambda p: sghmc(p, burn_in=4, centre=CENTRE), False, True, 4),
    "sghmc, conditional draws": (lambda p: sghmc(p, burn_in=4, conditional_every=2), False, True, 4),
    "sgld": (lambda p: sgld(p, burn_in=4), False, True, 4),
    "svgd": (lambda p: svgd(p, burn_in=4), True, True, 4),
    "svgd, conditional draws": (lambda p: svgd(p, burn_in=4, conditional_every=2), True, True, 4),
    "svgd, blocks": (lambda p: svgd(p, burn_in=4, kernel=2), True, True, 4),
    "svgd, plain": (lambda p: svgd(p, noisy=False, kernel="all", optimiser=optax.adam(0.1)), True, False, 4),
    "nuts": (lambda p: nuts(p, burn_in=4), False, True, NUM),
    "variational": (lambda p: variational(p, burn_in=4), False, True, 4),
    "ensemble of sgld": (lambda p: ensemble(sgld(p, burn_in=4)), True, True, 4),
}
STEPS = 8


def stack(point, n=5):
    return jitter(jax.random.key(3), jax.tree.map(lambda x: x + 0.1, point), n, 0.5)


def start_of(name):
    return stack(POINT) if ENGINES[name][1] else POINT


@functools.cache
def built(name) -> Engine:
    return ENGINES[name][0](REGRESSION)


@functools.cache
def program(name):
    """(key, data) -> the first state, the last, and positions and info of STEPS scanned steps."""
    engine = built(name)

    def go(key, data):
        init_key, steps_key = jax.random.split(key)
        first = engine.init(init_key, start_of(name))

        def body(state, t):
            state, info = engine.step(jax.random.fold_in(steps_key, t), state, data)
            return state, (engine.position(state), info)

        last, out = jax.lax.scan(body, first, jnp.arange(STEPS))
        return first, last, out

    return jax.jit(go)


def trajectory(name, seed=0, batch=NUM):
    return program(name)(jax.random.key(seed), jax.tree.map(lambda x: x[:batch], DATA))


def specification(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


MAIN = ("sghmc", "svgd", "nuts")  # the others share their code paths; they run with the slow tests
every_engine = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in MAIN else pytest.mark.slow) for name in ENGINES]
)


@every_engine
def test_signature_is_the_contract(name):
    engine = built(name)
    assert isinstance(engine, Engine)
    assert list(inspect.signature(engine.init).parameters) == ["key", "position"]
    assert list(inspect.signature(engine.step).parameters) == ["key", "state", "batch"]
    first, last, (_, info) = trajectory(name)
    for part in (first, info):
        assert isinstance(part, tuple)
        assert hasattr(part, "_fields")
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(part))
    assert specification(first) == specification(last)


@every_engine
def test_position_has_the_structure_it_was_given_and_moves(name):
    _, last, (positions, info) = trajectory(name)
    position = built(name).position(last)
    assert specification(position) == specification(start_of(name))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((positions, info.log_density)))
    assert all((a != b).all() for a, b in zip(*map(jax.tree.leaves, (position, start_of(name))), strict=True))


@every_engine
def test_same_key_same_chain_and_other_key_other_chain(name):
    _, _, (positions, _) = trajectory(name)
    _, _, (again, _) = trajectory(name)
    _, _, (other, _) = trajectory(name, seed=1)
    weight, same, different = positions["weight"], again["weight"], other["weight"]
    np.testing.assert_array_equal(weight, same)
    assert bool((weight != different).any()) == ENGINES[name][2]


@every_engine
def test_small_batches_run_or_are_refused(name):
    if ENGINES[name][3] == NUM:
        with pytest.raises(ValueError, match=r"whole data at every step: 16 data, but got 4"):
            trajectory(name, batch=4)
    else:
        assert np.isfinite(trajectory(name, batch=4)[2][1].log_density).all()


@every_engine
def test_a_run_cut_and_resumed_gives_the_same_draws_bitwise(name):
    engine, size = built(name), None if ENGINES[name][3] == NUM else 4
    run = start(engine, jax.random.key(5), jax.tree.map(lambda x: jnp.stack([x, x]), start_of(name)))
    settings = {"thin": 2, "batch_size": size, "chunk": 4}
    (whole,) = stream(engine, run, DATA, draws=4, **settings)
    (head,) = stream(engine, run, DATA, draws=1, **settings)
    tail = list(stream(engine, head.run, DATA, draws=3, **settings))[-1]
    assert tail.run.steps == whole.run.steps == 8
    for a, b, c in zip(*map(jax.tree.leaves, (whole.positions, head.positions, tail.positions)), strict=True):
        np.testing.assert_array_equal(a, np.concatenate([b, c], axis=1))
        assert a.shape[:2] == (2, 4)
    for a, b in zip(*map(jax.tree.leaves, (whole.run.states, tail.run.states)), strict=True):
        np.testing.assert_array_equal(a, b)


@every_engine
def test_chains_side_by_side_are_the_chains_one_by_one(name):
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    together = jax.jit(jax.vmap(program(name), (0, None)))(keys, DATA)[2][0]
    for seed in range(2):
        alone = trajectory(name, seed)[2][0]
        for a, b in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
            np.testing.assert_allclose(a[seed], b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ENGINES)
def test_improper_priors_are_refused_before_anything_runs(name):
    improper = Posterior(log_prior, log_likelihood, NUM, proper=False)
    with pytest.raises(ValueError, match="improper"):
        ENGINES[name][0](improper)


@every_engine
def test_steps_that_are_not_finite_are_undone_and_counted(name):
    density = (lambda p: log_prior(p) / jnp.where(p["bias"].sum() == 0, 1.0, jnp.nan), log_likelihood, NUM)
    engine = ENGINES[name][0](Posterior(*density, conditional_update=swap_nothing))
    at = jax.tree.map(lambda x: jnp.ones_like(x), start_of(name))
    state, info = jax.jit(engine.step)(jax.random.key(0), engine.init(jax.random.key(0), at), DATA)
    for a, b in zip(*map(jax.tree.leaves, (engine.position(state), at)), strict=True):
        np.testing.assert_array_equal(a, b)
    if name != "nuts":
        assert not info.finite.any()
        assert (np.asarray(info.nonfinite) == 1).all()


@pytest.mark.parametrize(("name", "first"), [("sghmc", 4), ("svgd", 8)])
def test_conditional_draws_wait_for_the_data(name, first):
    """A slice that does not fit yet would be drawn dead: the first draw comes at step `first` of 8 of burn-in."""
    out = lambda key, at: jax.tree.map(lambda x: x + 1e3, at)  # noqa: E731
    far = Posterior(log_prior, log_likelihood, NUM, conditional_update=out)
    engine = {"sghmc": sghmc, "svgd": svgd}[name](far, burn_in=8, conditional_every=2)
    state = engine.init(jax.random.key(0), POINT if name == "sghmc" else stack(POINT))
    moved = []
    for t in range(first + 1):
        state, _ = jax.jit(engine.step)(jax.random.key(t), state, DATA)
        moved.append(float(jnp.abs(engine.position(state)["bias"]).max()) > 500)
    assert moved == [False] * first + [True]


BAD = {
    "sghmc step": (lambda: sghmc(REGRESSION, step_size=0.0), "step_size = 0.0; a positive number"),
    "sghmc share": (lambda: sghmc(REGRESSION, noise_share=1.5), "noise_share = 1.5"),
    "sghmc precondition": (lambda: sghmc(REGRESSION, precondition="core"), "precondition = 'core'"),  # type: ignore[arg-type]
    "sghmc cycle": (lambda: sghmc(REGRESSION, cycle=0), "cycle = 0"),
    "sghmc tempered conditional": (lambda: sghmc(REGRESSION, temperature=0.5, conditional_every=1), "temperature"),
    "sghmc conditional": (
        lambda: sghmc(Posterior(log_prior, log_likelihood, NUM), conditional_every=1),
        "no conditional_update",
    ),
    "sgld step": (lambda: sgld(REGRESSION, step_size=-1.0), "step_size = -1.0"),
    "svgd optimiser": (lambda: svgd(REGRESSION, optimiser=optax.adam(0.1)), "noisy=False"),
    "svgd plain conditional": (lambda: svgd(REGRESSION, noisy=False, conditional_every=1), "noisy=True"),
    "svgd kernel": (lambda: svgd(REGRESSION, kernel="rbf").init(jax.random.key(0), stack(POINT)), "kernel = 'rbf'"),  # type: ignore[arg-type]
    "svgd one particle": (lambda: svgd(REGRESSION).init(jax.random.key(0), stack(POINT, 1)), "1 particle"),
    "nuts dimension": (
        lambda: nuts(REGRESSION).init(jax.random.key(0), {"x": jnp.zeros(3000)}),
        "3000 coordinates, the limit is 2000",
    ),
    "batch of one": (
        lambda: estimator(REGRESSION)(POINT, jax.tree.map(lambda x: x[:1], DATA)),
        "batch of 1 datum has no gradient noise",
    ),
    "ragged batch": (lambda: estimator(REGRESSION)(POINT, (X, Y[:3])), "common first axis"),
    "batch too large": (
        lambda: list(
            stream(built("sghmc"), start(built("sghmc"), jax.random.key(0), stack(POINT)), DATA, draws=1, batch_size=17)
        ),
        "between 1 and the 16 data",
    ),
    "parallel": (lambda: over(jnp.sin, "pmap"), "parallel = 'pmap'"),  # type: ignore[arg-type]
    "functionals": (lambda: diagnose({}), "no functionals"),
    "one chain": (lambda: diagnose({"x": np.zeros((1, 10))}), "at least 2 chains"),
    "not finite": (lambda: diagnose({"x": np.full((2, 10), np.nan)}), "20 values that are not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_get_one_clear_message(case):
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act()


def test_gradient_estimate_is_the_gradient_and_knows_its_variance():
    """Over all 16-choose-8 halves in expectation; 4,000 batches: catches 8 % in the variance with probability 0.99."""
    exact = jax.grad(REGRESSION.log_density)(POINT, DATA)
    whole = jax.jit(estimator(REGRESSION))(POINT, DATA)
    for a, b in zip(*map(jax.tree.leaves, (whole.gradient, exact)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert all((x == 0).all() for x in jax.tree.leaves(whole.noise))
    for centre in (None, CENTRE):
        point = jax.tree.map(lambda x: x + 0.1, POINT)
        exact = jax.grad(REGRESSION.log_density)(point, DATA)
        many = jax.jit(jax.vmap(lambda key: estimator(REGRESSION, centre)(point, draw_batch(key, DATA, 4))))
        got = many(jax.random.split(jax.random.key(7), 4000))
        for name, mean in exact.items():
            variance = got.gradient[name].var(0)
            np.testing.assert_allclose(
                got.gradient[name].mean(0), mean, atol=5 * float(variance.max()) ** 0.5 / 4000**0.5
            )
            # strata of four data share a batch: the variance of one draw a stratum is that of simple sampling only on
            # average over shuffles, hence the wide band for this one order
            np.testing.assert_allclose(got.noise[name].mean(0), variance, rtol=0.6)


@pytest.mark.parametrize("size", [2, 3, 15])
def test_odd_batches_count_every_datum_once(size):
    target = Posterior(log_prior, log_likelihood, size)
    batch = jax.tree.map(lambda x: x[:size], DATA)
    got = jax.jit(estimator(target))(POINT, batch)
    np.testing.assert_allclose(got.log_density, target.log_density(POINT, batch), rtol=1e-5)
    exact = jax.grad(target.log_density)(POINT, batch)
    for name, gradient in exact.items():
        np.testing.assert_allclose(got.gradient[name], gradient, rtol=1e-4)
        assert (np.asarray(got.curvature[name]) > 0).all()


def test_batches_take_every_datum_equally_often():
    """20,000 batches of 6 in 16: a share has se 0.9 %, so a bias of 8 % is caught with probability 0.999."""
    keys = jax.random.split(jax.random.key(8), 20_000)
    index = jax.vmap(lambda key: draw_batch(key, jnp.arange(16), 6))(keys)
    np.testing.assert_allclose(np.bincount(index.ravel()) / (20_000 * 6 / 16), 1.0, atol=0.04)
    assert np.array_equal(draw_batch(jax.random.key(9), jnp.arange(16), 16), np.arange(16))


def test_draws_survive_the_disk_and_damage_is_seen(tmp_path):
    engine = built("sghmc")
    draws, _ = sample(engine, jax.random.key(0), stack(POINT, 3), DATA, draws=6, burn_in=4, batch_size=4, chunk=4)
    path = tmp_path / "draws.npz"
    draws.save(path)
    for back in (Draws.load(path), Draws.load(path, like=POINT)):
        assert jax.tree.structure(back.positions) == jax.tree.structure(draws.positions)
        for a, b in zip(*map(jax.tree.leaves, (back.positions, draws.positions)), strict=True):
            np.testing.assert_array_equal(a, b)
        assert back.shape == (3, 6)
        assert set(back.stats) == set(draws.stats)
    predictions = draws.map(lambda p: X @ p["weight"] + p["bias"])
    assert predictions.shape == (3, 6, NUM)
    groups = draws.to_inference_data({"prediction": predictions})
    assert groups.posterior.sizes["chain"] == 3
    assert groups.sample_stats["kinetic_temperature"].shape == (3, 6)
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(0)
    loud = 0
    for _ in range(60):  # one bit anywhere: either the load fails, or nothing it returns has changed
        at, bit = random.integers(len(content)), 1 << random.integers(8)
        content[at] ^= bit
        path.write_bytes(content)
        content[at] ^= bit
        try:
            back = Draws.load(path)
        except ValueError as error:
            assert "damaged" in str(error)  # noqa: PT017
            loud += 1
            continue
        for a, b in zip(*map(jax.tree.leaves, (back.positions, draws.positions)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert loud > 30
    draws.save(path)
    with pytest.raises(ValueError, match="position asked for"):
        Draws.load(path, like={"other": 0})
    with pytest.raises(ValueError, match="not finite"):
        Draws({"x": np.full((1, 2), np.nan)}).save(path)


def test_verdict_tells_agreement_from_disagreement():
    """1,000 independent draws in 4 chains pass; one chain moved by half a sd has R-hat near 1.06 and fails."""
    x = np.random.default_rng(0).normal(size=(4, 1000, 2))
    good = diagnose({"x": x}, {"kinetic_temperature": np.ones((4, 1000)), "nonfinite": np.zeros((4, 1000))})
    assert good.converged, str(good)
    assert good.ess_bulk["x"] > 3000
    apart = diagnose({"x": x + np.array([0, 0, 0, 0.5])[:, None, None]})
    assert not apart.converged
    assert "chains disagree" in str(apart)
    hot = diagnose({"x": x}, {"kinetic_temperature": np.full((4, 1000), 1.5)})
    assert not hot.converged
    assert "kinetic temperature is 1.50" in str(hot)


def test_sample_warns_of_draws_from_burn_in():
    with pytest.warns(UserWarning, match="steps that adapt"):
        sample(built("sghmc"), jax.random.key(0), stack(POINT, 2), DATA, draws=4, batch_size=4, chunk=4)
