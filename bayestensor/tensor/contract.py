"""What a factored tensor can be asked: derived once, by einsum over the legs, for every network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax.numpy as jnp

from bayestensor.tensor.network import Factored, Network
from bayestensor.tensor.plan import contraction_path
from bayestensor.typing import Array, Float, Int

Term: TypeAlias = tuple[Array, tuple[str, ...]]  # an array and the names of its axes


def contract(terms: Sequence[Term], output: tuple[str, ...]) -> Array:
    """Einsum of named axes, pairwise, in the order of fewest operations."""
    legs = tuple(legs for _, legs in terms)
    shapes = tuple(tuple(array.shape) for array, _ in terms)
    number = {leg: k for k, leg in enumerate(dict.fromkeys(leg for term in legs for leg in term))}
    operands: list = []
    for array, term in terms:
        operands += [array, [number[leg] for leg in term]]
    path = contraction_path(legs, shapes, output)
    return jnp.einsum(*operands, [number[leg] for leg in output], optimize=list(path))


def _core_terms(tensor: Factored) -> list[Term]:
    return [(tensor.cores[core.name], core.legs) for core in tensor.network.cores]


def dense(tensor: Factored) -> Float[Array, ...]:
    """X with one axis a mode, rows first: `network.shape`."""
    return contract(_core_terms(tensor), tensor.network.modes)


def matrix(tensor: Factored) -> Float[Array, "rows cols"]:
    """X as a matrix: `network.matrix_shape`."""
    return dense(tensor).reshape(tensor.network.matrix_shape)


def matvec(tensor: Factored, x: Float[Array, "*batch cols"]) -> Float[Array, "*batch rows"]:
    """`y[..., i] = sum_j X[i, j] x[..., j]` without forming X.

    Raises:
        ValueError: the last axis of x is not the product of the column sizes.
    """
    network = tensor.network
    rows, cols = network.matrix_shape
    if x.shape[-1:] != (cols,):
        raise ValueError(f"x has shape {x.shape}; its last axis must be {cols}, the product of the column sizes")
    batch = x.shape[:-1]
    split = x.reshape(math.prod(batch), *(network.size[leg] for leg in network.cols))
    y = contract([(split, ("batch", *network.cols)), *_core_terms(tensor)], ("batch", *network.rows))
    return y.reshape(*batch, rows)


def rows(tensor: Factored, index: Int[Array, "*batch"]) -> Float[Array, "*batch cols"]:
    """Rows of the matrix view at flat row indices (an embedding lookup), without forming X."""
    network = tensor.network
    sizes = tuple(network.size[leg] for leg in network.rows)
    flat = index.reshape(-1)
    at = dict(zip(network.rows, jnp.unravel_index(flat, sizes), strict=True))
    out = contract(_gathered(tensor, at, flat.size), ("batch", *network.cols))
    return out.reshape(*index.shape, network.matrix_shape[1])


def entries(tensor: Factored, coords: Int[Array, "n modes"]) -> Float[Array, "n"]:
    """X at coordinates, one column a mode (rows first), without forming X.

    Raises:
        ValueError: coords does not have one column a mode.
    """
    modes = tensor.network.modes
    if coords.ndim != 2 or coords.shape[1] != len(modes):
        raise ValueError(f"coords has shape {coords.shape}; one column for each of the {len(modes)} modes is needed")
    at = {leg: coords[:, k] for k, leg in enumerate(modes)}
    return contract(_gathered(tensor, at, len(coords)), ("batch",))


def _gathered(tensor: Factored, at: Mapping[str, Array], batch: int) -> list[Term]:
    """Core terms with the modes in `at` replaced by a common leading axis `batch`."""
    terms: list[Term] = []
    if not at:  # nothing to gather: the same for the whole batch
        terms.append((jnp.ones(batch, jnp.result_type(*tensor.cores.values())), ("batch",)))
    for array, legs in _core_terms(tensor):
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
