"""Deep ensembles: independent members of any engine, moved together."""

from __future__ import annotations

from typing import Any

import jax

from bayestensor.inference.base import Engine
from bayestensor.inference.parallel import Parallel, over
from bayestensor.typing import Array, Batch, Key, Position


def ensemble(engine: Engine, *, parallel: Parallel = "auto") -> Engine:
    """Members of `engine` (Lakshminarayanan, Pritzel, Blundell 2017), each with its own key and start, on one batch.

    The position is the stack of the members' positions, [member, ...] a leaf, as are State and Info. With MAP members
    this is a deep ensemble: as many modes as members, no claim to the spread within one.

    Args:
        engine: what every member is.
        parallel: members by "vmap", by "map" (`lax.map`), or as the platform prefers.
    """

    def keys(key: Key[Array, ""], stack: Any) -> Key[Array, "member"]:
        return jax.random.split(key, jax.tree.leaves(stack)[0].shape[0])

    def init(key: Key[Array, ""], position: Position) -> Any:
        return over(engine.init, parallel)(keys(key, position), position)

    def step(key: Key[Array, ""], state: Any, batch: Batch) -> tuple[Any, Any]:
        return over(lambda key, member: engine.step(key, member, batch), parallel)(keys(key, state), state)

    def position(state: Any) -> Position:
        return jax.vmap(engine.position)(state)

    return Engine(init, step, position)
