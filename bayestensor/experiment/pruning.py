"""The pruning section of a config, applied to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from bayestensor.metrics.cost import matvec_flops
from bayestensor.ranks import select
from bayestensor.tensor.network import Factored, Network

if TYPE_CHECKING:
    from bayestensor.experiment.config import Prune
    from bayestensor.models.neural import NeuralModel
    from bayestensor.typing import Position


def rule(section: Prune) -> select.Rule:
    """The rule that a section names."""
    if section.rule == "scale":
        return select.raw_scale(section.threshold)
    if section.rule == "energy":
        return select.energy_share(section.threshold)
    return select.norm_lost(section.threshold)


def selection(
    section: Prune,
    model: NeuralModel,
    position: Position,
    extra_params: int,
    latency: Callable[[Mapping[str, Factored]], float] | None = None,
) -> select.Selection:
    """Which indices stay: first by the rule, then down to the budgets.

    Args:
        section: the config's.
        model: the model.
        position: where it stands.
        extra_params: parameters outside the networks, which count against `max_params`.
        latency: layers -> milliseconds, for `max_ms`.

    Raises:
        ValueError: a bond collapses while `on_collapse` is 'refuse', or a budget below rank 1 everywhere.
    """
    layers = model.tensors(position)
    scales = {name: jax.tree.map(jnp.exp, bonds) for name, bonds in position["log_scales"].items()}
    return select.select(layers, rule(section), scales=scales, on_collapse=section.on_collapse)


def flops(network: Network) -> int:
    """Multiply-adds times two of one product with a vector."""
    return matvec_flops(network, 1)
