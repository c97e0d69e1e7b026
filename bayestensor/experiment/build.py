"""From config sections to the objects they name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bayestensor.data.augment import flip_images, shift_images
from bayestensor.experiment.check import MAX_NUTS, check, num_train
from bayestensor.experiment.engines import DEFAULT_START, map_section
from bayestensor.experiment.layers import blueprint
from bayestensor.experiment.optimizers import optimizer
from bayestensor.experiment.schedule import Schedule
from bayestensor.inference.base import Engine, Posterior, normals
from bayestensor.inference.map import map_estimate, shrinkage_schedule
from bayestensor.inference.sample import jitter
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.sgld import sgld
from bayestensor.inference.svgd import svgd
from bayestensor.models.convnet import ConvNet
from bayestensor.models.likelihoods import Categorical
from bayestensor.models.neural import NeuralModel
from bayestensor.models.noncentred import Noncentred, noncentred
from bayestensor.nn.linear import MLP
from bayestensor.nn.remat import rematerialise
from bayestensor.priors import PRIORS, SvdPenalty
from bayestensor.typing import Array, Key, Position

if TYPE_CHECKING:
    from bayestensor.experiment.config import Config
    from bayestensor.inference.gradient import Centre


def network(config: Config) -> Callable[[Key[Array, ""]], nnx.Module]:
    """key -> the network of a config."""
    layers, plan = check(config), blueprint(config)
    stages = [(layer.stage, layer.network) for layer in layers if layer.stage is not None]
    linear = [layer.network or (layer.in_features, layer.out_features) for layer in layers[len(stages) :]]
    options: dict[str, Any] = {"activation": plan.activation, "use_bias": [layer.bias for layer in layers]}

    def create(key: Key[Array, ""]) -> nnx.Module:
        rngs = nnx.Rngs(key)
        model = ConvNet(stages, linear, average=plan.average, rngs=rngs, **options) if stages else None
        return rematerialise(model or MLP(linear, rngs=rngs, **options), config.train.rematerialise)

    return create


def prior(config: Config) -> Any:
    """The prior of the squared scales, or of the cores themselves."""
    options = config.prior.hyperparameters()
    if config.prior.name == "svd_penalty":
        weights = {name: num_train(config) * options[name] for name in ("orthogonality", "sparsity")}
        return SvdPenalty(**options | weights)
    return PRIORS[config.prior.name](**options)


def neural_model(config: Config) -> tuple[NeuralModel, Callable]:
    """The model without arrays, and the function key -> initial position."""
    create = network(config)
    # structure from an abstract run, arrays from one compiled call: an eager start compiles every draw by itself
    abstract = nnx.eval_shape(lambda: create(jax.random.key(0)))
    narrow = None if config.train.precision == "float32" else jnp.dtype(config.train.precision)
    model = NeuralModel(abstract, prior(config), Categorical(), config.prior.bias_sd, narrow)

    def initial(key: Key[Array, ""]) -> Position:
        weights = nnx.to_pure_dict(nnx.state(create(key), nnx.Param))
        return model.started(model.initial_position() | {"weights": weights})

    return model, initial


def map_engine(config: Config, model: NeuralModel, posterior: Posterior, steps_per_epoch: int) -> Engine:
    """The MAP engine of a config, of another engine's start where it is not MAP itself."""
    section = map_section(config.engine) or DEFAULT_START
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


def coordinates(config: Config, model: NeuralModel, num_data: int) -> Noncentred:
    """What an engine runs on: non-centred coordinates, or the model's own where scales have a closed form."""
    if config.engine.name != "variational":
        return noncentred(model, num_data)

    def around(key: Key[Array, ""], position: Position, relative: float) -> Position:
        return jax.tree.map(lambda x: x[0], jitter(key, position, 1, relative))

    return Noncentred(model.posterior(num_data), lambda position: position, lambda at: at, around)


def _langevin(make: Callable[..., Engine], *names: str) -> Callable[..., Engine]:
    def build(section: Any, model: NeuralModel, posterior: Posterior, plan: Schedule, centre: Centre | None) -> Engine:
        return make(
            posterior,
            burn_in=plan.burn_in,
            cycle=plan.cycle,
            centre=centre,
            conditional_every=section.scale_draws,
            **{name: getattr(section, name) for name in ("step_size", "temperature", *names)},
        )

    return build


def _svgd(section: Any, model: NeuralModel, posterior: Posterior, plan: Schedule, centre: Centre | None) -> Engine:
    names = ("kernel", "noisy", "step_size", "temperature")
    several = section.start.name == "map" and section.starts > 1
    return svgd(
        posterior, burn_in=plan.burn_in, several_modes=several, **{name: getattr(section, name) for name in names}
    )


def _nuts(section: Any, model: NeuralModel, posterior: Posterior, plan: Schedule, centre: Centre | None) -> Engine:
    from bayestensor.inference.nuts import nuts

    names = ("target_acceptance", "max_doublings")
    options = {name: getattr(section, name) for name in names}
    return nuts(posterior, burn_in=plan.burn_in, max_dimension=MAX_NUTS, **options)


def _variational(
    section: Any, model: NeuralModel, posterior: Posterior, plan: Schedule, centre: Centre | None
) -> Engine:
    from bayestensor.inference.variational import second_moment, variational

    def closed_form(mean: Position, variance: Position) -> Position:
        return model.clip_scales(model.mode_scales(second_moment(mean, variance)), section.scale_floor)

    return variational(
        posterior,
        optimiser=optax.adam(optax.cosine_decay_schedule(section.learning_rate, max(plan.burn_in, 1))),
        burn_in=plan.burn_in,
        points=("log_scales",),
        closed_form=closed_form,
    )


SAMPLERS: dict[str, Callable[[Any, NeuralModel, Posterior, Schedule, Centre | None], Engine]] = {
    "sghmc": _langevin(sghmc, "friction"),
    "sgld": _langevin(sgld),
    "svgd": _svgd,
    "nuts": _nuts,
    "variational": _variational,
}


def prior_position(model: NeuralModel, coordinates: Noncentred, key: Key[Array, ""], like: Position) -> Position:
    """A draw of the prior in the coordinates that samplers run on, in the shapes of a position."""
    weights_key, cores_key, scales_key = jax.random.split(key, 3)
    weights = normals(weights_key, like["weights"], model.weight_sd)
    log_scales: dict[str, dict[str, Array]] = {}
    for k, (name, bonds) in enumerate(model.log_scales(like).items()):
        keys = jax.random.split(jax.random.fold_in(scales_key, k), len(bonds))
        drawn = {b: model.priors[name].sample(key, v.shape) for key, (b, v) in zip(keys, bonds.items(), strict=True)}
        log_scales[name] = {bond: jnp.log(v) for bond, v in drawn.items()}
    tensors = model.tensors(like)
    at = coordinates.from_position(model.with_tensors(like | {"weights": weights}, _cores(tensors), log_scales))
    z = normals(cores_key, _cores(tensors))
    return model.with_tensors(at, z, model.log_scales(at))


def _cores(tensors: Any) -> dict[str, dict[str, Array]]:
    return {name: dict(tensor.cores) for name, tensor in tensors.items()}


def scaler(shift: float, scale: float) -> Callable[[Array], Array]:
    """Raw inputs (batch, ...) -> `(inputs - shift) / scale`, flat and float32."""
    return lambda raw: ((raw.astype(jnp.float32) - shift) / scale).reshape(raw.shape[0], math.prod(raw.shape[1:]))


def preparation(config: Config, scale: Callable[[Array], Array]) -> Callable[[Key[Array, ""], Array], Array]:
    """(key, raw training inputs) -> what the model sees: augmented, then scaled."""
    pixels, flip = config.train.shift_pixels, config.train.flip

    def prepare(key: Key[Array, ""], raw: Array) -> Array:
        if flip:
            raw = flip_images(jax.random.fold_in(key, 1), raw)
        if pixels:
            raw = shift_images(key, raw, pixels)
        return scale(raw)

    return prepare
