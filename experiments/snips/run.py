"""SNIPS intents by a BiLSTM and a Transformer encoder: dense, and every weight in each of the seven formats, 40x smaller
from the start.

python experiments/snips/run.py [--models bilstm encoder] [--formats ...] [--seeds 0 1 ...] [--validation]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

import bayestensor as bt
from bayestensor.compression.report import count
from bayestensor.data.text import load_snips
from bayestensor.models.sequence import bilstm, transformer_encoder
from bayestensor.tensor.formats import FORMATS

LENGTH = 16  # tokens; 4 % of the utterances have more
WIDTH = 64  # of the embedding, of each direction's state, of the blocks
SMALLER = 40
EPOCHS, BATCH = 6, 128
RATES = {"bilstm": 1e-2, "encoder": 5e-3}
DENSE_RATES = {"bilstm": 2e-3, "encoder": 1e-3}
TEMPERATURE = 0.1


def build(name: str, words: int, format: str, rank: int, rngs: nnx.Rngs) -> nnx.Module:
    if name == "bilstm":
        return bilstm(words, WIDTH, WIDTH, 7, format=format, rank=rank, rngs=rngs)
    return transformer_encoder(words, LENGTH, WIDTH, 7, format=format, rank=rank, rngs=rngs)


def size(name: str, words: int, format: str, rank: int) -> int:
    return count(nnx.eval_shape(lambda: build(name, words, format, rank, nnx.Rngs(0))))


def largest_rank(name: str, words: int, format: str, budget: int) -> int:
    """The largest rank, the same for every bond, within a budget."""
    low, high = 1, 256
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(name, words, format, middle) <= budget else (low, middle - 1)
    return low


def row(name: str, format: str, seed: int, data, x, y, options) -> tuple[dict, bt.Fit]:
    words = len(data.words)
    dense = size(name, words, "dense", 1)
    rank = 1 if format == "dense" else largest_rank(name, words, format, dense // SMALLER)
    graph = nnx.graphdef(nnx.eval_shape(lambda: build(name, words, format, rank, nnx.Rngs(seed))))
    create = jax.jit(lambda key: nnx.state(build(name, words, format, rank, nnx.Rngs(key))))
    model = nnx.merge(graph, create(jax.random.key(seed)))
    rates = DENSE_RATES if format == "dense" else RATES
    steps = options.epochs * (len(x) // BATCH)
    began, spent = time.perf_counter(), time.process_time()
    fit = bt.fit_map(
        model,
        x,
        y,
        optimizer=optax.adam(optax.cosine_decay_schedule(options.rate or rates[name], steps)),
        epochs=options.epochs,
        batch_size=BATCH,
        temperature=options.temperature,
        ramp_epochs=1,
        seed=seed,
    )
    seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    record = {
        "model": name,
        "format": format,
        "seed": seed,
        "dense": dense,
        "parameters": fit.num_parameters,
        "rank": rank,
        "nll": fit.history[-1]["nll"],
        "seconds": seconds,
        "cpu_seconds": cpu,
    }
    return record, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--formats", nargs="+", default=["dense", *FORMATS], choices=["dense", *FORMATS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rate", type=float, help="of Adam, instead of the model's")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--validation", action="store_true", help="score a tenth of the training utterances instead")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    options = parser.parse_args()
    data = load_snips(length=LENGTH)
    x, y, x_test, y_test = data.x_train, data.y_train, data.x_test, data.y_test
    if options.validation:
        order = np.random.default_rng(0).permutation(len(x))
        out, kept = order[: len(x) // 10], order[len(x) // 10 :]
        x, y, x_test, y_test = x[kept], y[kept], x[out], y[out]
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(r["model"], r["format"], r["seed"]) for r in map(json.loads, lines)}
    for seed in options.seeds:
        for name in options.models:
            for format in options.formats:
                if (name, format, seed) in done and not options.validation:
                    continue
                record, fit = row(name, format, seed, data, x, y, options)
                record["accuracy"] = float((np.asarray(fit.predict(x_test)).argmax(1) == y_test).mean())
                print(record, flush=True)
                if not options.validation:
                    with options.out.open("a") as file:
                        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
