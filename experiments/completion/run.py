"""Completion of real tensors, `TensorCompletion` with its defaults beside the BCPF model by variational Bayes.

python experiments/completion/run.py amino:0.5 amino:0.9 ... [--seeds 1 2 3] [--out experiments/completion/result.jsonl]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from bcpf import bcpf

from bayestensor.data.tensors import load_tensor
from bayestensor.estimators import TensorCompletion
from bayestensor.metrics.regression import coverage, gaussian_interval, rrse, width

ROWS = (
    "amino:0.5",
    "amino:0.9",
    "serology:0.2",
    "serology:0.5",
    "birmingham:0.5",
    "birmingham:0.9",
    "facade:0.5",
    "facade:0.9",
)


def holes(name: str, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tensor, tensor with holes, hidden): hidden entries that are known, at random."""
    whole = load_tensor(name)
    shown = np.random.default_rng(seed).random(whole.shape) > share
    return whole, np.where(shown, whole, np.nan), ~shown & np.isfinite(whole)


def scores(mean, low, high, truth) -> dict:
    ends = coverage(low, high, truth), width(low, high)
    return {"rrse": rrse(mean, truth), "coverage_90": ends[0], "width_90": ends[1]}


def ours(holed, hidden, truth, seed) -> dict:
    began, spent = time.perf_counter(), time.process_time()
    model = TensorCompletion(random_state=seed).fit(holed)
    mean = model.predict()[hidden]
    times = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    low, high = model.predict_interval(0.9)
    return scores(mean, low[hidden], high[hidden], truth) | times | {"rank": model.rank_}


def theirs(holed, hidden, truth, seed) -> dict:
    began, spent = time.perf_counter(), time.process_time()
    mean, sd, rank = bcpf(holed, seed=seed)
    times = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    return scores(mean[hidden], *gaussian_interval(mean[hidden], sd[hidden], 0.9), truth) | times | {"rank": rank}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--only", choices=["ours", "bcpf"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.jsonl"))
    options = parser.parse_args()
    for seed in options.seeds:
        for row in options.rows:
            name, share = row.split(":")
            whole, holed, hidden = holes(name, float(share), seed)
            for method, fit in (("ours", ours), ("bcpf", theirs)):
                if options.only in (None, method):
                    found = {"data": name, "hidden": float(share), "mask_seed": seed, "method": method}
                    found |= {k: round(v, 4) for k, v in fit(holed, hidden, whole[hidden], seed).items()}
                    print(json.dumps(found), flush=True)
                    with options.out.open("a") as lines:
                        lines.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
