"""Time and memory of whole models: dense, tensorized, and after pruning, in one process with the calls interleaved.

python experiments/model_speed/bench.py [--models mlp lenet5 bilstm encoder cnn resnet20] [--batches 1 128]
    [--calls inference step] [--rounds 15] [--out experiments/model_speed/results.jsonl]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bayestensor as bt
from bayestensor.compression.flops import product_flops
from bayestensor.compression.report import count
from bayestensor.experiment.build import network
from bayestensor.experiment.config import load
from bayestensor.inference.train import COMPILER_OPTIONS
from bayestensor.models.convnet import ConvNet
from bayestensor.models.neural import NeuralModel
from bayestensor.models.sequence import bilstm, transformer_encoder
from bayestensor.models.stage import Stage
from bayestensor.tensor.network import Network
from bayestensor.tensor.sized import conv_network

CONFIGS = Path(__file__).parents[2] / "configs"
LOW = {"bilstm": 9, "encoder": 9, "cnn": 16, "resnet20": 8}  # ranks of all bonds; the first two at 40x
VOCABULARY, LENGTH, WIDTH = 11472, 16, 64  # as experiments/snips
Ranks = dict[str, dict[str, int]]
RANKS: dict[str, Ranks] = {  # after pruning: of seed 0 of experiments/formats_mnist and configs/lenet5_mnist_map.yaml
    "mlp": {"layers.0": {"b1": 9, "b2": 5, "b3": 5}, "layers.1": {"b1": 14}},
    "lenet5": {
        "layers.0": {"b1": 6},
        "layers.1": {"b1": 8, "b2": 6},
        "layers.2": {"b1": 13},
        "layers.3": {"b1": 11},
        "layers.4": {"b1": 11},
    },
}


def mlp(dense: bool) -> nnx.Module:
    networks = [bt.tt_matrix((5, 5, 5, 5), (7, 4, 7, 4), 20), bt.tt_matrix((5, 2), (25, 25), 20)]
    layers: list[Network | tuple[int, int]] = [(784, 625), (625, 10)] if dense else list(networks)
    return bt.MLP(layers, activation="gelu", rngs=nnx.Rngs(0))


def lenet5(dense: bool) -> nnx.Module:
    stages = [Stage((28, 28, 1), 6), Stage((12, 12, 6), 16)]
    kernels = [None, None] if dense else [conv_network(6, 1, (5, 5), rank=8), conv_network(16, 6, (5, 5), rank=8)]
    shapes = [((10, 12), (16, 16)), ((7, 12), (10, 12)), ((2, 5), (7, 12))]
    layers: list[Network | tuple[int, int]] = [(256, 120), (120, 84), (84, 10)]
    if not dense:
        layers = [bt.tt_matrix(rows, cols, 16) for rows, cols in shapes]
    return ConvNet(list(zip(stages, kernels, strict=True)), layers, rngs=nnx.Rngs(0))


def recurrent(dense: bool) -> nnx.Module:
    format, rank = ("dense", 1) if dense else ("tt_matrix", 15)
    return bilstm(VOCABULARY, WIDTH, WIDTH, 7, format=format, rank=rank, rngs=nnx.Rngs(0))


def encoder(dense: bool) -> nnx.Module:
    format, rank = ("dense", 1) if dense else ("tt_matrix", 14)
    return transformer_encoder(VOCABULARY, LENGTH, WIDTH, 7, format=format, rank=rank, rngs=nnx.Rngs(0))


def configured(name: str, dense: bool) -> nnx.Module:
    """The network of a config at its start."""
    plain = ["model.format=dense"] + (["model.shapes=null"] if name.startswith("cnn") else [])
    return network(load(CONFIGS / f"{name}.yaml", plain if dense else []))(jax.random.key(0))


MODELS: dict[str, tuple[Callable[[bool], nnx.Module], int | None]] = {
    "mlp": (mlp, 784),
    "lenet5": (lenet5, 784),
    "bilstm": (recurrent, None),
    "encoder": (encoder, None),
    "cnn": (partial(configured, "cnn_cifar10"), 3072),
    "resnet20": (partial(configured, "resnet20_cifar10"), 3072),
}


def pruned(name: str, model: nnx.Module) -> nnx.Module:
    """The model at the ranks that training left (`RANKS`), or at one rank for all bonds (`LOW`)."""
    neural = NeuralModel(model, bt.LogUniform(), bt.Categorical())
    position = neural.initial_position()
    ranks = RANKS.get(name) or {
        layer: {bond: min(size, LOW[name]) for bond, size in tensor.network.ranks.items()}
        for layer, tensor in neural.tensors(position).items()
    }
    keep = {layer: {bond: np.arange(rank) for bond, rank in bonds.items()} for layer, bonds in ranks.items()}
    cut = jax.tree.map(lambda array, function: function(array), position, neural.cuts(position, keep))
    return neural.module(cut)


class Call(NamedTuple):
    """A compiled call with its arguments, what memory it takes besides them, and what it computes."""

    run: Callable[..., Any]
    arguments: tuple
    bytes: int  # arguments (weights and optimiser; the data left out), results and intermediates
    flops: int  # of its matrix products, in the order that the planner chose


def calls(model: nnx.Module, features: int | None, batch: int, wanted: Sequence[str]) -> dict[str, Call]:
    """The forward pass, and a step of Adam: those of the two that are wanted."""
    graphdef, weights = nnx.split(model)
    fixed = nnx.clone(model)
    fixed.eval()  # normalises by running averages, where it normalises
    predicting = nnx.graphdef(fixed)
    rng = np.random.default_rng(0)
    if features is None:
        x = jnp.asarray(rng.integers(1, VOCABULARY, (batch, LENGTH)).astype(np.int32))
    else:
        x = jnp.asarray(rng.normal(size=(batch, features)).astype(np.float32))
    y = jnp.asarray(rng.integers(0, 7, batch).astype(np.int32))
    adam = optax.adam(1e-3)

    def forward(weights, x):
        return nnx.merge(predicting, weights)(x)

    def step(weights, moments, x, y):
        def loss(weights):
            logits = nnx.merge(graphdef, weights)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, moments = adam.update(jax.grad(loss)(weights), moments)
        return optax.apply_updates(weights, updates), moments

    options = COMPILER_OPTIONS.get(jax.default_backend())
    arguments = {"inference": (forward, (weights, x)), "step": (step, (weights, adam.init(weights), x, y))}
    made = {}
    for name in wanted:
        function, given = arguments[name]
        compiled = jax.jit(function).lower(*given).compile(options)
        memory = compiled.memory_analysis()
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        flops = product_flops(jax.make_jaxpr(function)(*given).jaxpr).total()
        made[name] = Call(compiled, given, total - x.nbytes - (y.nbytes if name == "step" else 0), flops)
    return made


def timed(ways: dict[Any, Call], rounds: int) -> dict[Any, float]:
    """Median milliseconds of CPU time of one call, the calls of all ways taking turns."""
    for call in ways.values():
        jax.block_until_ready(call.run(*call.arguments))
    repeats = {}
    for way, call in ways.items():
        began = time.process_time()
        jax.block_until_ready(call.run(*call.arguments))
        repeats[way] = max(1, min(50, int(0.02 / (time.process_time() - began))))
    spent: dict[Any, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            began = time.process_time()
            for _ in range(repeats[way]):
                jax.block_until_ready(call.run(*call.arguments))
            spent[way].append(1e3 * (time.process_time() - began) / repeats[way])
    return {way: statistics.median(times) for way, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 128])
    parser.add_argument("--calls", nargs="+", default=["inference", "step"], choices=["inference", "step"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    options = parser.parse_args()
    for name in options.models:
        make, features = MODELS[name]
        variants = {"dense": make(True), "tensorized": make(False), "pruned": pruned(name, make(False))}
        for batch in options.batches:
            ways = {
                (variant, what): call
                for variant, model in variants.items()
                for what, call in calls(model, features, batch, options.calls).items()
            }
            milliseconds = timed(ways, options.rounds)
            for variant, model in variants.items():
                record = {"model": name, "batch": batch, "variant": variant, "parameters": count(model)}
                for what in options.calls:
                    record[f"{what}_ms"] = milliseconds[variant, what]
                    record[f"{what}_bytes"] = ways[variant, what].bytes
                    record[f"{what}_flops"] = ways[variant, what].flops
                print(record, flush=True)
                with options.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
