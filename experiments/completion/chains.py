"""One long chain or several short ones? Settled on observed entries alone: a fifth of them is left out and scored.

python experiments/completion/chains.py birmingham:0.9 serology:0.5 [--draws 400] [--out experiments/completion/chains.jsonl]

Four chains from four seeds; c of them with n draws in all are scored, for every choice of c chains.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np
from run import holes, scores

from bayestensor.estimators import TensorCompletion
from bayestensor.estimators.inputs import read

CHAINS = 4


def mixture(draws, noise, truth) -> dict:
    """Scores of the mixture of normal laws around the draws [draw, entry]."""
    rng = np.random.default_rng(0)
    repeats = max(1, 1000 // len(draws))
    many = np.concatenate([draws + noise[:, None] * rng.normal(size=draws.shape) for _ in range(repeats)])
    return scores(draws.mean(0), *np.quantile(many, [0.05, 0.95], axis=0), truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=("birmingham:0.9", "serology:0.5"))
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("chains.jsonl"))
    options = parser.parse_args()
    for row in options.rows:
        name, share = row.split(":")
        given = read(holes(name, float(share), 1)[1])
        away = np.random.default_rng(1).random(len(given.values)) < 0.2
        at, truth, found = given.coords[away], given.values[away], []
        for seed in range(CHAINS):
            model = TensorCompletion(chains=1, num_draws=options.draws, random_state=seed)
            model.fit(given.coords[~away], given.values[~away], given.shape)
            noise = model.draws_.stats["precision"][0] ** -0.5 * model.scale_
            found.append((model.sample(options.draws, at), noise))
        for total in (100, options.draws):
            for chains in (1, 2, 4):
                scored = [
                    mixture(
                        *(
                            np.concatenate([part[: total // chains] for part in parts])
                            for parts in zip(*chosen, strict=True)
                        ),
                        truth,
                    )
                    for chosen in combinations(found, chains)
                ]
                line = {"data": name, "hidden": float(share), "chains": chains, "draws": total}
                line |= {key: [round(float(one[key]), 4) for one in scored] for key in scored[0]}
                print(json.dumps(line), flush=True)
                with options.out.open("a") as lines:
                    lines.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
