"""Tucker tensors and tensor trains, whose bonds each shrink two cores: the prior's rate, levels that move or not,
and slices that are sheared or not.

python experiments/completion/rates.py [ROW ...] [--seeds 100 101] [--formats tucker tensor_train] [--rates 1e-4 5.8e-6]
python experiments/completion/rates.py --held [...]          levels stay where they are (see `conditionals.pick_levels`)
python experiments/completion/rates.py --unsheared [...]     gauges stay where they are (see `gauge.pick_gauges`)
python experiments/completion/rates.py --table

A row is rank:SNR:hidden of a synthetic tensor of the format (error against the truth, see `recovery`), or data:share
hidden of a real one, where a fifth of the observed entries is left out and scored and hidden entries are not looked at.
A rate is that of `InverseGamma(0.03 D, rate D)`. Every fit appends its line to the result file; none is run twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from recovery import problem
from run import holes

from bayestensor.estimators import TensorCompletion
from bayestensor.estimators.inputs import read
from bayestensor.estimators.networks import default_network
from bayestensor.metrics.regression import rrse
from bayestensor.models import gauge
from bayestensor.priors import InverseGamma

ROWS = ("3:20:0.0", "birmingham:0.9", "amino:0.9", "birmingham:0.5", "3:10:0.7", "5:20:0.7")
RATES = (1e-4, 5.8e-6)


def fitted(row: str, form: str, rate: float, seed: int, held: bool, sheared: bool) -> dict:
    """Rank, error and (of real data) log density and coverage at 90 % of one fit with this rate."""
    parts, began = row.split(":"), time.process_time()
    synthetic = parts[0].isdigit()
    if synthetic:
        truth, holed, scored = problem(int(parts[0]), parts[1], float(parts[2]), seed, form)
    else:
        holed = holes(parts[0], float(parts[1]), seed)[1]
    given = read(holed)
    away = (
        np.zeros(len(given.values), bool) if synthetic else np.random.default_rng(seed).random(len(given.values)) < 0.2
    )
    network = default_network(form, given.shape, int(np.sum(~away)), "auto")
    count = min(network.bond_count(bond) for bond in network.bonds)
    model = TensorCompletion(format=form, prior=InverseGamma(0.03 * count, rate * count), random_state=seed)
    model.fit(given.coords[~away], given.values[~away], given.shape) if not synthetic else model.fit(holed)
    if synthetic:
        found = {"rrse": float(rrse(model.predict()[scored], truth[scored]))}
    else:
        rest = given.coords[away], given.values[away]
        low, high = model.predict_interval(0.9, rest[0])
        found = {"rrse": float(model.rrse(*rest)), "log_density": float(model.score(*rest))}
        found["coverage"] = float(np.mean((low <= rest[1]) & (rest[1] <= high)))
    found |= {"rank": model.rank_, "cpu_seconds": round(time.process_time() - began, 1)}
    return {"row": row, "format": form, "rate": rate, "seed": seed, "held": held, "sheared": sheared} | found


def table(lines: list[dict]) -> str:
    """A line a format and row: seeds that every variant run there has, then the mean error (and log density) of each variant."""
    rows: dict[tuple, dict] = defaultdict(dict)
    for line in lines:
        variant = not line["held"], line.get("sheared", False), -line["rate"]
        rows[line["format"], line["row"]][variant, line["seed"]] = line
    variants = sorted({variant for fits in rows.values() for variant, _ in fits})
    named = [
        f"{-rate:g} D" + ("" if moved else ", held") + (", sheared" if sheared else "")
        for moved, sheared, rate in variants
    ]
    out = ["| format | row | seeds | " + " | ".join(named) + " |", "|---" * (len(variants) + 3) + "|"]
    for (form, row), fits in rows.items():
        there = {variant for variant, _ in fits}
        seeds = sorted({s for _, s in fits if all((variant, s) in fits for variant in there)})
        cells = []
        for variant in variants:
            chosen = [fits[variant, s] for s in seeds if variant in there]
            cells.append(f"{np.mean([f['rrse'] for f in chosen]):.4f}" if chosen else "")
            if chosen and "log_density" in chosen[0]:
                cells[-1] += f", {np.mean([f['log_density'] for f in chosen]):.3f}"
        out.append(f"| {form} | {row} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--formats", nargs="*", default=["tucker", "tensor_train"])
    parser.add_argument("--rates", nargs="*", type=float, default=RATES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[100, 101, 102, 103])
    parser.add_argument("--held", action="store_true", help="levels stay where they are")
    parser.add_argument("--unsheared", action="store_true", help="gauges stay where they are")
    parser.add_argument("--table", action="store_true", help="print the table of the result file and stop")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("rates.jsonl"))
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.table:
        print(table(lines))
        return
    if options.held:
        gauge.pick_levels = lambda key, network, prior, scales, draw: (scales, dict.fromkeys(network.core, 1.0))
    if options.unsheared:
        gauge.sheared_bonds = lambda network: ()
    variant = options.held, not options.unsheared
    done = {
        (line["row"], line["format"], line["rate"], line["seed"], line["held"], line.get("sheared", False))
        for line in lines
    }
    for seed, row, form, rate in itertools.product(options.seeds, options.rows, options.formats, options.rates):
        if (row, form, rate, seed, *variant) not in done:
            found = json.dumps(fitted(row, form, rate, seed, *variant))
            print(found, flush=True)
            with options.out.open("a") as file:
                file.write(found + "\n")


if __name__ == "__main__":
    main()
