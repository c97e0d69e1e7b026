"""Names for the arrays, keys and trees that cross folder borders."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Position", "PyTree", "Scalar"]

Scalar: TypeAlias = Float[Array, ""]
Position: TypeAlias = PyTree[jax.Array]  # everything an engine moves: weights and log scales
Batch: TypeAlias = Any  # whatever the likelihood takes: a tuple of arrays with a common first axis
