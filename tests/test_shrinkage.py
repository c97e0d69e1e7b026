"""The prior over cores and scales, for every format, against SciPy's densities and a numerical maximiser."""

from __future__ import annotations

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from bayestensor.models.shrinkage import initial_log_scales, log_prior_cores, log_prior_scales, mode_scales
from bayestensor.priors import PRIORS
from bayestensor.tensor.contract import bond_energy
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.network import Core, Network, factored

VARIANCE = 0.37
SHAPES = {"tt_matrix": ((2, 3), (3, 2))}
NETWORKS = {name: make(*SHAPES.get(name, ((2, 3), (3,))), 2) for name, make in FORMATS.items()}
NETWORKS |= {
    "a bond named twice, one left out": Network(
        (Core("a", ("x", "r", "s"), ("r", "r")), Core("b", ("r", "s", "y"), ("s",)), Core("c", ("r",))),
        {"x": 3, "y": 2, "r": 2, "s": 4},
        ("x",),
        ("y",),
    ),
    "a core without bonds": Network((Core("a", ("x",)), Core("b", ())), {"x": 3}, ("x",)),
}
ONCE = {name: n for name, n in NETWORKS.items() if name != "a bond named twice, one left out" and n.bonds}

pytestmark = pytest.mark.usefixtures("x64")
each_prior = pytest.mark.parametrize(
    "prior",  # cumulative shrinkage is dear to compile
    [pytest.param(p, marks=pytest.mark.slow) if p == "cumulative_shrinkage" else p for p in PRIORS],
)


def case(network, seed=0):
    """Random cores and log scales, in float64."""
    rng = np.random.default_rng(seed)
    cores = {c.name: jnp.asarray(rng.normal(size=network.core_shape(c.name))) for c in network.cores}
    return factored(network, cores), {b: jnp.asarray(rng.normal(size=r)) for b, r in network.ranks.items()}


def by_hand(tensor, log_scales):
    """Entry by entry, the variance multiplied together in a loop."""
    total = 0.0
    for core in tensor.network.cores:
        for at in np.ndindex(*tensor.network.core_shape(core.name)):
            where = dict(zip(core.legs, at, strict=True))
            shrunk_by = core.shrunk_by or ()
            variance = VARIANCE * np.prod([np.exp(log_scales[bond][where[bond]]) for bond in shrunk_by])
            entry = float(np.asarray(tensor.cores[core.name])[at])
            total += scipy.stats.norm.logpdf(entry, 0.0, np.sqrt(variance))
    return total


@pytest.mark.parametrize("name", NETWORKS)
def test_cores_are_normal_with_the_product_of_their_scales(name):
    tensor, log_scales = case(NETWORKS[name])
    log_scales = {bond: np.asarray(v) for bond, v in log_scales.items()}
    found = jax.jit(log_prior_cores, static_argnums=2)(
        tensor, {b: jnp.asarray(v) for b, v in log_scales.items()}, VARIANCE
    )
    np.testing.assert_allclose(found, by_hand(tensor, log_scales), rtol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_scales_start_at_one(name):
    start = initial_log_scales(NETWORKS[name])
    assert {bond: v.shape for bond, v in start.items()} == {b: (r,) for b, r in NETWORKS[name].ranks.items()}
    assert all((np.asarray(v) == 0).all() for v in start.values())


@pytest.mark.parametrize("name", ONCE)
def test_energy_and_count_are_the_part_of_the_density_that_a_scale_enters(name):
    """`log p(cores) = -(D/2) log v_r - M_r / (2 v_r) + const` as a function of one v_r."""
    network = ONCE[name]
    tensor, log_scales = case(network)
    density = jax.jit(log_prior_cores, static_argnums=2)
    for bond in network.bonds:
        scales = {b: jnp.exp(v) for b, v in log_scales.items()}
        energy = np.asarray(bond_energy(network, tensor.cores, scales, bond, VARIANCE))
        r, old, new = 1, float(log_scales[bond][1]), 0.8
        moved = density(tensor, log_scales | {bond: log_scales[bond].at[r].set(new)}, VARIANCE)
        change = -0.5 * network.bond_count(bond) * (new - old) - 0.5 * energy[r] * (np.exp(-new) - np.exp(-old))
        np.testing.assert_allclose(moved - density(tensor, log_scales, VARIANCE), change, rtol=1e-9)


@each_prior
def test_scales_have_the_density_of_their_prior(prior):
    law = PRIORS[prior]()
    log_scales = {"r": jnp.asarray([-1.0, 0.5]), "s": jnp.asarray([0.0, 1.0, -2.0])}
    expected = sum(float(law.log_density(v).sum()) for v in log_scales.values())
    np.testing.assert_allclose(log_prior_scales(law, log_scales), expected, rtol=1e-12)
    assert log_prior_scales(law, {}) == 0


@each_prior
@pytest.mark.parametrize("name", ["cp", "tucker", "tensor_ring"])
def test_undamped_scales_reach_the_joint_mode_given_the_cores(prior, name):
    """Sweeps of `mode_scales` end where a numerical maximiser, started anywhere, finds no higher density."""
    law, network = PRIORS[prior](), ONCE[name]
    tensor, start = case(network)
    sweep = jax.jit(lambda log_scales: mode_scales(law, tensor, log_scales, VARIANCE, floor=1e-300))

    @jax.jit
    @jax.value_and_grad
    def loss(flat):
        return -log_prior_cores(tensor, unflatten(flat), VARIANCE) - log_prior_scales(law, unflatten(flat))

    flat, unflatten = jax.flatten_util.ravel_pytree(start)
    ended = start
    for _ in range(200):
        ended = sweep(ended)
    reached, gradient = loss(jax.flatten_util.ravel_pytree(ended)[0])
    low, high = law.support
    inside = np.asarray(jax.flatten_util.ravel_pytree(ended)[0])
    free = (inside > low + 1e-6) & (inside < high - 1e-6)
    assert free.any()
    np.testing.assert_allclose(np.asarray(gradient)[free], 0, atol=1e-4)
    bounds = [(max(low, -20.0), min(high, 9.0))] * flat.size
    found = scipy.optimize.minimize(
        lambda at: tuple(np.asarray(part, float) for part in loss(jnp.asarray(at))), flat, jac=True, bounds=bounds
    )
    np.testing.assert_allclose(found.fun, reached, rtol=1e-6, atol=1e-4)


@each_prior
def test_one_sweep_never_lowers_the_density_and_the_first_bond_is_at_its_mode(prior):
    law, network = PRIORS[prior](), ONCE["block_term"]
    tensor, start = case(network)
    density = jax.jit(lambda v: log_prior_cores(tensor, v, VARIANCE) + log_prior_scales(law, v))
    swept = jax.jit(lambda v: mode_scales(law, tensor, v, VARIANCE))(start)
    assert density(swept) > density(start)
    first = network.bonds[0]
    energy = bond_energy(network, tensor.cores, {b: jnp.exp(v) for b, v in start.items()}, first, VARIANCE)
    np.testing.assert_allclose(jnp.exp(swept[first]), law.mode(energy, network.bond_count(first)), rtol=1e-12)


def test_damping_mixes_old_and_new_in_v():
    law, network = PRIORS["half_cauchy"](), ONCE["cp"]
    tensor, start = case(network)
    full, damped = (mode_scales(law, tensor, start, VARIANCE, damping) for damping in (1.0, 0.25))
    v = {name: np.exp(np.asarray(scales["rank"])) for name, scales in (("0", start), ("1", full), ("d", damped))}
    np.testing.assert_allclose(v["d"], 0.75 * v["0"] + 0.25 * v["1"], rtol=1e-12)
    assert np.abs(v["1"] - v["0"]).min() > 1e-3


@each_prior
def test_a_dead_slice_stops_at_the_floor_and_poisons_nothing(prior):
    """Cores all zero: without a floor v = 0, and 0 / 0 in the energy of the next bond."""
    network = ONCE["tucker"]
    dead = factored(network, {name: jnp.zeros(network.core_shape(name)) for name in network.core})
    scales = mode_scales(PRIORS[prior](), dead, initial_log_scales(network), VARIANCE, floor=1e-6)
    for v in scales.values():
        assert np.isfinite(v).all() and (np.asarray(v) >= np.log(1e-6) - 1e-9).all()


def test_five_dead_bonds_on_one_core_stay_within_float32():
    """v = 1e-8 on each of five bonds multiply to 1e-40; the entries at that sd have squares below float32, too."""
    network = FORMATS["tucker"]((2, 2, 2), (2, 2), 1)
    small = {bond: jnp.full(1, np.log(1e-8), jnp.float32) for bond in network.bonds}
    cores = {name: jnp.full(network.core_shape(name), 1e-5, jnp.float32) for name in network.core}
    cores["core"] = jnp.full(network.core_shape("core"), 2e-20, jnp.float32)
    value, gradient = jax.value_and_grad(lambda cores: log_prior_cores(factored(network, cores), small, 1.0))(cores)
    sd = np.sqrt(1e-8)
    expected = scipy.stats.norm.logpdf(2e-20, 0, sd**5) + 5 * 2 * scipy.stats.norm.logpdf(1e-5, 0, sd)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in gradient.values())
    np.testing.assert_allclose(gradient["core"], -2e-20 / sd**10, rtol=1e-4)
