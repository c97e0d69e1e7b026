"""Plans: every one computes the same product and gradient, counts what it does, and can be stored."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayestensor.tensor import contract, cost, plan, timing
from bayestensor.tensor.cost import chain_flops, product_counts
from bayestensor.tensor.formats import FORMATS, tt_matrix
from bayestensor.tensor.initialise import initialise
from bayestensor.tensor.network import Core, Factored, Network

BATCH = 6


def random_network(seed: int) -> Network:
    """Three to five cores with random legs: bonds that join many cores, modes on several cores, dangling bonds."""
    rng = np.random.default_rng(seed)
    sizes = {leg: int(rng.integers(1, 4)) for leg in ("i", "k", "j", "l", "a", "b", "c")}
    legs: list[list[str]] = [[] for _ in range(rng.integers(3, 6))]
    for leg in sizes:
        for k in rng.choice(len(legs), size=rng.integers(1, 4), replace=False):
            legs[k].append(leg)
    for own in legs:
        if not own:
            own.append("a")
    cores = tuple(Core(f"g{k}", tuple(rng.permutation(own).tolist())) for k, own in enumerate(legs))
    return Network(cores, sizes, ("i", "k"), ("j", "l"))


NETWORKS = {name: build((3, 1, 2), (2, 2, 3), 2) for name, build in FORMATS.items()}
NETWORKS |= {f"random{seed}": random_network(seed) for seed in range(5)}
NETWORKS["no_columns"] = FORMATS["cp"]((3, 2), (), 2)
NETWORKS["unconnected"] = Network((Core("u", ("i",)), Core("w", ("j",))), {"i": 3, "j": 4}, ("i",), ("j",))


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def fresh(monkeypatch):
    """A process that has chosen no plan yet."""
    monkeypatch.setattr(plan, "_chosen", {})


def by_loops(tensor: Factored) -> np.ndarray:
    """The matrix, summed entry by entry in NumPy."""
    network = tensor.network
    operands = itertools.chain(*((np.asarray(tensor.cores[c.name]), list(c.legs)) for c in network.cores))
    number = {leg: k for k, leg in enumerate(network.size)}
    terms = [[number[leg] for leg in part] if isinstance(part, list) else part for part in operands]
    return np.einsum(*terms, [number[leg] for leg in network.modes], optimize=False).reshape(network.matrix_shape)


def arrays(network: Network, batch: int = BATCH):
    tensor = initialise(jax.random.key(0), network, dtype=jnp.float64)
    x = jax.random.normal(jax.random.key(1), (batch, network.matrix_shape[1]))
    return tensor, x, jax.random.normal(jax.random.key(2), (batch, network.matrix_shape[0]))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_plan_gives_the_dense_product_and_gradient(name):
    network = NETWORKS[name]
    tensor, x, weight = arrays(network)
    matrix = by_loops(tensor)
    kinds = {(p.groups, p.batch_last, p.tile, p.rematerialise) for p in plan.candidates(network, BATCH)}
    every = [plan.Plan(*kind) for kind in sorted(kinds, key=str)]
    # a seeded sample of four: each costs a compilation
    chosen = [every[k] for k in np.random.default_rng(0).choice(len(every), size=min(4, len(every)), replace=False)]

    @jax.jit
    def planned(cores, x):
        runs = []
        for p in chosen:
            y, pull = jax.vjp(lambda cores, x, p=p: contract.matvec(Factored(network, cores), x, p), cores, x)
            runs.append((y, pull(weight)))
        _, pull = jax.vjp(lambda cores, x: x @ contract.matrix(Factored(network, cores)).T, cores, x)
        return runs, pull(weight)

    runs, by_dense = planned(tensor.cores, x)
    for p, (y, gradients) in zip(chosen, runs, strict=True):
        np.testing.assert_allclose(y, x @ matrix.T, rtol=1e-10, atol=1e-12, err_msg=str(p))
        for mine, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(by_dense), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11, err_msg=str(p))


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)])
def test_any_leading_axes_and_plans_made_for_other_batches(shape):
    network = NETWORKS["tt_matrix"]
    tensor, _, _ = arrays(network)
    x = jax.random.normal(jax.random.key(3), (*shape, network.matrix_shape[1]))
    for chosen in (None, plan.Plan((tuple(network.core),), tile=4, rematerialise=True)):
        y = contract.matvec(tensor, x, chosen)
        np.testing.assert_allclose(y, x @ by_loops(tensor).T, rtol=1e-10, atol=1e-12)


def counted_by_loops(legs, shapes, output) -> int:
    """Operations of a pairwise product, one by one: a multiplication an index, and an addition if it is summed."""
    size = {leg: n for term, shape in zip(legs, shapes, strict=True) for leg, n in zip(term, shape, strict=True)}
    names, count = list(size), 0
    for _ in itertools.product(*(range(size[leg]) for leg in names)):
        count += 1 + any(leg not in output for leg in names)
    return count


@pytest.mark.parametrize("output", ["abc", "ac", "b", ""])
def test_a_pairwise_product_counts_each_operation(output):
    legs, shapes = (("a", "b"), ("b", "c")), ((2, 3), (3, 4))
    assert product_counts(legs, shapes, tuple(output))[0] == counted_by_loops(legs, shapes, output)


def test_a_chain_counts_its_products_and_its_factors():
    network = tt_matrix((2, 3), (4, 5), 6)
    one_by_one = 2 * (7 * 4 * 5 * 3 * 6) + 2 * (7 * 4 * 6 * 3 * 2)  # j1 away, then j0 and the bond
    assert chain_flops(network, (("core1",), ("core0",)), 7) == one_by_one
    dense = 2 * (2 * 4 * 6 * 3 * 5) + 2 * 7 * 6 * 20
    assert chain_flops(network, (("core0", "core1"),), 7) == dense
    for p in plan.candidates(network, 7):
        assert p.flops == chain_flops(network, p.groups, 7)
    assert plan.matvec_flops(network, 7) == min(p.flops for p in plan.candidates(network, 7))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_order_of_opt_einsum_needs_fewer_operations(name):
    """The chains hold every pairwise order, so the fewest operations cannot exceed those of its dynamic program."""
    network = NETWORKS[name]
    pairwise = chain_flops(network, plan._pairwise_chain(network, BATCH), BATCH)
    assert plan.matvec_flops(network, BATCH) <= pairwise


def test_the_plan_follows_ranks_and_batch(fresh):
    low, high = tt_matrix((8,) * 4, (8,) * 4, 4), tt_matrix((8,) * 4, (8,) * 4, "full")
    assert not plan.plan_matvec(low, 128).densify
    assert plan.plan_matvec(high, 1024).densify
    assert plan.plan_matvec(low, 1).tile is None
    assert plan.plan_matvec(low, 1024) != plan.plan_matvec(low, 1)
    assert plan.plan_matvec(low, 128).seconds < plan.plan_matvec(low.resized({"b2": 16}), 128).seconds


def test_one_core_is_not_counted_as_two(fresh, monkeypatch):
    """A second core helps one large product more than the small ones of a tile."""
    network = tt_matrix((8, 8, 8, 8), (8, 8, 8, 8), rank=16)
    groups = {}
    for count in (1, 2):
        monkeypatch.setattr(cost, "processors", lambda count=count: count)
        plan._chosen.clear()
        plan.candidates.cache_clear()
        groups[count] = len(plan.plan_matvec(network, 1024).groups)
    plan.candidates.cache_clear()
    assert groups == {1: 2, 2: 1}  # two halves in tiles; the dense matrix


def test_plans_are_made_once_stored_and_restored(fresh):
    network = NETWORKS["tt_matrix"]
    assert plan.plan_matvec(network, BATCH) is plan.plan_matvec(network, BATCH)
    mine = plan.Plan((("core2",), ("core1", "core0")), tile=2, rematerialise=True)
    plan.use_plan(mine, network, BATCH)
    records = json.loads(json.dumps(plan.export_plans()))
    plan._chosen.clear()
    assert plan.plan_matvec(network, BATCH) != mine
    plan.restore_plans(records)
    assert plan.plan_matvec(network, BATCH) == mine
    assert plan.Plan.from_dict(json.loads(json.dumps(mine.to_dict()))) == mine
    assert hash(mine) == hash(plan.Plan.from_dict(mine.to_dict()))


def test_timing_keeps_a_plan_that_is_used_from_then_on(fresh):
    network = NETWORKS["tt_matrix"]
    fastest = plan.candidates(network, BATCH)[1]
    kept = timing.plan_by_timing(network, BATCH, clock=lambda p: float(p != fastest), best=3)
    assert kept == fastest == plan.plan_matvec(network, BATCH)
    assert timing.plan_by_timing(network, BATCH, best=2, repeats=1) in plan.candidates(network, BATCH)[:2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (plan.Plan((("core0",), ("core1",))), "the network has"),
        (plan.Plan((("core0", "core0", "core1", "core2"),)), "the network has"),
        (plan.Plan((("core0", "core1", "core2"), ())), "the network has"),
        (plan.Plan((("core0", "core1", "core2"),), tile=0), "at least 1"),
    ],
)
def test_a_plan_for_something_else_is_refused(wrong, message):
    tensor, x, _ = arrays(NETWORKS["tt_matrix"])
    with pytest.raises(ValueError, match=message):
        contract.matvec(tensor, x, wrong)


def test_planning_is_quick():
    """A plan is counted while a step compiles: milliseconds, whatever the format, at eight modes."""
    import time

    for build in FORMATS.values():
        network = build((2,) * 4, (2,) * 4, 3)
        start = time.process_time()
        plan.candidates(network, 128)
        assert time.process_time() - start < 1.0
        assert math.isfinite(plan.candidates(network, 128)[0].seconds)
