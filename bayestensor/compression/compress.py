"""Cut the slices that a trained model does not need, and say what that saves."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from bayestensor.compression.report import Change, Compression, compression, count
from bayestensor.nn.weight import TensorWeight
from bayestensor.ranks.select import Rule, norm_lost, select
from bayestensor.tensor.surgery import keep

_UNCUT = (
    "nothing was dropped: every slice holds more than the rule's share of its weight. Ranks fall under a shrinkage "
    "prior (`fit_map`); or let the rule drop more"
)


def compress(model: nnx.Module, rule: Rule | None = None, *, example: Any = None) -> Compression:
    """A copy of a model without the slices that a rule drops (default: `norm_lost(1e-2)`), physically smaller.

    Args:
        model: with tensorized layers, trained.
        rule: which indices of a bond stay.
        example: an input with which to count operations and to measure the latency, before and after.

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
    for path, weight in weights.items():
        for core, array in keep(tensors[_dotted(path)], chosen.keep[_dotted(path)]).cores.items():
            weight.cores[core] = nnx.Param(jnp.asarray(array))
    changes = []
    for (path, old), (_, new) in zip(nnx.iter_modules(model), nnx.iter_modules(copy), strict=True):
        held = [at for at in weights if at[:-1] == path]  # a layer has one
        if held:
            lost, ranks = chosen.lost[_dotted(held[0])], weights[held[0]].tensor.network.ranks
            changes.append(Change(_dotted(path), type(old).__name__, "network", count(old), count(new), ranks, lost))
        elif not any(path[: len(at)] == at for at in weights):
            own = sum(value.size for value in vars(old).values() if isinstance(value, nnx.Param))
            changes += [Change(_dotted(path), type(old).__name__, "dense", own, own)] if own else []
    kept = all(change.before == change.after for change in changes)
    return compression(model, copy, changes, example, _UNCUT if kept else "")


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path)) or "model"
