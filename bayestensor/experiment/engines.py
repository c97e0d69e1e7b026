"""The engine sections of a config, and the optimisers they may name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from bayestensor.experiment.sections import Fraction, NonNegative, Positive, Section, Share, one_of

# Optax's optimisers and the hyperparameters of theirs that may be set, with our defaults (Optax's own).
OPTIMIZER_OPTIONS: dict[str, dict[str, float | bool]] = {
    "adabelief": {"b1": 0.9, "b2": 0.999, "eps": 1e-16},
    "adagrad": {"initial_accumulator_value": 0.1, "eps": 1e-7},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "nesterov": False},
    "adamax": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4, "nesterov": False},
    "amsgrad": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "lamb": {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 0.0},
    "lion": {"b1": 0.9, "b2": 0.99, "weight_decay": 1e-3},
    "nadam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "nadamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4},
    "radam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "threshold": 5.0},
    "rmsprop": {"decay": 0.9, "eps": 1e-8, "momentum": 0.0, "nesterov": False},
    "sgd": {"momentum": 0.0, "nesterov": False},
    "yogi": {"b1": 0.9, "b2": 0.999, "eps": 1e-3},
}
_DECAYS = ("b1", "b2", "decay", "momentum")


class OptimizerSection(Section):
    """What all optimisers share: the learning rate over time, and clipping."""

    learning_rate: Positive = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: Fraction = 0.0  # share of the steps in which the rate climbs linearly from 0
    final: Fraction = 0.0  # what a falling schedule ends at, as a share of learning_rate
    clip: Positive | None = None  # largest global norm of the gradient


def _optimizer(name: str, options: Mapping[str, float | bool]) -> type[OptimizerSection]:
    fields: dict[str, Any] = {"name": (Literal[name], ...)}
    for option, default in options.items():
        kind = bool if isinstance(default, bool) else Share if option in _DECAYS else NonNegative
        fields[option] = (kind, default)
    return create_model(name, __base__=OptimizerSection, __doc__=f"`optax.{name}`.", **fields)


OPTIMIZERS = {name: _optimizer(name, options) for name, options in OPTIMIZER_OPTIONS.items()}
DEFAULT_OPTIMIZER = OPTIMIZERS["adam"](name="adam")  # type: ignore[call-arg]


class Map(Section):
    """Maximum a posteriori: a local mode of the posterior under a declared floor on the scales."""

    name: Literal["map"]
    optimizer: one_of(OPTIMIZERS) = DEFAULT_OPTIMIZER  # type: ignore[valid-type]
    scales: Literal["gradient", "mode"] = "gradient"  # joint gradient on log v, or damped closed-form mode
    scale_rate: Positive = 1.0  # learning rate of log v, in units of the weights'
    mode_damping: Annotated[float, Field(gt=0, le=1)] = 0.1  # v <- (1 - damping) v + damping v*
    scale_floor: Positive = 1e-8  # smallest v
    temperature: NonNegative = 1.0  # weight of the prior, in units of 1/N
    warmup_epochs: NonNegative = 0.0  # no shrinkage
    ramp_epochs: NonNegative = 0.0  # then from none to full
    refit_temperature: NonNegative | None = None  # after the last pruning; null: as before
