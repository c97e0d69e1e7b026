"""The subjects of the tensor laws: every format in several shapes, hand-made corner cases, random networks.

A subject knows its network and, where it is a format, the explicit loop over its elementwise formula.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.network import Core, Network


@dataclass(frozen=True)
class Subject:
    name: str
    network: Network
    loop: Callable[[Network, dict], np.ndarray]  # (network, cores) -> dense, in plain NumPy

    def cores(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {c.name: rng.normal(size=self.network.core_shape(c.name)) for c in self.network.cores}


# --- explicit loops, one per format, written from the elementwise formulas ---------------------------------------


def cp_loop(network, cores):
    out = np.zeros(network.shape)
    for x in np.ndindex(*network.shape):
        for r in range(network.size["rank"]):
            out[x] += np.prod([cores[f"factor{k}"][x_k, r] for k, x_k in enumerate(x)])
    return out


def tucker_loop(network, cores):
    out = np.zeros(network.shape)
    for r in np.ndindex(*cores["core"].shape):
        block = cores["core"][r]
        for k, r_k in enumerate(r):
            block = np.multiply.outer(block, cores[f"factor{k}"][:, r_k])
        out += block
    return out


def train_loop(network, cores):
    order, out = len(network.modes), np.zeros(network.shape)
    for x in np.ndindex(*network.shape):
        if order == 1:
            out[x] = cores["core0"][x]
            continue
        row = cores["core0"][x[0], :]
        for k in range(1, order - 1):
            row = row @ cores[f"core{k}"][:, x[k], :]
        out[x] = row @ cores[f"core{order - 1}"][:, x[-1]]
    return out


def tt_matrix_loop(network, cores):
    stations, out = len(network.rows), np.zeros(network.shape)
    for x in np.ndindex(*network.shape):
        i, j = x[:stations], x[stations:]
        row = np.ones((1, 1))
        for k in range(stations):
            core = cores[f"core{k}"]
            core = core.reshape(1 if k == 0 else core.shape[0], i_size(network, k), j_size(network, k), -1)
            row = row @ core[:, i[k], j[k], :]
        out[x] = row[0, 0]
    return out


def i_size(network, k):
    return network.size[f"i{k}"]


def j_size(network, k):
    return network.size[f"j{k}"]


def ring_loop(network, cores):
    out = np.zeros(network.shape)
    for x in np.ndindex(*network.shape):
        if len(x) == 1:
            out[x] = cores["core0"][x]
            continue
        product = np.eye(network.size["b0"])
        for k, x_k in enumerate(x):
            product = product @ cores[f"core{k}"][:, x_k, :]
        out[x] = sum(product[r, r] for r in range(len(product)))
    return out


def block_term_loop(network, cores):
    out = np.zeros(network.shape)
    for block in range(network.size["block"]):
        for r in np.ndindex(*cores["core"].shape[1:]):
            term = cores["core"][(block, *r)]
            for k, r_k in enumerate(r):
                term = np.multiply.outer(term, cores[f"factor{k}"][block, :, r_k])
            out += term
    return out


def hierarchical_loop(network, cores):
    order, rows, cols = len(network.modes), list(network.rows), list(network.cols)
    leaves = []  # i0, j0, i1, j1, ... until one side has run out
    while rows or cols:
        leaves += [side.pop(0) for side in (rows, cols) if side]

    def subtree(low, high):  # leaves low..high-1 -> array[x_low, ..., x_high-1, n]
        if high == low + 1:
            return cores[f"leaf{low}"].reshape(network.size[leaves[low]], -1)
        node = cores[f"node{low}_{high - 1}"]
        node = node.reshape(*node.shape[:2], -1)
        left, right = subtree(low, (low + high + 1) // 2), subtree((low + high + 1) // 2, high)
        out = np.zeros((*left.shape[:-1], *right.shape[:-1], node.shape[2]))
        for a, b, n in np.ndindex(*node.shape):
            out[..., n] += node[a, b, n] * np.multiply.outer(left[..., a], right[..., b])
        return out

    return subtree(0, order)[..., 0].transpose([leaves.index(leg) for leg in network.modes])


def svd_loop(network, cores):
    out = np.zeros(network.shape)
    for r in range(network.size["rank"]):
        out += cores["s"][r] * np.multiply.outer(cores["u"][..., r], cores["v"][..., r])
    return out


def any_loop(network, cores):
    """Every assignment of a value to every leg, one product of core entries each."""
    legs = tuple(network.size)
    grid = np.indices([network.size[leg] for leg in legs]).reshape(len(legs), -1)
    value = dict(zip(legs, grid, strict=True))
    product = np.ones(grid.shape[1])
    for core in network.cores:
        product = product * cores[core.name][tuple(value[leg] for leg in core.legs)]
    out = np.zeros(network.shape)
    np.add.at(out, tuple(value[leg] for leg in network.modes), product)
    return out


LOOPS = {
    "cp": cp_loop,
    "tucker": tucker_loop,
    "tensor_train": train_loop,
    "tt_matrix": tt_matrix_loop,
    "tensor_ring": ring_loop,
    "block_term": block_term_loop,
    "hierarchical_tucker": hierarchical_loop,
    "svd": svd_loop,
}

# --- shapes ------------------------------------------------------------------------------------------------------

# name: (rows, cols, rank); 'uneven' gives the bonds sizes 1, 2, 3, 1, 2, ...
SHAPES = {
    "order 1": ((3,), (), 2),
    "order 2, size-1 modes, rank 1": ((1,), (3,), 1),
    "order 3, rows only": ((3, 2, 2), (), 2),
    "order 3, columns only": ((), (2, 3, 2), 2),
    "order 4, uneven ranks": ((2, 3), (3, 2), "uneven"),
    "order 4, rank above the shape": ((2, 1), (2, 2), 4),
    "order 5, full": ((2, 2), (2, 1, 2), "full"),
}
PAIRED = {  # a TT-matrix pairs its modes
    "order 1": ((3,), (1,), 2),
    "order 2, size-1 modes, rank 1": ((1,), (3,), 1),
    "order 3, rows only": ((3, 2, 2), (1, 1, 1), 2),
    "order 3, columns only": ((1, 1, 1), (2, 3, 2), 2),
    "order 5, full": ((2, 2, 1), (2, 1, 2), "full"),
}


def format_network(name: str, rows, cols, rank) -> Network:
    if rank == "uneven":
        network = FORMATS[name](rows, cols, 1)
        rank = {bond: 1 + (k + 1) % 3 for k, bond in enumerate(network.bonds)}
    return FORMATS[name](rows, cols, rank)


def _formats():
    for name, loop in LOOPS.items():
        for what, case in SHAPES.items():
            if name == "tt_matrix":
                case = PAIRED.get(what, case)
            yield Subject(f"{name}: {what}", format_network(name, *case), loop)


def order_subject(name: str, order: int) -> Subject:
    """A format over `order` modes of size 2 (the third of size 1), at rank 2."""
    sizes = [1 if k == 2 else 2 for k in range(order)]
    cut = (order + 1) // 2
    rows, cols = tuple(sizes[:cut]), tuple(sizes[cut:])
    if name == "tt_matrix":
        cols += (1,) * (len(rows) - len(cols))
    return Subject(f"{name}: order {order}", FORMATS[name](rows, cols, 2), LOOPS[name])


# --- networks of no named format ---------------------------------------------------------------------------------


def _network(cores: dict[str, str], rows: str, cols: str = "", **sizes: int) -> Network:
    legs = dict.fromkeys(itertools.chain(*cores.values()), 2) | sizes
    return Network(tuple(Core(name, tuple(c)) for name, c in cores.items()), legs, tuple(rows), tuple(cols))


CORNERS = {
    "hyperedge through four cores, one of them without a mode": _network(
        {"a": "xr", "b": "yr", "c": "zr", "weight": "r"}, "xy", "z", r=3, y=3
    ),
    "bond in a single core": _network({"a": "xrq", "b": "yr"}, "x", "y", q=3),
    "core with no leg at all": _network({"a": "xr", "b": "yr", "scale": ""}, "x", "y"),
    "mode on two cores": _network({"a": "xr", "b": "xyr"}, "x", "y", x=3),
    "two cores joined by two bonds": _network({"a": "xrs", "b": "yrs"}, "x", "y", s=3),
    "two networks side by side": _network({"a": "xr", "b": "yr", "c": "zs", "d": "ws"}, "xz", "yw"),
    "a triangle with a tail": _network({"a": "xrt", "b": "rsu", "c": "zst", "d": "uy"}, "xyz", s=3),
    "a single core": _network({"a": "xy"}, "x", "y", y=3),
    "a bond of size 1": _network({"a": "xr", "b": "yr"}, "x", "y", r=1),
}


def random_network(seed: int) -> Network:
    """Two to five cores over one to four modes and one to four bonds, legs thrown onto cores at random."""
    rng = np.random.default_rng(seed)
    modes, bonds = "wxyz"[: rng.integers(1, 5)], "rstu"[: rng.integers(1, 5)]
    names = "abcde"[: rng.integers(2, 6)]
    legs: dict[str, list[str]] = {name: [] for name in names}
    for leg in modes + bonds:
        joined = rng.choice(list(names), size=min(len(names), rng.choice([1, 2, 2, 3, 4])), replace=False)
        for name in joined:
            legs[name].append(leg)
    for core in legs.values():
        rng.shuffle(core)
    sizes = {leg: int(rng.integers(1, 4)) for leg in modes + bonds}
    cores = tuple(Core(name, tuple(core)) for name, core in legs.items())
    cut = int(rng.integers(0, len(modes) + 1))
    return Network(cores, sizes, tuple(modes[:cut]), tuple(modes[cut:]))


RANDOM_SEEDS = range(8)

SUBJECTS: dict[str, Subject] = {s.name: s for s in _formats()}
SUBJECTS |= {name: Subject(name, network, any_loop) for name, network in CORNERS.items()}
SUBJECTS |= {f"random {k}": Subject(f"random {k}", random_network(k), any_loop) for k in RANDOM_SEEDS}
