"""Tensorized convolutions by each way that their cores allow: ms of a step (forward, gradients of cores and images).

python experiments/conv_speed/chains.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.compression.flops import product_flops
from bayestensor.nn import conv
from bayestensor.tensor.initialise import initialise
from bayestensor.tensor.network import Factored
from bayestensor.tensor.sized import conv_network

SHAPES = {  # batch, side, channels in and out, window; SAME
    "ResNet-20, last stage": (128, 8, 64, 3),
    "CNN, second": (16, 16, 128, 3),
    "a wide window": (64, 16, 32, 7),
}
KERNELS = {"dense": 0, "svd": 16, "svd_spatial": 16, "tensor_train": 16, "cp": 32}  # rank
ORDER = ("whole windows", "channels first", "one axis first")


def step(kernel: Callable[[Any, jax.Array], jax.Array], weights: Any, x: jax.Array) -> Any:
    return jax.grad(lambda weights, x: (jnp.maximum(kernel(weights, x), 0) ** 2).sum(), (0, 1))(weights, x)


def ways(format: str, rank: int, channels: int, size: tuple[int, int], x: jax.Array) -> dict[str, tuple]:
    """Name -> (compiled step, its weights, operations); the way that is counted cheapest has a star."""
    pads = ((size[0] // 2,) * 2,) * 2
    if format == "dense":
        weights: Any = jnp.ones((*size, channels, channels)) / 100
        kernels = {"": lambda w, x: conv.dense_convolution(x, w, (1, 1), pads)}
    else:
        network = conv_network(channels, channels, size, format, rank)
        weights = initialise(jax.random.key(0), network, 1e-3).cores
        picked, _ = conv.cheapest(network, size, len(x), x.shape[1:-1], x.shape[1:-1])

        def forced(parts, cores, x):
            kept, conv.cheapest = conv.cheapest, lambda *_: (parts, 0.0)
            try:
                return conv.convolve(Factored(network, cores), x, size, (1, 1), pads)
            finally:
                conv.cheapest = kept

        kernels = {}
        for parts in (None, *conv.splits(network, size)):
            name = ORDER[0 if parts is None else 1 + parts.axes]
            kernels[name + (" *" if parts == picked else "")] = partial(forced, parts)
    made = {}
    for name, kernel in kernels.items():
        flops = product_flops(jax.make_jaxpr(kernel)(weights, x).jaxpr).total()
        made[name] = (jax.jit(partial(step, kernel)).lower(weights, x).compile(), weights, flops)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print("| layer | kernel | parameters | way | million operations forward | ms a step |\n|" + "---|" * 6)
    for layer, (batch, side, channels, k) in SHAPES.items():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(batch, side, side, channels)), jnp.float32)
        every = {
            (format, name): way
            for format, rank in KERNELS.items()
            for name, way in ways(format, rank, channels, (k, k), x).items()
        }
        spent: dict[Any, list[float]] = {name: [] for name in every}
        for _ in range(1 + options.rounds):  # taking turns; the first is not counted
            for name, (run, weights, _) in every.items():
                began = time.process_time()
                jax.block_until_ready(run(weights, x))
                spent[name].append(1e3 * (time.process_time() - began))
        for (format, name), (_, weights, flops) in every.items():
            size = sum(leaf.size for leaf in jax.tree.leaves(weights))
            ms = np.median(spent[format, name][1:])
            print(f"| {layer} | {format} | {size:,} | {name} | {flops / 1e6:.0f} | {ms:.1f} |", flush=True)


if __name__ == "__main__":
    main()
