"""MovieLens small, 80 % to fit and 20 % to predict at random: user x film x time with offsets, beside biased factors.

python experiments/completion/movielens.py [--seeds 1 2] [--max-rank 10] [--bins 10] [--only ours]
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path

import numpy as np

from bayestensor.data.tensors import load_ratings
from bayestensor.estimators import TensorCompletion

SETTINGS = [(0, 1.0, r) for r in (2.0, 4.0, 8.0)] + list(product((1, 2, 5, 10), (3.0, 6.0, 12.0, 24.0), (4.0,)))


def biased_factors(at, y, sizes, rank: int, ridge: float, offset_ridge: float, sweeps: int = 15, seed: int = 0):
    """`mean + user + film + p_user . q_film` by alternating ridge regressions (Koren, Bell and Volinsky, Computer 42,
    2009): a function of coordinates."""
    rng, mean = np.random.default_rng(seed), y.mean()
    offsets = [np.zeros(n) for n in sizes]
    factors = [0.1 * rng.normal(size=(n, rank)) for n in sizes]
    orders = [np.argsort(at[:, k], kind="stable") for k in (0, 1)]
    counts = [np.bincount(at[:, k], minlength=sizes[k]) for k in (0, 1)]
    for _ in range(sweeps):
        for k in (0, 1):
            own, other, order = at[:, k], at[:, 1 - k], orders[k]
            left = y - mean - offsets[1 - k][other] - (factors[0][at[:, 0]] * factors[1][at[:, 1]]).sum(1)
            offsets[k] = np.bincount(own, left, sizes[k]) / (counts[k] + offset_ridge)
            left = y - mean - offsets[0][at[:, 0]] - offsets[1][at[:, 1]]
            if rank:
                q, seen = factors[1 - k][other[order]], counts[k] > 0
                begin = (np.cumsum(counts[k]) - counts[k])[seen]
                gram = np.add.reduceat(q[:, :, None] * q[:, None], begin) + ridge * np.eye(rank)
                moment = np.add.reduceat(q * left[order, None], begin)
                factors[k][:] = 0
                factors[k][seen] = np.linalg.solve(gram, moment[:, :, None])[:, :, 0]
    return lambda to: (
        mean + sum(o[to[:, k]] for k, o in enumerate(offsets)) + (factors[0][to[:, 0]] * factors[1][to[:, 1]]).sum(1)
    )


def tuned(at, y, sizes, seed: int):
    """Rank and ridges by five-fold cross-validation on the training ratings."""
    fold = np.random.default_rng(seed).integers(5, size=len(y))

    def error(setting) -> float:
        shown = [(fold != k, fold == k) for k in range(5)]
        return sum(((biased_factors(at[a], y[a], sizes, *setting)(at[b]) - y[b]) ** 2).sum() for a, b in shown)

    return min(SETTINGS, key=error)


def theirs(at, y, to, sizes, seed: int) -> tuple[np.ndarray, dict]:
    """(prediction, what was chosen)"""
    setting = tuned(at, y, sizes, seed)
    return biased_factors(at, y, sizes, *setting)(to), {"setting": setting}


def ours(at, y, to, sizes, seed: int, max_rank: int) -> tuple[np.ndarray, dict]:
    """(prediction, rank and ends of the 90 % interval)"""
    model = TensorCompletion(effects="auto", smooth=(2,), max_rank=max_rank, random_state=seed).fit(at, y, shape=sizes)
    return model.predict(to), {"rank": model.rank_, "ends": model.predict_interval(0.9, to)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--max-rank", type=int, default=10)
    parser.add_argument("--bins", type=int, default=10)
    parser.add_argument("--only", choices=["ours", "theirs"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("movielens.jsonl"))
    options = parser.parse_args()
    at, y = load_ratings(spans=options.bins)
    sizes = tuple((at.max(0) + 1).tolist())
    for seed in options.seeds:
        held = np.random.default_rng(seed).random(len(y)) < 0.2
        for method in ("theirs", "ours") if options.only is None else (options.only,):
            began, spent = time.perf_counter(), time.process_time()
            if method == "ours":
                mean, more = ours(at[~held], y[~held], at[held], sizes, seed, options.max_rank)
            else:
                mean, more = theirs(at[~held, :2], y[~held], at[held, :2], sizes[:2], seed)
            found = {"seed": seed, "method": method, "rmse": round(float(np.sqrt(np.mean((mean - y[held]) ** 2))), 4)}
            if "ends" in more:
                low, high = more.pop("ends")
                inside = (low <= y[held]) & (y[held] <= high)
                more |= {
                    "coverage_90": round(float(inside.mean()), 4),
                    "width_90": round(float(np.mean(high - low)), 3),
                }
                more |= {"max_rank": options.max_rank, "bins": options.bins}
            more |= {"seconds": round(time.perf_counter() - began), "cpu_seconds": round(time.process_time() - spent)}
            print(json.dumps(found | more), flush=True)
            with options.out.open("a") as lines:
                lines.write(json.dumps(found | more) + "\n")


if __name__ == "__main__":
    main()
