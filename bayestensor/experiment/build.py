"""From config sections to the objects they name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bayestensor.data.augment import shift_images
from bayestensor.experiment.check import check
from bayestensor.experiment.optimizers import optimizer
from bayestensor.inference.base import Engine, Posterior
from bayestensor.inference.map import map_estimate, shrinkage_schedule
from bayestensor.models.likelihoods import Categorical
from bayestensor.models.neural import NeuralModel
from bayestensor.nn.linear import MLP
from bayestensor.priors import PRIORS
from bayestensor.typing import Array, Key, Position

if TYPE_CHECKING:
    from bayestensor.experiment.config import Config


def mlp(config: Config) -> Callable[[Key[Array, ""]], nnx.Module]:
    """key -> the network of a config."""
    layers = check(config)

    def create(key: Key[Array, ""]) -> nnx.Module:
        return MLP(
            [layer.network or (layer.in_features, layer.out_features) for layer in layers],
            activation=config.model.activation,
            use_bias=[layer.bias for layer in layers],
            rngs=nnx.Rngs(key),
        )

    return create


def prior(config: Config) -> Any:
    """The prior of the squared scales."""
    options = config.prior.model_dump(exclude={"name", "bias_sd"})
    return PRIORS[config.prior.name](**options)


def neural_model(config: Config) -> tuple[NeuralModel, Callable]:
    """The model without arrays, and the function key -> initial position."""
    create = mlp(config)
    # structure from an abstract run, arrays from one compiled call: an eager start compiles every draw by itself
    abstract = nnx.eval_shape(lambda: create(jax.random.key(0)))
    model = NeuralModel(abstract, prior(config), Categorical(), weight_sd=config.prior.bias_sd)

    def initial(key: Key[Array, ""]) -> Position:
        weights = nnx.to_pure_dict(nnx.state(create(key), nnx.Param))
        return model.initial_position() | {"weights": weights}

    return model, initial


def map_engine(config: Config, model: NeuralModel, posterior: Posterior, steps_per_epoch: int) -> Engine:
    """The MAP engine of a config."""
    section = config.engine
    before = shrinkage_schedule(section.temperature, steps_per_epoch, section.warmup_epochs, section.ramp_epochs)
    refit_step = max(config.prune.epochs, default=0) * steps_per_epoch

    def temperature(step):
        if section.refit_temperature is None or not config.prune.epochs:
            return before(step)
        return jnp.where(step >= refit_step, section.refit_temperature, before(step))

    def after_step(position: Position) -> Position:
        if section.scales == "mode":
            position = model.mode_scales(position, section.mode_damping, section.scale_floor)
        return model.clip_scales(position, section.scale_floor)

    def faster_scales(updates, params):
        return updates | {"log_scales": jax.tree.map(lambda u: section.scale_rate * u, updates["log_scales"])}

    steps = optimizer(section.optimizer, config.train.epochs * steps_per_epoch)
    return map_estimate(
        posterior,
        optax.chain(steps, optax.stateless(faster_scales)),
        temperature=temperature,
        after_step=after_step if model.kernels else None,
    )


ENGINES: dict[str, Callable[[Config, NeuralModel, Posterior, int], Engine]] = {"map": map_engine}


def scaler(shift: float, scale: float) -> Callable[[Array], Array]:
    """Raw inputs (batch, ...) -> `(inputs - shift) / scale`, flat and float32."""
    return lambda raw: ((raw.astype(jnp.float32) - shift) / scale).reshape(raw.shape[0], math.prod(raw.shape[1:]))


def preparation(config: Config, scale: Callable[[Array], Array]) -> Callable[[Key[Array, ""], Array], Array]:
    """(key, raw training inputs) -> what the model sees: augmented, then scaled."""
    pixels = config.train.shift_pixels
    if not pixels:
        return lambda key, raw: scale(raw)
    return lambda key, raw: scale(shift_images(key, raw, pixels))
