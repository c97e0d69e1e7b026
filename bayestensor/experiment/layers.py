"""The layers of a config: their geometry, their networks and how large they are."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bayestensor.experiment import registry
from bayestensor.experiment.sections import Lenet5, Resnet

if TYPE_CHECKING:
    from bayestensor.experiment.config import Config
    from bayestensor.models.stage import Stage
    from bayestensor.tensor.network import Network


@dataclass(frozen=True)
class Layer:
    """One layer of a configured model.

    Attributes:
        name: layers.0, layers.1, ...
        in_features: width of its input; of a convolution, its window times the channels that come in.
        out_features: width of its output; of a convolution, the channels that go out.
        network: its kernel as a network of matrix shape (out, in), None where dense.
        bias: whether it has one.
        activation: what follows it, None after the last layer.
        stage: of a convolution, its geometry; where it has batch normalisation, there is no bias.
    """

    name: str
    in_features: int
    out_features: int
    network: Network | None
    bias: bool
    activation: str | None
    stage: Stage | None = None

    @property
    def dense_parameters(self) -> int:
        """Parameters of the dense twin, bias or normalisation included."""
        return self.in_features * self.out_features + self.vectors * self.out_features

    @property
    def parameters(self) -> int:
        """Parameters at the start, bias included."""
        if self.network is None:
            return self.dense_parameters
        return self.network.num_parameters + self.vectors * self.out_features

    @property
    def vectors(self) -> int:
        """Parameters an output beside the kernel: a bias, or scale and shift of a batch normalisation."""
        return 2 if self.stage is not None and self.stage.norm else int(self.bias)

    def flops(self, batch: int) -> float:
        """Operations of one forward pass per datum, cores contracted in the cheapest order for the batch."""
        biases = self.bias * self.out_features * self.times
        if self.network is None:
            return 2 * self.in_features * self.out_features * self.times + biases
        if self.stage is not None:
            from bayestensor.nn.conv import conv_flops

            size, stage = (self.stage.kernel_size,) * 2, self.stage
            return conv_flops(self.network, size, batch, stage.in_shape[:2], stage.conv_space) / batch + biases
        from bayestensor.tensor.plan import matvec_flops

        return matvec_flops(self.network, batch) / batch + biases

    @property
    def times(self) -> int:
        """How often the kernel is applied to one datum."""
        return 1 if self.stage is None else self.stage.windows


class Blueprint(NamedTuple):
    """What a model section comes to on the images of a data set.

    Attributes:
        stages: its convolutions, none of an MLP.
        average: side of the squares whose mean the linear layers see, 0 for the whole image.
        widths: of the linear layers, from what comes in to the classes.
        activation: between layers.
    """

    stages: tuple[Stage, ...]
    average: int
    widths: tuple[int, ...]
    activation: str


def blueprint(config: Config) -> Blueprint:
    """The geometry of a config's model.

    Raises:
        ValueError: nothing is left of the images, or they cannot be averaged so.
    """
    from bayestensor.models.stage import average_shape, residual_stages

    model, facts = config.model, registry.DATASET_FACTS[config.data.name]
    high, wide, *depth = facts.input_shape
    shape = (high, wide, math.prod(depth))
    if isinstance(model, Resnet):
        found = residual_stages(shape, model.depth)
        return Blueprint(found, 0, (found[-1].out_channels, facts.classes), "relu")
    stages = _plain_stages(model, shape) if isinstance(model, Lenet5) else ()
    average = getattr(model, "average", 1)
    left = average_shape(stages[-1].out_shape, average) if stages else facts.input_shape
    return Blueprint(stages, average, (math.prod(left), *model.hidden, facts.classes), model.activation)


def _plain_stages(model: Lenet5, shape: tuple[int, int, int]) -> tuple[Stage, ...]:
    from bayestensor.models.stage import Stage

    found: list[Stage] = []
    pools = model.pool if isinstance(model.pool, tuple) else (model.pool,) * len(model.channels)
    for channels, pool in zip(model.channels, pools, strict=True):
        found.append(Stage(shape, channels, model.kernel_size, model.padding, pool, norm=model.norm))
        shape = found[-1].out_shape
    return tuple(found)


def layers_of(config: Config) -> tuple[tuple[Layer, ...], list[str]]:
    """The layers of a config, and for those that no network can be built for what is wrong with them."""
    plan, layers, found = blueprint(config), [], []
    for k, stage in enumerate(plan.stages):
        try:
            layers.append(_convolution(config.model, k, stage, plan.activation))
        except ValueError as error:
            key, format = _kernel_format(config.model)[::2]
            found.append(f"model.{key}: layers.{k} in format {format}: {error}")
    for k, pair in enumerate(itertools.pairwise(plan.widths)):
        try:
            layers.append(_linear(config.model, k, plan, *pair))
        except ValueError as error:
            key = "model.rank" if config.model.shapes is None or "bond" in str(error) else f"model.shapes.{k}"
            found.append(f"{key}: layers.{len(plan.stages) + k} in format {config.model.format}: {error}")
    return tuple(layers), found


def _kernel_format(model: Any) -> tuple[str, Any, str]:
    """(key of the rank, rank, format) of a model's convolutions."""
    if isinstance(model, Resnet):
        return "rank", model.rank, model.format
    return "conv_rank", model.conv_rank, "dense" if model.format == "dense" else model.conv_format


def _convolution(model: Any, k: int, stage: Stage, activation: str) -> Layer:
    from bayestensor.tensor.sized import conv_network

    (out, width), network, (_, rank, format) = stage.kernel_shape, None, _kernel_format(model)
    if format != "dense" and stage.in_shape[2] >= model.least_channels:
        network = conv_network(out, stage.in_shape[2], (stage.kernel_size,) * 2, format, rank)
    bias = not stage.norm and model.hidden_bias
    return Layer(f"layers.{k}", width, out, network, bias, activation, stage)


def _linear(model: Any, k: int, plan: Blueprint, in_features: int, out_features: int) -> Layer:
    """Linear layer k, convolutions not counted."""
    from bayestensor.tensor import formats

    last, name = k == len(plan.widths) - 2, f"layers.{len(plan.stages) + k}"
    activation = None if last else plan.activation
    if isinstance(model, Resnet):
        return Layer(name, in_features, out_features, None, True, activation)
    network = None
    if model.format != "dense" and not (last and getattr(model, "dense_head", False)):
        if model.shapes is None:
            rows, cols = formats.matrix_shapes(out_features, in_features)
        else:
            cols, rows = model.shapes[k]
        network = formats.FORMATS[model.format](rows, cols, rank=model.rank)
    return Layer(name, in_features, out_features, network, model.output_bias if last else model.hidden_bias, activation)
