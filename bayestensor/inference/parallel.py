"""Many members of one kind (chains, particles, an ensemble): side by side or one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax

Parallel: TypeAlias = Literal["auto", "vmap", "map"]


def over(function: Callable, parallel: Parallel = "auto") -> Callable:
    """`function` over the first axis of all its arguments, side by side ("vmap") or one after the other ("map").

    "auto" maps where a member holds more than 2,000 numbers and the platform is a CPU: one such member keeps the cores
    busy, and vmap makes the working set larger than their caches. Smaller ones would mostly wait for the loop.

    Raises:
        ValueError: `parallel` is none of "auto", "vmap" and "map".
    """
    if parallel not in ("auto", "vmap", "map"):
        raise ValueError(f'parallel = {parallel!r}; "auto", "vmap" or "map" is needed')

    def mapped(*args):
        leaves = jax.tree.leaves(args)
        member = sum(x.size for x in leaves) // leaves[0].shape[0]
        if parallel == "vmap" or (parallel == "auto" and (jax.default_backend() != "cpu" or member <= 2000)):
            return jax.vmap(function)(*args)
        return jax.lax.map(lambda one: function(*one), args)

    return mapped
