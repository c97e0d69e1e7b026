"""Whether the parts of a config fit together, before anything is trained."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bayestensor.errors import ConfigError
from bayestensor.experiment import messages, registry
from bayestensor.experiment.engines import Langevin, Nuts, Sampler, Svgd, Variational, map_section
from bayestensor.experiment.layers import Blueprint, Layer, blueprint, layers_of
from bayestensor.experiment.schedule import schedule

if TYPE_CHECKING:
    from bayestensor.experiment.config import Config

MAX_PARAMETERS = 1_000_000_000
MAX_NUTS = 2_000  # coordinates: NUTS is for reference
COPIES = {"svgd": 13, "nuts": 20}  # arrays as large as all chains or particles that a step holds; elsewhere 10


def check(config: Config) -> tuple[Layer, ...]:
    """The layers of a config whose parts fit together.

    Raises:
        ConfigError: the first contradiction, naming the key, what was given and what is allowed.
    """
    _refuse(problems(config))
    layers, found = layers_of(config)
    _refuse(found)
    total = sum(layer.parameters for layer in layers)
    if total > MAX_PARAMETERS:
        _refuse([f"model.rank: given {config.model.rank!r}; {total} parameters, expected at most {MAX_PARAMETERS}"])
    if isinstance(config.engine, Sampler):
        scales = sum(sum(layer.network.ranks.values()) for layer in layers if layer.network)
        _refuse(size_problems(config, min(total, config.prune.max_params or total) + scales))
    return layers


def problems(config: Config) -> list[str]:
    """Contradictions between keys, those that need no network built; empty where there are none."""
    makers = (_shape_problems, _time_problems, _data_problems, _prior_problems, _sampling_problems)
    return [problem for maker in makers for problem in maker(config)]


def _shape_problems(config: Config) -> list[str]:
    model, channels = config.model, getattr(config.model, "channels", ())
    pools = getattr(model, "pool", ())
    if isinstance(pools, tuple) and len(pools) != len(channels):
        return [f"model.pool: given {len(pools)} entries; expected one number, or {len(channels)}, one a convolution"]
    try:
        plan = blueprint(config)
    except ValueError as error:
        key = "depth" if model.name == "resnet" else "average" if "average" in str(error) else "channels"
        return [f"model.{key}: {error}"]
    if plan.stages and config.prune.max_flops is not None:
        return [f"prune.max_flops: counted for linear layers alone; for {model.name} take prune.max_params"]
    if any(stage.norm for stage in plan.stages) and config.prune.max_ms is not None:
        return ["prune.max_ms: not measured with batch normalisation, whose statistics are computed anew; leave it out"]
    shapes = getattr(model, "shapes", None)
    return [] if shapes is None else _modes_problems(model, shapes, plan)


def _modes_problems(model: Any, shapes: Sequence, plan: Blueprint) -> list[str]:
    """What is wrong with the modes that a config gives its linear layers."""
    if model.format == "dense":
        return ["model.shapes: given for format dense, which has none; leave it out or choose a tensor format"]
    widths = plan.widths
    if len(shapes) != len(widths) - 1:
        sizes = " -> ".join(map(str, widths))
        return [f"model.shapes: given {len(shapes)} entries; expected {len(widths) - 1}, one a layer ({sizes})"]
    found, before = [], len(plan.stages)
    for k, sides in enumerate(shapes):
        for j, (side, modes, width) in enumerate(zip(("input", "output"), sides, widths[k : k + 2], strict=True)):
            if math.prod(modes) != width:
                given = f"{list(modes)} with product {math.prod(modes)}"
                found.append(
                    f"model.shapes.{k}.{j}: given {given}; expected product {width}, layers.{before + k}'s {side} width"
                )
        if model.format == "tt_matrix" and len(sides[0]) != len(sides[1]):
            given = f"{len(sides[0])} input and {len(sides[1])} output modes"
            found.append(f"model.shapes.{k}: given {given}; tt_matrix pairs them, so fill up the shorter with 1")
    return found


def _time_problems(config: Config) -> list[str]:
    epochs, cuts, engine = config.train.epochs, config.prune.epochs, map_section(config.engine)
    found = []
    if engine is None:
        return ["prune.epochs: given with engine.start prior, where nothing is trained; leave it out"] if cuts else []
    if list(cuts) != sorted(set(cuts)):
        found.append(f"prune.epochs: given {list(cuts)}; expected rising epochs, each once")
    if cuts and max(cuts) >= epochs:
        found.append(
            f"prune.epochs: given {max(cuts)}; expected below train.epochs = {epochs}, so that training goes on"
        )
    if engine.warmup_epochs + engine.ramp_epochs > epochs:
        total = engine.warmup_epochs + engine.ramp_epochs
        found.append(
            f"{_map_key(config)}.ramp_epochs: warm-up and ramp take {total:g} epochs; "
            f"expected at most train.epochs = {epochs}"
        )
    if config.train.evaluate_every > epochs:
        found.append(f"train.evaluate_every: given {config.train.evaluate_every}; expected at most {epochs} epochs")
    if config.train.patience is not None and not config.data.validation:
        found.append(
            f"train.patience: given {config.train.patience} without held-out data; set data.validation: 0.1, "
            "or leave it out"
        )
    budgets = [key for key in ("max_params", "max_flops", "max_ms") if getattr(config.prune, key) is not None]
    if budgets and not cuts:
        found.append(f"prune.{budgets[0]}: given without prune.epochs; a budget is met at those, expected at least one")
    return found


def _data_problems(config: Config) -> list[str]:
    facts, found = registry.DATASET_FACTS, []
    sizes = {
        "train.batch_size": config.train.batch_size,
        "engine.batch_size": getattr(config.engine, "batch_size", None),
    }
    for key, size in sizes.items():
        if size is not None and size > num_train(config):
            allowed = f"at most the {num_train(config)} training data of {config.data.name}"
            found.append(f"{key}: given {size}; expected {allowed}")
    ood = config.data.ood
    if ood is not None and (ood == config.data.name or facts[ood].input_shape != facts[config.data.name].input_shape):
        alike = [name for name, other in facts.items() if other.input_shape == facts[config.data.name].input_shape]
        others = ", ".join(name for name in alike if name != config.data.name) or "null: no other set has that shape"
        found.append(f"data.ood: given {ood!r}; expected a set of other images of the same shape: {others}")
    return found


def num_train(config: Config) -> int:
    """Training data that are not held out."""
    total = registry.DATASET_FACTS[config.data.name].num_train
    total = min(total, config.data.limit or total)
    return total - round(config.data.validation * total)


def _prior_problems(config: Config) -> list[str]:
    if config.prior.name == "svd_penalty":
        return _penalty_problems(config)
    if config.prior.name == "log_uniform" and config.prior.s_min >= config.prior.s_max:
        return [f"prior.s_min: given {config.prior.s_min}; expected below prior.s_max = {config.prior.s_max}"]
    return []


def _penalty_problems(config: Config) -> list[str]:
    """The penalties of SVD training are of one format, improper, and know no scales."""
    formats = {key: getattr(config.model, key, "svd") for key in ("format", "conv_format")}
    found = [
        f"model.{key}: given {given!r}; prior svd_penalty is of format svd alone"
        for key, given in formats.items()
        if given not in ("svd", "svd_spatial", "dense")
    ]
    if config.prune.epochs and config.prune.rule == "scale":
        found.append("prune.rule: given 'scale'; prior svd_penalty has no scales: take energy or norm_lost")
    engine = config.engine.name
    if isinstance(config.engine, Sampler):
        others = ", ".join(name for name in registry.PRIORS if name != "svd_penalty")
        found.append(
            f"prior.name: given 'svd_penalty', which is improper: {engine} would drift for ever; fit by "
            f"engine.name: map, or take one of {others}"
        )
    return found


def _sampling_problems(config: Config) -> list[str]:
    engine, found = config.engine, []
    if not isinstance(engine, Sampler):
        return []
    plan = schedule(config, num_train(config))
    if plan.thin < 1:
        steps = round(engine.epochs * (1 if plan.batch_size is None else num_train(config) // plan.batch_size))
        found.append(f"engine.draws: given {engine.draws}; expected at most the {steps} steps of engine.epochs")
    if plan.batch_size is not None and plan.batch_size % 2:
        key = "train.batch_size" if engine.batch_size is None else "engine.batch_size"
        found.append(
            f"{key}: given {plan.batch_size}; expected an even size: gradient noise is measured between halves"
        )
    if isinstance(engine, (Nuts, Variational)) and engine.temperature != 1:
        found.append(
            f"engine.temperature: given {engine.temperature}; {engine.name} takes the posterior itself, expected 1"
        )
    if isinstance(engine, Langevin) and engine.control_variate and (config.train.shift_pixels or config.train.flip):
        found.append(
            "engine.control_variate: the whole data's gradient has no random shifts or flips; set "
            "train.shift_pixels: 0 and train.flip: false"
        )
    if isinstance(engine, Langevin) and engine.scale_draws is not None:
        if config.prior.name == "gamma":
            others = ", ".join(name for name in registry.PRIORS if name != "gamma")
            found.append(f"engine.scale_draws: prior gamma has no conditional draws; expected null, or one of {others}")
        if engine.temperature != 1:
            found.append(
                f"engine.scale_draws: exact draws have temperature 1, the chain {engine.temperature}; set null"
            )
    return found


def size_problems(config: Config, coordinates: int) -> list[str]:
    """Whether the engine can take a position of so many numbers, before it starts: NUTS's limit, and the memory."""
    engine = config.engine
    if isinstance(engine, Nuts) and coordinates > MAX_NUTS:
        return [
            f"engine.name: given nuts for {coordinates:,} coordinates; it is the reference for at most {MAX_NUTS:,}: "
            "take sghmc, a smaller model.rank, or cuts with prune.max_params before it"
        ]
    key = "particles" if isinstance(engine, Svgd) else "chains"
    members = getattr(engine, key, 1)
    each = 4 * COPIES.get(engine.name, 10) * coordinates
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if members * each > memory:
        return [
            f"engine.{key}: given {members}; with {coordinates:,} numbers each a step needs about "
            f"{members * each / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f}: at most {int(memory // each)}"
        ]
    draws, stored = getattr(engine, "draws", 1), 4 * members * coordinates
    if draws * stored > memory:
        return [
            f"engine.draws: given {draws}; {key} {members} and {coordinates:,} numbers a draw come to "
            f"{draws * stored / 1e9:.1f} GB to predict with, and this machine has {memory / 1e9:.1f}: "
            f"at most {int(memory // stored)}"
        ]
    return []


def _map_key(config: Config) -> str:
    return "engine" if config.engine.name == "map" else "engine.start"


def _refuse(found: Sequence[str]) -> None:
    if found:
        raise ConfigError(messages.listed(found, "config"))
