"""Shears of a bond: the tensor stays, energies follow the scales, and prior draws are prior draws afterwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bayestensor.models.gauge import pick_gauges, sheared_bonds
from bayestensor.priors import CumulativeShrinkage, InverseGamma
from bayestensor.tensor.contract import bond_energy, dense
from bayestensor.tensor.core_rows import from_rows, to_rows
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.network import Factored

SHEARED = {
    "cp": 0,
    "tucker": 3,
    "tensor_train": 2,
    "tensor_ring": 3,
    "block_term": 3,
    "hierarchical_tucker": 4,
    "svd": 0,
}
PRIOR, VARIANCE, DRAWS = InverseGamma(2.0, 1.0), 0.7, 10_000


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def network_of(format, shape=(4, 3, 3), rank=3):
    return FORMATS[format](shape, rank=rank)


def prior_draw(key, network, smooth):
    """(cores, scales, correlations): rows of the cores in `smooth` are autoregressions."""
    keys = iter(jax.random.split(key, 32))
    scales = {bond: PRIOR.sample(next(keys), (size,), float) for bond, size in network.ranks.items()}
    cores, correlations = {}, {}
    for core in network.cores:
        sd = jnp.full(network.core_shape(core.name), VARIANCE**0.5)
        for bond in network.shrunk_by(core.name):
            sd *= jnp.sqrt(scales[bond])[tuple(slice(None) if leg == bond else None for leg in core.legs)]
        z = to_rows(network, core.name, jax.random.normal(next(keys), sd.shape))
        if core.name in smooth:
            rho = correlations[core.name] = 0.9 * jax.random.uniform(next(keys), z.shape[1:])
            rows = [z[0] / jnp.sqrt(1 - rho**2)]
            for k in range(1, len(z)):
                rows.append(rho * rows[-1] + z[k])
            z = jnp.stack(rows)
        cores[core.name] = sd * from_rows(network, core.name, z)
    return cores, scales, correlations


def test_bonds_of_two_cores_are_sheared():
    assert {name: len(sheared_bonds(network_of(name))) for name in SHEARED} == SHEARED


@pytest.mark.parametrize("format", ["tucker", "tensor_train"])
def test_the_tensor_stays(format):
    network = network_of(format)
    prior = CumulativeShrinkage() if format == "tucker" else PRIOR  # whose indices are coupled
    cores, scales, _ = prior_draw(jax.random.key(0), network, ())
    new, v = jax.jit(lambda *a: pick_gauges(jax.random.key(1), network, prior, VARIANCE, *a, {}))(cores, scales)
    before, after = (dense(Factored(network, c)) for c in (cores, new))
    np.testing.assert_allclose(after, before, atol=1e-10 * float(jnp.abs(before).max()))
    for bond in sheared_bonds(network):
        assert float(jnp.abs(jnp.log(v[bond] / scales[bond])).max()) > 1e-3


def test_energies_in_units_of_the_scales_stay():
    network = network_of("tensor_train", (5, 4))
    cores, scales, rho = prior_draw(jax.random.key(2), network, ("core0",))
    new, v = jax.jit(lambda *a: pick_gauges(jax.random.key(3), network, PRIOR, VARIANCE, *a))(cores, scales, rho)

    def energy(cores, k):
        x, c = np.asarray(cores["core0"])[:, k], float(rho["core0"][k])
        return (1 - c**2) * x[0] ** 2 + ((x[1:] - c * x[:-1]) ** 2).sum() + (np.asarray(cores["core1"])[k] ** 2).sum()

    for k in range(3):
        assert energy(new, k) / float(v["b1"][k]) == pytest.approx(energy(cores, k) / float(scales["b1"][k]), rel=1e-8)
    assert float(jnp.abs(new["core0"] - cores["core0"]).max()) > 0.01


def smallest_p(smooth, after):
    """Holm's p of marginals after shears of prior draws against others: the move leaves the prior as it is."""
    network = network_of("tensor_train", (3, 2, 2), 2)

    def read(cores, scales, correlations):
        firsts = [rows[0, -1] for rows in (to_rows(network, name, core) for name, core in cores.items())]
        sums = [jnp.log((core**2).sum()) for core in cores.values()]
        units = [bond_energy(network, cores, scales, bond, VARIANCE)[0] / v[0] for bond, v in scales.items()]
        return [
            *firsts,
            *sums,
            *([] if smooth else units),
            *(jnp.log(v[0]) for v in scales.values()),
            *(v.max() for v in scales.values()),
        ]

    @jax.jit
    @jax.vmap
    def one(key):
        here, there, own = jax.random.split(key, 3)
        cores, scales, rho = prior_draw(here, network, smooth)
        for k in jax.random.split(own, 2):
            cores, scales = after(pick_gauges(k, network, PRIOR, VARIANCE, cores, scales, rho), scales)
        return read(cores, scales, rho), read(*prior_draw(there, network, smooth))

    found, other = jax.tree.map(np.asarray, one(jax.random.split(jax.random.key(4), DRAWS)))
    p = [scipy.stats.ks_2samp(x, y).pvalue for x, y in zip(found, other, strict=True)]
    return min(1.0, len(p) * min(p))


@pytest.mark.slow
def test_shears_leave_prior_draws_prior_draws():
    """Two samples of 10,000: a shift of 0.06 sd in any of 10 marginals is caught with probability 0.9."""
    assert smallest_p(("core1",), lambda new, old: new) > 0.01


@pytest.mark.slow
def test_scales_left_behind_are_rejected():
    assert smallest_p((), lambda new, old: (new[0], old)) < 1e-5
