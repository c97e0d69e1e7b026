"""What a run measures: predictions, their quality, sizes and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from bayestensor.experiment.model_file import average_spec, layer_spec
from bayestensor.inference.train import in_pieces
from bayestensor.models.convnet import ConvNet, Reference, calibrated
from bayestensor.nn.conv import conv_flops
from bayestensor.tensor.plan import matvec_flops
from bayestensor.typing import Array, Position

if TYPE_CHECKING:
    from bayestensor.models.neural import NeuralModel
    from bayestensor.models.stage import Stage


def reference(model: NeuralModel, x: Array, scale: Callable[[Array], Array], batch_size: int) -> Reference | None:
    """The scaled inputs, of raw training inputs, that statistics of batch normalisation come from; None without any."""
    found = Reference.of(model.module(model.initial_position()), x, batch_size)
    return None if found is None else found._replace(x=jax.jit(scale)(found.x))


def fixed(model: NeuralModel, position: Position, at: Reference | None) -> nnx.Module:
    """The module at a position, with the statistics of batch normalisation that follow from it, where it has any."""
    module = model.module(position)
    return module if at is None else calibrated(module, *at)


def predictor(
    model: NeuralModel, scale: Callable[[Array], Array], at: Reference | None = None
) -> Callable[[Position, ArrayLike], Array]:
    """Compiled (position, raw inputs) -> log class probabilities."""

    @jax.jit
    def predict(position: Position, raw: Array, x: Array | None) -> Array:
        module = fixed(model, position, None if at is None or x is None else at._replace(x=x))
        return jax.nn.log_softmax(in_pieces(lambda piece: module(scale(piece)), raw))

    return lambda position, raw: predict(position, raw, None if at is None else at.x)


def accuracy_and_nll(log_probabilities: ArrayLike, labels: np.ndarray) -> tuple[float, float]:
    """(share of labels met, mean negative log probability of the label)."""
    log_p = np.asarray(log_probabilities, np.float64)
    chosen = np.take_along_axis(log_p, labels[:, None].astype(np.int64), axis=1)
    return float((log_p.argmax(1) == labels).mean()), float(-chosen.mean())


def num_weights(position: Position) -> int:
    """Numbers that the model needs to predict: weights and biases, not the scales, which only training needs."""
    return sum(leaf.size for leaf in jax.tree.leaves(position["weights"]))


def ranks(model: NeuralModel, position: Position) -> dict[str, dict[str, int]]:
    """Layer -> bond -> size."""
    return {name: tensor.network.ranks for name, tensor in model.tensors(position).items()}


def scales(position: Position) -> dict[str, dict[str, list[float]]]:
    """Layer -> bond -> v, largest first, to four digits."""
    return {
        layer: {
            bond: [float(f"{v:.4g}") for v in np.sort(np.exp(np.asarray(log_v, np.float64)))[::-1]]
            for bond, log_v in bonds.items()
        }
        for layer, bonds in position["log_scales"].items()
    }


def layer_table(model: NeuralModel, initial: dict[str, dict[str, int]], position: Position) -> list[dict[str, Any]]:
    """Per layer: shape of its matrix, and parameters and FLOPs (one input) dense, at first and now; biases included.

    A batch normalisation counts with its convolution.
    """
    tensors, stages = model.tensors(position), _stages(model.module(position))
    rows = []
    for k, weights in position["weights"]["layers"].items():
        name, stage = f"layers.{k}", stages.get(k)
        fan_out, fan_in = tensors[name].network.matrix_shape if name in tensors else _as_matrix(weights["kernel"]).shape
        times = 1 if stage is None else stage.windows
        beside = _num(position["weights"]["norms"][f"n{k}"]) if stage is not None and stage.norm else 0
        now = _num(weights) + beside
        dense = fan_in * fan_out + (beside or fan_out)
        row: dict[str, Any] = {"name": name, "shape": [fan_out, fan_in], "params_dense": dense}
        row |= {"params_initial": now, "params_final": now}
        row |= {"flops_dense": 2 * fan_in * fan_out * times, "flops_final": 2 * fan_in * fan_out * times}
        if name in tensors:
            network = tensors[name].network
            row["params_initial"] += network.resized(initial[name]).num_parameters - network.num_parameters
            row["flops_final"] = matvec_flops(network, 1)
            if stage is not None:
                row["flops_final"] = conv_flops(
                    network, (stage.kernel_size,) * 2, 1, stage.in_shape[:2], stage.conv_space
                )
        rows.append(row)
    return rows


def model_layers(
    model: NeuralModel, position: Position, at: Reference | None
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The layers of a network as a model file describes them, and its arrays by name."""
    module: Any = fixed(model, position, at)
    tensors, stages = model.tensors(position), _stages(module)
    layers: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    count = len(position["weights"]["layers"])
    for k in range(count):
        name, weights, stage = f"layers.{k}", position["weights"]["layers"][k], stages.get(k)
        if name in tensors:
            arrays |= {f"{name}.{core}": np.asarray(array) for core, array in tensors[name].cores.items()}
        else:
            arrays[f"{name}.kernel"] = np.asarray(_as_matrix(weights["kernel"]))
        if "bias" in weights:
            arrays[f"{name}.bias"] = np.asarray(weights["bias"])
        elif stage is not None and stage.norm:
            arrays |= {f"{name}.{part}": array for part, array in _affine(module.norms[f"n{k}"]).items()}
        network = tensors[name].network if name in tensors else None
        activation = module.activation if k < count - 1 else None
        layers.append(layer_spec(name, network, f"{name}.bias" in arrays, activation, stage))
        if stages and k == len(stages):
            layers[-1] |= average_spec(stages[k - 1].out_shape, module.average)
    return layers, arrays


def _affine(norm: Any) -> dict[str, np.ndarray]:
    """A batch normalisation with fixed statistics, as `scale * x + bias`."""
    scale = np.asarray(norm.scale[...]) / np.sqrt(np.asarray(norm.var[...]) + norm.epsilon)
    return {"scale": scale, "bias": np.asarray(norm.bias[...]) - scale * np.asarray(norm.mean[...])}


def _num(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _stages(module: nnx.Module) -> dict[int, Stage]:
    """Layer number -> geometry of the layers that are convolutions."""
    return dict(enumerate(module.stages)) if isinstance(module, ConvNet) else {}


def _as_matrix(kernel: Array) -> Array:
    """A dense kernel as (out, in), like a network's matrix; in = window * channels of a convolution's."""
    return kernel.reshape(-1, kernel.shape[-1]).T
