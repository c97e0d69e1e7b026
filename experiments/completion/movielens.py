"""MovieLens small, 80 % to fit and 20 % to predict at random: user x film x time with offsets, beside biased factors.

python experiments/completion/movielens.py [--seeds 1 2] [--max-rank 10] [--bins 10]
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product

import numpy as np
import pandas as pd

from bayestensor.data.files import data_folder
from bayestensor.estimators import TensorCompletion


def ratings(bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(coordinates (n, 3) of user, film and one of `bins` times of equally many ratings; stars)."""
    table = pd.read_csv(data_folder(None) / "recsys" / "ml-latest-small" / "ratings.csv")
    when = np.searchsorted(np.quantile(table["timestamp"], np.linspace(0, 1, bins + 1)[1:-1]), table["timestamp"])
    codes = [np.unique(table[name], return_inverse=True)[1] for name in ("userId", "movieId")]
    return np.stack([*codes, when], axis=1), table["rating"].to_numpy()


def biased_factors(at, y, rank: int, ridge: float, offset_ridge: float, sweeps: int = 15, seed: int = 0):
    """`mean + user + film + p_user . q_film` by alternating ridge regressions (Koren, Bell, Volinsky, Computer 42, 2009)."""
    rng, mean, users = np.random.default_rng(seed), y.mean(), at[:, :2]
    offsets = [np.zeros(users[:, k].max() + 1) for k in (0, 1)]
    factors = [0.1 * rng.normal(size=(len(o), rank)) for o in offsets]
    rows = [np.argsort(users[:, k], kind="stable") for k in (0, 1)]
    parts = [
        np.split(r, np.cumsum(np.bincount(users[:, k], minlength=len(offsets[k])))[:-1]) for k, r in enumerate(rows)
    ]
    for _ in range(sweeps):
        for k in (0, 1):
            other = users[:, 1 - k]
            inner = (factors[0][users[:, 0]] * factors[1][users[:, 1]]).sum(1)
            left = y - mean - offsets[1 - k][other] - inner
            count = np.bincount(users[:, k], minlength=len(offsets[k]))
            offsets[k] = np.bincount(users[:, k], left, len(offsets[k])) / (count + offset_ridge)
            left = y - mean - offsets[0][users[:, 0]] - offsets[1][users[:, 1]]
            for i, part in enumerate(parts[k]):
                if rank and len(part):
                    q = factors[1 - k][other[part]]
                    factors[k][i] = np.linalg.solve(q.T @ q + ridge * np.eye(rank), q.T @ left[part])
    return lambda to: (
        sum(o[to[:, k]] for k, o in enumerate(offsets)) + mean + (factors[0][to[:, 0]] * factors[1][to[:, 1]]).sum(1)
    )


def tuned(at, y, seed: int):
    """Rank and ridges by five-fold cross-validation on the training ratings."""
    fold, sizes = np.random.default_rng(seed).integers(5, size=len(y)), at.max(0) + 1
    ends = np.array([[n - 1 for n in sizes]]), np.array([y.mean()])  # so that every fold knows all users and films

    def error(setting):
        squares = []
        for k in range(2):  # two of the five folds: enough to rank settings
            fit = biased_factors(np.concatenate([at[fold != k], ends[0]]), np.append(y[fold != k], ends[1]), *setting)
            squares.append((fit(at[fold == k]) - y[fold == k]) ** 2)
        return np.sqrt(np.concatenate(squares).mean())

    settings = [(0, 1.0, r) for r in (2.0, 4.0, 8.0)] + list(product((2, 5, 10), (5.0, 10.0, 20.0), (4.0,)))
    return min(settings, key=error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--max-rank", type=int, default=10)
    parser.add_argument("--bins", type=int, default=10)
    options = parser.parse_args()
    at, y = ratings(options.bins)
    for seed in options.seeds:
        held = np.random.default_rng(seed).random(len(y)) < 0.2
        began = time.process_time()
        setting = tuned(at[~held], y[~held], seed)
        train = np.concatenate([at[~held], at.max(0, keepdims=True)]), np.append(y[~held], y[~held].mean())
        error = biased_factors(*train, *setting)(at[held]) - y[held]
        found = {"seed": seed, "method": "biased factors", "setting": setting}
        found |= {
            "rmse": round(float(np.sqrt((error**2).mean())), 4),
            "cpu_seconds": round(time.process_time() - began),
        }
        print(json.dumps(found), flush=True)
        began = time.process_time()
        model = TensorCompletion(effects="auto", smooth=(2,), max_rank=options.max_rank, random_state=seed)
        model.fit(at[~held], y[~held], shape=tuple(at.max(0) + 1))
        mean = model.predict(at[held])
        spent = time.process_time() - began
        low, high = model.predict_interval(0.9, at[held])
        inside = (low <= y[held]) & (y[held] <= high)
        found = {
            "seed": seed,
            "method": "ours",
            "rank": model.rank_,
            "rmse": round(float(np.sqrt(((mean - y[held]) ** 2).mean())), 4),
        }
        found |= {"coverage_90": round(float(inside.mean()), 4), "width_90": round(float((high - low).mean()), 3)}
        print(json.dumps(found | {"cpu_seconds": round(spent)}), flush=True)


if __name__ == "__main__":
    main()
