"""Dense -> factored, for pretrained weights: truncated SVDs on trees, alternating least squares elsewhere.

Computed on the host in float64 (NumPy), whatever the precision of the array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import opt_einsum

from bayestensor.tensor.initialise import initialise
from bayestensor.tensor.network import Core, Factored, Network, factored
from bayestensor.typing import Array, Key

Cores = dict[str, np.ndarray]


class Decomposition(NamedTuple):
    """A factored tensor and how far it is from the array it was made of: `||array - X|| / ||array||`."""

    tensor: Factored
    relative_error: float


def decompose(
    array: Array | np.ndarray,
    network: Network,
    *,
    key: Key[Array, ""],
    starts: int = 3,
    sweeps: int = 200,
    tolerance: float = 1e-6,
    ridge: float = 1e-9,
) -> Decomposition:
    """The network's tensor nearest to `array`, at the network's sizes, as nearly as its structure allows.

    - A tree (`is_tree`: tensor train, TT-matrix, Tucker, hierarchical Tucker, ...): truncated SVDs from the leaves
      to the root. Exact where every bond has the rank of its cut. Otherwise quasi-optimal: the squared error is
      the sum of what each bond discards, none of which is more than the best tensor of that network loses, hence
      `error <= sqrt(number of bonds) * best error` (De Lathauwer et al. 2000 for Tucker, Grasedyck 2010 for
      hierarchical Tucker, Oseledets 2011 for tensor trains). One bond only: the optimum (Eckart and Young 1936).
      A core that only weighs the indices of one bond (an SVD's s) is left out and put back as ones.
    - Anything else (CP, block-term, tensor ring with two modes or more, hyperedges): alternating least squares,
      the best of several random starts (Kolda and Bader 2009, section 3.4). The error falls with every step, to
      a stationary point: no bound, and a best CP approximation of a given rank need not even exist.

    The cores are then balanced: along each index of a bond, every core that has the bond carries the same norm.
    X stays; the scale prior of a bond sees its cores alike.

    Args:
        array: of shape `network.shape` or `network.matrix_shape`, finite.
        network: whose sizes are taken as they are.
        key: for the random starts of the least squares; a tree uses no randomness.
        starts: random starts.
        sweeps: at most so many passes over all cores a start.
        tolerance: a start ends when a sweep lowers the relative error by less than this part of it.
        ridge: weight that holds a core to its previous value, relative to the mean eigenvalue of its normal
            equations: keeps them solvable and the error falling (Navasca, De Lathauwer and Kindermann 2008).

    Raises:
        ValueError: an array of another shape or with values that are not finite, no start.
    """
    if tuple(array.shape) not in (network.shape, network.matrix_shape):
        raise ValueError(
            f"array has shape {tuple(array.shape)}; this network's tensor has shape {network.shape}, "
            f"its matrix {network.matrix_shape}"
        )
    X = np.asarray(array, np.float64).reshape(network.shape)
    if not np.isfinite(X).all():
        raise ValueError(f"array holds {np.count_nonzero(~np.isfinite(X))} values that are not finite; mend them first")
    if starts < 1:
        raise ValueError(f"starts is {starts}; least squares needs at least one")
    bare = without_weights(network)
    if is_tree(bare):
        cores = {core.name: np.ones(network.core_shape(core.name)) for core in network.cores} | tree_svd(X, bare)
    else:
        keys = jax.random.split(key, starts)
        runs = [least_squares(X, network, random_start(X, network, k), sweeps, tolerance, ridge) for k in keys]
        cores = min(runs, key=lambda run: run[1][-1])[0]
    error = relative_error(X, network, cores)
    dtype = array.dtype if jnp.issubdtype(array.dtype, jnp.floating) else jnp.float32
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    arrays = {name: jnp.asarray(core, dtype) for name, core in balanced(network, cores).items()}
    return Decomposition(factored(network, arrays), error)


def relative_error(X: np.ndarray, network: Network, cores: Cores) -> float:
    """`||X - cores contracted|| / ||X||`, and 0 for a zero tensor met exactly."""
    size = np.linalg.norm(X)
    miss = np.linalg.norm(X - _einsum([(cores[core.name], core.legs) for core in network.cores], network.modes))
    return float(miss / size) if size else float(miss)


def _einsum(terms: Sequence[tuple[np.ndarray, Sequence[str]]], output: Sequence[str]) -> np.ndarray:
    arrays = [array for array, _ in terms]
    expression = _expression(tuple(tuple(legs) for _, legs in terms), tuple(a.shape for a in arrays), tuple(output))
    return np.asarray(expression(*arrays))


@lru_cache(maxsize=1024)
def _expression(legs: tuple[tuple[str, ...], ...], shapes: tuple[tuple[int, ...], ...], output: tuple[str, ...]):
    """A contraction with its order settled, to be called with arrays: the search costs more than a small product."""
    symbols = {
        leg: opt_einsum.get_symbol(k) for k, leg in enumerate(dict.fromkeys(leg for term in legs for leg in term))
    }
    inputs = ",".join("".join(symbols[leg] for leg in term) for term in legs)
    equation = f"{inputs}->{''.join(symbols[leg] for leg in output)}"
    return opt_einsum.contract_expression(equation, *shapes, optimize="auto")


# --- trees -------------------------------------------------------------------------------------------------------


def is_tree(network: Network) -> bool:
    """Whether each mode is on one core, each bond joins two, and the bonds join all cores without a cycle."""
    on = {leg: [core.name for core in network.cores if leg in core.legs] for leg in network.size}
    if any(len(on[mode]) != 1 for mode in network.modes) or any(len(on[bond]) != 2 for bond in network.bonds):
        return False
    reached = [network.cores[0].name]
    for name in reached:  # grows while it is read
        for bond in network.core[name].legs:
            reached += [other for other in on[bond] if other not in reached]
    return len(reached) == len(network.cores) == len(network.bonds) + 1


def without_weights(network: Network) -> Network:
    """The network less the cores that hold one bond and nothing else, where two other cores have that bond."""
    on = {bond: sum(bond in core.legs for core in network.cores) for bond in network.bonds}
    kept = tuple(core for core in network.cores if len(core.legs) != 1 or on.get(core.legs[0]) != 3)
    return Network(kept, network.sizes, network.rows, network.cols)


def tree_svd(X: np.ndarray, network: Network) -> Cores:
    """Truncated SVDs from the leaves of a tree to its root, the core with the most bonds.

    With `rest` the tensor left after the subtrees below a core have been projected away, its legs but the bond
    `up` to its parent are the rows of a matrix: `rest = U S V'`, the core is the leading part of U (orthonormal
    columns, zeros where `up` is wider than U), and `U' rest` goes on, with the leg `up`.
    """
    root = max(network.cores, key=lambda core: sum(leg in network.bonds for leg in core.legs))
    rest, legs = X, list(network.modes)
    cores: Cores = {}

    def visit(core: Core, up: str | None) -> None:
        nonlocal rest, legs
        for bond in core.legs:
            if bond in network.bonds and bond != up:
                child = next(c for c in network.cores if bond in c.legs and c is not core)
                visit(child, bond)
        if up is None:
            cores[core.name] = np.transpose(rest, [legs.index(leg) for leg in core.legs])
            return
        own = [leg for leg in core.legs if leg != up]
        others = [leg for leg in legs if leg not in own]
        rest = np.transpose(rest, [legs.index(leg) for leg in own + others])
        shape = rest.shape
        flat = rest.reshape(math.prod(shape[: len(own)]), -1)  # own legs x the rest
        left = np.linalg.svd(flat, full_matrices=False)[0][:, : network.size[up]]
        basis = np.zeros((len(flat), network.size[up]))
        basis[:, : left.shape[1]] = left
        rest, legs = (basis.T @ flat).reshape(network.size[up], *shape[len(own) :]), [up, *others]
        wide = basis.reshape(*shape[: len(own)], network.size[up])
        cores[core.name] = np.transpose(wide, [[*own, up].index(leg) for leg in core.legs])

    visit(root, None)
    return cores


# --- everything else ---------------------------------------------------------------------------------------------


def random_start(X: np.ndarray, network: Network, key: Key[Array, ""]) -> Cores:
    """Normal cores whose tensor has the mean square of X."""
    scale = np.mean(X**2) ** (0.5 / len(network.cores))
    drawn = initialise(key, network).cores
    return {name: scale * np.asarray(core, np.float64) for name, core in drawn.items()}


def least_squares(
    X: np.ndarray, network: Network, cores: Mapping[str, np.ndarray], sweeps: int, tolerance: float, ridge: float
) -> tuple[Cores, list[float]]:
    """Alternating least squares: each core in turn to its best value given the others, X being linear in each.

    Returns:
        The cores, and the relative error before the first sweep and after each.
    """
    cores = dict(cores)
    errors = [relative_error(X, network, cores)]
    for _ in range(sweeps):
        for core in network.cores:
            cores[core.name] = _best_core(X, network, cores, core, ridge)
        errors.append(relative_error(X, network, cores))
        if errors[-2] - errors[-1] <= tolerance * errors[-2]:
            break
    return cores, errors


def _best_core(X: np.ndarray, network: Network, cores: Cores, core: Core, ridge: float) -> np.ndarray:
    """The W that minimises `||X - E W||^2 + lam ||W - W_old||^2`, E the other cores contracted (the environment).

    A mode on this core alone is `free`: one system for all its values. A mode that other cores share is a `block`:
    a system of its own for each value. The unknowns of a system are the core's bonds: `(G + lam) step = B - G W_old`
    with the normal matrix `G = E'E` and the right side `B = E'X`.
    """
    others = [(cores[c.name], c.legs) for c in network.cores if c is not core]
    around = {leg for _, legs in others for leg in legs}
    free = [leg for leg in core.legs if leg in network.modes and leg not in around]
    block = [leg for leg in core.legs if leg in network.modes and leg in around]
    bonds = [leg for leg in core.legs if leg in network.bonds]
    lonely = [(np.ones(network.size[leg]), (leg,)) for leg in bonds if leg not in around]  # summed over in this core
    env = [*others, *lonely]
    twin = [(array, [leg if leg in network.modes else leg + "'" for leg in legs]) for array, legs in env]
    gram = _einsum([*env, *twin], [*block, *bonds, *(leg + "'" for leg in bonds)])
    right = _einsum([(X, network.modes), *env], [*block, *bonds, *free])

    blocks, unknowns, systems = (math.prod(network.size[leg] for leg in legs) for legs in (block, bonds, free))
    G = gram.reshape(blocks, unknowns, unknowns)
    B = right.reshape(blocks, unknowns, systems)
    order = [core.legs.index(leg) for leg in (*block, *bonds, *free)]
    old = np.transpose(cores[core.name], order)
    lam = ridge * np.trace(G, axis1=1, axis2=2).mean() / unknowns + np.finfo(float).tiny
    W = old.reshape(B.shape)
    step = np.linalg.solve(G + lam * np.eye(unknowns), B - G @ W)
    return np.transpose((W + step).reshape(old.shape), np.argsort(order))


def balanced(network: Network, cores: Mapping[str, np.ndarray], sweeps: int = 20) -> Cores:
    """The same tensor with, along each index of a bond, the same norm in every core that has the bond.

    `core_k[..., r, ...] <- core_k[..., r, ...] * g_r / n_kr`, n the norms of the slices and g their geometric mean
    over k; a slice that is zero in some core stays as it is. Bonds in turn, a few sweeps.
    """
    cores = dict(cores)
    for _ in range(sweeps):
        for bond in network.bonds:
            joined = [core for core in network.cores if bond in core.legs]
            others = {c.name: tuple(k for k, leg in enumerate(c.legs) if leg != bond) for c in joined}
            norms = {name: np.sqrt((cores[name] ** 2).sum(axis=axes)) for name, axes in others.items()}
            alive = np.min(list(norms.values()), axis=0) > 0
            safe = {name: np.where(alive, n, 1.0) for name, n in norms.items()}
            mean = np.exp(np.mean([np.log(n) for n in safe.values()], axis=0))
            for name, axes in others.items():
                cores[name] = cores[name] * np.expand_dims(mean / safe[name], axes)
    return cores
