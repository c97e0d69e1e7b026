"""The pruning section of a config, applied to a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from bayestensor.metrics.cost import latency
from bayestensor.ranks import select
from bayestensor.ranks.budget import within_budget, within_latency
from bayestensor.tensor.plan import matvec_flops
from bayestensor.typing import Array, Position

if TYPE_CHECKING:
    from bayestensor.experiment.config import Prune
    from bayestensor.models.neural import NeuralModel


def rule(section: Prune) -> select.Rule:
    """The rule that a section names."""
    if section.rule == "scale":
        return select.raw_scale(section.threshold)
    if section.rule == "energy":
        return select.energy_share(section.threshold)
    return select.norm_lost(section.threshold)


def selection(section: Prune, model: NeuralModel, position: Position, *, last: bool) -> select.Selection:
    """Which indices stay: those that the rule keeps, at the last cut also fewer, down to the parameter or FLOP budget.

    Raises:
        ValueError: a bond collapses while `on_collapse` is 'refuse', or rank 1 everywhere is above a budget.
    """
    layers = model.tensors(position)
    scales = {name: jax.tree.map(jnp.exp, bonds) for name, bonds in position["log_scales"].items()}
    by_rule = select.select(layers, rule(section), scales=scales, on_collapse=section.on_collapse)
    budgets = {"max_params": section.max_params, "max_flops": section.max_flops} if last else {}
    if section.granularity == 1 and not any(budgets.values()):
        return by_rule
    outside = model.num_free(position)
    fitted = within_budget(
        layers,
        outside,
        flops=lambda network: matvec_flops(network, 1),
        extra_flops=2 * outside,
        granularity=section.granularity,
        keep=by_rule.keep,
        **budgets,
    )
    return fitted._replace(collapsed=by_rule.collapsed)


def faster(
    section: Prune,
    model: NeuralModel,
    position: Position,
    chosen: select.Selection,
    predict: Callable[[Position, Array], Array],
    x: Array,
) -> select.Selection:
    """The selection cut further until `predict(position, x)` takes at most `max_ms`, measured here and now.

    Raises:
        ValueError: even rank 1 everywhere is slower.
    """
    assert section.max_ms is not None

    def milliseconds(keep: dict[str, select.Kept]) -> float:
        smaller = jax.tree.map(lambda array, cut: cut(array), position, model.cuts(position, keep))
        return 1e3 * latency(predict, smaller, x)

    found = within_latency(
        model.tensors(position), milliseconds, section.max_ms, granularity=section.granularity, keep=chosen.keep
    )
    return found._replace(collapsed=chosen.collapsed)
