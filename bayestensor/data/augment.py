"""Augmentation inside the compiled step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bayestensor.data.text import PADDING, UNKNOWN
from bayestensor.typing import Array, Float, Int, Key


def shift_images(key: Key[Array, ""], images: Array, pixels: int, groups: int = 4) -> Array:
    """Images (batch, height, width, ...) moved by up to `pixels` each way, the border repeated.

    The batch is cut into `groups` that move together: a gather per image would cost more than the step.
    """
    rest = images.ndim - 3  # channels
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), *[(0, 0)] * rest), mode="edge")
    # bits modulo a few: a bias of 1e-9, and a fifth of randint's compilation
    offsets = (jax.random.bits(key, (groups, 2)) % jnp.uint32(2 * pixels + 1)).astype(jnp.int32)
    size = images.shape[0] // groups
    moved = []
    for g in range(groups):
        last = images.shape[0] if g == groups - 1 else (g + 1) * size
        part = padded[g * size : last]
        zero = jnp.zeros((), jnp.int32)
        start = (zero, offsets[g, 0], offsets[g, 1], *[zero] * rest)
        moved.append(jax.lax.dynamic_slice(part, start, (part.shape[0], *images.shape[1:])))
    return jnp.concatenate(moved)


def flip_images(key: Key[Array, ""], images: Array) -> Array:
    """Images (batch, height, width, ...), each mirrored left to right with probability one half."""
    coins = (jax.random.bits(key, (images.shape[0],)) % jnp.uint32(2)) == 0
    return jnp.where(coins.reshape(-1, *[1] * (images.ndim - 1)), images[:, :, ::-1], images)


def drop_words(
    key: Key[Array, ""],
    tokens: Int[Array, "batch time"],
    counts: Float[Array, "vocabulary"],
    alpha: float = 0.25,
) -> Int[Array, "batch time"]:
    """`p(w becomes UNKNOWN) = alpha / (alpha + counts[w])`, counts[w] how often the training part has the word w.

    Kiperwasser & Goldberg 2016 (arXiv 1603.04351): the rare words teach what an unknown one means. Padding stays.
    """
    dropped = jax.random.uniform(key, tokens.shape) * (alpha + counts[tokens]) < alpha
    return jnp.where(dropped & (tokens != PADDING), UNKNOWN, tokens)
