"""One long chain or several short ones, and with equal weights? Settled on observed entries alone: a fifth of them (or
of the fibres, in a row data:share:mode) is left out and scored.

python experiments/completion/chains.py birmingham:0.9 serology:0.5 [--draws 100] [--table]

Four chains from four seeds; c of them with n draws in all are scored, for every choice of c chains. All four are then
weighed by the density that each gives the entries it was fitted to, each left out in turn: by stacking (of chains in
separate modes: Yao, Vehtari, Gelman, JMLR 23, 2022) and by pseudo-BMA. Stacking on a half of the entries left out,
scored on the other, says what weights could bring at best.
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
    rng, each = np.random.default_rng(0), 1000 // len(parts)
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


def stacked(log_p, even: float = 0.0) -> np.ndarray:
    """Weights [chain] of the mixture that gives the entries [chain, entry] the highest density, by EM; as if
    `even` times as many entries more spoke for all chains alike."""
    weights = np.full(len(log_p), 1 / len(log_p))
    for _ in range(500):
        told = softmax(np.log(weights + 1e-300)[:, None] + log_p, axis=0).mean(1)
        weights = (told + even / len(log_p)) / (1 + even)
    return weights


def chains_of(row: str, draws: int):
    """Of each chain the draws at the entries left out and at (some of) those seen, and the noise; the values there."""
    name, share, *along = row.split(":")
    given = read(holes(name, float(share), 1, *map(int, along))[1])
    away = held_out(given, 0.2, int(along[0]) if along else "random", 1)
    seen = np.flatnonzero(~away)
    some = np.random.default_rng(2).permutation(seen)[:20_000]
    chains = []
    for seed in range(CHAINS):
        model = TensorCompletion(chains=1, num_draws=draws, random_state=seed)
        model.fit(given.coords[seen], given.values[seen], given.shape)
        noise = model.draws_.stats["noise"][0] * model.scale_
        chains.append((model.sample(draws, given.coords[away]), model.sample(draws, given.coords[some]), noise))
    return chains, given.values[away], given.values[some]


def scored(row: str, draws: int, parts, truth, known) -> list[dict]:
    lines, half = [], np.random.default_rng(3).random(len(truth)) < 0.5

    def add(weights, chains, total, **more):
        lines.append({"data": row, "weights": weights, "chains": chains, "draws": total} | more)

    for total in sorted({TOTAL, draws}):
        for chains in (1, 2, CHAINS):
            cut = [(d[: total // chains], s[: total // chains]) for d, _, s in parts]
            found = [mixture(chosen, truth) for chosen in combinations(cut, chains)]
            add("equal", chains, total, **dict(pd.DataFrame(found).mean()))
        log_p = np.stack([left_out_density(d[: total // CHAINS], s[: total // CHAINS], known) for _, d, s in parts])
        rules = {"stacking": stacked(log_p), "stacking, a tenth even": stacked(log_p, 0.1)}
        for rule, each in (rules | {"pseudo-BMA": softmax(log_p.sum(1))}).items():
            add(rule, CHAINS, total, each=each.round(3).tolist(), **mixture(cut, truth, each))
        best = stacked(np.stack([density(d[:, half], s, truth[half]) for d, s in cut]))
        other = [(d[:, ~half], s) for d, s in cut]
        add("equal, other half", CHAINS, total, **mixture(other, truth[~half]))
        add("stacking on half", CHAINS, total, each=best.round(3).tolist(), **mixture(other, truth[~half], best))
    return [{k: round(float(v), 4) if isinstance(v, float) else v for k, v in line.items()} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=("birmingham:0.9", "serology:0.5"))
    parser.add_argument("--draws", type=int, default=TOTAL, help="of each chain")
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
        for line in scored(row, options.draws, *chains_of(row, options.draws)):
            print(json.dumps(line), flush=True)
            with options.out.open("a") as lines:
                lines.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
