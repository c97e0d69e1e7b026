"""Dense -> factored: exact where it can be, within its bound elsewhere, and never worse by a step."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import CORNERS, SUBJECTS, Subject, any_loop

from bayestensor.tensor.decompose import (
    balanced,
    decompose,
    is_tree,
    least_squares,
    random_start,
    relative_error,
    tree_svd,
)
from bayestensor.tensor.formats import FORMATS, cp, tensor_ring, tensor_train
from bayestensor.tensor.network import Core, Network

pytestmark = pytest.mark.usefixtures("x64")

TREES = ("tucker", "tensor_train", "tt_matrix", "hierarchical_tucker")


def fresh_key():
    """The same key, unused: no key is to be used twice."""
    return jax.random.key(0)


def build(name: str, rank, rows=(3, 4), cols=(2, 3)) -> Network:
    return FORMATS[name](rows, cols, rank)


def noise(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def dense_loop(tensor) -> np.ndarray:
    return any_loop(tensor.network, {name: np.asarray(core, np.float64) for name, core in tensor.cores.items()})


def own_tensor(network: Network, seed=0) -> np.ndarray:
    """A tensor that the network can carry exactly."""
    return any_loop(network, Subject("", network, any_loop).cores(seed))


def sides(network: Network, bond: str) -> list[str]:
    """Modes on one side of a tree's bond: those reached from one of its cores without crossing it."""
    reached = [next(core for core in network.cores if bond in core.legs)]
    for core in reached:
        for leg in set(core.legs) & set(network.bonds) - {bond}:
            reached += [other for other in network.cores if leg in other.legs and other not in reached]
    return [leg for leg in network.modes if any(leg in core.legs for core in reached)]


def discarded(X: np.ndarray, network: Network, bond: str) -> float:
    """Squared error of the best matrix of the bond's rank at the bond's cut: no tensor of the network does better."""
    here = [network.modes.index(leg) for leg in sides(network, bond)]
    there = [k for k in range(X.ndim) if k not in here]
    cut = np.transpose(X, here + there).reshape(math.prod(X.shape[k] for k in here), -1)
    return float((np.linalg.svd(cut, compute_uv=False)[network.size[bond] :] ** 2).sum())


# --- trees -------------------------------------------------------------------------------------------------------


def test_which_networks_are_trees():
    assert {name for name in FORMATS if is_tree(build(name, 2))} == set(TREES)
    trees = {"a bond of size 1", "a single core"}
    assert {name for name, network in CORNERS.items() if is_tree(network)} == trees
    cycle = Network((Core("a", ("x", "r")), Core("b", ("y", "r")), Core("c", ("z", "s", "t")), Core("d", ("s", "t"))),
                    dict.fromkeys("xyzrst", 2), ("x", "y", "z"))  # fmt: skip
    assert not is_tree(cycle)  # as many bonds as a tree, but a cycle beside an edge


@pytest.mark.parametrize("name", [*TREES, "svd"])
def test_full_rank_is_exact(name):
    network = build(name, "full")
    X = noise(network.shape)
    tensor, error = decompose(X, network, key=fresh_key())
    assert error < 1e-12
    np.testing.assert_allclose(dense_loop(tensor), X, atol=1e-12)


@pytest.mark.parametrize("name", [*TREES, "svd"])
def test_own_tensor_is_recovered(name):
    network = build(name, 2)
    X = own_tensor(network)
    tensor, error = decompose(X, network, key=fresh_key())
    assert error < 1e-12
    np.testing.assert_allclose(dense_loop(tensor), X, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", [*TREES, "svd"])
def test_error_lies_between_its_bounds(name, rank):
    """max over bonds of the discarded part <= error^2 <= its sum <= number of bonds * best error^2."""
    network = build(name, rank)
    X = noise(network.shape, seed=rank)
    tensor, error = decompose(X, network, key=fresh_key())
    missed = ((X - dense_loop(tensor)) ** 2).sum()
    np.testing.assert_allclose(error, math.sqrt(missed / (X**2).sum()), rtol=1e-9, atol=1e-12)
    lost = [discarded(X, network, bond) for bond in network.bonds]
    assert max(lost) * (1 - 1e-9) - 1e-12 <= missed <= sum(lost) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("name", TREES)
def test_bounds_catch_a_core_that_is_off(name):
    """The upper bound refuses a decomposition whose first core is turned by half a radian."""
    network = build(name, 2)
    X = own_tensor(network) + 1e-3 * noise(network.shape, 1)
    cores = tree_svd(X, network)
    core = network.cores[0]
    axis = core.legs.index(next(leg for leg in core.legs if leg in network.bonds))
    turn = np.array([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]])
    cores[core.name] = np.moveaxis(np.tensordot(turn, cores[core.name], axes=(1, axis)), 0, axis)
    missed = ((X - any_loop(network, cores)) ** 2).sum()
    assert missed > 10 * sum(discarded(X, network, bond) for bond in network.bonds)


def test_one_bond_is_the_best_matrix():
    network = tensor_train((6, 7), (), 3)
    X = noise((6, 7))
    values = np.linalg.svd(X, compute_uv=False)
    best = math.sqrt((values[3:] ** 2).sum() / (values**2).sum())
    np.testing.assert_allclose(decompose(X, network, key=fresh_key()).relative_error, best, rtol=1e-12)


def test_rank_above_the_shape_leaves_zero_slices():
    network = tensor_train((2, 3), (2,), 5)
    X = noise(network.shape)
    tensor, error = decompose(X, network, key=fresh_key())
    assert error < 1e-12
    assert np.count_nonzero(np.asarray(tensor.cores["core0"]).any(axis=0)) == 2


def test_tree_with_bare_and_branching_cores():
    """A core without a mode at a leaf, and one in the middle."""
    cores = (
        Core("a", ("x", "r")),
        Core("hub", ("r", "s", "t", "u")),
        Core("b", ("s", "y")),
        Core("c", ("z", "t")),
        Core("stub", ("u",)),
    )
    network = Network(cores, {"x": 3, "y": 3, "z": 4, "r": 3, "s": 3, "t": 4, "u": 2}, ("x",), ("z", "y"))
    X = noise(network.shape)
    tensor, error = decompose(X, network, key=fresh_key())
    assert error < 1e-12
    np.testing.assert_allclose(dense_loop(tensor), X, atol=1e-12)


# --- everything else ---------------------------------------------------------------------------------------------

LOOPY = ["cp", "tensor_ring", "block_term"]
ALS = {name: build(name, 2) for name in LOOPY} | {name: n for name, n in CORNERS.items() if not is_tree(n)}
ALS |= {name: SUBJECTS[name].network for name in ("random 0", "random 1", "random 4", "random 6")}


@pytest.mark.parametrize("name", ALS)
def test_least_squares_never_gets_worse(name):
    network = ALS[name]
    X = noise(network.shape, 3)
    _, errors = least_squares(X, network, random_start(X, network, fresh_key()), 25, 0.0, 1e-9)
    assert np.all(np.diff(errors) <= 1e-10 * errors[0])
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("name", ALS)
def test_each_core_is_the_best_given_the_others(name):
    """After convergence no core can be improved: `lstsq` on the explicit linear map of that core gains nothing."""
    network = ALS[name]
    X = noise(network.shape, 3)
    cores, errors = least_squares(X, network, random_start(X, network, fresh_key()), 1, 0.0, 1e-12)
    last = network.cores[-1].name  # the one that was solved for last
    columns = []
    for at in np.ndindex(*cores[last].shape):
        unit = np.zeros_like(cores[last])
        unit[at] = 1
        columns.append(any_loop(network, cores | {last: unit}).ravel())
    A = np.stack(columns, axis=1)
    best = np.linalg.norm(X.ravel() - A @ np.linalg.lstsq(A, X.ravel(), rcond=None)[0]) / np.linalg.norm(X)
    np.testing.assert_allclose(errors[-1], best, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(errors[-1], relative_error(X, network, cores), rtol=1e-12)


@pytest.mark.parametrize("name", LOOPY)
def test_own_tensor_is_recovered_by_least_squares(name):
    network = build(name, 2)
    X = own_tensor(network, seed=5)
    tensor, error = decompose(X, network, key=fresh_key(), starts=5, sweeps=1000, tolerance=1e-8)
    assert error < 1e-4
    np.testing.assert_allclose(dense_loop(tensor), X, atol=1e-3 * np.abs(X).max())


def test_low_rank_cp_is_recovered_up_to_order_sign_and_scale():
    network = cp((6, 7, 8), (), 3)
    truth = Subject("", network, any_loop).cores(7)
    tensor, error = decompose(any_loop(network, truth), network, key=fresh_key(), sweeps=500, tolerance=1e-9)
    assert error < 1e-6
    for name, factor in truth.items():  # CP of this size is unique (Kruskal 1977): |cosines| are a permutation
        found = np.asarray(tensor.cores[name])
        cosines = np.abs((found / np.linalg.norm(found, axis=0)).T @ (factor / np.linalg.norm(factor, axis=0)))
        np.testing.assert_allclose(np.sort(cosines.max(axis=0)), 1, atol=1e-6)
        assert sorted(cosines.argmax(axis=0)) == [0, 1, 2]


def test_ring_beats_nothing_less_than_its_open_train():
    """A ring of rank 2 contains the rank-2 train; the best of its starts comes within 5 % of the train's error."""
    X = noise((4, 4, 4))
    train = decompose(X, tensor_train((4, 4, 4), (), 2), key=fresh_key()).relative_error
    assert decompose(X, tensor_ring((4, 4, 4), (), 2), key=fresh_key()).relative_error < 1.05 * train


# --- what comes out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_balance_keeps_the_tensor_and_levels_the_slices(name):
    network = build(name, 2)
    cores = Subject("", network, any_loop).cores(2)
    cores = {core: 10.0**k * array for k, (core, array) in enumerate(cores.items())}
    level = balanced(network, cores, sweeps=200)
    X = any_loop(network, cores)
    np.testing.assert_allclose(any_loop(network, level), X, atol=1e-9 * np.abs(X).max())
    for bond in network.bonds:
        norms = []
        for core in network.cores:
            if bond in core.legs:
                moved = np.moveaxis(level[core.name], core.legs.index(bond), 0)
                norms.append(np.linalg.norm(moved.reshape(len(moved), -1), axis=1))
        np.testing.assert_allclose(norms, np.broadcast_to(norms[0], np.shape(norms)), rtol=1e-6)


def test_zero_array():
    for network in (build("tucker", 2), build("cp", 2)):
        tensor, error = decompose(np.zeros(network.shape), network, key=fresh_key())
        assert error == 0
        assert not dense_loop(tensor).any()


def test_a_weight_matrix_and_its_dtype():
    network = build("tt_matrix", "full")
    W = noise(network.matrix_shape).astype(np.float32)
    tensor, _ = decompose(W, network, key=fresh_key())
    assert {core.dtype for core in tensor.cores.values()} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(dense_loop(tensor).reshape(network.matrix_shape), W, atol=1e-5)


def test_same_key_same_cores():
    network = build("cp", 2)
    X = noise(network.shape)
    first, second = (decompose(X, network, key=fresh_key(), sweeps=5).tensor.cores for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((3, 5)), {}, r"array has shape \(3, 5\); this network's tensor has shape \(3, 4, 2, 3\), its matrix"),
        (np.full((12, 6), np.nan), {}, "72 values that are not finite"),
        (np.zeros((12, 6)), {"starts": 0}, "starts is 0"),
    ],
)
def test_bad_input(array, options, message):
    with pytest.raises(ValueError, match=message):
        decompose(array, build("cp", 2), key=fresh_key(), **options)
