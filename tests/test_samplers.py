"""Moments of the samplers against known ones; seeded faults that the same check rejects.

`judge` takes 48 independent chains: the mean over chains of the variance ratio, and its standard error from their
spread. It accepts a ratio inside 0.97 ... 1.03. The runs below have standard errors of at most 0.007 (asserted), so a
bias of 5 % is caught with probability 0.997, and a right sampler fails with probability under 2e-5.
"""

from __future__ import annotations

import functools

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.inference import sghmc as module
from bayestensor.inference.base import Posterior
from bayestensor.inference.gradient import centre_at
from bayestensor.inference.nuts import nuts
from bayestensor.inference.sample import sample
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.sgld import sgld

# BlackJAX and ArviZ rely on dtype and rank promotion
pytestmark = pytest.mark.promoting

CHAINS = 48
PRECISIONS = {"identity": jnp.ones(10), "condition number 100": jnp.logspace(-1, 1, 10)}


def gaussian(precision, conditional_update=None):
    """N(0, 1 / precision) as a prior, one datum that says nothing: every gradient is exact."""
    return Posterior(
        lambda x: -0.5 * (precision * x**2).sum(),
        lambda x, batch: 0.0 * batch,
        1,
        conditional_update=conditional_update,
    )


def chains(engine, draws, thin, burn_in=600, start=None, seed=0):
    start = jnp.zeros(10) if start is None else start
    got, _ = sample(
        engine,
        jax.random.key(seed),
        jnp.broadcast_to(start, (CHAINS, *start.shape)),
        jnp.zeros(1),
        draws=draws,
        thin=thin,
        burn_in=burn_in,
        chunk=draws,
        parallel="vmap",
    )
    return got


def ratio(positions, variance):
    """Mean over chains and coordinates of E x^2 / variance, and its standard error from the chains' spread."""
    by_chain = (np.asarray(positions) ** 2).mean(1) / variance
    by_chain = by_chain.mean(-1)
    return by_chain.mean(), by_chain.std(ddof=1) / CHAINS**0.5


def judge(positions, variance):
    mean, error = ratio(positions, variance)
    assert error < 0.007, f"standard error {error}: the check is too weak"
    return 0.97 < mean < 1.03


CASES = [(steps, name, t) for steps in (1, 2, 7, 50) for name in PRECISIONS for t in (1.0, 0.25)]
FAST = [(7, "condition number 100", 0.25), (1, "identity", 1.0)]


@pytest.mark.parametrize(
    ("steps", "precision", "temperature"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in CASES],
)
def test_sghmc_has_the_right_variance(steps, precision, temperature):
    engine = sghmc(gaussian(PRECISIONS[precision]), step_size=0.3, burn_in=600, temperature=temperature)
    draws = chains(engine, max(400, 3000 // steps), steps)
    assert judge(draws.positions, temperature / PRECISIONS[precision])


OTHERS = {
    "defaults": lambda p: sghmc(p, burn_in=600),
    "no preconditioner": lambda p: sghmc(p, burn_in=600, step_size=0.3, precondition=False),
    "preconditioner by leaf": lambda p: sghmc(p, burn_in=600, step_size=0.3, precondition="leaf"),
    "cycle": lambda p: sghmc(p, burn_in=600, step_size=0.5, cycle=20),
    "sgld": lambda p: sgld(p, burn_in=600, step_size=0.2),
    "conditional draws": lambda p: sghmc(p, burn_in=600, step_size=0.3, conditional_every=3),
}


def redraw_first(key, x):
    """An exact draw of one coordinate; done where momentum knows of x, its variance would come out 6 % short."""
    return x.at[0].set(jax.random.normal(key) / jnp.sqrt(PRECISIONS["condition number 100"][0]))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("cycle", "conditional draws") else pytest.mark.slow) for n in OTHERS]
)
def test_every_variant_has_the_right_variance(name):
    precision = PRECISIONS["condition number 100"]
    engine = OTHERS[name](gaussian(precision, redraw_first))
    draws = chains(engine, 1200 if name == "conditional draws" else 800, 8 if name == "defaults" else 4)
    assert judge(draws.positions, 1 / precision)
    if name == "conditional draws":
        assert judge(draws.positions[..., :1], 1 / precision[0])


def fault(scale):
    def normals(key, like, sd=1.0):
        leaves, tree = jax.tree.flatten(like)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(
            tree, [scale * sd * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        )

    return normals


FAULTS = {"noise x 0.9": (0.9, 1.0), "no friction noise": (0.0, 1.0), "temperature doubled": (1.0, 2.0)}


@pytest.mark.parametrize("name", FAULTS)
def test_the_check_rejects_seeded_faults(name, monkeypatch):
    scale, temperature = FAULTS[name]
    monkeypatch.setattr(module, "normals", fault(scale))
    engine = sghmc(gaussian(jnp.ones(10)), step_size=0.3, burn_in=600, temperature=temperature, precondition=False)
    draws = chains(engine, 500, 4, start=jnp.ones(10))
    mean, error = ratio(draws.positions, jnp.ones(10))
    assert not 0.97 - 3 * error < mean < 1.03 + 3 * error, f"ratio {mean} passes"


@pytest.mark.parametrize(
    ("temperature", "steps"), [(1.0, 2), pytest.param(1.0, 10, marks=pytest.mark.slow), (0.25, 10)]
)
def test_the_check_rejects_blackjax_sghmc(temperature, steps):
    """The negative control: momentum redrawn, explicit Euler; inflated by L / (L - 1), temperature not honoured."""
    kernel = blackjax.sgmcmc.sghmc.build_kernel()

    def one(key):
        def body(x, key):
            x = kernel(key, x, lambda x, _: -x, None, 0.01, steps, temperature)
            return x, x

        x0 = temperature**0.5 * jax.random.normal(key, (10,))
        return jax.lax.scan(body, x0, jax.random.split(key, 60_000 // steps))[1]

    xs = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), CHAINS))[:, 2000::4]
    mean, error = ratio(xs, temperature)
    assert not 0.97 - 3 * error < mean < 1.03 + 3 * error, f"ratio {mean} passes"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gaussian", "logistic"])
def test_halving_the_step_at_least_halves_the_bias(target):
    """The logistic density shows the splitting's bias; on a Gaussian it must be under 3 standard errors."""
    if target == "gaussian":
        posterior, variance, steps = gaussian(jnp.ones(10)), 1.0, (1.0, 0.5)
    else:
        posterior = Posterior(lambda x: -(x + 2 * jax.nn.softplus(-x)).sum(), lambda x, batch: 0.0 * batch, 1)
        variance, steps = np.pi**2 / 3, (2.5, 1.25)
    found = []
    for h in steps:
        engine = sghmc(posterior, step_size=h, friction=0.5, burn_in=100, precondition=False)
        found.append(ratio(chains(engine, 4000, 2, start=0.5 * jnp.ones(10)).positions, variance))
    (coarse, error_coarse), (fine, error_fine) = ((mean - 1, error) for mean, error in found)
    assert abs(fine) < max(abs(coarse) / 2 + 2 * error_coarse, 3 * error_fine)
    if target == "logistic":
        assert abs(coarse) > 5 * error_coarse, "no bias to halve: the test is empty"


def test_steep_tails_are_counted_and_named():
    """Explicit kicks of exp(-x^4 / 4) overshoot from |x| > 2 / h on and never come back: undone, counted, warned of."""
    steep = Posterior(lambda x: -0.25 * (x**4).sum(), lambda x, batch: 0.0 * batch, 1)
    engine = sghmc(steep, step_size=0.8, burn_in=1, precondition=False)
    with pytest.warns(UserWarning, match=r"steps undone because they were not finite, by chain: .*smaller step_size"):
        draws = chains(engine, 200, 1, burn_in=1, start=30 * jnp.ones(10))
    assert np.isfinite(draws.positions).all()
    assert (draws.stats["nonfinite"][:, -1] > 0).all()


NUM, BATCH = 2000, 100


@functools.cache
def mean_of_gaussian():
    data = 1 + jax.random.normal(jax.random.key(0), (NUM, 5))
    posterior = Posterior(lambda x: -0.5 * (x**2).sum() / 100, lambda x, batch: -0.5 * ((batch - x) ** 2).sum(-1), NUM)
    variance = 1 / (NUM + 0.01)
    return posterior, data, data.sum(0) * variance, variance


def minibatched(engine, data, mean, draws, seed=1, thin=20):
    return sample(
        engine,
        jax.random.key(seed),
        jnp.broadcast_to(mean, (CHAINS, *mean.shape)),
        data,
        draws=draws,
        thin=thin,
        burn_in=1500,
        batch_size=BATCH,
        chunk=draws,
        parallel="vmap",
    )[0]


@pytest.mark.parametrize("name", ["defaults", "reported only", pytest.param("control variate", marks=pytest.mark.slow)])
def test_minibatches_do_not_inflate_a_gaussian_mean(name):
    """Standard error of the ratio about 0.02: a ratio of 1.17 is caught with probability 0.999."""
    posterior, data, mean, variance = mean_of_gaussian()
    settings = {
        "defaults": {},
        "reported only": {"correct_noise": False, "friction": 3.0},
        "control variate": {"centre": centre_at(posterior, mean, data), "correct_noise": False},
    }[name]
    draws = minibatched(sghmc(posterior, **settings), data, mean, 300)
    truth, error = ratio(draws.positions - mean, variance)
    reported = draws.stats["inflation"].mean()
    assert error < 0.025
    assert abs(reported / truth - 1) < 0.1
    if name == "reported only":
        assert truth > 1.2
    else:
        assert 0.9 < truth < 1.1


def logistic(correlation, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    x = (1 - correlation) ** 0.5 * jax.random.normal(keys[0], (NUM, 20))
    x = x + correlation**0.5 * jax.random.normal(keys[3], (NUM, 1))
    weight = 0.5 * jax.random.normal(keys[1], (20,))
    y = jax.random.bernoulli(keys[2], jax.nn.sigmoid(x @ weight)).astype(jnp.float32)

    def log_likelihood(weight, batch):
        x, y = batch
        return y * (x @ weight) - jax.nn.softplus(x @ weight)

    return Posterior(lambda w: -0.5 * (w**2).sum(), log_likelihood, NUM), (x, y)


def against_nuts(correlation, seed=0, thin=20):
    """(variance of each coordinate about NUTS's mean over NUTS's variance, reported inflation)."""
    posterior, data = logistic(correlation, seed)
    reference, _ = sample(
        nuts(posterior, burn_in=500),
        jax.random.key(seed + 1),
        jnp.zeros((4, 20)),
        data,
        draws=2500,
        burn_in=500,
        chunk=2500,
        parallel="vmap",
    )
    mean, variance = reference.positions.mean((0, 1)), reference.positions.var((0, 1))
    draws = minibatched(sghmc(posterior), data, jnp.asarray(mean), 700, seed + 1, thin)
    return ((draws.positions - mean) ** 2).mean((0, 1)) / variance, draws.stats["inflation"].mean()


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_minibatches_do_not_inflate_a_logistic_regression(correlation):
    """Every coordinate against NUTS (4 x 2,500 draws, se of its variance about 1.5 %), d = 20, defaults."""
    by_coordinate, reported = against_nuts(correlation)
    assert by_coordinate.min() > 0.9
    assert by_coordinate.max() < 1.1
    assert abs(reported / by_coordinate.mean() - 1) < 0.1


@pytest.mark.slow
def test_nuts_has_the_right_variance():
    draws = chains(nuts(gaussian(PRECISIONS["condition number 100"]), burn_in=600), 1500, 1)
    assert judge(draws.positions, 1 / PRECISIONS["condition number 100"])
