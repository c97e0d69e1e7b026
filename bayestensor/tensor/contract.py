"""What a factored tensor can be asked: derived once, by einsum over the legs, for every network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from bayestensor.tensor.lower import BATCH, Step, lower
from bayestensor.tensor.network import Factored, Network
from bayestensor.tensor.paths import contraction_path, path_cost
from bayestensor.tensor.plan import Plan, check_plan, plan_matvec
from bayestensor.typing import Array, Float, Int

MOST_ROWS = 4  # per lookup: up to so many rows of a product of cores are formed for all lookups together
MOST_WIDTH = 4  # rows of X: as many numbers may a lookup gather from such a product

Term: TypeAlias = tuple[Array, tuple[str, ...]]  # an array and the names of its axes


def contract(terms: Sequence[Term], output: tuple[str, ...]) -> Array:
    """Einsum of named axes, pairwise, in the order of fewest operations.

    Each array is asked for in the order its next product wants, so that axes move while arrays are small.
    """
    tree: list = list(range(len(terms)))
    for pair in contraction_path(*_shape(terms), output):
        tree.append(tuple(tree.pop(k) for k in sorted(pair, reverse=True)))
    return _contract(terms, tree[0], output)


def _shape(terms: Sequence[Term]) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[int, ...], ...]]:
    """(legs, sizes) of each term."""
    return tuple(legs for _, legs in terms), tuple(tuple(array.shape) for array, _ in terms)


def _contract(terms: Sequence[Term], node, output: tuple[str, ...]) -> Array:
    """The product of a tree's arrays (leaves are places in `terms`), its axes as in `output`."""
    if isinstance(node, tuple) and len(node) == 1:
        node = node[0]
    if isinstance(node, int):
        return _arranged(*terms[node], output)
    left, right = (set().union(*(terms[k][1] for k in _leaves(part))) for part in node)
    shared = [leg for leg in output if leg in left and leg in right]
    alone = [
        [leg for leg in output if leg in one and leg not in other] for one, other in ((left, right), (right, left))
    ]
    summed = sorted((left & right).difference(output))
    first, second = (_contract(terms, part, (*shared, *own, *summed)) for part, own in zip(node, alone, strict=True))
    product = _paired(first, second, len(shared), len(summed))
    return _arranged(product, (*shared, *alone[0], *alone[1]), output)


def _leaves(node) -> list[int]:
    return [node] if isinstance(node, int) else [leaf for part in node for leaf in _leaves(part)]


def _paired(a: Array, b: Array, shared: int, summed: int) -> Array:
    """`[S, M, K]` and `[S, N, K]` to `[S, M, N]`, each letter any number of axes."""
    own, other = a.shape[shared : a.ndim - summed], b.shape[shared : b.ndim - summed]
    flat = a.shape[:shared], math.prod(a.shape[a.ndim - summed :])
    batch, inner = math.prod(flat[0]), flat[1]
    a, b = (x.reshape(batch, math.prod(axes), inner) for x, axes in ((a, own), (b, other)))
    product = a.squeeze(0) @ b.squeeze(0).T if batch == 1 else jnp.matmul(a, b.mT)
    return product.reshape(*flat[0], *own, *other)


def _arranged(array: Array, legs: tuple[str, ...], output: tuple[str, ...]) -> Array:
    """Axes `legs` summed down to and put in the order of `output`; axes that stay neighbours move as one."""
    array = jnp.sum(array, axis=tuple(k for k, leg in enumerate(legs) if leg not in output))
    legs = tuple(leg for leg in legs if leg in output)
    if legs == output:
        return array
    shape = [array.shape[legs.index(leg)] for leg in output]
    runs: list[list[str]] = []
    for leg in legs:
        if runs and output.index(leg) == output.index(runs[-1][-1]) + 1:
            runs[-1].append(leg)
        else:
            runs.append([leg])
    order = sorted(range(len(runs)), key=lambda k: output.index(runs[k][0]))
    merged = array.reshape([math.prod(array.shape[legs.index(leg)] for leg in run) for run in runs])
    return merged.transpose(order).reshape(shape)


def _core_terms(tensor: Factored) -> list[Term]:
    return [(tensor.cores[core.name], core.legs) for core in tensor.network.cores]


def dense(tensor: Factored) -> Float[Array, ...]:
    """X with one axis a mode, rows first: `network.shape`."""
    return contract(_core_terms(tensor), tensor.network.modes)


def matrix(tensor: Factored) -> Float[Array, "rows cols"]:
    """X as a matrix: `network.matrix_shape`."""
    return dense(tensor).reshape(tensor.network.matrix_shape)


def matvec(tensor: Factored, x: Float[Array, "*batch cols"], plan: Plan | None = None) -> Float[Array, "*batch rows"]:
    """`y[..., i] = sum_j X[i, j] x[..., j]`, by the plan or else by the one counted cheapest for this batch.

    Raises:
        ValueError: the last axis of x is not the product of the column sizes, or the plan is for another network.
    """
    network = tensor.network
    rows, cols = network.matrix_shape
    if x.shape[-1:] != (cols,):
        raise ValueError(f"x has shape {x.shape}; its last axis must be {cols}, the product of the column sizes")
    batch = math.prod(x.shape[:-1])
    if plan is None:
        plan = plan_matvec(network, max(batch, 1), itemsize=x.dtype.itemsize)
    check_plan(plan, network)
    steps = lower(network, plan.groups, plan.batch_last)
    factors = [contract([(tensor.cores[n], network.core[n].legs) for n in s.group], s.factor) for s in steps]

    def product(factors: list[Array], part: Array) -> Array:
        return _chain(network, steps, factors, part)

    flat = x.reshape(batch, cols)
    if plan.rematerialise:
        product = jax.checkpoint(product, prevent_cse=plan.tile is None)
    if plan.tile is None or plan.tile >= batch or batch % plan.tile:
        y = product(factors, flat)
    else:
        tiles = flat.reshape(batch // plan.tile, plan.tile, cols)
        y = jax.lax.map(lambda part: product(factors, part), tiles)
    return y.reshape(*x.shape[:-1], rows)


def _chain(network: Network, steps: Sequence[Step], factors: Sequence[Array], x: Array) -> Array:
    """x[batch, cols] through the steps of a plan, factors at hand."""
    size = network.size | {BATCH: x.shape[0]}
    held = x if steps[0].source[0] == BATCH else x.T
    for step, factor in zip(steps, factors, strict=True):
        held = _step(step, factor, held, size)
    result, wanted, rows = steps[-1].result, (BATCH, *network.rows), network.matrix_shape[0]
    if result == (*network.rows, BATCH):
        return held.reshape(rows, x.shape[0]).T
    shaped = held.reshape([size[leg] for leg in result])
    return shaped.transpose([result.index(leg) for leg in wanted]).reshape(x.shape[0], rows)


def _step(step: Step, factor: Array, held: Array, size: Mapping[str, int]) -> Array:
    if step.kind == "general":
        return contract(
            [(held.reshape([size[leg] for leg in step.source]), step.source), (factor, step.factor)], step.result
        )
    p, k, q, m = step.sizes(size)
    matrix = factor.reshape(m, k)
    if step.kind == "front":
        return matrix @ held.reshape(k, q)
    if step.kind == "back":
        return held.reshape(p, k) @ matrix.T
    return jnp.broadcast_to(matrix, (p, m, k)) @ held.reshape(p, k, q)


def rows(tensor: Factored, index: Int[Array, "*batch"]) -> Float[Array, "*batch cols"]:
    """Rows of the matrix view at flat row indices (an embedding lookup).

    X is formed only where that takes less memory and fewer operations than the lookups by themselves: where each is a
    product with a large core (Tucker, hierarchical Tucker).
    """
    network = tensor.network
    sizes = tuple(network.size[leg] for leg in network.rows)
    flat = index.reshape(-1)
    at = dict(zip(network.rows, jnp.unravel_index(flat, sizes), strict=True))
    gathered = _gathered(_tables(tensor, MOST_ROWS * flat.size), at, flat.size)
    alone = path_cost(*_shape(gathered), ("batch", *network.cols))
    formed = path_cost(*_shape(_core_terms(tensor)), network.modes)
    if all(one < other for one, other in zip(formed, alone, strict=True)):
        return matrix(tensor)[index]
    out = contract(gathered, ("batch", *network.cols))
    return out.reshape(*index.shape, network.matrix_shape[1])


def _tables(tensor: Factored, most: int) -> list[Term]:
    """Cores contracted with each other as long as no product has more than `most` combinations of row modes, or asks
    a lookup to gather many more numbers than its two parts do.

    Products of whole tables are few and large; those of gathered slices are one small product a lookup.
    """
    size, rows = tensor.network.size, tensor.network.rows
    terms = _core_terms(tensor)
    width = tensor.network.matrix_shape[1]

    def gathered(legs: Sequence[str]) -> int:
        """Numbers a lookup; what has no row mode is not gathered, but multiplied with for all lookups together."""
        return math.prod(size[leg] for leg in legs if leg not in rows) if set(legs) & set(rows) else 0

    while True:
        pairs = []
        for (j, (_, one)), (k, (_, two)) in itertools.combinations(enumerate(terms), 2):
            others = {leg for i, (_, legs) in enumerate(terms) if i not in (j, k) for leg in legs}
            legs = tuple(leg for leg in dict.fromkeys(one + two) if leg in others or leg in tensor.network.modes)
            few = math.prod(size[leg] for leg in legs if leg in rows) <= most
            if set(one) & set(two) and few and gathered(legs) <= max(gathered(one) + gathered(two), MOST_WIDTH * width):
                pairs.append((math.prod(size[leg] for leg in legs), j, k, legs))
        if not pairs:
            return terms
        _, j, k, legs = min(pairs)
        joined = (contract([terms[j], terms[k]], legs), legs)
        terms = [*(term for i, term in enumerate(terms) if i not in (j, k)), joined]


def entries(tensor: Factored, coords: Int[Array, "n modes"]) -> Float[Array, "n"]:
    """X at coordinates, one column a mode (rows first), without forming X.

    Raises:
        ValueError: coords does not have one column a mode.
    """
    modes = tensor.network.modes
    if coords.ndim != 2 or coords.shape[1] != len(modes):
        raise ValueError(f"coords has shape {coords.shape}; one column for each of the {len(modes)} modes is needed")
    at = {leg: coords[:, k] for k, leg in enumerate(modes)}
    return contract(_gathered(_core_terms(tensor), at, len(coords)), ("batch",))


def _gathered(given: Sequence[Term], at: Mapping[str, Array], batch: int) -> list[Term]:
    """Terms with the modes in `at` replaced by a common leading axis `batch`."""
    terms: list[Term] = []
    if not any(leg in at for _, legs in given for leg in legs):  # nothing to gather: the same for the whole batch
        terms.append((jnp.ones(batch, jnp.result_type(*(array for array, _ in given))), ("batch",)))
    for array, legs in given:
        picked = [leg for leg in legs if leg in at]
        if not picked:
            terms.append((array, legs))
            continue
        rest = tuple(leg for leg in legs if leg not in at)
        front = jnp.moveaxis(array, [legs.index(leg) for leg in picked], range(len(picked)))
        terms.append((front[tuple(at[leg] for leg in picked)], ("batch", *rest)))
    return terms


def inner(a: Factored, b: Factored) -> Float[Array, ""]:
    """`<A, B> = sum_x A[x] B[x]`, the two networks joined at their modes.

    Raises:
        ValueError: the modes or their sizes differ.
    """
    if (a.network.modes, a.network.shape) != (b.network.modes, b.network.shape):
        of_a, of_b = (dict(zip(t.network.modes, t.network.shape, strict=True)) for t in (a, b))
        raise ValueError(f"tensors with modes {of_a} and {of_b} have no inner product; their modes must agree")
    return contract([*_core_terms(a), *_renamed(b, keep=a.network.modes)], ())


def slice_norms(tensor: Factored, bond: str) -> Float[Array, "rank"]:
    """`||X restricted to bond = r||` for each r: the norm lost if index r goes, X contracted with itself.

    Raises:
        ValueError: `bond` is no bond of the network.
    """
    tensor.network.check_bond(bond)
    return jnp.sqrt(jnp.maximum(_squared_slices(tensor, bond), 0))


def norm(tensor: Factored) -> Float[Array, ""]:
    """Frobenius norm of X, without forming X."""
    return jnp.sqrt(jnp.maximum(inner(tensor, tensor), 0))


def _squared_slices(tensor: Factored, bond: str) -> Array:
    shared = (*tensor.network.modes, bond)
    return contract([*_core_terms(tensor), *_renamed(tensor, keep=shared)], (bond,))


def _renamed(tensor: Factored, keep: Sequence[str]) -> list[Term]:
    """A second copy of the cores, joined to the first only at the legs in `keep`."""
    return [(a, tuple(leg if leg in keep else leg + "'" for leg in legs)) for a, legs in _core_terms(tensor)]


def bond_energy(
    network: Network,
    cores: Mapping[str, Array],
    scales: Mapping[str, Array],
    bond: str,
    variance: float | Array,
) -> Float[Array, "rank"]:
    """`M_r = sum over core entries tied to bond = r of entry^2 / (sigma_core^2 * product of the other scales v)`.

    With D = `network.bond_count(bond)`, the tied entries have log density `-(D/2) log v_r - M_r / (2 v_r)` + const.

    Args:
        network: whose cores these are.
        cores: name -> array.
        scales: bond -> v, the squared scales.
        bond: the bond whose energy is asked for.
        variance: sigma_core^2.

    Raises:
        ValueError: `bond` is no bond, or a core is shrunk by it more than once, so that no single D and M exist.
    """
    network.check_bond(bond)
    energy = jnp.zeros(network.size[bond], jnp.result_type(*cores.values()))
    for core in network.cores:
        shrunk_by = network.shrunk_by(core.name)
        times = shrunk_by.count(bond)
        if times > 1:
            raise ValueError(
                f"core {core.name!r} is shrunk {times} times by bond {bond!r}; its energy is no sum of squares"
            )
        if times:
            inverse = [(1 / scales[b], (b,)) for b in shrunk_by if b != bond]
            energy += contract([(cores[core.name] ** 2, core.legs), *inverse], (bond,)) / variance
    return energy
