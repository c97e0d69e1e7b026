"""SVD training: the penalty as a density, its start, the cut by energy, and who refuses it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small import Known

import bayestensor as bt
from bayestensor.errors import ConfigError
from bayestensor.experiment import config as configs
from bayestensor.experiment.build import prior
from bayestensor.experiment.check import check
from bayestensor.inference.nuts import nuts
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.svgd import svgd
from bayestensor.inference.variational import variational
from bayestensor.models.completion import CompletionModel
from bayestensor.models.likelihoods import Gaussian
from bayestensor.models.numpyro import to_numpyro
from bayestensor.priors.svd_penalty import MEASURES
from bayestensor.ranks.select import select
from bayestensor.tensor.contract import dense
from bayestensor.tensor.network import factored
from bayestensor.tensor.sized import conv_network

NETWORK = bt.svd((3, 2), (2, 4), rank=5)
SPATIAL = conv_network(4, 3, (3, 2), "svd_spatial", 5)  # the matrix (out * width, height * in)
PENALTY = bt.SvdPenalty(3.0, 0.7)


def random_tensor(network=NETWORK, seed=0):
    rng = np.random.default_rng(seed)
    return factored(network, {c.name: jnp.asarray(rng.normal(size=network.core_shape(c.name))) for c in network.cores})


@pytest.mark.parametrize("measure", MEASURES)
def test_density_is_the_papers_loss(measure, x64):
    tensor = random_tensor()
    u, s, v = (np.asarray(tensor.cores[name]).reshape(-1, 5 if name != "s" else 1) for name in "usv")
    gaps = sum(np.linalg.norm(a.T @ a - np.eye(5), "fro") ** 2 / 25 for a in (u, v))
    ratio = np.linalg.norm(s.ravel(), 1) / np.linalg.norm(s.ravel(), 2)
    sparse = {"hoyer": ratio - 1, "squared_hoyer": ratio**2 - 1, "l1": np.abs(s).sum()}[measure]
    found = bt.SvdPenalty(3.0, 0.7, measure).log_density_cores(tensor)
    np.testing.assert_allclose(found, -3.0 * gaps - 0.7 * sparse, rtol=1e-12)


def test_the_gradient_at_no_singular_values_is_finite():
    dead = random_tensor()
    dead = factored(NETWORK, dead.cores | {"s": jnp.zeros(5)})
    gradient = jax.jit(jax.grad(lambda cores: PENALTY.log_density_cores(factored(NETWORK, cores))))(dead.cores)
    assert all(np.isfinite(leaf).all() for leaf in gradient.values())


@pytest.mark.parametrize("network", [NETWORK, bt.svd((7,), (3,), "full"), bt.svd((4, 3), (), 2), SPATIAL])
def test_start_is_the_svd_of_the_same_matrix(network, x64):
    tensor = random_tensor(network)
    start = jax.jit(PENALTY.start)(tensor)
    np.testing.assert_allclose(dense(start), dense(tensor), atol=1e-12)
    rank = network.size["rank"]
    for name in "uv":
        side = np.asarray(start.cores[name]).reshape(-1, rank)
        np.testing.assert_allclose(side.T @ side, np.eye(rank), atol=1e-12)
    sides = (*network.core["u"].legs[:-1], *network.core["v"].legs[:-1])
    matrix = np.transpose(dense(tensor), [network.modes.index(leg) for leg in sides])
    values = np.linalg.svd(matrix.reshape(tensor.cores["u"].size // rank, -1), compute_uv=False)
    np.testing.assert_allclose(start.cores["s"], values[:rank], atol=1e-12)


@pytest.mark.parametrize("share", [1e-3, 0.02, 0.3])
def test_the_cut_is_by_energy_of_singular_values(share):
    tensor = jax.jit(PENALTY.start)(random_tensor())
    energy = np.asarray(tensor.cores["s"], np.float64) ** 2
    kept = [r for r in range(5) if energy[r:].sum() > share * energy.sum()]  # what stays: all that must not go
    (found,) = select({"layer": tensor}, bt.energy_share(share)).keep["layer"].values()
    assert found.tolist() == kept


def net(rank=6, seed=0):
    return bt.MLP([bt.svd((6,), (8,), rank=rank)], use_bias=[False], rngs=nnx.Rngs(seed))


def data():
    """512 responses, 8 copies of 64, of a matrix of rank 2, with noise of a tenth of their size."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype(np.float32)
    y = x @ (rng.normal(size=(8, 2)) @ rng.normal(size=(2, 6)))
    y += 0.1 * y.std() * rng.normal(size=y.shape)
    return np.tile(x, (8, 1)), np.tile(2 * y / y.std(), (8, 1)).astype(np.float32)


def trained(sparsity):
    x, y = data()
    penalty = bt.SvdPenalty(5.0 * len(x), sparsity * len(x))
    rate = optax.cosine_decay_schedule(0.02, 800)
    return bt.fit_map(
        net(), x, y, prior=penalty, likelihood=Known(1.0), optimizer=optax.sgd(rate, 0.9), epochs=100, batch_size=64
    )


@pytest.mark.slow
@pytest.mark.promoting  # Optax relies on it
def test_map_finds_the_rank_and_keeps_the_sides_orthonormal():
    fit = trained(sparsity=0.2).prune(bt.energy_share(3e-3))
    assert fit.ranks == {"layers.0": {"rank": 2}}
    tensor = fit.model.tensors(fit.position)["layers.0"]
    for name in "uv":
        np.testing.assert_allclose(tensor.cores[name].T @ tensor.cores[name], np.eye(2), atol=0.1)
    (scales,) = jax.tree.leaves(fit.position["log_scales"])
    assert not scales.any()
    dense_like = trained(sparsity=0.0).prune(bt.energy_share(3e-3))  # what the sparsity is for
    assert dense_like.ranks["layers.0"]["rank"] > 2


def model():
    return bt.NeuralModel(net(), PENALTY, Gaussian(1.0))


ENGINES = {
    "SGHMC": lambda p: sghmc(p, step_size=0.1),
    "SVGD": lambda p: svgd(p, step_size=0.1),
    "NUTS": nuts,
    "Variational inference": lambda p: variational(p, optimiser=optax.adam(0.1)),
    "NumPyro": lambda p: to_numpyro(p, model().initial_position(), data()),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_samplers_refuse_what_is_improper(engine):
    with pytest.raises(ValueError, match=f"{engine if engine != 'NumPyro' else 'improper'}.*drift for ever"):
        ENGINES[engine](model().posterior(64))


BAD = [
    (lambda: bt.NeuralModel(bt.MLP([bt.cp((6,), (8,), 2)], rngs=nnx.Rngs(0)), PENALTY, Gaussian(1.0)), "format 'svd'"),
    (lambda: CompletionModel(bt.cp((6, 8), (), 2), PENALTY, Gaussian(1.0)), "format 'svd'"),
    (lambda: bt.NeuralModel(net({"rank": 7}), PENALTY, Gaussian(1.0)), "rank 7 of an SVD whose sides have 6 rows"),
    (lambda: bt.SvdPenalty(-1.0, 0.1), "orthogonality must be a finite number"),
    (lambda: bt.SvdPenalty(1.0, float("nan")), "sparsity must be a finite number"),
    (lambda: bt.SvdPenalty(1.0, 0.1, "hoyr"), "measure is 'hoyr'; it is one of hoyer"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


RAW = {"name": "x", "data": {"name": "digits"}, "prior": {"name": "svd_penalty"}}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model": {"name": "mlp"}}, "model.format: given 'tt_matrix'; prior svd_penalty is of format svd alone"),
        ({"model": {"name": "mlp", "format": "svd"}, "engine": {"name": "sghmc"}}, "sghmc would drift for ever"),
        ({"model": {"name": "mlp", "format": "svd"}, "prune": {"epochs": [1], "rule": "scale"}}, "has no scales"),
        ({"model": {"name": "mlp", "format": "svd"}, "prior": {"name": "svd_penalty", "sparsty": 1}}, "'sparsity'"),
    ],
)
def test_configs_that_contradict_themselves(raw, message):
    with pytest.raises(ConfigError, match=message):
        check(configs.build(RAW | raw))


def test_weights_of_a_config_are_a_datum_of_the_training_data():
    data, model = {"name": "digits", "validation": 0.2}, {"name": "mlp", "format": "svd"}
    raw = RAW | {"data": data, "model": model, "prior": RAW["prior"] | {"orthogonality": 2.0, "measure": "l1"}}
    assert prior(configs.build(raw)) == bt.SvdPenalty(1150 * 2.0, 1150 * 0.1, "l1")  # 1437 less a fifth
    spatial = {"name": "lenet5", "format": "svd", "conv_format": "svd_spatial", "channels": [4, 6], "kernel_size": 2}
    sizes = [layer.parameters for layer in check(configs.build(raw | {"model": spatial | {"conv_rank": 3}}))][:2]
    assert sizes == [3 * (4 * 2 + 1 + 2) - 11 + 4, 3 * (6 * 2 + 1 + 2 * 4) + 6]  # the first has at most rank 2
