"""Which law has an observation around the tensor? Settled on observed entries alone: a fifth of them (or of the fibres,
in a row data:share:mode) is left out and scored.

python experiments/completion/tails.py birmingham:0.5 amino:0.9 synthetic:0.7 ... [--table]

One fit a row; around its draws the noise is normal, Student's t of the same variance with the degrees of freedom that
leaving out each datum in turn favours (at least 3, or at least 4), or a mixture of normal laws of seventeen scales from
1/16 to 16, weighed by the same densities. Coverages are of each mixture's own distribution function at what was left out.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
from run import holes
from scipy.special import logsumexp, ndtr, stdtr
from scipy.stats import norm, t

from bayestensor.estimators import TensorCompletion
from bayestensor.estimators.held_out import held_out
from bayestensor.estimators.inputs import read
from bayestensor.estimators.residuals import left_out, noise_degrees, noise_scales
from bayestensor.estimators.stacking import mixture_weights

OUT = Path(__file__).with_name("tails.jsonl")
SCALES = 2.0 ** (np.arange(-8, 9) / 2)
MOST = 3000  # entries, seen and left out


def given_of(row: str):
    """(observations, where the fibres run): of a data set with holes, or of CP of rank 5 behind normal noise."""
    name, share, *along = row.split(":")
    if name != "synthetic":
        return read(holes(name, float(share), 1, *map(int, along))[1]), along
    rng = np.random.default_rng(0)
    truth = np.einsum("ir,jr,kr->ijk", *(rng.normal(size=(30, 5)) for _ in range(3)))
    noisy = truth + truth.std() * 10**-0.5 * rng.normal(size=truth.shape)
    return read(np.where(rng.random(truth.shape) < float(share), np.nan, noisy)), along


def fitted(row: str) -> dict[str, np.ndarray]:
    """Draws [draw, n] at entries seen and left out, the values there, noise [chain, draw]."""
    given, along = given_of(row)
    away, rng = held_out(given, 0.2, int(along[0]) if along else "random", 1), np.random.default_rng(2)
    seen, some = np.flatnonzero(~away), {}
    model = TensorCompletion(random_state=1).fit(given.coords[seen], given.values[seen], given.shape)
    noise = model.draws_.stats["noise"] * model.scale_
    for name, rows in (("in", seen), ("out", np.flatnonzero(away))):
        at = rng.permutation(rows)[:MOST]
        some |= {f"y_{name}": given.values[at], f"x_{name}": model.sample(noise.size, given.coords[at])}
    return some | {"noise": noise}


def spread_scales(found: dict[str, np.ndarray], count: int) -> np.ndarray:
    """A scale for each draw, in the shares that the densities of data left out favour; their variance is 1."""
    noise = found["noise"]
    off, variance, h = left_out(found["y_in"], found["x_in"].reshape(*noise.shape, -1), noise)
    whole = variance * (SCALES[:, None, None] ** 2 + h / (1 - h))
    log_p = logsumexp(norm.logpdf(off, 0, np.sqrt(whole)), axis=1) - math.log(len(noise))
    weights = mixture_weights(log_p, np.ones(log_p.shape[1]), 200)
    ranks = np.argsort(np.argsort(noise_scales(3.0, count)))
    scales = SCALES[np.searchsorted(np.cumsum(weights), (ranks + 0.5) / count).clip(0, len(SCALES) - 1)]
    return scales / np.sqrt(np.mean(scales**2))


def scored(row: str, found: dict[str, np.ndarray]) -> list[dict]:
    noise, lines = found["noise"], []
    best = noise_degrees(found["y_in"], found["x_in"].reshape(*noise.shape, -1), noise)
    laws = {"normal": math.inf, "t": best, "t, at least 4": max(best, 4.0), "scales": math.inf}
    for law, df in laws.items():
        s = noise.reshape(-1, 1) * (spread_scales(found, noise.size)[:, None] if law == "scales" else 1.0)
        s = s if math.isinf(df) else s * math.sqrt(1 - 2 / df)
        z = (found["y_out"] - found["x_out"]) / s
        below = (ndtr(z) if math.isinf(df) else stdtr(df, z)).mean(0)
        log_p = (norm.logpdf(z) if math.isinf(df) else t.logpdf(z, df)) - np.log(s)
        line = {"data": row, "law": law, "df": df if math.isfinite(df) else None}
        for level in (0.5, 0.9):
            line[f"coverage_{level * 100:.0f}"] = np.mean(np.abs(below - 0.5) < 0.5 * level)
        lines.append(line | {"log_density": (logsumexp(log_p, axis=0) - math.log(len(z))).mean()})
    return [{k: round(float(v), 4) if isinstance(v, float) else v for k, v in line.items()} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=("birmingham:0.5", "amino:0.5", "synthetic:0.7"))
    parser.add_argument("--table", action="store_true", help="print the table of the file")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.table:
        table = pd.read_json(options.out, lines=True)
        figures = ["coverage_50", "coverage_90", "log_density"]
        print(table.pivot_table(index="data", columns="law", values=figures, sort=False, aggfunc="last").to_string())
        return
    for row in options.rows:
        for line in scored(row, fitted(row)):
            print(json.dumps(line), flush=True)
            with options.out.open("a") as lines:
                lines.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
