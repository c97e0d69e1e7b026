"""Laws of the count of components: noise is none, and two that point the same way are one."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from bayestensor.estimators.counting import apart, rank_shares, seen_noise, standing_out
from bayestensor.ranks.select import host_spectra
from bayestensor.tensor.contract import dense
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.network import Factored


def test_what_noise_alone_would_give_is_no_rank():
    rng, shape, noise = np.random.default_rng(0), (40, 60), 0.5
    u, s, vt = np.linalg.svd(noise * rng.normal(size=shape))
    network = FORMATS["cp"](shape, (), rank=3)
    weights = np.array([s[0], 1.3 * s[0], 30 * s[0]])  # the best that fits noise; beyond noise; plain
    cores = dict(zip((c.name for c in network.cores), (u[:, :3] * weights, vt[:3].T), strict=True))
    assert (standing_out(network, cores, float(seen_noise(network, noise**-2, 2400)))["rank"] > 0).tolist() == [0, 1, 1]
    # a quarter of the entries seen: the same noise hides twice as large a slice
    assert (standing_out(network, cores, float(seen_noise(network, noise**-2, 600)))["rank"] > 0).tolist() == [0, 0, 1]


@pytest.mark.parametrize("shape", [(7, 6), (6, 5, 4), (5, 4, 3, 3)])
def test_what_is_apart_is_the_distance_from_the_tangent_space_of_a_stronger_component(shape):
    rng = np.random.default_rng(len(shape))
    strong, weak = ([rng.normal(size=n) for n in shape] for _ in range(2))
    weak = [w + s for w, s in zip(weak, strong, strict=True)]  # not far from parallel

    def product(columns):
        return functools.reduce(np.multiply.outer, columns).ravel()

    moves = [
        product([*strong[:k], e, *strong[k + 1 :]]) for k, n in enumerate(shape) for e in np.eye(n)
    ]  # the oracle: all ways to change one column of the stronger one
    part = product(weak) / np.linalg.norm(product(weak))
    away = part - np.stack(moves, axis=1) @ np.linalg.lstsq(np.stack(moves, axis=1), part, rcond=None)[0]
    columns = [np.stack(pair, axis=1) for pair in zip(strong, weak, strict=True)]
    np.testing.assert_allclose(apart(columns, np.array([2.0, 1.0])), [1, np.linalg.norm(away)], atol=1e-7)
    np.testing.assert_allclose(apart(columns, np.array([0.0, 1.0])), 1)  # nothing is stronger
    same = [c if k else c[:, [0, 0]] for k, c in enumerate(columns[:2])]  # they differ in one column: one component
    np.testing.assert_allclose(
        apart([*same, *(c[:, [0, 0]] for c in columns[2:])], np.array([2.0, 1.0]))[1], 0, atol=1e-7
    )


def test_a_component_shared_out_over_several_counts_once():
    rng, network = np.random.default_rng(0), FORMATS["cp"]((12, 10, 8), (), rank=4)
    smooth, other = [np.ones(n) for n in network.shape], [rng.normal(size=n) for n in network.shape]
    cores = {}
    for core, a, b in zip(network.cores, smooth, other, strict=True):
        near = [a * scale + 0.2 * rng.normal(size=a.shape) for scale in (3.0, 1.5, 1.0)]
        cores[core.name] = np.stack([*near, b], axis=1)[None]
    level = np.array([1.0])
    assert rank_shares(network, cores, level)["rank"].argmax() == 2
    assert (standing_out(network, {k: v[0] for k, v in cores.items()}, 1.0)["rank"] > 0).sum() == 4  # norms alone
    assert rank_shares(network, cores, 1e-3 * level)["rank"].argmax() == 4  # where noise is small the parts do count


@pytest.mark.parametrize(
    ("name", "unfoldings"),
    [("tucker", {"r0": (0,), "r1": (1,), "r2": (2,)}), ("tensor_train", {"b1": (0,), "b2": (0, 1)}), ("cp", {})],
)
def test_spectra_are_singular_values_of_unfoldings(name, unfoldings):
    rng, network = np.random.default_rng(0), FORMATS[name]((6, 5, 4), (), rank=3)
    cores = {core.name: rng.normal(size=network.core_shape(core.name)) for core in network.cores}
    found = host_spectra(network, cores)
    assert list(found) == list(unfoldings)
    whole = np.asarray(dense(Factored(network, cores)))
    for bond, modes in unfoldings.items():
        unfolded = np.moveaxis(whole, modes, range(len(modes))).reshape(np.prod([whole.shape[k] for k in modes]), -1)
        expected = np.linalg.svd(unfolded, compute_uv=False)
        np.testing.assert_allclose(found[bond], expected[: len(found[bond])], rtol=1e-4)


def test_slices_that_lie_in_the_span_of_others_are_no_rank():
    rng, network = np.random.default_rng(0), FORMATS["tensor_train"]((20, 15, 10), (), rank=4)
    cores = {core.name: rng.normal(size=network.core_shape(core.name)) for core in network.cores}
    cores["core0"][..., 3] = cores["core0"][..., :2] @ [1.0, -1.0]  # of four slices along b1 three are independent
    shares = rank_shares(network, {name: core[None] for name, core in cores.items()}, np.array([0.01]))
    assert [int(share.argmax()) for share in shares.values()] == [3, 4]
    assert (standing_out(network, cores, 0.01)["b1"] > 0).sum() == 4
