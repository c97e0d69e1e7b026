"""Ranks of known coefficients: 10 x 8 covariates, 300 data, signal 10 dB above the noise; see README.md."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np

from bayestensor import TensorRegressor

RESULTS = Path(__file__).parent / "ranks.jsonl"


def problem(rank, seed):
    """Covariates and response, as in `tests/test_regression_ranks.py`."""
    rng = np.random.default_rng([rank, seed])
    x, w = rng.normal(size=(300, 10, 8)), rng.normal(size=(10, rank)) @ rng.normal(size=(rank, 8))
    eta = np.tensordot(x, w, 2)
    return x, eta + 10**-0.5 * eta.std() * rng.normal(size=300)


if __name__ == "__main__":  # python ranks.py RANK FIRST_SEED SEEDS REMAINDER
    warnings.filterwarnings("ignore")
    rank, first, seeds = map(int, sys.argv[1:4])
    for seed in range(first, first + seeds):
        settings = {"smooth": (), "remainder": sys.argv[4], "num_draws": 50, "burn_in": 100, "random_state": seed}
        fit = TensorRegressor(**settings).fit(*problem(rank, seed))
        row = {"rank": rank, "seed": seed, "remainder": sys.argv[4], "found": fit.rank_} | fit.diagnostics_["r_hat"]
        with RESULTS.open("a") as file:
            file.write(json.dumps(row | {"kernel": fit.diagnostics_["remainder"][0]}) + "\n")
