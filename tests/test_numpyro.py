"""The bridge to NumPyro and back, against closed forms and NumPyro's own potential energy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.inference.base import Posterior
from bayestensor.inference.nuts import nuts
from bayestensor.inference.sample import sample
from bayestensor.inference.sghmc import sghmc
from bayestensor.models.numpyro import from_numpyro, to_numpyro

pytestmark = pytest.mark.promoting  # NumPyro relies on dtype and rank promotion

NUM, NOISE = 40, 0.5
X = np.random.default_rng(0).normal(size=(NUM, 2))
Y = X @ np.array([1.0, -1.0]) + 0.3 + NOISE * np.random.default_rng(1).normal(size=NUM)
DATA = tuple(jnp.asarray(x, jnp.float32) for x in (X, Y))
DESIGN = np.column_stack([np.ones(NUM), X])
COVARIANCE = np.linalg.inv(np.eye(3) + DESIGN.T @ DESIGN / NOISE**2)
MEAN = COVARIANCE @ DESIGN.T @ Y / NOISE**2
POINT = {"bias": jnp.zeros(()), "deep": {"weight": jnp.zeros(2)}}


def log_likelihood(position, batch):
    x, y = batch
    return -0.5 * ((y - x @ position["deep"]["weight"] - position["bias"]) / NOISE) ** 2


REGRESSION = Posterior(lambda p: -0.5 * sum((x**2).sum() for x in jax.tree.leaves(p)), log_likelihood, NUM)


def assert_is_the_posterior(draws, size):
    """`draws` [n, 3] of an effective `size`: each bound is 5 standard errors, so 7 at 1,000 catch 22 % in an sd."""
    sd = np.sqrt(np.diag(COVARIANCE))
    assert (np.abs(draws.mean(0) - MEAN) < 5 * sd / size**0.5).all()
    np.testing.assert_allclose(draws.std(0), sd, rtol=5 / (2 * size) ** 0.5)


def numpyro_regression(x, y, noise=NOISE):
    import numpyro
    import numpyro.distributions as dist

    bias = numpyro.sample("bias", dist.Normal(0, 1))
    weight = numpyro.sample("weight", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(bias + x @ weight, noise), obs=y)


def numpyro_rich(x, y):
    """Constrained latents, one of them bounding another, a factor and two observed sites."""
    import numpyro
    import numpyro.distributions as dist

    noise = numpyro.sample("noise", dist.HalfCauchy(1.0))
    top = numpyro.sample("top", dist.LogNormal(0.0, 1.0))
    low = numpyro.sample("low", dist.Uniform(0.0, top))
    weight = numpyro.sample("weight", dist.Dirichlet(jnp.ones(3)))
    numpyro.factor("extra", -0.5 * weight[0] ** 2)
    numpyro.sample("y", dist.Normal(x @ weight[:2] + low, noise), obs=y)
    numpyro.sample("x", dist.Normal(0, 1 + low).expand([x.shape[1]]).to_event(1), obs=x)


@pytest.mark.slow
def test_nuts_of_numpyro_draws_from_our_posterior():
    from numpyro.infer import MCMC, NUTS, init_to_value

    model = to_numpyro(REGRESSION, POINT, DATA)
    kernel = NUTS(model, init_strategy=init_to_value(values=model.initial))
    mcmc = MCMC(kernel, num_warmup=500, num_samples=2000, progress_bar=False)
    with jax.debug_key_reuse(False):  # NumPyro's own kernel
        mcmc.run(jax.random.key(0))
    position = model.position(mcmc.get_samples(group_by_chain=True))
    assert position["deep"]["weight"].shape == (1, 2000, 2)
    draws = np.column_stack([position["bias"][0], position["deep"]["weight"][0]])
    assert_is_the_posterior(draws, 1000)


def test_the_log_density_that_numpyro_sees_is_ours():
    from numpyro.infer.util import log_density

    model = to_numpyro(REGRESSION, POINT, DATA)
    assert list(model.initial) == ["bias", "deep/weight"]
    for seed in range(3):
        at = {name: jax.random.normal(jax.random.key(seed), v.shape) for name, v in model.initial.items()}
        theirs, _ = log_density(model, (), {}, at)
        np.testing.assert_allclose(theirs, REGRESSION.log_density(model.position(at), DATA), rtol=1e-6)
    alone = to_numpyro(Posterior(lambda p: -(p**2).sum(), lambda p, b: 0 * b, NUM), jnp.zeros(2), DATA[1])
    assert list(alone.initial) == ["value"]


@pytest.mark.parametrize("model", [numpyro_regression, numpyro_rich])
def test_the_density_that_comes_back_is_numpyros_own(model):
    """`potential_energy` is NumPyro's own minus log joint density in the unconstrained space."""
    from numpyro.infer.util import constrain_fn, potential_energy

    bridged = from_numpyro(model, *DATA)
    density = jax.jit(bridged.posterior.log_density)
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), len(bridged.initial))
        at = {n: jax.random.normal(k, v.shape) for k, (n, v) in zip(keys, bridged.initial.items(), strict=True)}
        np.testing.assert_allclose(density(at, DATA), -potential_energy(model, DATA, {}, at), rtol=1e-5)
        ours, theirs = bridged.constrain(at), constrain_fn(model, DATA, {}, at)
        for name in at:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)


@pytest.mark.parametrize("model", [numpyro_regression, numpyro_rich])
def test_batches_estimate_the_whole_without_bias(model):
    posterior, at = (bridged := from_numpyro(model, *DATA)).posterior, bridged.initial
    parts = [posterior.log_density(at, tuple(x[k::4] for x in DATA)) for k in range(4)]
    np.testing.assert_allclose(np.mean(parts), posterior.log_density(at, DATA), rtol=1e-5)
    assert posterior.log_likelihood(at, tuple(x[:6] for x in DATA)).shape == (6,)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sghmc", "nuts"])
def test_a_numpyro_model_runs_under_our_engines(engine):
    """SGHMC in batches of 20 and NUTS, at least 700 effective draws each: 15 % in an sd is caught with probability 0.9."""
    bridged = from_numpyro(numpyro_regression, *DATA)
    build = {"sghmc": lambda p: sghmc(p, burn_in=1000), "nuts": lambda p: nuts(p, burn_in=300)}[engine]
    chains = jax.tree.map(lambda x: jnp.stack([x] * 4), bridged.initial)
    settings = {"burn_in": 1000, "thin": 20, "batch_size": 20} if engine == "sghmc" else {"burn_in": 300}
    with jax.debug_key_reuse(engine != "nuts"):  # BlackJAX's trajectory uses a key twice
        draws, _ = sample(build(bridged.posterior), jax.random.key(1), chains, DATA, draws=500, **settings)
    flat = draws.flat()
    assert_is_the_posterior(np.column_stack([flat["bias"], flat["weight"]]), 700)


def refused(what):
    import numpyro
    import numpyro.distributions as dist

    def discrete(x, y):
        numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(0, 1), obs=y)

    def local(x, y):
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(z, 1), obs=y)

    def subsampled(x, y):
        with numpyro.plate("data", len(y), subsample_size=10) as index:
            numpyro.sample("y", dist.Normal(0, 1), obs=y[index])

    def summed(x, y):
        numpyro.sample("y", dist.Normal(0, 1).expand([len(y)]).to_event(1), obs=y)

    def blind(x, y):
        numpyro.sample("z", dist.Normal(0, 1))

    models = locals()
    with jax.debug_key_reuse(False):  # NumPyro's plate that subsamples uses a key twice
        return from_numpyro(models[what], *DATA)


BAD = {
    "discrete": (lambda: refused("discrete"), "site 'z' is discrete"),
    "local": (lambda: refused("local"), "site 'z' has a value for each datum"),
    "subsampled": (lambda: refused("subsampled"), "site 'y' is scaled"),
    "summed": (lambda: refused("summed"), r"'y' has log densities of shape \(\); the first axis must be the 40 data"),
    "blind": (lambda: refused("blind"), "observes nothing"),
    "no data": (lambda: from_numpyro(numpyro_regression), "one first axis over the data"),
    "ragged": (lambda: from_numpyro(numpyro_regression, X, Y[:3]), "one first axis over the data"),
    "improper": (lambda: to_numpyro(Posterior(jnp.sum, jnp.sum, 1, proper=False), POINT, DATA), "improper"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_message(case):
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act()
