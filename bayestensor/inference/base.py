"""The contract between a model and the engines: pytrees in, pytrees out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.typing import Array, Batch, Float, Key, Position, Scalar


@dataclass(frozen=True)
class Posterior:
    """A target density over positions (pytrees of arrays), up to a constant.

    `log_density(position, batch) = log_prior(position) + num_data / len(batch) * sum(log_likelihood(position, batch))`

    Attributes:
        log_prior: position -> scalar, in the unconstrained space (Jacobians included).
        log_likelihood: (position, batch) -> one number a datum.
        num_data: N, how many data the whole set holds.
        proper: whether the prior integrates to one; samplers refuse it where it does not.
        blocks: position -> pytree of ints of the same structure, equal where coordinates belong together.
        conditional_update: (key, position) -> position, an exact draw of some coordinates given the others.
    """

    log_prior: Callable[[Position], Scalar]
    log_likelihood: Callable[[Position, Batch], Float[Array, "batch"]]
    num_data: int
    proper: bool = True
    blocks: Callable[[Position], Any] | None = None
    conditional_update: Callable[[Key[Array, ""], Position], Position] | None = None

    def mean_log_likelihood(self, position: Position, batch: Batch) -> Scalar:
        """Mean over the batch: times `num_data`, an unbiased estimate of the whole log likelihood."""
        return self.log_likelihood(position, batch).mean()

    def log_density(self, position: Position, batch: Batch, prior_weight: float | Scalar = 1.0) -> Scalar:
        """`prior_weight * log prior + N * mean log likelihood`: the only place where a minibatch is scaled up."""
        return prior_weight * self.log_prior(position) + self.num_data * self.mean_log_likelihood(position, batch)


class Engine(NamedTuple):
    """An inference algorithm bound to a posterior: three pure functions, the same for every engine.

    `init(key, position) -> state`, `step(key, state, batch) -> (state, info)`, `position(state) -> position`.
    State and info are NamedTuples of arrays.
    """

    init: Callable[[Key[Array, ""], Position], Any]
    step: Callable[[Key[Array, ""], Any, Batch], tuple[Any, Any]]
    position: Callable[[Any], Position]


def all_finite(tree: Any) -> Scalar:
    """Whether every float of a pytree is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def not_finite_arrays(tree: Any) -> str:
    """Names of the arrays that hold a NaN or an infinity, looked at on the host; empty where all is well."""
    named = [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]
    floats = [(name, x) for name, x in named if jnp.issubdtype(x.dtype, jnp.inexact)]
    return ", ".join(name for name, x in floats if not np.isfinite(x).all())


def map_positions(state: Any, position: Position, functions: Any) -> Any:
    """Apply a tree of functions, shaped like the position, to every part of an engine's state that is so shaped.

    Positions, momenta, gradient moments and stacks of particles (in leading axes) are all changed alike, so that
    surgery cuts the state along with the model and resets nothing. Empty tuples may stand for parts of the position,
    as in the state of `optax.masked`; an array of another shape (a placeholder) stays as it is.

    Args:
        state: any engine's state.
        position: the engine's present position, for its structure.
        functions: functions array -> array in that structure.
    """

    def hole(node: Any) -> bool:
        return isinstance(node, tuple) and not node

    def alike(part: Any) -> bool:
        leaves, definition = jax.tree.flatten(part, is_leaf=hole)
        try:
            under = definition.flatten_up_to(position)  # type: ignore[attr-defined]
        except (ValueError, TypeError):
            return False
        return all(hole(leaf) or jax.tree_util.all_leaves([of]) for leaf, of in zip(leaves, under, strict=True))

    def change(leaf: Any, of: Any, function: Any) -> Any:
        fits = not hole(leaf) and leaf.shape[max(leaf.ndim - of.ndim, 0) :] == of.shape
        return function(leaf) if fits else leaf

    return jax.tree.map(
        lambda part: jax.tree.map(change, part, position, functions, is_leaf=hole) if alike(part) else part,
        state,
        is_leaf=alike,
    )


def normals(key: Key[Array, ""], like: Position, sd: float = 1.0) -> Position:
    """Independent N(0, sd^2) in the shape of a pytree, cut from one vector: drawn leaf by leaf, each compiles anew."""
    leaves, tree = jax.tree.flatten(like)
    if not leaves:
        return like
    ends = np.cumsum([x.size for x in leaves])
    widest = max((x.dtype for x in leaves), key=lambda dtype: dtype.itemsize)
    drawn = jnp.split(sd * jax.random.normal(key, (int(ends[-1]),), widest), ends[:-1])
    return jax.tree.unflatten(tree, [x.reshape(y.shape).astype(y.dtype) for x, y in zip(drawn, leaves, strict=True)])
