"""Lookups in an embedding table of 10^7 x 128 that is never built: rate, time of a step, parameters, memory.

python experiments/lookups/bench.py [--rows 10000000] [--batch 2048] [--formats ...] [--out experiments/lookups/results.jsonl]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import bayestensor as bt
from bayestensor.tensor.contract import rows
from bayestensor.tensor.sized import embed_network

FEATURES = 128
DENSE_ROWS = 10**6  # 0.5 GB; a gather and its sparse update do not get faster with fewer rows that miss the cache
WAYS = [(f, r, order) for f in ("tensor_train", "tt_matrix") for order in (3, 4) for r in (16, 32)] + [
    ("tt_matrix", 16, 8),
    ("cp", 32, 3),
]


def networks(count: int, formats: list[str]):
    """(name, parameters, compiled lookup, compiled step, weights) of each way."""
    for format, rank, order in WAYS:
        if format not in formats:
            continue
        network = embed_network(count, FEATURES, format, rank, order)
        tensor = bt.initialise(jax.random.key(0), network, 1 / FEATURES)

        def step(tensor, index, target):
            gradient = jax.grad(lambda tensor: ((rows(tensor, index) - target) ** 2).sum())(tensor)
            return jax.tree.map(lambda core, slope: core - 1e-6 * slope, tensor, gradient)

        yield {"format": format, "order": order, "rank": rank}, network.num_parameters, rows, step, tensor

    if "dense" not in formats:
        return

    def sparse(table, index, target):
        return table.at[index].add(-1e-6 * 2 * (table[index] - target))

    table = jnp.full((DENSE_ROWS, FEATURES), 0.01)
    about = {"format": "dense", "order": 1, "rank": FEATURES}
    yield about, count * FEATURES, lambda table, index: table[index], sparse, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10**7)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--formats", nargs="+", default=["tensor_train", "tt_matrix", "cp", "dense"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.normal(size=(options.batch, FEATURES)).astype(np.float32))
    for about, parameters, look, step, weights in networks(options.rows, options.formats):
        limit = DENSE_ROWS if about["format"] == "dense" else options.rows
        index = jnp.asarray(rng.integers(0, limit, options.batch).astype(np.int32))
        lookup = jax.jit(look).lower(weights, index).compile()
        update = jax.jit(step, donate_argnums=0).lower(weights, index, target).compile()
        times: dict[str, list[float]] = {"lookup": [], "step": []}
        for _ in range(options.rounds + 1):
            began = time.process_time()
            jax.block_until_ready(lookup(weights, index))
            middle = time.process_time()
            weights = jax.block_until_ready(update(weights, index, target))
            times["lookup"].append(middle - began)
            times["step"].append(time.process_time() - middle)
        seconds = {name: statistics.median(found[1:]) for name, found in times.items()}
        record = about | {
            "parameters": parameters,
            "smaller": options.rows * FEATURES / parameters,
            "lookups_per_second": options.batch / seconds["lookup"],
            "lookup_ms": 1e3 * seconds["lookup"],
            "step_ms": 1e3 * seconds["step"],
            "lookup_bytes": lookup.memory_analysis().temp_size_in_bytes,
        }
        print(record, flush=True)
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
