"""Predict with an exported bayestensor model: needs NumPy and the two files model.npz and model.json beside it.

    python predict.py x.npy                  # the class of every row, one a line
    python predict.py x.npy -o p.npy         # the probabilities of every class, as an array

x.npy: the inputs as they come (not scaled), one a row, each of the model's input shape or flattened.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

BATCH = 256


def relu(x):
    """max(x, 0)."""
    return np.maximum(x, 0)


def gelu(x):
    """Gaussian error linear unit, by tanh (Hendrycks and Gimpel 2016)."""
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def silu(x):
    """X times its logistic function."""
    return x * (1 + np.tanh(x / 2)) / 2


ACTIVATIONS: dict = {"relu": relu, "gelu": gelu, "tanh": np.tanh, "silu": silu}


def load(folder):
    """The model's description and arrays."""
    folder = Path(folder)
    spec = json.loads((folder / "model.json").read_text())
    if spec["format_version"] not in (1, 2):
        raise ValueError(f"model.json has format version {spec['format_version']}; this script reads 1 and 2")
    with np.load(folder / "model.npz", allow_pickle=False) as archive:
        return spec, {name: archive[name] for name in archive.files}


def matvec(name, network, arrays, x):
    """y[n, i] = sum_j W[i, j] x[n, j], core by core, without forming W."""
    legs = {leg: k + 1 for k, leg in enumerate(network["sizes"])}  # 0 is the batch
    rows, cols = network["rows"], network["cols"]
    operands = [x.reshape(len(x), *(network["sizes"][leg] for leg in cols)), [0, *(legs[leg] for leg in cols)]]
    for core in network["cores"]:
        operands += [arrays[f"{name}.{core['name']}"], [legs[leg] for leg in core["legs"]]]
    output = [0, *(legs[leg] for leg in rows)]
    order = ["einsum_path", *map(tuple, network["path"])] if "path" in network else "greedy"
    width = math.prod(network["sizes"][leg] for leg in rows)
    return np.einsum(*operands, output, optimize=order).reshape(len(x), width)


def windows(name, layer, arrays, x):
    """Max pooling of W applied to every window of flat images (n, height * width * channels), channels last."""
    stage = layer["stage"]
    side, pool = stage["kernel_size"], stage["pool"]
    images = x.reshape(len(x), *stage["in_shape"])
    before = (side - 1) // 2 if stage["padding"] == "SAME" else 0
    after = side - 1 - before if stage["padding"] == "SAME" else 0
    images = np.pad(images, ((0, 0), (before, after), (before, after), (0, 0)))
    stride = stage.get("stride", 1)
    cut = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))  # n, high, wide, channel, i, j
    cut = cut[:, ::stride, ::stride]
    n, high, wide = cut.shape[:3]
    flat = cut.transpose(0, 1, 2, 4, 5, 3).reshape(n * high * wide, images.shape[3] * side**2)
    network = layer["network"]
    y = flat @ arrays[f"{name}.kernel"].T if network is None else matvec(name, network, arrays, flat)
    y = y.reshape(n, high, wide, y.shape[1])[:, : high // pool * pool, : wide // pool * pool]
    y = y.reshape(n, high // pool, pool, wide // pool, pool, y.shape[3]).max(axis=(2, 4))
    return y * arrays[f"{name}.scale"] if stage.get("norm") else y


def averaged(layer, x):
    """The means over squares of flat images, for a linear layer that takes those."""
    (high, wide, channels), side = layer["average"]["in_shape"], layer["average"]["side"]
    rows, cols = (side, side) if side else (high, wide)
    squares = x.reshape(len(x), high // rows, rows, wide // cols, cols, channels).mean(axis=(2, 4))
    return squares.reshape(len(x), math.prod(squares.shape[1:]))


def shortcut(x, shape):
    """Images (n, high, wide, channels) strided and filled up with zero channels to a shape."""
    stride = -(-x.shape[1] // shape[1])
    return np.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, shape[3] - x.shape[3])))


def logits(spec, arrays, x):
    """One row of class scores for every input; of a mixture, the log of the members' mean probability."""
    x = np.asarray(x, np.float32)
    size = math.prod(spec["input_shape"])
    if x.ndim < 1 or math.prod(x.shape[1:]) != size:
        raise ValueError(f"inputs have shape {x.shape}; expected (n, {', '.join(map(str, spec['input_shape']))})")
    x = x.reshape(len(x), size)
    pieces = [x[k : k + BATCH] for k in range(0, max(len(x), 1), BATCH)]
    if "members" not in spec:
        return np.concatenate([_logits(spec, arrays, piece) for piece in pieces])
    total = np.zeros((len(x), spec["classes"]))
    for k in range(spec["members"]):
        member = {name: array[k] for name, array in arrays.items()}
        total += np.concatenate([softmax(_logits(spec, member, piece)) for piece in pieces])
    return np.log(np.maximum(total / spec["members"], np.finfo(np.float64).tiny))


def _logits(spec, arrays, x):
    shift, scale = (np.asarray(spec["scaling"][what], np.float32) for what in ("shift", "scale"))
    x = (x - shift) / scale
    outputs: list = []  # of convolutions, as images
    for layer in spec["layers"]:
        name = layer["name"]
        network = layer["network"]
        if layer["kind"] == "conv":
            x = windows(name, layer, arrays, x)
        else:
            x = averaged(layer, x) if "average" in layer else x
            x = x @ arrays[f"{name}.kernel"].T if network is None else matvec(name, network, arrays, x)
        if layer["bias"]:
            x = x + arrays[f"{name}.bias"]
        added = layer.get("stage", {}).get("add")
        if added is not None:
            x = x + shortcut(outputs[added], x.shape)
        if layer["activation"] is not None:
            x = ACTIVATIONS[layer["activation"]](x)
        outputs.append(x)
        x = x.reshape(len(x), math.prod(x.shape[1:]))
    return x


def probabilities(spec, arrays, x):
    """Softmax of the logits."""
    return softmax(logits(spec, arrays, x))


def softmax(z):
    """exp(z) over its sum, a row at a time."""
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def main(arguments=None):
    """Command line."""
    parser = argparse.ArgumentParser(description="Predict with the model beside this script.")
    parser.add_argument("inputs", help=".npy file, one input a row")
    parser.add_argument("-o", "--output", help=".npy file for the probabilities")
    options = parser.parse_args(arguments)
    try:
        spec, arrays = load(Path(__file__).parent)
        p = probabilities(spec, arrays, np.load(options.inputs, allow_pickle=False))
        if options.output:
            np.save(options.output, p)
        else:
            print("\n".join(map(str, p.argmax(axis=1))))
    except (OSError, ValueError, KeyError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
