"""The same lookups by tensorly-torch, in an environment that has it (torch 2.13, tensorly-torch 0.5): rate, step time.

python experiments/lookups/torch_bench.py [--rows 10000000] [--batch 2048]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from tltorch import FactorizedEmbedding

FEATURES = 128
WAYS = [("blocktt", 16, (200, 220, 228), (4, 4, 8)), ("blocktt", 32, (200, 220, 228), (4, 4, 8))]
WAYS += [("cp", 32, (200, 220, 228), (4, 4, 8)), ("blocktt", 16, (57, 57, 56, 55), (4, 4, 4, 2))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10**7)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    target = torch.as_tensor(rng.normal(size=(options.batch, FEATURES)).astype(np.float32))
    for name, rank, rows, cols in WAYS:
        shape = dict(tensorized_num_embeddings=rows, tensorized_embedding_dim=cols)
        layer = FactorizedEmbedding(
            math.prod(rows), FEATURES, auto_tensorize=False, factorization=name, rank=rank, **shape
        )
        index = torch.as_tensor(rng.integers(0, options.rows, options.batch))
        optimiser = torch.optim.SGD(layer.parameters(), lr=1e-6)
        times: dict[str, list[float]] = {"lookup": [], "step": []}
        for _ in range(options.rounds + 1):
            began = time.process_time()
            with torch.no_grad():
                layer(index)
            middle = time.process_time()
            optimiser.zero_grad()
            ((layer(index) - target) ** 2).sum().backward()
            optimiser.step()
            times["lookup"].append(middle - began)
            times["step"].append(time.process_time() - middle)
        seconds = {what: statistics.median(found[1:]) for what, found in times.items()}
        parameters = sum(p.numel() for p in layer.parameters())
        record = {
            "format": f"tensorly-torch {name}",
            "order": len(rows),
            "rank": rank,
            "parameters": parameters,
            "smaller": options.rows * FEATURES / parameters,
            "lookups_per_second": options.batch / seconds["lookup"],
            "lookup_ms": 1e3 * seconds["lookup"],
            "step_ms": 1e3 * seconds["step"],
        }
        print(record, flush=True)
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
