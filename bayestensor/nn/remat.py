"""Gradient checkpointing: activations inside a part of a model are computed again for its gradient, not kept."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx

from bayestensor.typing import Array


def called(part: Callable[..., Array], again: bool, module: nnx.Module, *inputs: Array | None) -> Array:
    """`part(module, *inputs)`; where `again`, nothing but its inputs is kept for the gradient (Chen et al. 2016,
    arXiv 1604.06174)."""
    return nnx.remat(part)(module, *inputs) if again else part(module, *inputs)


def rematerialise(model: nnx.Module, again: bool = True) -> nnx.Module:
    """The model, its layers, stages or blocks set to be computed again for their gradients.

    Args:
        model: one that holds `MLP`, `ConvNet` or `Transformer`; nothing else changes.
        again: False to undo it.
    """
    for _, module in nnx.iter_modules(model):
        if hasattr(module, "rematerialise"):
            module.rematerialise = again
    return model
