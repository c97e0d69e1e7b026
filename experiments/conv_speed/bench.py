"""Ways to compute a small dense convolution and its gradients inside a compiled training loop: ms a step."""

from __future__ import annotations

import argparse
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {  # batch, height, width, in, out, kernel; VALID
    "LeNet-5, first": (128, 28, 28, 1, 20, 5),
    "LeNet-5, second": (128, 12, 12, 20, 50, 5),
    "ResNet-20, first stage": (128, 34, 34, 16, 16, 3),
    "ResNet-20, last stage": (128, 10, 10, 64, 64, 3),
}


def lax_conv(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)


def lax_patches(x, kernel):
    k = kernel.shape[0]
    numbers = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated_patches(x, (k, k), (1, 1), "VALID", dimension_numbers=numbers)
    return found @ kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])  # channels first, as it orders them


def slices(x, kernel):
    k = kernel.shape[0]
    high, wide = x.shape[1] - k + 1, x.shape[2] - k + 1
    parts = [x[:, i : i + high, j : j + wide] for i, j in itertools.product(range(k), repeat=2)]
    return jnp.concatenate(parts, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def slices_two_steps(x, kernel):
    k = kernel.shape[0]
    high, wide = x.shape[1] - k + 1, x.shape[2] - k + 1
    across = jnp.concatenate([x[:, :, j : j + wide] for j in range(k)], axis=-1)
    both = jnp.concatenate([across[:, i : i + high] for i in range(k)], axis=-1)
    return both @ kernel.reshape(-1, kernel.shape[-1])


def rows_at_a_time(x, kernel):
    k = kernel.shape[0]
    high, wide = x.shape[1] - k + 1, x.shape[2] - k + 1
    across = jnp.concatenate([x[:, :, j : j + wide] for j in range(k)], axis=-1)
    return sum(across[:, i : i + high] @ kernel[i].reshape(-1, kernel.shape[-1]) for i in range(k))


def batch_last(x, kernel):
    k = kernel.shape[0]
    high, wide = x.shape[1] - k + 1, x.shape[2] - k + 1
    turned = x.transpose(3, 1, 2, 0)  # whole rows of the batch move at a time
    parts = [turned[:, i : i + high, j : j + wide] for i, j in itertools.product(range(k), repeat=2)]
    y = kernel.reshape(-1, kernel.shape[-1]).T @ jnp.concatenate(parts).reshape(k * k * x.shape[3], -1)
    return y.reshape(-1, high, wide, x.shape[0]).transpose(3, 1, 2, 0)


def batch_last_two_steps(x, kernel):
    k = kernel.shape[0]
    high, wide = x.shape[1] - k + 1, x.shape[2] - k + 1
    turned = x.transpose(3, 1, 2, 0)
    across = jnp.concatenate([turned[:, :, j : j + wide] for j in range(k)])
    both = jnp.concatenate([across[:, i : i + high] for i in range(k)])
    y = kernel.reshape(-1, kernel.shape[-1]).T @ both.reshape(k * k * x.shape[3], -1)
    return y.reshape(-1, high, wide, x.shape[0]).transpose(3, 1, 2, 0)


WAYS = {
    way.__name__: way
    for way in (lax_conv, lax_patches, slices, slices_two_steps, rows_at_a_time, batch_last, batch_last_two_steps)
}


def milliseconds(way, shape, steps: int, rounds: int, with_input: bool) -> tuple[float, float]:
    """(seconds to compile, median ms of a step: forward, gradients of kernel and (where asked) input)."""
    batch, high, wide, channels, out, k = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, high, wide, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(k, k, channels, out)), jnp.float32)

    def one(_, state):
        x, kernel = state
        argnums = (0, 1) if with_input else (1,)
        found = jax.grad(lambda x, kernel: (jnp.maximum(way(x, kernel), 0) ** 2).sum(), argnums)(x, kernel)
        return (x - 1e-9 * found[0] if with_input else x), kernel - 1e-9 * found[-1]

    begin = time.perf_counter()
    run = jax.jit(lambda *state: jax.lax.fori_loop(0, steps, one, state)).lower(x, kernel).compile()
    compiled = time.perf_counter() - begin
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        jax.block_until_ready(run(x, kernel))
        times.append(1e3 * (time.perf_counter() - begin) / steps)
    return compiled, float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    for name, shape in SHAPES.items():
        for label, way in ((label, WAYS[label]) for label in options.ways):
            compiled, ms = milliseconds(way, shape, options.steps, options.rounds, with_input=shape[3] > 1)
            print(f"{name:24s} {label:18s} {ms:8.2f} ms a step, {compiled:5.2f} s to compile", flush=True)


if __name__ == "__main__":
    main()
