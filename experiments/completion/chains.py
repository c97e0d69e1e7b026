"""One long chain or several short ones, and with equal weights? Settled on observed entries alone: a fifth of them (or
of the fibres, in a row data:share:mode) is left out and scored.

python experiments/completion/chains.py birmingham:0.9 serology:0.5 [--draws 200] [--table]

Four chains from four seeds; c of them with n draws in all are scored, for every choice of c chains. All four are then
weighed by the density that each gives the entries it was fitted to, each left out in turn: by stacking (Yao, Vehtari,
Simpson, Gelman, Bayesian Analysis 13, 2018) and by pseudo-BMA. Stacking on a half of the entries left out, scored on
the other, says what weights could bring at best.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from run import holes, scores
from scipy.special import logsumexp, softmax
from scipy.stats import norm

from bayestensor.estimators import TensorCompletion
from bayestensor.estimators.held_out import held_out
from bayestensor.estimators.inputs import read

CHAINS, TOTAL = 4, 100
OUT = Path(__file__).with_name("chains.jsonl")


def mixture(parts, truth, weights=None) -> dict:
    """Scores of the mixture of normal laws around draws [draw, entry], a list of (draws, noise), one a chain."""
    rng, each = np.random.default_rng(0), 4000 // len(parts)
    weights = np.full(len(parts), 1 / len(parts)) if weights is None else weights
    counts = np.maximum(np.rint(weights * len(parts) * each), 0).astype(int)
    picked = [rng.permutation(np.arange(n) % len(draws)) for n, (draws, _) in zip(counts, parts, strict=True)]
    mean = sum(w * draws.mean(0) for w, (draws, _) in zip(weights, parts, strict=True))
    ends = np.empty((2, len(truth)))
    for at in range(0, len(truth), 1000):  # entries at a time: memory
        entries = slice(at, at + 1000)
        many = np.concatenate(
            [
                d[p, entries] + s[p, None] * rng.normal(size=d[p, entries].shape)
                for p, (d, s) in zip(picked, parts, strict=True)
            ]
        )
        ends[:, entries] = np.quantile(many, [0.05, 0.95], axis=0)
    log_p = np.stack([density(draws, noise, truth) for draws, noise in parts])
    log_density = logsumexp(log_p, axis=0, b=weights[:, None]).mean()
    return scores(mean, *ends, truth) | {"log_density": float(log_density)}


def density(draws, noise, truth) -> np.ndarray:
    return logsumexp(norm.logpdf(truth, draws, noise[:, None]), axis=0) - np.log(len(draws))


def left_out_density(draws, noise, truth) -> np.ndarray:
    """Of each entry that the draws have seen, as if they had not: truncated importance weights (see `left_out`)."""
    log_p = norm.logpdf(truth, draws, noise[:, None])
    log_w = -log_p - logsumexp(-log_p, axis=0)
    log_w = np.minimum(log_w, -0.5 * np.log(len(log_w)))
    return logsumexp(log_w + log_p, axis=0) - logsumexp(log_w, axis=0)


def stacked(log_p) -> np.ndarray:
    """Weights [chain] of the mixture that gives the entries [chain, entry] the highest density, by EM."""
    weights = np.full(len(log_p), 1 / len(log_p))
    for _ in range(500):
        weights = softmax(np.log(weights + 1e-12)[:, None] + log_p, axis=0).mean(1)
    return weights


def chains_of(row: str, draws: int):
    """(draws and noise at the entries left out, density of those seen) of each chain, and the truth left out."""
    name, share, *along = row.split(":")
    given = read(holes(name, float(share), 1, *map(int, along))[1])
    away = held_out(given, 0.2, int(along[0]) if along else "random", 1)
    seen = np.flatnonzero(~away)
    some = np.random.default_rng(2).permutation(seen)[:20_000]
    parts, log_p = [], []
    for seed in range(CHAINS):
        model = TensorCompletion(chains=1, num_draws=draws, random_state=seed)
        model.fit(given.coords[seen], given.values[seen], given.shape)
        noise = model.draws_.stats["precision"][0] ** -0.5 * model.scale_
        parts.append((model.sample(draws, given.coords[away]), noise))
        log_p.append(left_out_density(model.sample(draws, given.coords[some]), noise, given.values[some]))
    return parts, np.stack(log_p), given.values[away]


def scored(row: str, draws: int) -> list[dict]:
    parts, log_p, truth = chains_of(row, draws)
    lines = []
    for total in (TOTAL, draws):
        for chains in (1, 2, 4):
            cut = [(d[: total // chains], s[: total // chains]) for d, s in parts]
            found = [mixture(chosen, truth) for chosen in combinations(cut, chains)]
            lines.append({"weights": "equal", "chains": chains, "draws": total} | dict(pd.DataFrame(found).mean()))
    half = np.random.default_rng(3).random(len(truth)) < 0.5
    fitted = stacked(np.stack([density(d[:, half], s, truth[half]) for d, s in parts]))
    rules = {"stacking": stacked(log_p), "pseudo-BMA": softmax(log_p.mean(1) * log_p.shape[1])}
    cut = [(d[: draws // CHAINS], s[: draws // CHAINS]) for d, s in parts]
    for rule, weights in rules.items():
        lines.append(
            {"weights": rule, "chains": CHAINS, "draws": draws, "each": weights.round(3).tolist()}
            | mixture(cut, truth, weights)
        )
    other = [(d[:, ~half], s) for d, s in cut]
    for rule, weights in {"equal, other half": None, "stacking on half": fitted}.items():
        lines.append({"weights": rule, "chains": CHAINS, "draws": draws} | mixture(other, truth[~half], weights))
    lines[-1]["each"] = fitted.round(3).tolist()
    return [{"data": row} | {k: round(float(v), 4) if isinstance(v, float) else v for k, v in x.items()} for x in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=("birmingham:0.9", "serology:0.5"))
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--table", action="store_true", help="print the table of the file")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.table:
        table = pd.read_json(options.out, lines=True)
        figures = ["rrse", "coverage_90", "width_90", "log_density"]
        index = ["data", "draws", "chains", "weights"]
        print(table.groupby(index, sort=False)[figures].last().to_string())
        return
    for row in options.rows:
        for line in scored(row, options.draws):
            print(json.dumps(line), flush=True)
            with options.out.open("a") as lines:
                lines.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
