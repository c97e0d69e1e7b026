"""Alyawarra kinship, a tenth of all entries held out: Bernoulli completion beside RESCAL at its best rank.

python experiments/completion/kinship.py [--max-ranks 20 40] [--chains auto] [--seed 1] [--only ours]

Every fit appends its line to kinship.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import yaml
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from bayestensor.data.tensors import load_tensor
from bayestensor.estimators import TensorCompletion


def rescal(x: np.ndarray, rank: int, ridge: float = 10.0, sweeps: int = 50) -> np.ndarray:
    """`x[:, :, k] = a r_k a'` by alternating least squares (Nickel, Tresp and Kriegel, ICML 2011); unknown entries are 0."""
    slices = np.moveaxis(x, 2, 0)
    _, vectors = np.linalg.eigh((slices + slices.transpose(0, 2, 1)).sum(0))
    a = vectors[:, -rank:]
    for _ in range(sweeps):
        u, s, vt = np.linalg.svd(a, full_matrices=False)
        shrink = np.outer(s, s) / (np.outer(s, s) ** 2 + ridge)
        r = vt.T @ (shrink * (u.T @ slices @ u)) @ vt
        rt = r.transpose(0, 2, 1)
        top = (slices @ a @ rt + slices.transpose(0, 2, 1) @ a @ r).sum(0)
        gram = a.T @ a
        a = np.linalg.solve((r @ gram @ rt + rt @ gram @ r).sum(0) + ridge * np.eye(rank), top.T).T
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    shrink = np.outer(s, s) / (np.outer(s, s) ** 2 + ridge)
    r = vt.T @ (shrink * (u.T @ slices @ u)) @ vt
    return np.moveaxis(a @ r @ a.T, 0, 2)


def calibration_error(p: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    place = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs(p[place == k].sum() - y[place == k].sum()) for k in range(bins)) / len(p))


def ours(holed: np.ndarray, max_rank: int, chains, seed: int) -> tuple[np.ndarray, dict]:
    """(probabilities, rank and chains)"""
    settings = {"max_rank": max_rank, "smooth": (), "effects": "auto", "chains": chains, "random_state": seed}
    model = TensorCompletion(likelihood="bernoulli", **settings).fit(holed)
    return model.predict(), {"rank": model.rank_, "chains": model.draws_.shape[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-ranks", nargs="*", type=int, default=[20])
    parser.add_argument("--chains", type=yaml.safe_load, default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["ours", "rescal"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("kinship.jsonl"))
    options = parser.parse_args()
    whole = load_tensor("kinship")
    held = np.random.default_rng(options.seed).random(whole.shape) < 0.1
    fits = [("rescal", rank) for rank in (10, 20, 40, 60)] + [("ours", rank) for rank in options.max_ranks]
    for method, rank in fits:
        if options.only in (None, method):
            line, spent = {"method": method, "seed": options.seed, "max_rank": rank}, time.process_time()
            if method == "rescal":
                scores, truth = rescal(np.where(held, 0, whole), rank)[held], whole[held]
            else:
                p, more = ours(np.where(held, np.nan, whole), rank, options.chains, options.seed)
                scores, truth = p[held], whole[held]
                line |= more | {"ece": calibration_error(scores, truth), "log_loss": log_loss(truth, scores)}
            line |= {"auc": roc_auc_score(truth, scores), "precision_recall": average_precision_score(truth, scores)}
            line |= {"cpu_seconds": round(time.process_time() - spent)}
            line = {k: round(float(v), 4) if isinstance(v, float) else v for k, v in line.items()}
            print(json.dumps(line), flush=True)
            with options.out.open("a") as lines:
                lines.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
