"""Laws of rank selection, over all formats, against dense tensors written out with NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from bayestensor.ranks.budget import within_budget, within_latency
from bayestensor.ranks.select import (
    Bond,
    Slices,
    energy_share,
    host_slice_norms,
    norm_lost,
    rank_of,
    raw_scale,
    select,
)
from bayestensor.tensor import formats
from bayestensor.tensor.network import Core, Factored, Network
from bayestensor.tensor.surgery import keep

NETWORKS = {
    "cp": formats.cp((3, 4), (5,), 6),
    "tucker": formats.tucker((3, 4), (5,), {"r0": 3, "r1": 4, "r2": 5}),
    "tensor_train": formats.tensor_train((3, 4), (5,), 5),
    "tt_matrix": formats.tt_matrix((3, 4), (5, 2), 6),
    "tensor_ring": formats.tensor_ring((3, 4), (5,), 4),
    "block_term": formats.block_term((3, 4), (5,), {"block": 2, "r0": 3, "r1": 4, "r2": 3}),
    "hierarchical_tucker": formats.hierarchical_tucker((3, 4), (5, 2), 4),
    "no bond": formats.tensor_ring((4,), ()),
    "rank 1": formats.tensor_train((3, 4), (5,), 1),
}
RULES = {
    "norm_lost": norm_lost(0.05),
    "energy_share": energy_share(0.01),
    "raw_scale": raw_scale(0.1),
}


def random_tensor(network: Network, seed: int = 0, decay: float = 0.5) -> Factored:
    """Normal cores whose slices fall off along a shuffled order of each bond."""
    rng = np.random.default_rng(seed)
    fall = {bond: rng.permutation(decay ** np.arange(size)) for bond, size in network.ranks.items()}
    cores = {}
    for core in network.cores:
        array = rng.normal(size=network.core_shape(core.name))
        for axis, leg in enumerate(core.legs):
            if leg in fall:
                array = array * np.expand_dims(fall[leg], [k for k in range(array.ndim) if k != axis])
        cores[core.name] = array
    return Factored(network, cores)


def falling_scales(tensor: Factored) -> dict:
    return {bond: np.square(norms) for bond, norms in host_slice_norms(tensor.network, tensor.cores)[0].items()}


def dense_of(tensor: Factored, keep: dict | None = None) -> np.ndarray:
    """X by one `np.einsum` of zeroed cores: the oracle."""
    network = tensor.network
    number = {leg: k for k, leg in enumerate(network.size)}
    operands: list = []
    for core in network.cores:
        array = np.array(tensor.cores[core.name])
        for axis, leg in enumerate(core.legs):
            if keep is not None and leg in keep:
                gone = np.setdiff1d(np.arange(array.shape[axis]), keep[leg])
                np.moveaxis(array, axis, 0)[gone] = 0
        operands += [array, [number[leg] for leg in core.legs]]
    return np.einsum(*operands, [number[leg] for leg in network.modes])


def all_at_once(tensor: Factored, rule) -> tuple[dict, float]:
    """The fault: every bond judged on the same X."""
    norms, total = host_slice_norms(tensor.network, tensor.cores)
    stays = {bond: np.asarray(rule(Bond(norm, total, None))) for bond, norm in norms.items()}
    lost = sum(float(norms[bond][~mask].sum()) for bond, mask in stays.items())
    return {bond: np.flatnonzero(mask) for bond, mask in stays.items()}, lost / total


def cancelling() -> Factored:
    """t11 = e0 e1', t12 = t21 = -t22 = e0 e0': the second slice of either bond sums to zero, t22 does not."""
    network = Network(
        (Core("a", ("i", "b")), Core("m", ("b", "c")), Core("z", ("c", "j"))), dict(i=2, j=2, b=2, c=2), "ij"
    )
    # X = sum_bc a_b m_bc z_c' with a_1 = a_2 = e0, z_1 = z_2 = e0: t_bc = m_bc e0 e0'
    a = np.array([[1.0, 1.0], [0.0, 0.0]])
    return Factored(network, {"a": a, "m": np.array([[5.0, 1.0], [1.0, -1.0]]), "z": a.T.copy()})


@pytest.fixture(params=NETWORKS)
def tensor(request) -> Factored:
    return random_tensor(NETWORKS[request.param])


def test_slice_norms_are_the_norms_of_the_dense_slices(tensor):
    norms, total = host_slice_norms(tensor.network, tensor.cores)
    assert total == pytest.approx(np.linalg.norm(dense_of(tensor)))
    assert set(norms) == set(tensor.network.bonds)
    for bond, size in tensor.network.ranks.items():
        alone = [np.linalg.norm(dense_of(tensor, {bond: [r]})) for r in range(size)]
        np.testing.assert_allclose(norms[bond], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_dropping_changes_x_by_at_most_what_is_reported_lost(tensor, rule):
    chosen = select({"layer": tensor}, RULES[rule], scales={"layer": falling_scales(tensor)})
    kept = chosen.keep["layer"]
    change = np.linalg.norm(dense_of(tensor) - dense_of(tensor, kept)) / np.linalg.norm(dense_of(tensor))
    assert change <= chosen.lost["layer"] * (1 + 1e-9) + 1e-12
    cut = keep(tensor, kept)  # the surgery accepts what was selected
    assert cut.network.ranks == {bond: len(indices) for bond, indices in kept.items()}
    assert all((np.diff(indices) > 0).all() for indices in kept.values())


def test_something_is_dropped_somewhere():
    """The laws above would hold for a rule that keeps everything."""
    for name, rule in RULES.items():
        tensor = random_tensor(NETWORKS["tt_matrix"])
        chosen = select({"layer": tensor}, rule, scales={"layer": falling_scales(tensor)})
        assert 1 < len(chosen.keep["layer"]["b1"]) < 6, name


def test_slices_of_two_bonds_that_cancel_are_not_both_dropped():
    tensor = cancelling()
    x = dense_of(tensor)

    def exceeds(kept, lost):
        return np.linalg.norm(x - dense_of(tensor, kept)) > lost * np.linalg.norm(x) + 1e-12

    assert exceeds(*all_at_once(tensor, norm_lost(1e-3)))  # the fault is seen
    chosen = select({"layer": tensor}, norm_lost(1e-3))
    assert not exceeds(chosen.keep["layer"], chosen.lost["layer"])
    assert {bond: len(kept) for bond, kept in chosen.keep["layer"].items()} == {"b": 1, "c": 2}


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.bonds])
def test_ranks_do_not_depend_on_the_gauge(name):
    tensor = random_tensor(NETWORKS[name], decay=0.05)
    ranks = rank_of(tensor, 0.05)
    rng = np.random.default_rng(1)
    network, cores = tensor.network, dict(tensor.cores)
    for bond, size in network.ranks.items():
        order, factor = rng.permutation(size), rng.uniform(0.01, 100, size)
        touched = [core for core in network.cores if bond in core.legs]
        for core, scale in ((touched[0], factor), (touched[-1], 1 / factor)):
            axis = core.legs.index(bond)
            shape = [size if k == axis else 1 for k in range(len(core.legs))]
            cores[core.name] = cores[core.name] * scale.reshape(shape)
        for core in touched:
            cores[core.name] = np.take(cores[core.name], order, axis=core.legs.index(bond))
    assert rank_of(Factored(network, cores), 0.05) == ranks
    assert any(ranks[bond] < size for bond, size in network.ranks.items() if size > 1) or name == "rank 1"


def test_rank_is_the_number_of_terms_that_matter():
    network = formats.cp((8, 8), (8,), 6)
    eye = np.eye(8)[:, :6]
    weights = np.array([1.0, 0.0, 2e-3, 1e-4, 0.5, 1e-5])
    assert rank_of(Factored(network, {"factor0": eye * weights, "factor1": eye, "factor2": eye})) == {"rank": 3}


def test_energy_share_drops_the_most_it_may():
    """Orthogonal terms of squared norms 1, 2, 3, 4 (sum 10): a share of 0.3 lets the first two go, not the third."""
    weights = np.sqrt([4.0, 1.0, 3.0, 2.0])
    tensor = Factored(formats.cp((4,), (4,), 4), {"factor0": np.eye(4) * weights, "factor1": np.eye(4)})
    assert select({"l": tensor}, energy_share(0.301)).keep["l"]["rank"].tolist() == [0, 2]
    assert select({"l": tensor}, energy_share(0.299)).keep["l"]["rank"].tolist() == [0, 2, 3]
    equal = Factored(tensor.network, {"factor0": np.eye(4), "factor1": np.eye(4)})
    assert select({"l": equal}, energy_share(0.6)).keep["l"]["rank"].tolist() == [0, 1]  # ties: the later go


def test_raw_scale_absolute_and_relative():
    tensor = random_tensor(formats.cp((4,), (4,), 3))
    scales = {"l": {"rank": np.array([10.0, 0.5, 0.05])}}
    assert select({"l": tensor}, raw_scale(0.01), scales=scales).keep["l"]["rank"].tolist() == [0, 1]
    absolute = select({"l": tensor}, raw_scale(0.01, relative=False), scales=scales)
    assert absolute.keep["l"]["rank"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="needs the scales"):
        select({"l": tensor}, raw_scale(0.01))


def test_a_collapse_keeps_the_largest_slice_and_is_named():
    dead = random_tensor(NETWORKS["tensor_train"])
    dead = Factored(dead.network, {name: 1e-8 * array for name, array in dead.cores.items()})
    layers = {"alive": random_tensor(NETWORKS["cp"]), "dead": dead}
    chosen = select(layers, norm_lost(1e-3, floor=1e-6))
    assert chosen.collapsed == (("dead", "b1"), ("dead", "b2"))
    norms, _ = host_slice_norms(dead.network, dead.cores)
    assert chosen.keep["dead"]["b1"].tolist() == [int(norms["b1"].argmax())]
    assert len(chosen.keep["dead"]["b2"]) == 1
    with pytest.raises(ValueError, match=r"bond 'b1' of layer 'dead', bond 'b2' of layer 'dead'"):
        select(layers, norm_lost(1e-3, floor=1e-6), on_collapse="refuse")
    zero = Factored(dead.network, {name: 0 * array for name, array in dead.cores.items()})
    assert len(select({"zero": zero}, norm_lost()).collapsed) == 2


def test_bad_values_are_refused():
    tensor = random_tensor(NETWORKS["cp"])
    broken = Factored(tensor.network, tensor.cores | {"factor0": np.full((3, 6), np.nan)})
    with pytest.raises(ValueError, match=r"layer 'fc1' is nan"):
        select({"fc1": broken}, norm_lost())
    for rule, value in ((norm_lost, 1.0), (norm_lost, -0.1), (energy_share, 2), (norm_lost, float("nan"))):
        with pytest.raises(ValueError, match="is at least 0 and below 1"):
            rule(value)
    with pytest.raises(ValueError, match="'keep' or 'refuse'"):
        select({"fc1": tensor}, norm_lost(), on_collapse="ignore")


# --- budgets -----------------------------------------------------------------------------------------------------

LAYERS = {name: random_tensor(network, seed) for seed, (name, network) in enumerate(NETWORKS.items())}
FULL = sum(tensor.network.num_parameters for tensor in LAYERS.values())


def ranks(selection) -> dict:
    return {layer: {bond: len(r) for bond, r in bonds.items()} for layer, bonds in selection.keep.items()}


def size_of(selection, cost=lambda network: network.num_parameters) -> int:
    return sum(cost(keep(LAYERS[layer], bonds).network) for layer, bonds in selection.keep.items())


def quadratic(network: Network) -> int:
    """A stand-in for FLOPs that grows with the ranks other than parameters do."""
    return sum(rank**2 for rank in network.ranks.values()) + 7


@pytest.mark.parametrize("granularity", [1, 2])
@pytest.mark.parametrize("share", [0.5, 0.7, 1.0])
def test_budgets_hold_and_the_loss_is_bounded(share, granularity):
    most = int(share * FULL) + 100
    chosen = within_budget(
        LAYERS, 100, max_params=most, max_flops=600, flops=quadratic, extra_flops=11, granularity=granularity
    )
    assert size_of(chosen) + 100 <= most
    assert size_of(chosen, quadratic) + 11 <= 600
    for layer, bonds in ranks(chosen).items():
        for bond, rank in bonds.items():
            full = LAYERS[layer].network.ranks[bond]
            assert rank % granularity == 0 or rank == full
        change = np.linalg.norm(dense_of(LAYERS[layer]) - dense_of(LAYERS[layer], chosen.keep[layer]))
        assert change <= chosen.lost[layer] * np.linalg.norm(dense_of(LAYERS[layer])) + 1e-9


def test_a_budget_that_holds_already_drops_nothing():
    assert ranks(within_budget(LAYERS, max_params=FULL)) == {k: t.network.ranks for k, t in LAYERS.items()}
    assert ranks(within_budget(LAYERS, max_params=FULL - 1)) != {k: t.network.ranks for k, t in LAYERS.items()}


def test_one_bond_keeps_its_largest_terms_and_no_more_than_fit():
    tensor = random_tensor(formats.cp((4, 5), (6,), 7))
    order = host_slice_norms(tensor.network, tensor.cores)[0]["rank"].argsort()[::-1]
    chosen = within_budget({"l": tensor}, 10, max_params=10 + 4 * 15 + 14)  # 15 parameters a term
    assert chosen.keep["l"]["rank"].tolist() == sorted(order[:4].tolist())


def test_the_layer_that_matters_less_for_its_size_shrinks_first():
    flat = random_tensor(formats.cp((8,), (8,), 8), decay=1.0)
    steep = random_tensor(formats.cp((8,), (8,), 8), decay=0.2)
    chosen = ranks(within_budget({"flat": flat, "steep": steep}, max_params=16 * 12))
    assert chosen["steep"]["rank"] < 5 < chosen["flat"]["rank"]


def test_a_rule_first_then_a_budget():
    start = select(LAYERS, norm_lost(0.05))
    chosen = within_budget(LAYERS, max_params=int(0.8 * size_of(start)), keep=start.keep)
    assert size_of(chosen) <= 0.8 * size_of(start)
    for layer, bonds in chosen.keep.items():
        for bond, indices in bonds.items():
            assert set(indices) <= set(start.keep[layer][bond])
    filled = within_budget(LAYERS, max_params=FULL, keep=start.keep, granularity=4)
    for layer, bonds in ranks(filled).items():
        for bond, rank in bonds.items():
            full = LAYERS[layer].network.ranks[bond]
            assert rank == min(-(-len(start.keep[layer][bond]) // 4) * 4, full)


def test_an_impossible_budget_names_the_smallest_possible():
    least = sum(network.resized(dict.fromkeys(network.bonds, 1)).num_parameters for network in NETWORKS.values())
    assert size_of(within_budget(LAYERS, 5, max_params=least + 5)) == least
    with pytest.raises(ValueError, match=f"max_params is {least + 4}.*allow at least {least + 5}"):
        within_budget(LAYERS, 5, max_params=least + 4)
    with pytest.raises(ValueError, match="max_flops is 3"):
        within_budget(LAYERS, max_flops=3, flops=quadratic)
    with pytest.raises(ValueError, match="no budget given"):
        within_budget(LAYERS)
    with pytest.raises(ValueError, match="needs flops"):
        within_budget(LAYERS, max_flops=3)
    with pytest.raises(ValueError, match="granularity is 0"):
        within_budget(LAYERS, max_params=3, granularity=0)


def test_savings_that_come_only_after_two_cuts_are_found():
    """FLOPs that fall in stairs: no single slice saves anything, yet the budget can hold."""
    tensor = random_tensor(formats.cp((4,), (4,), 8))
    chosen = within_budget({"l": tensor}, max_flops=1, flops=lambda network: network.size["rank"] // 4 + 1)
    assert len(chosen.keep["l"]["rank"]) == 3


def test_latency_is_bisected_to_the_largest_that_fits():
    calls = []

    def measure(kept) -> float:
        calls.append(kept)
        return sum(len(r) for bonds in kept.values() for r in bonds.values()) / 10

    layers = {"a": LAYERS["tt_matrix"], "b": LAYERS["cp"]}
    chosen = within_latency(layers, measure, 0.75)
    assert measure(chosen.keep) == 0.7
    assert len(calls) <= 7  # log2 of ten steps, the smallest, and this test's own
    with pytest.raises(ValueError, match=r"max_ms is 0.05.*still takes 0.2 ms"):
        within_latency(layers, measure, 0.05)


def test_dropping_measures_the_others_again():
    """After one of two cancelling slices is gone, the other is no longer small."""
    slices = Slices("l", cancelling())
    assert slices.norms["c"][1] == pytest.approx(0)
    slices.drop("b", np.array([1]))
    assert slices.norms["c"][1] == pytest.approx(1)
