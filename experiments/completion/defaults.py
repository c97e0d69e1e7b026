"""The default prior and number of starts, settled on observed entries alone: a fifth of them is left out and scored.

python experiments/completion/defaults.py [--seeds 1 2] [--out experiments/completion/defaults.jsonl]

Data are four synthetic tensors and the amino acids with 50 % and 90 % hidden; hidden entries are not looked at, nor are
the other rows of the table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from recovery import problem
from run import holes

from bayestensor.estimators import TensorCompletion, starting
from bayestensor.estimators.inputs import read
from bayestensor.estimators.networks import default_network
from bayestensor.priors import InverseGamma

RATES = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3)  # times the count D of an index
STARTS = (1, 4, 16)


def synthetic(row: str, seed: int) -> np.ndarray:
    """A CP tensor of `recovery`, or with 'decay' one of rank 20 whose weights fall by a fifth from one to the next."""
    if not row.startswith("decay"):
        rank, snr, hidden = row.split(":")
        return problem(int(rank), snr, float(hidden), seed)[1]
    rng = np.random.default_rng(seed)
    factors = [rng.normal(size=(30, 20)) for _ in range(3)]
    truth = np.einsum("r,ir,jr,kr->ijk", 0.8 ** np.arange(20), *factors)
    noisy = truth + 0.05 * truth.std() * rng.normal(size=truth.shape)
    return np.where(rng.random(truth.shape) < float(row.split(":")[1]), np.nan, noisy)


def tensors(seed: int) -> dict[str, np.ndarray]:
    """Name -> tensor with holes."""
    found = {f"synthetic {row}": synthetic(row, seed) for row in ("6:10:0.8", "3:20:0.95", "decay:0.7", "decay:0.9")}
    return found | {f"amino {share}": holes("amino", share, seed)[1] for share in (0.5, 0.9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rates", nargs="*", type=float, default=RATES)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("defaults.jsonl"))
    options = parser.parse_args()
    default = starting._MOST_STARTS
    for seed in options.seeds:
        for name, tensor in tensors(seed).items():
            given = read(tensor)
            away = np.random.default_rng(seed).random(len(given.values)) < 0.2
            shown, held = (
                (given.coords[~away], given.values[~away], given.shape),
                (given.coords[away], given.values[away]),
            )
            network = default_network("cp", given.shape, len(shown[1]), "auto")
            count = min(network.bond_count(bond) for bond in network.bonds)
            for rate in options.rates:
                for starts in STARTS if rate == 1e-4 else (default,):
                    starting._MOST_STARTS = starts
                    prior, began = InverseGamma(0.03 * count, rate * count), time.process_time()
                    fit = TensorCompletion(prior=prior, random_state=seed).fit(*shown)
                    row = {"data": name, "seed": seed, "rate": rate, "starts": starts, "rank": fit.rank_}
                    row |= {"rrse": round(fit.rrse(*held), 5), "log_density": round(fit.score(*held), 4)}
                    row |= {"cpu_seconds": round(time.process_time() - began, 1)}
                    print(json.dumps(row), flush=True)
                    with options.out.open("a") as lines:
                        lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
