"""A DLRM on made-up clicks of low-rank truth: dense tables, and tables in three formats, whose ranks fall.

python experiments/clicks/run.py [--formats dense tensor_train ...] [--seeds 0 ...] [--rows 240000]
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
from sklearn.metrics import roc_auc_score

import bayestensor as bt
from bayestensor.data.clicks import Clicks, simulate_clicks
from bayestensor.models.dlrm import dlrm
from bayestensor.models.likelihoods import Bernoulli

TABLES, MODES, FEATURES, TRUE_RANK = 8, (16, 16), 4, 2
RANK, SIGNAL = 6, 3.0
EPOCHS, BATCH = 12, 250
RATE = 1e-2


def data_of(seed: int, rows: int) -> tuple[Clicks, int]:
    """Clicks, and how many of them are trained on."""
    data = simulate_clicks(rows, [MODES] * TABLES, FEATURES, TRUE_RANK, seed, SIGNAL)
    return data, rows * 5 // 6


def row(format: str, seed: int, options) -> dict:
    data, kept = data_of(seed, options.rows)
    model = dlrm(13, data.sizes, FEATURES, format=format, rank=RANK, order=2, least=100, rngs=nnx.Rngs(seed))
    x, y, x_test, y_test = data.x[:kept], data.y[:kept], data.x[kept:], data.y[kept:]
    epochs = options.epochs
    schedule = optax.cosine_decay_schedule(RATE, epochs * (kept // BATCH))
    ends: list[float] = []
    fit = bt.fit_map(
        model,
        x,
        y,
        likelihood=Bernoulli(),
        optimizer=optax.adam(schedule),
        epochs=epochs,
        batch_size=BATCH,
        ramp_epochs=epochs // 3,
        temperature=options.temperature,
        seed=seed,
        callback=lambda _: ends.append(time.process_time()),
    )
    small = fit.prune(bt.norm_lost(0.05))
    scores = [scored(f, x_test, y_test) for f in (fit, small)]
    best = roc_auc_score(y_test, data.odds[kept:])
    tables = sum(leaf.size for leaf in jax.tree.leaves(small.position["weights"]["tables"]))
    return {
        "format": format,
        "seed": seed,
        "rows": options.rows,
        "temperature": options.temperature,
        "epochs": epochs,
        "tables_at_first": sum(leaf.size for leaf in jax.tree.leaves(fit.position["weights"]["tables"])),
        "tables": tables,
        "auc": scores[1][0],
        "auc_before_cut": scores[0][0],
        "auc_of_truth": best,
        "nll": scores[1][1],
        "nll_of_truth": float(np.logaddexp(0, np.where(y_test > 0, -data.odds[kept:], data.odds[kept:])).mean()),
        "ranks": [list(bonds.values()) for bonds in small.ranks.values()],
        "step_ms": 1e3 * (ends[-1] - ends[0]) / ((len(ends) - 1) * (kept // BATCH)),
    }


def scored(fit: bt.Fit, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(AUC, NLL) on clicks held apart."""
    odds = np.asarray(fit.predict(x), np.float64)
    return roc_auc_score(y, odds), float(np.logaddexp(0, np.where(y > 0, -odds, odds)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="+", default=["dense", "tensor_train", "tt_matrix", "cp"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=int, default=240_000)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    options = parser.parse_args()
    for seed in options.seeds:
        for format in options.formats:
            record = row(format, seed, options)
            print(record, flush=True)
            with options.out.open("a") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
