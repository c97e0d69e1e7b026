"""What every tensor network obeys: a table of subjects x laws, against loops written from the formulas.

A law compares what the library answered with the truth from NumPy, and never one library function with another.
`test_faults_are_caught` feeds answers of a wrong tensor to every law and asks each to refuse them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from subjects import CORNERS, LOOPS, RANDOM_SEEDS, SHAPES, SUBJECTS, Subject, any_loop, order_subject

from bayestensor.tensor.contract import (
    bond_energy,
    dense,
    entries,
    inner,
    matrix,
    matvec,
    norm,
    rows,
    slice_norms,
)
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.initialise import core_variance, initialise
from bayestensor.tensor.network import Core, Factored, Network, factored
from bayestensor.tensor.surgery import keep, pad

pytestmark = pytest.mark.usefixtures("x64")

VARIANCE = 0.5  # sigma_core^2 in the bond energies


def test_the_table_lists_every_format():
    assert set(LOOPS) == set(FORMATS)


def queries(network: Network) -> dict:
    """What to ask: vectors, flat row indices, coordinates, squared scales."""
    rng = np.random.default_rng(1)
    height, width = network.matrix_shape
    coords = np.stack([rng.integers(0, size, 7) for size in network.shape], axis=1)
    coords[0], coords[1] = 0, np.array(network.shape) - 1
    return {
        "x": rng.normal(size=(2, 3, width)),
        "index": np.array([[0, height - 1], [height // 2, 0]]),
        "coords": coords,
        "scales": {bond: rng.uniform(0.5, 2, size) for bond, size in network.ranks.items()},
    }


def asked_bonds(network: Network) -> tuple[str, ...]:
    """At most two bonds, the first and the last (compilation is the cost of this table)."""
    return tuple(dict.fromkeys((*network.bonds[:1], *network.bonds[-1:])))


def kept_indices(network: Network) -> dict[str, np.ndarray]:
    """Every second index of every bond, last one first; even ones, odd ones, even ones, ... from bond to bond."""
    return {
        bond: np.arange(size)[min(k % 2, size - 1) :: 2][::-1] for k, (bond, size) in enumerate(network.ranks.items())
    }


@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # each is compiled once and run once
def answers(tensor: Factored, ask: dict) -> dict:
    network = tensor.network
    return {
        "dense": dense(tensor),
        "matrix": matrix(tensor),
        "matvec": matvec(tensor, ask["x"]),
        "rows": rows(tensor, ask["index"]),
        "entries": entries(tensor, ask["coords"]),
        "norm": norm(tensor),
        "inner": inner(tensor, Factored(network, {name: jnp.cos(core) for name, core in tensor.cores.items()})),
        "slice_norms": {bond: slice_norms(tensor, bond) for bond in asked_bonds(network)},
        "bond_energy": {
            bond: bond_energy(network, tensor.cores, ask["scales"], bond, VARIANCE) for bond in asked_bonds(network)
        },
        "keep": dense(keep(tensor, kept_indices(network))),
        "pad": dense(pad(tensor, {bond: size + 1 for bond, size in network.ranks.items()})),
    }


just_dense = jax.jit(dense)


@cache
def answered(name: str) -> tuple[Subject, dict, dict]:
    subject = SUBJECTS[name]
    cores = subject.cores()
    ask = queries(subject.network)
    return subject, cores, jax.tree.map(np.asarray, answers(factored(subject.network, cores), ask))


# --- laws on answers: law(subject, cores, got) -------------------------------------------------------------------


def close(got, truth):
    np.testing.assert_allclose(got, truth, rtol=1e-9, atol=1e-9)


def zeroed(subject: Subject, cores: dict, kept: dict) -> dict:
    """The cores with every slice of a bond that is not kept set to zero."""
    out = {name: core.copy() for name, core in cores.items()}
    for core in subject.network.cores:
        for axis, leg in enumerate(core.legs):
            if leg in kept:
                gone = np.setdiff1d(np.arange(subject.network.size[leg]), kept[leg])
                out[core.name][(slice(None),) * axis + (gone,)] = 0
    return out


def law_dense(subject, cores, got):
    close(got["dense"], subject.loop(subject.network, cores))


def law_matrix(subject, cores, got):
    close(got["matrix"], subject.loop(subject.network, cores).reshape(subject.network.matrix_shape))


def law_matvec(subject, cores, got):
    X = subject.loop(subject.network, cores).reshape(subject.network.matrix_shape)
    close(got["matvec"], queries(subject.network)["x"] @ X.T)


def law_rows(subject, cores, got):
    X = subject.loop(subject.network, cores).reshape(subject.network.matrix_shape)
    close(got["rows"], X[queries(subject.network)["index"]])


def law_entries(subject, cores, got):
    X = subject.loop(subject.network, cores)
    close(got["entries"], [X[tuple(x)] for x in queries(subject.network)["coords"]])


def law_norm(subject, cores, got):
    close(got["norm"], np.sqrt((subject.loop(subject.network, cores) ** 2).sum()))


def law_inner(subject, cores, got):
    other = subject.loop(subject.network, {name: np.cos(core) for name, core in cores.items()})
    close(got["inner"], (subject.loop(subject.network, cores) * other).sum())


def law_slice_norms(subject, cores, got):
    for bond, norms in got["slice_norms"].items():
        alone = [zeroed(subject, cores, {bond: np.array([r])}) for r in range(subject.network.size[bond])]
        close(norms, [np.linalg.norm(subject.loop(subject.network, one).ravel()) for one in alone])


def law_bond_energy(subject, cores, got):
    network, scales = subject.network, queries(subject.network)["scales"]
    for bond, energy in got["bond_energy"].items():
        truth = np.zeros(network.size[bond])
        for core in network.cores:
            for at in np.ndindex(*cores[core.name].shape):
                where = dict(zip(core.legs, at, strict=True))
                if bond in where:
                    others = math.prod(scales[leg][r] for leg, r in where.items() if leg in scales and leg != bond)
                    truth[where[bond]] += cores[core.name][at] ** 2 / (VARIANCE * others)
        close(energy, truth)


def law_keep_is_zeroing(subject, cores, got):
    close(got["keep"], subject.loop(subject.network, zeroed(subject, cores, kept_indices(subject.network))))


def law_pad_changes_nothing(subject, cores, got):
    close(got["pad"], subject.loop(subject.network, cores))


LAWS: dict[str, Callable] = {name[4:]: law for name, law in list(globals().items()) if name.startswith("law_")}


SLOW = {f"{name}: order 5, full" for name in ("tucker", "block_term", "hierarchical_tucker")}  # seconds to compile
SLOW |= {f"{name}: order 3, columns only" for name in FORMATS if name not in ("cp", "tt_matrix")}
SLOW |= {f"svd: {what}" for what in SHAPES if what != "order 3, rows only"}
SLOW |= {"block_term: order 4, rank above the shape", "random 4", "random 5", "random 6", "random 7"}


def marked(names, slow):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", marked(SUBJECTS, SLOW))
def test_law(name, law):
    LAWS[law](*answered(name))


# --- faults ------------------------------------------------------------------------------------------------------


def scaled_core(network, cores):
    return network, cores | {network.cores[0].name: 1.01 * cores[network.cores[0].name]}


def crossed_bonds(network, cores):
    """A core read with two of its bonds, of equal size, in each other's place."""
    core = next(c for c in network.cores if len(set(c.legs) & set(network.bonds)) > 1)
    first, second = [leg for leg in core.legs if leg in network.bonds][:2]
    legs = tuple({first: second, second: first}.get(leg, leg) for leg in core.legs)
    crossed = tuple(Core(c.name, legs) if c == core else c for c in network.cores)
    return Network(crossed, network.sizes, network.rows, network.cols), cores


@pytest.mark.parametrize("fault", [scaled_core, crossed_bonds])
def test_faults_are_caught(fault):
    subject = SUBJECTS["tucker: order 3, rows only"]  # its core carries every bond, so that every answer is wrong
    cores = subject.cores()
    got = answers(Factored(*fault(subject.network, cores)), queries(subject.network))
    for name, law in LAWS.items():
        assert refuses(law, subject, cores, got), f"law {name} accepts {fault.__name__}"


def refuses(law, *arguments) -> bool:
    try:
        law(*arguments)
    except AssertionError:
        return True
    return False


# --- laws that need no answers, or several -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBJECTS)
def test_counts(name):
    network, cores = SUBJECTS[name].network, SUBJECTS[name].cores()
    assert network.num_parameters == sum(core.size for core in cores.values())
    assert network.num_bytes(8) == sum(core.nbytes for core in cores.values())
    assert network.shape == SUBJECTS[name].loop(network, cores).shape
    for bond, size in network.ranks.items():
        tied = sum(cores[core.name].size for core in network.cores if bond in core.legs)
        assert network.bond_count(bond) * size == tied


@pytest.mark.parametrize("name", SUBJECTS)
def test_second_moment_of_an_entry_is_the_variance_asked_for(name):
    """E[X^2] = sum over bonds of prod E[core^2] for independent centred cores: the loop over constant cores."""
    network = SUBJECTS[name].network
    constant = {c.name: np.full(network.core_shape(c.name), core_variance(network, 0.3)) for c in network.cores}
    np.testing.assert_allclose(any_loop(network, constant), 0.3, rtol=1e-12)


SAMPLED = [f"{name}: order 3, rows only" for name in FORMATS]


@pytest.mark.parametrize("name", marked(SAMPLED, SAMPLED[1:]))
def test_initial_variance_by_sampling(name):
    """The mean square of X over 16000 draws lies within 5 standard errors of the variance asked for.

    The standard error is below 5 % of the variance (asserted), so that a variance off by half is refused with
    probability above 1 - 1e-6, and a right one accepted with probability above 1 - 1e-5.
    """
    network, variance, draws = SUBJECTS[name].network, 0.3, 16_000
    sample = jax.jit(jax.vmap(lambda key: (dense(initialise(key, network, variance)) ** 2).mean()))
    squares = np.asarray(sample(jax.random.split(jax.random.key(0), draws)))
    error = squares.std() / math.sqrt(draws)
    assert error < 0.05 * variance
    assert abs(squares.mean() - variance) < 5 * error
    assert abs(squares.mean() - 1.5 * variance) > 5 * error  # what a wrong law would have to pass


GRADIENTS = [f"{name}: order 2, size-1 modes, rank 1" for name in FORMATS if name != "svd"]
GRADIENTS += [f"{name}: order 3, rows only" for name in FORMATS if name != "hierarchical_tucker"]
GRADIENTS += ["hyperedge through four cores, one of them without a mode", "mode on two cores", "bond in a single core"]


def everything(tensor: Factored, ask: dict, cores: dict) -> jax.Array:
    tensor = Factored(tensor.network, cores)
    parts = dense(tensor), matvec(tensor, ask["x"]), entries(tensor, ask["coords"])
    return jnp.concatenate([part.ravel() for part in parts])


@pytest.mark.parametrize("name", marked(SUBJECTS, set(SUBJECTS) - set(GRADIENTS)))
def test_gradients(name):
    subject = SUBJECTS[name]
    cores = subject.cores()
    run = jax.jit(partial(everything, Factored(subject.network, cores), queries(subject.network)))
    check_grads(run, (jax.tree.map(jnp.asarray, cores),), order=1, modes=("rev",), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SUBJECTS)
def test_linear_in_each_core(name):
    subject = SUBJECTS[name]
    a, b = subject.cores(0), subject.cores(1)
    for core in subject.network.core:
        mixed = just_dense(Factored(subject.network, a | {core: 2 * a[core] - 3 * b[core]}))
        parts = [just_dense(Factored(subject.network, a | {core: c[core]})) for c in (a, b)]
        close(mixed, 2 * parts[0] - 3 * parts[1])


@pytest.mark.parametrize("name", [name for name in SUBJECTS if SUBJECTS[name].network.bonds])
def test_order_of_bond_indices_does_not_matter(name):
    subject, rng = SUBJECTS[name], np.random.default_rng(2)
    cores = subject.cores()
    order = {bond: rng.permutation(size) for bond, size in subject.network.ranks.items()}
    permuted = {
        core.name: cores[core.name][
            np.ix_(*(order.get(leg, np.arange(subject.network.size[leg])) for leg in core.legs))
        ]
        for core in subject.network.cores
    }
    close(just_dense(Factored(subject.network, permuted)), subject.loop(subject.network, cores))


@pytest.mark.parametrize("order", [6, 7, 8])
@pytest.mark.parametrize("name", FORMATS)
def test_high_orders(name, order):
    subject = order_subject(name, order)
    cores = subject.cores()
    close(just_dense(Factored(subject.network, cores)), subject.loop(subject.network, cores))


@pytest.mark.parametrize("name", FORMATS)
def test_full_rank_has_room_for_any_tensor(name):
    """The map cores -> X at 'full' rank has a Jacobian of full row rank at a random point."""
    network = FORMATS[name]((2, 3), (2, 1) if name == "tt_matrix" else (2,), "full")
    cores = Subject(name, network, any_loop).cores()
    columns = []
    for core, array in cores.items():
        for at in np.ndindex(*array.shape):
            unit = np.zeros_like(array)
            unit[at] = 1
            columns.append(any_loop(network, cores | {core: unit}).ravel())
    assert np.linalg.matrix_rank(np.stack(columns)) == math.prod(network.shape)


# --- pytree and static data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*(f"{name}: order 4, uneven ranks" for name in FORMATS), *CORNERS, "random 1"])
def test_pytree_and_static_network(name):
    network, cores = SUBJECTS[name].network, SUBJECTS[name].cores()
    again = Network(network.cores, dict(reversed(network.sizes)), list(network.rows), list(network.cols))
    assert again == network
    assert hash(again) == hash(network)
    if network.bonds:
        assert network.resized({network.bonds[0]: network.size[network.bonds[0]] + 1}) != network
    tensor = factored(network, cores)
    leaves, structure = jax.tree.flatten(tensor)
    assert len(leaves) == len(cores)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert rebuilt.network is network
    assert all(rebuilt.cores[core] is cores[core] for core in cores)
    traces = []
    run = jax.jit(lambda tensor: traces.append(1) or [2 * core for core in tensor.cores.values()])
    run(tensor), run(Factored(again, cores))
    assert len(traces) == 1


def test_random_networks_hold_the_corner_cases():
    """The random table is only worth its name if it meets hyperedges, lonely bonds and cores without a mode."""
    networks = [SUBJECTS[f"random {seed}"].network for seed in RANDOM_SEEDS]
    joins = {sum(bond in core.legs for core in n.cores) for n in networks for bond in n.bonds}
    assert joins >= {1, 2, 3}
    assert any(not set(core.legs) & set(n.modes) for n in networks for core in n.cores)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_answers_keep_the_dtype_of_the_cores(dtype):
    network = FORMATS["tt_matrix"]((2, 2), (3, 2), 2)
    cores = {core.name: jax.ShapeDtypeStruct(network.core_shape(core.name), dtype) for core in network.cores}
    tensor = factored(network, cores)
    ask = jax.tree.map(lambda a: jnp.asarray(a, dtype if a.dtype.kind == "f" else a.dtype), queries(network))
    shapes = jax.eval_shape(answers, tensor, ask)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(dtype)}


# --- a second oracle, where TensorLy has the format --------------------------------------------------------------


def in_tensorly(name: str, cores: dict[str, np.ndarray]) -> np.ndarray:
    from tensorly import cp_tensor, tr_tensor, tt_matrix, tt_tensor, tucker_tensor

    arrays = list(cores.values())
    if name == "cp":
        return cp_tensor.cp_to_tensor((None, arrays))
    if name == "tucker":
        return tucker_tensor.tucker_to_tensor((arrays[0], arrays[1:]))
    if name == "tensor_ring":
        return tr_tensor.tr_to_tensor(arrays)
    arrays = [arrays[0][None], *arrays[1:-1], arrays[-1][..., None]]
    if name == "tensor_train":
        return tt_tensor.tt_to_tensor(arrays)
    return tt_matrix.tt_matrix_to_tensor(arrays)


@pytest.mark.promoting
@pytest.mark.parametrize("name", ["cp", "tucker", "tensor_train", "tt_matrix", "tensor_ring"])
def test_tensorly_agrees(name):
    subject = SUBJECTS[f"{name}: order 4, uneven ranks"]
    cores = subject.cores()
    close(just_dense(Factored(subject.network, cores)), in_tensorly(name, cores))
