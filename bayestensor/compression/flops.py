"""What one call of a model computes, layer by layer, counted from its jaxpr."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
from flax import nnx
from jax.extend.core import jaxprs_in_params

_LAYER = re.compile(r"layer<([^>]*)>")


def product_flops(jaxpr: Any) -> Counter[str]:
    """Additions and multiplications of the matrix products and convolutions in a jaxpr, by the layer that asks.

    Those in a scan count as often as it runs them; in a `while`, whose turns are not known, once. Entrywise work is
    left out. Layers are those of `layer_flops`; what none of them asked for is under "".
    """
    found: Counter[str] = Counter()
    for layer, flops in _products(jaxpr, "", 1):
        found[layer] += flops
    return found


def _products(jaxpr: Any, layer: str, times: int) -> Iterator[tuple[str, int]]:
    for equation in jaxpr.eqns:
        named = _LAYER.findall(str(equation.source_info.name_stack))
        own, name, told = named[-1] if named else layer, equation.primitive.name, equation.params
        for inner in jaxprs_in_params(told):
            yield from _products(inner, own, times * told["length"] if name == "scan" else times)
        if name == "dot_general":
            (contracted, _), _ = told["dimension_numbers"]
            shared = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            yield own, 2 * times * shared * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            shared = math.prod(kernel) // kernel[told["dimension_numbers"].rhs_spec[0]]
            yield own, 2 * times * shared * math.prod(equation.outvars[0].aval.shape)


def layer_flops(model: nnx.Module, example: Any) -> Counter[str]:
    """`product_flops` of one call on an example: dotted path of the layer -> number.

    A layer is the innermost module whose call makes the product; attention's scores are under the attention.
    """
    named = nnx.clone(model)
    for path, module in list(nnx.iter_modules(named)):
        module.__class__ = _scoped(type(module), ".".join(map(str, path)) or "model")
    graphdef, state = nnx.split(named)
    return product_flops(jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(state, example).jaxpr)


@cache  # JAX keeps every class of modules for good: one for each kind and path
def _scoped(kind: type, path: str) -> type:
    """The class with its calls under a named scope."""

    def call(self, *args: Any, **options: Any) -> Any:
        with jax.named_scope(f"layer<{path}>"):
            return kind.__call__(self, *args, **options)

    return type(kind.__name__, (kind,), {"__call__": call})
