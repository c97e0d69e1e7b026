"""Tiny Shakespeare by a Transformer decoder: dense, and every weight in one format with ten times fewer parameters.

python experiments/shakespeare/run.py [--formats dense tt_matrix] [--seeds 0 1] [--rate R --validation]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

import bayestensor as bt
from bayestensor.compression.report import count
from bayestensor.data.text import load_shakespeare
from bayestensor.models.sequence import transformer_decoder
from bayestensor.tensor.formats import FORMATS

LENGTH, WIDTH, BLOCKS, HEADS = 64, 128, 2, 4
SMALLER = 10
EPOCHS, BATCH = 1, 16
RATES = {"dense": 2e-3}
RATE = 6e-3  # of every format
TEMPERATURE = 0.1


def build(format: str, rank: int, rngs: nnx.Rngs) -> nnx.Module:
    return transformer_decoder(65, LENGTH, WIDTH, heads=HEADS, blocks=BLOCKS, format=format, rank=rank, rngs=rngs)


def size(format: str, rank: int) -> int:
    return count(nnx.eval_shape(lambda: build(format, rank, nnx.Rngs(0))))


def largest_rank(format: str, budget: int) -> int:
    """The largest rank, the same for every bond, within a budget."""
    rank = 1
    while size(format, rank + 1) <= budget:
        rank += 1
    return rank


def windows(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows side by side, and the same one character later."""
    whole = (len(text) - 1) // LENGTH * LENGTH
    return text[:whole].reshape(-1, LENGTH), text[1 : whole + 1].reshape(-1, LENGTH)


def bits(fit: bt.Fit, text: np.ndarray) -> float:
    """Bits a character, each told from those before it in its window."""
    x, y = windows(text)
    log_p = jax.nn.log_softmax(fit.predict(x))
    return float(-np.take_along_axis(np.asarray(log_p), y[..., None], -1).mean()) / math.log(2)


def row(format: str, seed: int, train: np.ndarray, test: np.ndarray, options) -> dict:
    dense = size("dense", 1)
    rank = 1 if format == "dense" else largest_rank(format, dense // SMALLER)
    graph = nnx.graphdef(nnx.eval_shape(lambda: build(format, rank, nnx.Rngs(seed))))
    create = jax.jit(lambda key: nnx.state(build(format, rank, nnx.Rngs(key))))
    model = nnx.merge(graph, create(jax.random.key(seed)))
    x, y = windows(train)
    steps, rate = options.epochs * (len(x) // BATCH), options.rate or RATES.get(format, RATE)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps)
    began, spent = time.perf_counter(), time.process_time()
    fit = bt.fit_map(
        model,
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
    found = {"format": format, "seed": seed, "rank": rank, "rate": rate, "epochs": options.epochs, "dense": dense}
    found |= {"parameters": fit.num_parameters, "train_bits": fit.history[-1]["nll"] / LENGTH / math.log(2)}
    found |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    return found | {"bits": bits(fit, test)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="+", default=["dense", "tt_matrix"], choices=["dense", *FORMATS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rate", type=float, help="of Adam, instead of the format's")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--validation", action="store_true", help="score the last tenth of the training text instead")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    options = parser.parse_args()
    text = load_shakespeare()
    train, test = text.train, text.test
    if options.validation:
        train, test = np.split(train, [len(train) * 9 // 10])
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(r["format"], r["seed"]) for r in map(json.loads, lines)}
    for seed in options.seeds:
        for format in options.formats:
            if (format, seed) in done and not options.validation:
                continue
            record = row(format, seed, train, test, options)
            print(record, flush=True)
            if not options.validation:
                with options.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
