"""A compressed model on disk: `model.npz` holds the parameters and nothing else, `model.json` what they mean.

    {"format_version": 2, "input_shape": [28, 28], "scaling": {"shift": 0.0, "scale": 255.0}, "classes": 10,
     "layers": [{"name": "layers.0", "kind": "linear", "bias": true, "activation": "relu",
                 "network": {"cores": [{"name": "core0", "legs": ["i0", "j0", "b1"]}, ...], "sizes": {"i0": 5, ...},
                             "rows": ["i0", ...], "cols": ["j0", ...]}}, ...]}

A layer computes `activation(W x + bias)`, W of shape (out, in); `network` is null where W is dense. One of kind "conv"
also has `"stage": {"in_shape": [28, 28, 1], "kernel_size": 5, "padding": "VALID", "pool": 2}`: it takes and gives flat
images, channels last, and computes `activation(max pool(W * x + bias))`, in = window * channels. Its stage may have a
`"stride"`; `"norm": true` for `scale * max pool(W * x) + bias`, a batch normalisation with fixed statistics; and
`"add": k`, for the output of layer k, strided and filled up with zero channels, to be added before the activation. A
linear layer with `"average": {"in_shape": [8, 8, 64], "side": 8}` takes the means over squares of flat images, over all
of them where the side is 0. The input is `(x - shift) / scale`, flattened. Arrays: layers.0.core0, ... or
layers.0.kernel, layers.0.scale and layers.0.bias, all float32. Version 1 had none of stride, norm, add and average.
With `"members": 200` every array has 200 in front, a draw each, and the model is the mean of their probabilities.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.errors import RunError
from bayestensor.files import write_atomically
from bayestensor.models.convnet import max_pool, mean_pool, shortcut
from bayestensor.models.stage import Stage, average_shape, check_chain
from bayestensor.nn.conv import convolve, dense_convolution
from bayestensor.nn.linear import ACTIVATIONS
from bayestensor.tensor.contract import matvec
from bayestensor.tensor.network import Core, Network, factored
from bayestensor.typing import Array, Float

FORMAT_VERSION = 2
READABLE = (1, 2)


def layer_spec(
    name: str, network: Network | None, bias: bool, activation: str | None, stage: Stage | None = None
) -> dict[str, Any]:
    """One entry of a spec's `layers`; a convolution where there is a stage."""
    described = None
    if network is not None:
        cores = [{"name": core.name, "legs": list(core.legs)} for core in network.cores]
        described = {"cores": cores, "sizes": network.size, "rows": list(network.rows), "cols": list(network.cols)}
    spec = {"name": name, "kind": "linear", "network": described, "bias": bias, "activation": activation}
    if stage is None:
        return spec
    return spec | {"kind": "conv", "stage": dataclasses.asdict(stage) | {"in_shape": list(stage.in_shape)}}


def average_spec(in_shape: Sequence[int], side: int) -> dict[str, Any]:
    """What a linear layer's spec has more where it takes the means over squares of images."""
    return {} if side == 1 else {"average": {"in_shape": list(in_shape), "side": side}}


def model_spec(
    layers: Sequence[Mapping[str, Any]],
    input_shape: Sequence[int],
    classes: int,
    shift: float | Sequence[float] = 0.0,
    scale: float | Sequence[float] = 1.0,
    members: int | None = None,
) -> dict[str, Any]:
    """The spec of a chain of `layer_spec`s on inputs `(x - shift) / scale`, or of a mixture of `members` such."""
    spec = {
        "format_version": FORMAT_VERSION,
        "input_shape": list(input_shape),
        "scaling": {"shift": np.asarray(shift).tolist(), "scale": np.asarray(scale).tolist()},
        "layers": list(layers),
        "classes": classes,
    }
    return spec if members is None else spec | {"members": members}


def save_model(stem: str | Path, spec: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write `<stem>.npz` and `<stem>.json`.

    Raises:
        RunError: arrays that do not fit the spec, entries that are not finite, a full disk.
    """
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    stem = Path(stem)
    _fit(stem.with_suffix(".npz"), spec, arrays)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(stem.with_suffix(".npz"), buffer.getvalue())
    write_atomically(stem.with_suffix(".json"), (json.dumps(spec, indent=1, allow_nan=False) + "\n").encode())


def load_model(stem: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The spec and arrays under a stem.

    Raises:
        RunError: a file that is missing, damaged, of another version, or that does not fit the other.
    """
    npz, description = Path(stem).with_suffix(".npz"), Path(stem).with_suffix(".json")
    for path in (npz, description):
        if not path.is_file():
            raise RunError(f"{path}: no such file; a finished run writes it")
    try:
        spec = json.loads(description.read_bytes())
        version = spec["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunError(f"{description}: damaged; expected a model description in JSON") from None
    if version not in READABLE:
        raise RunError(
            f"{description}: format version {version}; this version reads {' and '.join(map(str, READABLE))}"
        )
    try:
        with np.load(npz, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, NotImplementedError):
        raise RunError(f"{npz}: damaged; expected a NumPy archive of arrays") from None
    try:
        _fit(npz, spec, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{description}: damaged: {' '.join(str(error).split())}") from None
    return spec, arrays


def apply(
    spec: Mapping[str, Any], arrays: Mapping[str, Array], x: Float[Array, "*batch in"]
) -> Float[Array, "*batch classes"]:
    """Logits of flat, unscaled inputs; of a mixture, the log of the members' mean probability."""
    members = spec.get("members")
    if members is None:
        return _apply(spec, arrays, x)
    log_p = jax.lax.map(lambda one: jax.nn.log_softmax(_apply(spec, one, x)), dict(arrays))
    return jax.nn.logsumexp(log_p, axis=0) - math.log(members)


def _apply(spec: Mapping[str, Any], arrays: Mapping[str, Array], x: Array) -> Array:
    scaling = spec["scaling"]
    shift, scale = (jnp.broadcast_to(jnp.asarray(scaling[what], x.dtype), x.shape) for what in ("shift", "scale"))
    x = (x - shift) / scale
    outputs: list[Array] = []
    for layer in spec["layers"]:
        x = (_linear if layer["kind"] == "linear" else _convolution)(layer, arrays, x)
        if (k := layer.get("stage", {}).get("add")) is not None:
            x = x + _shortcut(layer_stage(spec["layers"][k]), layer_stage(layer), outputs[k])
        if layer["activation"] is not None:
            x = ACTIVATIONS[layer["activation"]](x)
        outputs.append(x)
    return x


def _shortcut(before: Stage, after: Stage, x: Array) -> Array:
    y = shortcut(x.reshape(-1, *before.out_shape), after.out_shape)
    return y.reshape(*x.shape[:-1], math.prod(after.out_shape))


def layer_network(layer: Mapping[str, Any]) -> Network | None:
    """The network a layer's spec describes, None where it is dense."""
    described = layer["network"]
    if described is None:
        return None
    cores = tuple(Core(core["name"], tuple(core["legs"])) for core in described["cores"])
    return Network(cores, described["sizes"], tuple(described["rows"]), tuple(described["cols"]))


def _linear(layer: Mapping[str, Any], arrays: Mapping[str, Array], x: Array) -> Array:
    name, network = layer["name"], layer_network(layer)
    if "average" in layer:
        means = mean_pool(x.reshape(-1, *layer["average"]["in_shape"]), layer["average"]["side"])
        x = means.reshape(*x.shape[:-1], math.prod(means.shape[1:]))
    if network is None:
        y = x @ arrays[f"{name}.kernel"].T
    else:
        y = matvec(factored(network, {core: arrays[f"{name}.{core}"] for core in network.core}), x)
    return y + jnp.broadcast_to(arrays[f"{name}.bias"], y.shape) if layer["bias"] else y


def _convolution(layer: Mapping[str, Any], arrays: Mapping[str, Array], x: Array) -> Array:
    name, network, stage = layer["name"], layer_network(layer), layer_stage(layer)
    images, size, strides = x.reshape(-1, *stage.in_shape), (stage.kernel_size,) * 2, (stage.stride,) * 2
    if network is None:
        kernel = arrays[f"{name}.kernel"].T.reshape(*size, stage.in_shape[2], -1)
        numbers = ("NHWC", "HWIO", "NHWC")
        y = dense_convolution(images, kernel, strides, stage.pads, dimension_numbers=numbers)
    else:
        tensor = factored(network, {core: arrays[f"{name}.{core}"] for core in network.core})
        y = convolve(tensor, images, size, strides, stage.pads)
    y = max_pool(y, stage.pool)
    if stage.norm:
        y = y * jnp.broadcast_to(arrays[f"{name}.scale"], y.shape)
    y = y + jnp.broadcast_to(arrays[f"{name}.bias"], y.shape) if layer["bias"] else y
    return y.reshape(*x.shape[:-1], math.prod(y.shape[1:]))


def layer_stage(layer: Mapping[str, Any], out_channels: int | None = None) -> Stage:
    """The geometry that a convolution's spec describes; of version 1, which had no out_channels, for so many."""
    described = dict(layer["stage"]) | ({} if out_channels is None else {"out_channels": out_channels})
    described.setdefault("out_channels", 1)
    return Stage(**described | {"in_shape": tuple(described["in_shape"])})


def _fit(path: Path, spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse arrays that are not exactly what the spec describes."""
    wanted: dict[str, tuple[int, ...]] = {}
    front = () if spec.get("members") is None else (int(spec["members"]),)
    width, stages = math.prod(spec["input_shape"]), []
    for layer in spec["layers"]:
        name, network = layer["name"], layer_network(layer)
        _known(path, layer, width)
        if network is None:
            kernel = arrays.get(f"{name}.kernel")
            matrix = kernel is not None and kernel.ndim == len(front) + 2
            rows, cols = kernel.shape[-2:] if matrix else (-1, width)  # type: ignore[union-attr]
            wanted[f"{name}.kernel"] = (rows, cols)
        else:
            rows, cols = network.matrix_shape
            wanted |= {f"{name}.{core}": network.core_shape(core) for core in network.core}
        if layer["bias"]:
            wanted[f"{name}.bias"] = (rows,)
        if layer["kind"] == "conv":
            stages.append(layer_stage(layer, max(rows, 1)))
            if stages[-1].norm:
                wanted[f"{name}.scale"] = (rows,)
            taken = stages[-1].kernel_shape[1]
        else:
            means = layer.get("average")
            taken = width if means is None else math.prod(average_shape(means["in_shape"], means["side"]))
        if cols != taken:
            raise RunError(f"{path}: {name} takes {cols} inputs; {taken} come in")
        width = rows if layer["kind"] == "linear" else math.prod(stages[-1].out_shape)
    check_chain(stages)
    if width != spec["classes"]:
        raise RunError(f"{path}: the last layer gives {width} outputs; expected {spec['classes']} classes")
    if set(wanted) != set(arrays):
        raise RunError(f"{path}: holds arrays {sorted(arrays)}; the model has {sorted(wanted)}")
    for name, own in wanted.items():
        shape = (*front, *own)
        if arrays[name].shape != shape or arrays[name].dtype != np.float32:
            raise RunError(f"{path}: {name} is {arrays[name].dtype} {arrays[name].shape}; expected float32 {shape}")
        if not np.isfinite(arrays[name]).all():
            raise RunError(f"{path}: {name} has entries that are not finite")


def _known(path: Path, layer: Mapping[str, Any], width: int) -> None:
    """Refuse a layer of an unknown kind or activation, or one that takes images other than those that come in."""
    name = layer["name"]
    if layer["kind"] not in ("linear", "conv"):
        raise RunError(f"{path}: {name} is of kind {layer['kind']!r}; known: linear, conv")
    if layer["activation"] not in (None, *ACTIVATIONS):
        raise RunError(f"{path}: {name} has activation {layer['activation']!r}; known: {', '.join(ACTIVATIONS)}")
    images = layer.get("stage" if layer["kind"] == "conv" else "average")
    if images is not None and math.prod(images["in_shape"]) != width:
        raise RunError(f"{path}: {name} takes images of {images['in_shape']}; {width} numbers come in")
