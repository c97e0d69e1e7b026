"""Cut the slices that a trained model does not need, and say what that saves."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from bayestensor.compression.report import Change, Compression, count, speed
from bayestensor.nn.weight import TensorWeight
from bayestensor.ranks.select import Rule, norm_lost, select
from bayestensor.tensor.surgery import keep


def compress(model: nnx.Module, rule: Rule | None = None, *, example: Any = None) -> Compression:
    """A copy of a model without the slices that a rule drops (default: `norm_lost(1e-2)`), physically smaller.

    Args:
        model: with tensorized layers, trained.
        rule: which indices of a bond stay.
        example: an input with which to measure the latency before and after.

    Returns:
        The new model in `model`, one line for every layer that owns parameters; `error` bounds the relative change of
        a layer's weight by the norms of its dropped slices.

    Raises:
        ValueError: no tensorized layer, or a rule that looks at scales, which a model without its fit has not.
    """
    copy = nnx.clone(model)
    weights = {path: m for path, m in nnx.iter_modules(copy) if isinstance(m, TensorWeight)}
    if not weights:
        raise ValueError("the model has no tensorized layer; `tensorize` makes some")
    tensors = {_dotted(path): weight.tensor for path, weight in weights.items()}
    chosen = select(tensors, rule or norm_lost(1e-2))
    changes = []
    for path, module in nnx.iter_modules(model):
        name, own = _dotted(path), sum(v.size for v in vars(module).values() if isinstance(v, nnx.Param))
        if path in weights:
            tensor = keep(tensors[name], chosen.keep[name])
            for core, array in tensor.cores.items():
                weights[path].cores[core] = nnx.Param(jnp.asarray(array))
            sizes = (count(module), tensor.network.num_parameters)
            changes.append(Change(name, "network", "", *sizes, tensor.network.ranks, chosen.lost[name]))
        elif own and not any(path[: len(weight)] == weight for weight in weights):
            changes.append(Change(name, type(module).__name__, "dense", own, own))
    times = speed((model, copy), example)
    return Compression(copy, tuple(changes), None if times is None else (times[0], times[1]))


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path)) or "model"
