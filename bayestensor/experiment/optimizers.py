"""Optax optimisers from their sections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bayestensor.experiment.engines import OPTIMIZER_OPTIONS, OptimizerSection

if TYPE_CHECKING:
    import optax


def learning_rate(section: OptimizerSection, steps: int) -> optax.Schedule:
    """Step -> rate: a linear climb over the first `warmup` share of `steps`, then constant, cosine or linear."""
    import optax

    peak, floor = section.learning_rate, section.learning_rate * section.final
    climb = round(section.warmup * steps)
    rest = max(steps - climb, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=section.final),
        "linear": lambda: optax.linear_schedule(peak, floor, rest),
    }[section.schedule]()
    if climb == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / climb, peak, climb - 1 or 1), after], [climb])


def optimizer(section: OptimizerSection, steps: int) -> optax.GradientTransformation:
    """The optimiser a section names, its rate laid out over `steps` steps."""
    import optax

    name = section.name  # type: ignore[attr-defined]
    options: dict[str, Any] = {option: getattr(section, option) for option in OPTIMIZER_OPTIONS[name]}
    if options.get("momentum") == 0:
        options["momentum"] = None  # no momentum is no state, not a state that is multiplied by 0
    transform = getattr(optax, name)(learning_rate(section, steps), **options)
    return transform if section.clip is None else optax.chain(optax.clip_by_global_norm(section.clip), transform)
