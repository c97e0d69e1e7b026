"""The posterior over ranks and pruning by posterior mass: laws that every format keeps, whatever order its slices take."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import CORNERS, LOOPS, any_loop, format_network

from bayestensor.inference.draws import Draws
from bayestensor.ranks.explore import BondRanks, RankPosterior, as_draws, rank_posterior, relative_norms, unstack
from bayestensor.ranks.mass import prune_draws, select_by_mass
from bayestensor.ranks.select import rank_of
from bayestensor.tensor.contract import dense
from bayestensor.tensor.network import Network, factored, fitted
from bayestensor.tensor.surgery import keep_axes, keep_network

CHAINS, DRAWS, SIZE = 2, 6, 3


@dataclass(frozen=True)
class OneTensor:
    """The least that a model must be: cores and scales of one network."""

    network: Network

    def tensors(self, position):
        return {"tensor": fitted(self.network, position["cores"])}

    def cuts(self, position, keep):
        kept = keep.get("tensor", {})
        network = self.tensors(position)["tensor"].network
        keep_network(network, kept)
        return {
            "cores": {core.name: keep_axes(core.legs, kept) for core in network.cores},
            "log_scales": {bond: keep_axes((bond,), kept) for bond in network.bonds},
        }


NETWORKS = {name: format_network(name, (2, 3), (3, 2), SIZE) for name in LOOPS}
TRIANGLE = "a triangle with a tail"
NETWORKS[TRIANGLE] = CORNERS[TRIANGLE]
FAST = ("cp", "tt_matrix", "block_term")  # the others take the same code paths; they run with the slow tests
every_format = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NETWORKS]
)


@functools.cache
def subject(name):
    """Draws whose dead slices stand at random places, 1e-5 of their size, and the ranks they were made with."""
    network = NETWORKS[name]
    rng = np.random.default_rng(0)
    lead = (CHAINS, DRAWS)
    cores = {c.name: rng.normal(size=(*lead, *network.core_shape(c.name))) for c in network.cores}
    truth = {bond: rng.integers(1, size + 1, lead) for bond, size in network.ranks.items()}
    scales = {bond: rng.normal(size=(*lead, size)) for bond, size in network.ranks.items()}
    for bond, alive in truth.items():
        core = next(core for core in network.cores if bond in core.legs)
        factor = np.where(np.arange(network.size[bond]) < alive[..., None], 1.0, 1e-5)
        factor = rng.permuted(factor, axis=-1)
        cores[core.name] *= np.expand_dims(factor, [2 + k for k, leg in enumerate(core.legs) if leg != bond])
    positions = jax.tree.map(lambda x: x.astype(np.float32), {"cores": cores, "log_scales": scales})
    return OneTensor(network), Draws(positions, {"log_density": np.zeros(lead)}), truth


@functools.cache
def results(name):
    model, draws, _ = subject(name)
    selection = select_by_mass(model, draws, share=0.5)
    return rank_posterior(model, draws), selection, prune_draws(model, draws, selection)


def shuffled(name):
    """The same tensors, indices of every bond in another order in every draw."""
    model, draws, _ = subject(name)
    rng = np.random.default_rng(1)
    order = {
        bond: rng.permuted(np.broadcast_to(np.arange(size), (CHAINS, DRAWS, size)), axis=-1)
        for bond, size in model.network.ranks.items()
    }
    return model, prune_draws(model, draws, type(results(name)[1])({"tensor": order}, {}))


def tensors_of(model, draws):
    """[chain, draw, ...] dense, float64, by brute force over all legs."""
    lead = draws.shape
    one = jax.tree.map(lambda x: x[0, 0], draws.positions)
    network = model.tensors(one)["tensor"].network
    out = np.zeros((*lead, *network.shape))
    for place in np.ndindex(*lead):
        cores = {k: np.asarray(v[place], np.float64) for k, v in draws.positions["cores"].items()}
        legs = {leg: chr(97 + k) for k, leg in enumerate(network.size)}
        terms = ",".join("".join(legs[leg] for leg in core.legs) for core in network.cores)
        output = "".join(legs[leg] for leg in network.modes)
        out[place] = np.einsum(f"{terms}->{output}", *(cores[core.name] for core in network.cores), optimize=True)
    return out


@every_format
def test_ranks_are_those_the_draws_were_made_with(name):
    model, draws, truth = subject(name)
    posterior = results(name)[0]
    for bond, alive in truth.items():
        np.testing.assert_array_equal(posterior["tensor"][bond].ranks, alive)
    for place in np.ndindex(CHAINS, DRAWS):
        one = jax.tree.map(lambda x, place=place: x[place], draws.positions)
        assert rank_of(model.tensors(one)["tensor"]) == {b: int(alive[place]) for b, alive in truth.items()}


@every_format
def test_norms_are_what_the_dense_tensor_loses(name):
    """Against the plain sum over all legs, slice by slice."""
    model, draws, _ = subject(name)
    network, place = model.network, (1, 2)
    cores = {k: np.asarray(v[place], np.float64) for k, v in draws.positions["cores"].items()}
    whole = np.linalg.norm(any_loop(network, cores))
    for bond, size in network.ranks.items():
        axis = {core.name: core.legs.index(bond) for core in network.cores if bond in core.legs}
        lost = []
        for r in range(size):
            part = {k: np.take(v, [r], axis=axis[k]) if k in axis else v for k, v in cores.items()}
            lost.append(np.linalg.norm(any_loop(network.resized({bond: 1}), part)) / whole)
        ours = results(name)[0]["tensor"][bond].norms[place]
        np.testing.assert_allclose(ours, sorted(lost, reverse=True), rtol=1e-4, atol=1e-7)


@every_format
def test_the_order_of_indices_changes_nothing(name):
    model, other = shuffled(name)
    posterior, selection, pruned = results(name)
    again = rank_posterior(model, other)
    chosen = select_by_mass(model, other, share=0.5)
    assert chosen.ranks == selection.ranks
    for bond, ranks in posterior["tensor"].items():
        np.testing.assert_allclose(again["tensor"][bond].norms, ranks.norms, rtol=1e-3, atol=1e-6)
    before, after = (tensors_of(model, d) for d in (pruned, prune_draws(model, other, chosen)))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * np.abs(before).max())


@every_format
def test_pruned_draws_are_smaller_and_change_by_no_more_than_was_said(name):
    model, draws, truth = subject(name)
    _, selection, pruned = results(name)
    for bond, alive in truth.items():
        shares = [(alive >= k).mean() for k in range(1, model.network.size[bond] + 1)]
        assert selection.ranks["tensor"][bond] == max(sum(p >= 0.5 for p in shares), 1)
        assert pruned.positions["log_scales"][bond].shape == (CHAINS, DRAWS, selection.ranks["tensor"][bond])
    before, after = tensors_of(model, draws), tensors_of(model, pruned)
    axes = tuple(range(2, before.ndim))
    change = np.sqrt(((before - after) ** 2).sum(axes) / (before**2).sum(axes))
    assert (change <= selection.lost["tensor"] * (1 + 1e-3) + 1e-6).all()
    assert selection.largest_lost["tensor"] == selection.lost["tensor"].max()
    assert pruned.stats is draws.stats


@every_format
def test_dropping_only_what_no_draw_needs_leaves_the_draws_alike(name):
    model, draws, truth = subject(name)
    selection = select_by_mass(model, draws, share=0.0)
    assert selection.ranks["tensor"] == {bond: alive.max() for bond, alive in truth.items()}
    before, after = tensors_of(model, draws), tensors_of(model, prune_draws(model, draws, selection))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * np.abs(before).max())


def test_scales_are_cut_with_their_slices():
    draws = subject("cp")[1]
    _, selection, pruned = results("cp")
    kept = selection.keep["tensor"]["rank"]
    expected = np.take_along_axis(draws.positions["log_scales"]["rank"], kept, axis=-1)
    np.testing.assert_array_equal(pruned.positions["log_scales"]["rank"], expected)
    assert len(np.unique(kept.reshape(-1, kept.shape[-1]), axis=0)) > 1  # draws differ in which indices they keep


def test_slices_that_cancel_are_not_both_dropped():
    """`t21 + t22 = 0` and `t12 + t22 = 0`: each bond's second slice is dead alone, and X changes if both go."""
    middle = np.array([[3.0, -1.0], [-1.0, 1.0]], np.float32)
    square = format_network("tucker", (1,), (1,), 2)
    model, bonds = OneTensor(square), square.bonds
    cores = {c.name: np.ones((1, 1, *square.core_shape(c.name)), np.float32) for c in square.cores}
    cores["core"] = middle[None, None]
    draws = Draws({"cores": cores, "log_scales": {bond: np.zeros((1, 1, 2), np.float32) for bond in bonds}})
    assert [int(bond.ranks[0, 0]) for bond in rank_posterior(model, draws).bonds.values()] == [1, 1]
    selection = select_by_mass(model, draws)
    change = tensors_of(model, draws) - tensors_of(model, prune_draws(model, draws, selection))
    assert np.abs(change).max() < 1e-6
    assert sorted(selection.ranks["tensor"].values()) == [1, 2]


# --- the posterior as numbers ------------------------------------------------------------------------------------


def bond_of(ranks, size=4):
    """A bond whose draws have the given ranks [chain, draw]."""
    ranks = np.asarray(ranks)
    return BondRanks((np.arange(size) < ranks[..., None]) * 0.5, 1e-3)


def test_figures_of_a_known_posterior():
    bond = bond_of([[1, 2, 2, 3], [2, 2, 4, 2]])
    np.testing.assert_allclose(bond.probabilities, np.array([0, 1, 5, 1, 1]) / 8)
    np.testing.assert_allclose(bond.alive, np.array([8, 7, 2, 1]) / 8)
    assert (bond.mean, bond.mode) == (18 / 8, 2)
    assert bond.interval(0.7) == (1, 2)
    assert bond.interval(0.6) == (2, 2)
    assert bond.interval(1.0) == (1, 4)
    assert bond.disagreement == pytest.approx(0.5)  # {1: 1, 2: 2, 3: 1} against {2: 3, 4: 1}
    assert bond.alive[bond.mode - 1] == bond.probabilities[bond.mode :].sum()


def test_joint_and_its_margins():
    posterior = RankPosterior({"a": {"x": bond_of([[1, 2, 2, 3]]), "y": bond_of([[0, 1, 1, 1]], 2)}})
    joint = posterior.joint(("a", "x"), ("a", "y"))
    assert joint.shape == (5, 3)
    np.testing.assert_allclose(joint.sum(1), posterior["a"]["x"].probabilities)
    np.testing.assert_allclose(joint.sum(0), posterior["a"]["y"].probabilities)
    assert joint[1, 0] == 0.25
    assert joint[2, 1] == 0.5
    with pytest.raises(ValueError, match="name some of"):
        posterior.joint(("a", "z"))
    with pytest.raises(KeyError, match="no layer 'b'"):
        posterior["b"]


def test_chains_that_disagree_are_told():
    apart = RankPosterior({"a": {"x": bond_of([[1] * 10, [1] * 10, [1] * 5 + [2] * 5])}})
    assert apart["a"]["x"].disagreement == pytest.approx(0.5)
    assert apart.agree() is False
    assert apart.agree(0.6) is True
    assert RankPosterior({"a": {"x": bond_of([[1, 2]])}}).agree() is None


def test_table_and_json():
    posterior = RankPosterior({"layers.0": {"b1": bond_of([[1, 2, 2, 3]]), "b2": bond_of([[4, 4, 4, 4]])}})
    table = str(posterior).splitlines()
    assert len(table) == 3
    assert len({len(line) for line in table}) == 1
    assert "one chain" in table[1]
    back = json.loads(json.dumps(posterior.to_dict()))
    assert back["layers.0"]["b1"]["probabilities"] == [0, 0.25, 0.5, 0.25, 0]
    assert back["layers.0"]["b1"]["disagreement"] is None


# --- where draws come from ---------------------------------------------------------------------------------------


def test_every_engines_shape_of_draws():
    model, draws, truth = subject("cp")
    one = jax.tree.map(lambda x: x[0, 0], draws.positions)
    single = rank_posterior(model, as_draws(one))["tensor"]["rank"]
    assert single.ranks.shape == (1, 1)
    assert single.ranks[0, 0] == truth["rank"][0, 0]
    assert single.interval() == (single.mode, single.mode)
    members = rank_posterior(model, as_draws(jax.tree.map(lambda x: x[0], draws.positions), stacked=True))
    np.testing.assert_array_equal(members["tensor"]["rank"].ranks[:, 0], truth["rank"][0])
    runs = Draws(jax.tree.map(lambda x: x[None].swapaxes(1, 2), draws.positions), {"step_size": np.ones((1, DRAWS))})
    apart = unstack(runs)  # [run, draw, particle] with the chains as particles
    assert apart.shape == (CHAINS, DRAWS)
    assert apart.stats["step_size"].shape == (CHAINS, DRAWS)
    for a, b in zip(*map(jax.tree.leaves, (apart.positions, draws.positions)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_threshold_is_a_share_of_the_norm():
    model, draws, _ = subject("cp")
    strict = rank_posterior(model, draws, threshold=0.3)["tensor"]["rank"]
    np.testing.assert_array_equal(strict.ranks, (strict.norms > 0.3).sum(-1))
    larger = Draws({**draws.positions, "cores": {k: 10 * v for k, v in draws.positions["cores"].items()}})
    np.testing.assert_array_equal(rank_posterior(model, larger, 0.3)["tensor"]["rank"].ranks, strict.ranks)
    nothing = Draws({**draws.positions, "cores": {k: 0 * v for k, v in draws.positions["cores"].items()}})
    assert rank_posterior(model, nothing)["tensor"]["rank"].ranks.max() == 0
    assert select_by_mass(model, nothing).ranks == {"tensor": {"rank": 1}}


def test_a_layer_of_a_network_predicts_alike_after_pruning():
    """A whole nnx model: draws of unlike ranks, cut to one shape, through the model's own `apply`."""
    from flax import nnx

    import bayestensor as bt

    network = bt.tt_matrix(rows=(2, 3), cols=(3, 2), rank=4)
    module = bt.MLP([network, bt.tt_matrix(rows=(2, 1), cols=(3, 2), rank=3)], rngs=nnx.Rngs(0))
    model = bt.NeuralModel(module, bt.LogUniform(), bt.Categorical())
    position = model.initial_position()
    rng = np.random.default_rng(0)
    positions = jax.tree.map(lambda x: np.stack([[np.asarray(x)] * 5] * 2), position)
    core = positions["weights"]["layers"][0]["kernel"]["cores"]["core0"]  # [chain, draw, i0, j0, b1]
    for place in np.ndindex(2, 5):
        core[place][..., rng.permutation(4)[: rng.integers(1, 3)]] *= 1e-6
    draws = Draws(positions)
    small = prune_draws(model, draws, select_by_mass(model, draws, max_lost=1e-3))
    shape = small.positions["weights"]["layers"][0]["kernel"]["cores"]["core0"].shape
    assert shape == (2, 5, 2, 3, 3)
    x = jnp.asarray(rng.normal(size=(7, 6)), jnp.float32)
    before, after = (d.map(lambda p: model.apply(p, x)) for d in (draws, small))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


# --- bad input ---------------------------------------------------------------------------------------------------


def not_finite():
    model, draws, _ = subject("cp")
    cores = {k: v.copy() for k, v in draws.positions["cores"].items()}
    cores["factor0"][0, 1] = np.nan
    return model, Draws({**draws.positions, "cores": cores})


BAD = {
    "threshold": (lambda: relative_norms(*subject("cp")[:2], threshold=1.0), "threshold is 1.0; it is at least 0"),
    "share": (lambda: select_by_mass(*subject("cp")[:2], share=-0.1), "share is -0.1"),
    "level": (lambda: bond_of([[1, 2]]).interval(90), "level is 90"),
    "not finite": (lambda: rank_posterior(*not_finite()), "bond 'rank' of layer 'tensor': 1 draws are not finite"),
    "too much lost": (
        lambda: select_by_mass(*subject("cp")[:2], share=0.9, max_lost=0.01),
        "layer 'tensor': some draw would lose up to .* max_lost is 0.01; lower share",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_message(case):
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act()


def test_dense_agrees_with_the_brute_force_used_here():
    model, draws, _ = subject("cp")
    one = jax.tree.map(lambda x: jnp.asarray(x[0, 0]), draws.positions)
    np.testing.assert_allclose(
        dense(factored(model.network, one["cores"])), tensors_of(model, draws)[0, 0], rtol=1e-3, atol=1e-4
    )
