"""Non-centred coordinates: the change of variables by autodiff, and the interweaving step by its stationary law."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx

from bayestensor.inference.map import map_estimate
from bayestensor.inference.sample import sample
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.svgd import svgd
from bayestensor.models import scale_moves
from bayestensor.models.completion import CompletionModel
from bayestensor.models.likelihoods import Categorical, Gaussian
from bayestensor.models.neural import NeuralModel
from bayestensor.models.noncentred import noncentred
from bayestensor.nn.linear import MLP
from bayestensor.priors import PRIORS, HalfCauchy, InverseGamma, LogUniform
from bayestensor.tensor.contract import dense
from bayestensor.tensor.formats import FORMATS, cp, tt_matrix
from bayestensor.tensor.network import Core, Network

NETWORKS = {
    name: make((2, 3), (3, 2), 2) if name == "tt_matrix" else make((2, 3, 2), (), 2) for name, make in FORMATS.items()
}
TWICE = Network((Core("a", ("x", "r"), ("r", "r")), Core("b", ("r", "y"))), {"x": 3, "y": 2, "r": 2}, ("x",), ("y",))
BOUNDED, OPEN = LogUniform(0.05, 20.0), HalfCauchy(0.7)


def net():
    layers = [tt_matrix((2, 3), (2, 2), 2), cp((2, 2), (3, 2), 2)]
    priors = {"layers.0": BOUNDED, "layers.1": OPEN}
    return NeuralModel(MLP(layers, rngs=nnx.Rngs(0)), priors, Categorical(), weight_sd=2.0)


MODELS = {f"{name}, {type(p).__name__}": (network, p) for name, network in NETWORKS.items() for p in (BOUNDED, OPEN)}
MODELS |= {"a bond named twice": (TWICE, OPEN), "network": (None, None)}
MAIN = ("cp, LogUniform", "tensor_train, HalfCauchy", "block_term, LogUniform", "a bond named twice", "network")


def subject(name, dtype=jnp.float64):
    """(model, a generic position of it)."""
    network, prior = MODELS[name]
    if network is None:
        model = net()
        position = model.initial_position()
    else:
        model = CompletionModel(network, prior, Gaussian(0.5), core_variance=0.37)
        position = model.initial_position(jax.random.key(0))
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda a: jnp.asarray(np.asarray(a) + 0.4 * rng.normal(size=a.shape), dtype), position)


every_model = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in MAIN else pytest.mark.slow) for n in MODELS]
)


@every_model
def test_density_changes_by_the_jacobian_and_coordinates_come_back(name, x64):
    model, position = subject(name)
    moved = noncentred(model, 1)
    at = moved.from_position(position)
    assert jax.tree.map(jnp.shape, at) == jax.tree.map(jnp.shape, position)
    flat, unflatten = jax.flatten_util.ravel_pytree(at)

    @jax.jit
    def both(flat):
        to_flat = lambda x: jax.flatten_util.ravel_pytree(moved.to_position(unflatten(x)))[0]  # noqa: E731
        return to_flat(flat), jax.jacobian(to_flat)(flat), moved.posterior.log_prior(unflatten(flat))

    back, jacobian, density = both(flat)
    np.testing.assert_allclose(back, jax.flatten_util.ravel_pytree(position)[0], rtol=1e-9, atol=1e-12)
    expected = jax.jit(model.log_prior)(position) + np.linalg.slogdet(np.asarray(jacobian))[1]
    np.testing.assert_allclose(density, expected, rtol=1e-9)


@every_model
def test_the_scales_draw_keeps_the_tensor(name, x64):
    """Draws given the cores keep every core; common factors that move between bonds, of which there must be two, X."""
    model, position = subject(name)
    moved = noncentred(model, 1)
    update = moved.posterior.conditional_update
    if name == "a bond named twice":
        assert update is None
        with pytest.raises(ValueError, match="no conditional_update"):
            sghmc(moved.posterior, conditional_every=1)
        return
    new = jax.jit(lambda key, at: moved.to_position(update(key, at)))(jax.random.key(0), moved.from_position(position))
    for layer, tensor in model.tensors(new).items():
        old = model.tensors(position)[layer]
        np.testing.assert_allclose(dense(tensor), dense(old), rtol=1e-8)
        for core in tensor.cores if len(tensor.network.bonds) == 1 else ():
            np.testing.assert_allclose(tensor.cores[core], old.cores[core], rtol=1e-8)
        for bond, log_v in model.log_scales(position)[layer].items():
            assert (model.log_scales(new)[layer][bond] != log_v).all()


@every_model
def test_blocks_hold_a_core_and_its_bonds(name):
    model, position = subject(name, jnp.float32)
    at = noncentred(model, 1).posterior.blocks(position)
    assert jax.tree.structure(at) == jax.tree.structure(position)
    for layer, tensor in model.tensors(position).items():
        cores = at["cores"] if name != "network" else at["weights"]["layers"][int(layer[-1])]["kernel"]["cores"]
        assert len(set(cores.values())) == len(cores)
        for bond, number in model.log_scales(at)[layer].items():
            assert number == next(cores[c.name] for c in tensor.network.cores if bond in c.shrunk_by)
    numbers = jax.tree.leaves(at)
    shared = len(numbers) - len(set(numbers))
    assert shared == sum(len(tensor.network.bonds) for tensor in model.tensors(position).values())


def half_dead(name):
    """(model, a position whose bonds each have a dead last index, as MAP leaves it: v and the cores' slice at 0)."""
    model, position = subject(name)
    cores = {layer: dict(tensor.cores) for layer, tensor in model.tensors(position).items()}
    scales = {layer: dict(bonds) for layer, bonds in model.log_scales(position).items()}
    for layer, tensor in model.tensors(position).items():
        low = max(model.priors[layer].support[0], math.log(1e-8))
        for bond in scales[layer]:
            scales[layer][bond] = scales[layer][bond].at[-1].set(low)
            for core in tensor.network.cores:
                if bond in tensor.network.shrunk_by(core.name):
                    last = tuple(-1 if leg == bond else slice(None) for leg in core.legs)
                    cores[layer][core.name] = cores[layer][core.name].at[last].set(0.0)
    return model, model.with_tensors(position, cores, scales)


@every_model
def test_starts_are_near_the_mode_but_for_what_is_dead_there(name, x64):
    """400 starts around a half-dead position: its tensor, its v and its other weights come back to within
    `relative`; z of dead indices is N(0, 1) (KS of at least 400 numbers: an sd of 0.85 is caught with probability
    0.9), which a mode has at 0."""
    model, position = half_dead(name)
    moved, relative = noncentred(model, 1), 0.01
    starts = jax.jit(jax.vmap(lambda key: moved.around(key, position, relative)))(
        jax.random.split(jax.random.key(1), 400)
    )
    back = jax.vmap(moved.to_position)(starts)
    for layer, tensor in model.tensors(position).items():
        dead_z = []
        for bond, log_v in model.log_scales(position)[layer].items():
            spread = (np.asarray(model.log_scales(back)[layer][bond]) - np.asarray(log_v)).std(0)
            assert spread.max() < 1.3 * relative
            for core in tensor.network.cores:
                if bond in tensor.network.shrunk_by(core.name):
                    of_one = jax.vmap(lambda at, layer=layer, core=core: model.tensors(at)[layer].cores[core.name])
                    z = np.take(np.asarray(of_one(starts)), -1, axis=1 + core.legs.index(bond))
                    dead_z.append(z.ravel())
        assert min(len(z) for z in dead_z) >= 400
        assert len(dead_z) * min(scipy.stats.kstest(z, "norm").pvalue for z in dead_z) > 0.01
        whole = np.asarray(dense(tensor))
        near = np.asarray(jax.vmap(lambda at, layer=layer: dense(model.tensors(at)[layer]))(back))
        error = np.linalg.norm((near - whole).reshape(400, -1), axis=1) / np.linalg.norm(whole)
        assert error.max() < 0.2 and np.median(error) < 0.05


@pytest.mark.promoting
@pytest.mark.parametrize("name", ["sghmc", "svgd"])
def test_chains_from_a_mode_stay_with_the_data(name):
    """A CP model of rank 4 at the MAP of data of rank 2. Noise in shares of u's rms put a chain's log density 800,000
    below the posterior's, where scales of 1 / gradient kept it, and made SVGD's particles infinite."""
    rng = np.random.default_rng(0)
    truth = np.einsum("ar,br,cr->abc", *(rng.normal(size=(n, 2)) for n in (10, 9, 8))) / 2**0.5
    coords = np.argwhere(rng.random(truth.shape) < 0.5)
    values = truth[tuple(coords.T)] + 0.3 * rng.normal(size=len(coords))
    data = jnp.asarray(coords), jnp.asarray(values, jnp.float32)
    model = CompletionModel(cp((10, 9), (8,), 4), LogUniform(1e-2, 1e1), Gaussian(0.5))
    target, mode = noncentred(model, len(values)), map_of(model, data)
    starts = jax.jit(jax.vmap(lambda key: target.around(key, mode, 0.05)))(jax.random.split(jax.random.key(3), 20))
    if name == "sghmc":
        engine, starts = sghmc(target.posterior, step_size=0.3, burn_in=1000, conditional_every=1), starts
    else:
        engine, starts = svgd(target.posterior, burn_in=1000), jax.tree.map(lambda x: x[None], starts)
    draws, _ = sample(engine, jax.random.key(4), starts, data, draws=20, burn_in=1000, thin=20, parallel="vmap")
    assert not draws.stats["nonfinite"].any()
    at_truth = -0.5 * len(values) * (math.log(2 * math.pi * 0.09) + 1)
    assert draws.stats["log_density"].min() > at_truth - 250  # about 113 coordinates, each costs 1/2 and its prior


def map_of(model, data):
    engine = map_estimate(model.posterior(len(data[1])), optax.adam(2e-2), after_step=model.clip_scales)
    start = jax.tree.map(lambda x: x[None], model.initial_position(jax.random.key(1)))
    _, run = sample(engine, jax.random.key(2), start, data, draws=1, burn_in=2000, chunk=1)
    return jax.tree.map(lambda x: x[0], run.states.position)


DRAWS = 20_000


def prior_draws(model, key):
    """Independent draws of (z, u) from the prior: z normal, v by the prior's own sampler."""
    z_key, v_key = jax.random.split(key)
    position = model.initial_position(jax.random.key(0))
    (prior,) = model.priors.values()
    v_keys = iter(jax.random.split(v_key, len(position["log_scales"])))
    scales = {b: jnp.log(prior.sample(next(v_keys), x.shape)) for b, x in position["log_scales"].items()}
    at = noncentred(model, 1).from_position(position | {"log_scales": scales})
    keys = iter(jax.random.split(z_key, len(at["cores"])))
    return at | {"cores": {name: jax.random.normal(next(keys), z.shape) for name, z in at["cores"].items()}}


PROPER = {
    "log_uniform": BOUNDED,
    "half_cauchy": OPEN,
    "inverse_gamma": InverseGamma(2.0, 1.0),
    "gamma": PRIORS["gamma"](),
}


COORDS = np.stack(np.unravel_index(np.arange(12), (2, 3, 2)), axis=1)


def stationarity(prior, change=lambda update: update, data=False):
    """Smallest Holm-adjusted p after one update of prior draws: KS of v, z and core entries, v independent of z.

    With `data` the scales are drawn given 12 data as well, simulated afresh for every prior draw: if the update leaves
    the posterior as it is, it leaves the joint law of position and data, hence the prior (Geweke 2004).
    """
    model = CompletionModel(NETWORKS["tensor_train"], prior, Gaussian())

    @jax.jit
    @jax.vmap
    def one(key):
        draw_key, other_key, update_key, noise_key = jax.random.split(key, 4)
        at = prior_draws(model, draw_key)
        values = model.apply(noncentred(model, 1).to_position(at), COORDS) + jax.random.normal(noise_key, (12,))
        moved = noncentred(model, 12, (jnp.asarray(COORDS), values) if data else None)
        after = change(moved.posterior.conditional_update)(update_key, at)
        return tuple((at["cores"], moved.to_position(at)) for at in (after, prior_draws(model, other_key)))

    got = jax.tree.map(
        lambda x: np.asarray(x, float).reshape(DRAWS, -1), one(jax.random.split(jax.random.key(3), DRAWS))
    )
    (z, position), (_, other) = got
    pairs = [
        (x, y)
        for part in ("cores", "log_scales")
        for x, y in zip(*map(dict.values, (position[part], other[part])), strict=True)
    ]
    p = [scipy.stats.ks_2samp(x[:, 0], y[:, 0]).pvalue for x, y in pairs]
    p += [scipy.stats.kstest(x[:, 0], "norm").pvalue for x in z.values()]
    v, tied = position["log_scales"]["b1"][:, 0], z["core0"].reshape(DRAWS, 2, 2)[:, :, 0]  # core0 has legs i0, b1
    p.append(scipy.stats.spearmanr(v, (tied**2).sum(1)).pvalue)
    return min(1.0, len(p) * min(p))


STATIONARY = [(prior, data) for prior in PROPER for data in (False, True)]


@pytest.mark.parametrize(
    ("prior", "data"),
    [pytest.param(*case, marks=() if case == ("half_cauchy", False) else pytest.mark.slow) for case in STATIONARY],
)
def test_the_scales_draw_leaves_the_prior_as_it_is(prior, data):
    """Two samples of 20,000: a shift of 0.035 sd in any of 9 marginals is caught with probability 0.9,
    a correlation of v with z of 0.04 with 0.99."""
    assert stationarity(PROPER[prior], data=data) > 0.01


def test_a_draw_that_forgets_to_move_z_is_rejected():
    def faulty(update):
        return lambda key, at: update(key, at) | {"cores": at["cores"]}

    assert stationarity(BOUNDED, faulty) < 1e-6


def from_its_end(key, log_density, x, draw):
    """`lattice_draw` with the present point always at the lattice's lower end: it could not have led back."""
    points = x + jnp.arange(16.0) * 0.5
    return points[jax.random.categorical(key, jax.vmap(log_density)(points))]


@pytest.mark.slow
def test_a_lattice_that_cannot_lead_back_is_rejected(monkeypatch):
    monkeypatch.setattr(scale_moves, "lattice_draw", from_its_end)
    assert stationarity(OPEN) < 1e-6


def two_modes(x):
    return jnp.logaddexp(-0.5 * (x + 6) ** 2, -0.5 * ((x - 6) / 0.25) ** 2)  # masses 4 : 1, nothing between them


def test_lattice_draws_go_from_mode_to_mode_and_stay_in_law():
    """4,000 chains that all start in the small mode, 150 draws: P(large mode) = 4/5 has se 0.006; 0.035 off is caught
    with probability 0.99, and the law within the large mode where its distribution function is off by 0.04."""

    def chain(key):
        move = lambda t, x: scale_moves.lattice_draw(jax.random.fold_in(key, t), two_modes, x)  # noqa: E731
        return jax.lax.fori_loop(0, 150, move, 6.0)

    x = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 4000)))
    assert abs((x < 0).mean() - 4 / 5) < 0.02
    assert scipy.stats.kstest(x[x < 0] + 6, "norm").pvalue > 0.001
    assert scipy.stats.kstest((x[x > 0] - 6) / 0.25, "norm").pvalue > 0.001


def test_data_that_are_not_all_are_refused():
    model = CompletionModel(NETWORKS["cp"], OPEN, Gaussian())
    with pytest.raises(ValueError, match="data holds 3 data, num_data says 4"):
        noncentred(model, 4, (jnp.zeros((3, 3), jnp.int32), jnp.zeros(3)))


def without_data(prior, seed=1):
    """Smallest Holm-adjusted p of the last draws of 4,000 chains that start at one point, against the prior."""
    model = CompletionModel(NETWORKS["tensor_train"], prior, Gaussian())
    moved = noncentred(model, 1)
    silent = dataclasses.replace(moved.posterior, log_likelihood=lambda at, batch: 0.0 * batch)
    engine = sghmc(silent, step_size=0.3, burn_in=200, conditional_every=5, precondition="leaf")
    at = jax.tree.map(
        lambda x: jnp.ones((4000, *x.shape)), moved.from_position(model.initial_position(jax.random.key(0)))
    )
    draws, _ = sample(engine, jax.random.key(seed), at, jnp.zeros(1), draws=1, burn_in=500, chunk=1, parallel="vmap")
    assert not draws.stats["nonfinite"].any()
    got = jax.jit(jax.vmap(moved.to_position))(draws.last())
    want = jax.jit(jax.vmap(lambda key: moved.to_position(prior_draws(model, key))))(
        jax.random.split(jax.random.key(seed + 1), DRAWS)
    )
    pairs = [
        (np.asarray(x).reshape(len(x), -1)[:, 0], np.asarray(y).reshape(len(y), -1)[:, 0])
        for part in ("cores", "log_scales")
        for x, y in zip(*map(dict.values, (got[part], want[part])), strict=True)
    ]
    p = [scipy.stats.ks_2samp(x, y).pvalue for x, y in pairs]
    noise = np.asarray(got["likelihood"]["log_noise"])
    p.append(scipy.stats.kstest(noise / 2, "norm").pvalue)  # log noise ~ N(0, 2^2)
    return min(1.0, len(p) * min(p))


@pytest.mark.slow
@pytest.mark.promoting
@pytest.mark.parametrize("name", PROPER)
def test_without_data_sghmc_draws_the_prior(name):
    """An effective size of 4,000: a shift of 0.07 sd in any of 9 marginals is caught with probability 0.9."""
    assert without_data(PROPER[name]) > 0.01
