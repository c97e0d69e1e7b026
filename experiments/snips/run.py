"""SNIPS intents by a BiLSTM and a Transformer encoder: dense, and every weight in each of the seven formats, 40x smaller
from the start.

python experiments/snips/run.py [--models bilstm encoder] [--formats ...] [--seeds 0 1 ...] [--validation]
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bayestensor as bt
from bayestensor.data.augment import drop_words
from bayestensor.data.text import load_snips
from bayestensor.models.sequence import Weights, bilstm, transformer_encoder
from bayestensor.tensor.formats import FORMATS

sys.path.insert(0, str(Path(__file__).parents[1]))
from sequences import append, created, largest_rank, missing, size

LENGTH = 16  # tokens; 4 % of the utterances have more
WIDTH = 64  # of the embedding and of the block
STATE = 32  # of each of the BiLSTM's directions
HIDDEN = 2 * WIDTH  # of the block's feed-forward layers
SMALLER = 40
SHARE = 0.35  # of the budget, at least, for the embedding
EPOCHS, DENSE_EPOCHS, BATCH = 12, 6, 128
RATES = {"bilstm": 1e-2, "encoder": 5e-3}
DENSE_RATES = {"bilstm": 2e-3, "encoder": 1e-3}
TEMPERATURE = 0.1
ALPHA = 0.25  # of the words dropped
SETTING = "twelve epochs, dense six"  # what a row is known by besides the next three: change both together
KEYS = ("setting", "model", "format", "seed")


def build(
    name: str, words: int, format: str, order: int | None, table_rank: int, rank: int, rngs: nnx.Rngs
) -> nnx.Module:
    options = {"format": format, "rank": rank, "table_rank": table_rank, "order": order, "rngs": rngs}
    if name == "bilstm":
        return bilstm(words, WIDTH, STATE, 7, **options)
    return transformer_encoder(words, LENGTH, WIDTH, 7, hidden=HIDDEN, blocks=1, **options)


def ranks(name: str, words: int, format: str, order: int | None, budget: int, share: float) -> tuple[int, int]:
    """(of the embedding, of all other layers): the embedding gets its share of the budget, the others what that leaves,
    and the embedding what they leave."""
    of_ranks = partial(build, name, words, format, order)
    table = largest_rank(lambda r, rngs: Weights(format, r, order, rngs).embed(words, WIDTH), int(share * budget))
    rank = largest_rank(lambda r, rngs: of_ranks(table, r, rngs), budget)
    return largest_rank(lambda r, rngs: of_ranks(r, rank, rngs), budget), rank


def row(name: str, format: str, seed: int, data, x, y, options) -> tuple[dict, bt.Fit]:
    words = len(data.words)
    dense = size(partial(build, name, words, "dense", None, 1, 1))
    both = (1, 1)
    if format != "dense":
        both = ranks(name, words, format, options.order, dense // SMALLER, options.share)
    rates = DENSE_RATES if format == "dense" else RATES
    epochs = options.epochs or (DENSE_EPOCHS if format == "dense" else EPOCHS)
    steps = epochs * (len(x) // BATCH)
    counts = jnp.asarray(np.bincount(x.ravel(), minlength=words), jnp.float32)
    began, spent = time.perf_counter(), time.process_time()
    fit = bt.fit_map(
        created(partial(build, name, words, format, options.order, *both), seed),
        x,
        y,
        optimizer=optax.adam(optax.cosine_decay_schedule(options.rate or rates[name], steps)),
        epochs=epochs,
        batch_size=BATCH,
        temperature=options.temperature,
        ramp_epochs=1,
        seed=seed,
        prepare=lambda key, tokens: drop_words(key, tokens, counts, options.alpha),
        callback=lambda line: print(line["epoch"], round(line["nll"], 4), end=", ", flush=True),
    )
    record = {
        "setting": SETTING,
        "model": name,
        "format": format,
        "seed": seed,
        "dense": dense,
        "parameters": fit.num_parameters,
    }
    record |= {"table_rank": both[0], "rank": both[1], "order": options.order, "nll": fit.history[-1]["nll"]}
    record |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    return record, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(RATES), choices=list(RATES))
    every = ["dense", *FORMATS]
    small = [name for name in every if name != "svd"]  # of rank 1 at 40x: one feature a word
    parser.add_argument("--formats", nargs="+", default=small, choices=every)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, help="instead of the twin's or the network's own")
    parser.add_argument("--rate", type=float, help="of Adam, instead of the model's")
    parser.add_argument("--order", type=int, help="modes a side of every weight, instead of the widths' own number")
    parser.add_argument("--share", type=float, default=SHARE, help="of the budget, at least, for the embedding")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--alpha", type=float, default=ALPHA, help="of the words dropped in training; 0 drops none")
    parser.add_argument("--validation", action="store_true", help="score a tenth of the training utterances instead")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    options = parser.parse_args()
    data = load_snips(length=LENGTH)
    x, y, x_test, y_test = data.x_train, data.y_train, data.x_test, data.y_test
    if options.validation:
        order = np.random.default_rng(0).permutation(len(x))
        out, kept = order[: len(x) // 10], order[len(x) // 10 :]
        x, y, x_test, y_test = x[kept], y[kept], x[out], y[out]
    wanted = [(SETTING, name, f, seed) for seed in options.seeds for name in options.models for f in options.formats]
    for _, name, format, seed in missing(options.out, KEYS, wanted, options.validation):
        record, fit = row(name, format, seed, data, x, y, options)
        log_p = np.asarray(jax.nn.log_softmax(fit.predict(x_test)))
        record["accuracy"] = float((log_p.argmax(1) == y_test).mean())
        record["test_nll"] = -float(log_p[np.arange(len(y_test)), y_test].mean())
        print(record, flush=True)
        if not options.validation:
            append(options.out, record)


if __name__ == "__main__":
    main()
