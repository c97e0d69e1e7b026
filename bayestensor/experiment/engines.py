"""The engine sections of a config, and the optimisers they may name.

MAP stands alone; every other engine says how it starts, by MAP or at the prior, so that a config of one engine is that
of any other with `engine.name` replaced (`switched`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from bayestensor.experiment.sections import Count, Fraction, NonNegative, Positive, Section, Share, one_of

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


class PriorStart(Section):
    """Every chain or particle at a draw of the prior; nothing is trained before."""

    name: Literal["prior"]


STARTS: dict[str, type[Section]] = {"map": Map, "prior": PriorStart}
DEFAULT_START = Map(name="map")


class Sampler(Section):
    """What all samplers share: where they start, how long they run, what is kept. An epoch is a pass over the data.

    Chains (particles) are shared out among as many of the machine's devices as divide their number.
    """

    start: one_of(STARTS) = DEFAULT_START  # type: ignore[valid-type]
    starts: Count = 1  # MAP solutions from different seeds, shared out among the chains or particles
    jitter: NonNegative = 0.01  # chains start around theirs, with this share of each array's rms
    temperature: Positive = 1.0  # T of the target p^(1/T); 1 is the posterior
    batch_size: Count | None = None  # null: train.batch_size
    burn_in: NonNegative = 5.0  # epochs that adapt; their draws are dropped
    epochs: Positive = 20.0  # after burn-in
    draws: Count = 50  # kept of every chain or particle, evenly spaced over the epochs
    drop_below: Share | None = 0.05  # slices alive in less than this share of the draws go, from all; null: none


class Langevin(Sampler):
    """What SGHMC and SGLD share."""

    chains: Count = 4
    cycle: Positive | None = None  # epochs in a cosine cycle of the step size; null: constant
    control_variate: bool = False  # gradients against the whole data's at the start: two a step, little noise near it
    scale_draws: Count | None = None  # steps between exact draws of the scales given the cores; null: by gradient alone


class Sghmc(Langevin):
    """Stochastic-gradient Hamiltonian Monte Carlo."""

    name: Literal["sghmc"]
    step_size: Positive = 0.1  # in posterior sd
    friction: Positive = 1.0


class Sgld(Langevin):
    """Stochastic-gradient Langevin dynamics."""

    name: Literal["sgld"]
    step_size: Positive = 0.005


class Svgd(Sampler):
    """Stein variational gradient descent, by default with the noise that keeps its particles spread."""

    name: Literal["svgd"]
    particles: Annotated[int, Field(ge=2)] = 20
    kernel: Literal["blocks", "leaf", "all"] = "blocks"
    noisy: bool = True
    step_size: Positive = 0.05


class Nuts(Sampler):
    """The no-U-turn sampler, the reference for small models; an epoch is one draw, made from the whole data."""

    name: Literal["nuts"]
    burn_in: NonNegative = 500.0
    epochs: Positive = 500.0
    draws: Count = 500
    chains: Count = 4
    target_acceptance: Annotated[float, Field(gt=0, lt=1)] = 0.8
    max_doublings: Count = 8  # longest trajectory, 2^max_doublings gradients


class Variational(Sampler):
    """Mean-field Gaussians over the cores, scales at their closed-form mode: burn-in fits, then the fit is drawn."""

    name: Literal["variational"]
    burn_in: NonNegative = 20.0
    epochs: Positive | None = None  # type: ignore[assignment]  # null: a step a draw, as draws of a fit are independent
    chains: Count = 1  # fits, each from a start of its own
    learning_rate: Positive = 1e-2  # of Adam, falling by a cosine over burn-in
    scale_floor: Positive = 1e-8  # smallest v


class Ensemble(Section):
    """A deep ensemble: MAP solutions from different starts, each with cuts of its own."""

    name: Literal["ensemble"]
    start: Map = DEFAULT_START  # how every member is trained
    members: Annotated[int, Field(ge=2)] = 5


ENGINES: dict[str, type[Section]] = {
    "map": Map,
    "sghmc": Sghmc,
    "sgld": Sgld,
    "svgd": Svgd,
    "nuts": Nuts,
    "variational": Variational,
    "ensemble": Ensemble,
}


def map_section(engine: Any) -> Map | None:
    """The MAP settings of any engine; None where nothing is trained before it samples."""
    section = getattr(engine, "start", engine)
    return section if isinstance(section, Map) else None


def switched(old: Mapping[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """An engine's section as plain data with another engine in its place, and the keys that have none there.

    The settings of MAP become those of the start, and back; what all samplers share stays.
    """
    before, after = ENGINES[old.get("name", "map")], ENGINES[name]
    if before is Map:
        return {"name": name, "start": dict(old) | {"name": "map"}}, []
    if after is Map:
        start = old.get("start") or {}
        kept = {"name": "map"} | (dict(start) if start.get("name", "map") == "map" else {})
        return kept, sorted(set(old) - {"name", "start"})
    shared = set(Sampler.model_fields) if issubclass(after, Sampler) and issubclass(before, Sampler) else {"start"}
    if issubclass(before, Langevin) and issubclass(after, Langevin):
        shared |= set(Langevin.model_fields)
    kept = {key: value for key, value in old.items() if key in shared}
    return {"name": name} | kept, sorted(set(old) - shared - {"name"})
