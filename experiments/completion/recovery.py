"""Synthetic CP tensors 30 x 30 x 30: is the rank found, and the tensor?

python experiments/completion/recovery.py RANK:SNR:HIDDEN ... [--seeds 20]      SNR in dB, or 'exact'
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from bayestensor.estimators import TensorCompletion
from bayestensor.metrics.regression import rrse

ROWS = ("3:exact:0.97", "3:exact:0.95", "3:10:0.8", "10:20:0.7", "6:10:0", "18:10:0", "24:10:0", "24:0:0")


def problem(rank: int, snr: str, hidden: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(truth, tensor with holes, entries to score): the hidden ones, or all where none is."""
    rng = np.random.default_rng(seed)
    truth = np.einsum("ir,jr,kr->ijk", *(rng.normal(size=(30, rank)) for _ in range(3)))
    noise = 0.0 if snr == "exact" else truth.std() * 10 ** (-float(snr) / 20)
    away = rng.random(truth.shape) < hidden
    noisy = truth + noise * rng.normal(size=truth.shape)
    return truth, np.where(away, np.nan, noisy), away if hidden else np.ones_like(away)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("recovery.jsonl"))
    options = parser.parse_args()
    for row in options.rows:
        rank, snr, hidden = row.split(":")
        ranks, errors = [], []
        for seed in range(options.seeds):
            truth, holed, scored = problem(int(rank), snr, float(hidden), seed)
            model = TensorCompletion(random_state=seed).fit(holed)
            ranks.append(model.rank_)
            errors.append(rrse(model.predict()[scored], truth[scored]))
            found = {"rank": int(rank), "snr": snr, "hidden": float(hidden), "seeds": seed + 1}
            found |= {"exact_rank": int(np.sum(np.array(ranks) == int(rank))), "rrse": round(float(np.mean(errors)), 6)}
            found |= {"solved": int(np.sum(np.array(errors) < 1e-2))} if snr == "exact" else {}
            print(json.dumps(found | {"ranks": ranks}), flush=True)
        with options.out.open("a") as lines:
            lines.write(json.dumps(found | {"ranks": ranks}) + "\n")


if __name__ == "__main__":
    main()
