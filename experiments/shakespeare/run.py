"""Tiny Shakespeare by a Transformer decoder: dense, and every weight in one format with ten times fewer parameters.

python experiments/shakespeare/run.py [--formats dense tt_matrix] [--seeds 0 1] [--width 128] [--epochs 1]
    [--rate R --validation]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

import bayestensor as bt
from bayestensor.data.text import load_shakespeare
from bayestensor.models.sequence import TransformerDecoder, Weights
from bayestensor.tensor.formats import FORMATS

sys.path.insert(0, str(Path(__file__).parents[1]))
from sequences import append, created, largest_rank, missing, size

LENGTH, BLOCKS, HEADS = 64, 2, 4
SMALLER = 10
BATCH = 16
RATES = {"dense": 2e-3}
RATE = 6e-3  # of every format
TEMPERATURE = 0.1
KEYS = ("width", "epochs", "format", "order", "table_rank", "seed")


class Blocks(Weights):
    """Weights of `grid` x `grid` blocks, each of the rank: see `block_network`."""

    grid = 4

    def network(self, out: int, into: int) -> bt.Network:
        return block_network(out, into, self.grid, self.rank)


def block_network(out: int, into: int, grid: int, rank: int) -> bt.Network:
    """`W[(i0, i1), (j0, j1)] = sum_r left[i0, i1, j0, r] right[i0, j0, j1, r]`: a block for each (i0, j0), of rank r.

    Two modes are on both cores. At rank 1 and as many blocks as rows in one it is a Monarch matrix (Dao et al. 2022); with
    more ranks the block tensor train of Qiu et al. 2024 (arXiv 2406.06248).
    """
    cores = (bt.Core("left", ("i0", "i1", "j0", "r")), bt.Core("right", ("i0", "j0", "j1", "r")))
    sizes = {"i0": grid, "i1": out // grid, "j0": grid, "j1": into // grid, "r": rank}
    return bt.Network(cores, sizes, rows=("i0", "i1"), cols=("j0", "j1"))


def build(width: int, order: int, table_rank: int, format: str, rank: int, rngs: nnx.Rngs) -> nnx.Module:
    """Blocks in the format; embedding, positions and head as products of two thin matrices where it is not dense."""
    weights = (Blocks if format == "blocks" else Weights)(format, rank, order or None, rngs)
    tables = weights if format == "dense" or not table_rank else Weights("tensor_train", table_rank, 1, rngs)
    embed, positions = tables.embed(65, width), tables.embed(LENGTH, width)
    blocks = [weights.block(width, HEADS, 4 * width) for _ in range(BLOCKS)]
    return TransformerDecoder(embed, positions, blocks, tables.linear(width, 65), width, rngs=rngs)


def windows(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows side by side, and the same one character later."""
    whole = (len(text) - 1) // LENGTH * LENGTH
    return text[:whole].reshape(-1, LENGTH), text[1 : whole + 1].reshape(-1, LENGTH)


def bits(fit: bt.Fit, text: np.ndarray) -> float:
    """Bits a character, each told from those before it in its window."""
    x, y = windows(text)
    log_p = jax.nn.log_softmax(fit.predict(x))
    return float(-np.take_along_axis(np.asarray(log_p), y[..., None], -1).mean()) / math.log(2)


def key(format: str, seed: int, options) -> tuple:
    """What a row is known by, in the order of `KEYS`; a dense one has neither order nor rank."""
    shape = (None, None) if format == "dense" else (options.order, options.table_rank)
    return options.width, options.epochs, format, *shape, seed


def row(format: str, seed: int, train: np.ndarray, test: np.ndarray, options) -> dict:
    dense = size(partial(build, options.width, 2, 0, "dense", 1))
    of_rank = partial(build, options.width, options.order, options.table_rank, format)
    rank = 1 if format == "dense" else largest_rank(of_rank, dense // SMALLER)
    x, y = windows(train)
    per_epoch = options.steps or len(x) // BATCH
    x, y = x[: per_epoch * BATCH], y[: per_epoch * BATCH]
    steps, rate = options.epochs * per_epoch, options.rate or RATES.get(format, RATE)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps)
    began, spent = time.perf_counter(), time.process_time()
    fit = bt.fit_map(
        created(partial(of_rank, rank), seed),
        x,
        y,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        epochs=options.epochs,
        batch_size=BATCH,
        temperature=options.temperature,
        ramp_epochs=0.5,
        seed=seed,
        callback=lambda line: print(format, seed, line, round(time.process_time() - spent), flush=True),
    )
    found = dict(zip(KEYS, key(format, seed, options), strict=True)) | {"rank": rank, "rate": rate}
    found |= {"dense": dense, "parameters": fit.num_parameters}
    found |= {"train_bits": fit.history[-1]["nll"] / LENGTH / math.log(2)}
    found |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    return found | {"bits": bits(fit, test)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="+", default=["dense", "tt_matrix"], choices=["dense", "blocks", *FORMATS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--order", type=int, default=2, help="modes a side of every weight; 0: by its widths")
    parser.add_argument("--table-rank", type=int, default=32, help="of embedding, positions and head; 0: as the blocks")
    parser.add_argument("--grid", type=int, default=Blocks.grid, help="blocks a side, of the format blocks")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="an epoch, instead of all windows")
    parser.add_argument("--rate", type=float, help="of Adam, instead of the format's")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--validation", action="store_true", help="score the last tenth of the training text instead")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    options = parser.parse_args()
    Blocks.grid = options.grid
    text = load_shakespeare()
    train, test = text.train, text.test
    if options.validation:
        train, test = np.split(train, [len(train) * 9 // 10])
    wanted = [key(format, seed, options) for seed in options.seeds for format in options.formats]
    for _, _, format, *_, seed in missing(options.out, KEYS, wanted, options.validation):
        record = row(format, seed, train, test, options)
        print(record, flush=True)
        if not options.validation:
            append(options.out, record)


if __name__ == "__main__":
    main()
