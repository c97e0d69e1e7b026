"""Alyawarra kinship, a tenth of all entries held out: Bernoulli completion beside RESCAL at its best rank.

python experiments/completion/kinship.py [--max-rank 20] [--seed 1]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-rank", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    whole = load_tensor("kinship")
    held = np.random.default_rng(options.seed).random(whole.shape) < 0.1
    truth = whole[held]
    for rank in (10, 20, 40, 60):
        found = rescal(np.where(held, 0, whole), rank)[held]
        print(
            f"RESCAL {rank}: AUC {roc_auc_score(truth, found):.4f}, PR {average_precision_score(truth, found):.4f}",
            flush=True,
        )
    began = time.process_time()
    settings = {"max_rank": options.max_rank, "smooth": (), "effects": "auto", "random_state": options.seed}
    model = TensorCompletion(likelihood="bernoulli", **settings)
    p = model.fit(np.where(held, np.nan, whole)).predict()[held]
    print(
        f"ours: AUC {roc_auc_score(truth, p):.4f}, PR {average_precision_score(truth, p):.4f}, ECE "
        f"{calibration_error(p, truth):.4f}, log loss {log_loss(truth, p):.4f}, rank {model.rank_}, "
        f"{time.process_time() - began:.0f} s of processor"
    )


if __name__ == "__main__":
    main()
