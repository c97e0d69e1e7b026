"""Simulation-based calibration of the rank-adaptive model, with seeded faults: see README.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import gibbs_calibration
import rank_adaptive
import sbc

RUNS = {
    "as it is": ({}, {}),
    "sd x 0.8": ({}, {"width": 0.8}),
    "mean + 0.3 sd": ({}, {"shift": 0.3}),
    "a dropped prior term": ({"drop_prior": True}, {}),
}
GIBBS = {"as it is": {}, "from the truth": {"from_truth": True, "thin": 200, "burn_in": 1000}}
GIBBS |= {fault: {"fault": fault, "thin": 20, "burn_in": 200} for fault in gibbs_calibration.FAULTS}


def sghmc(name, *args, **settings):
    """(statistics, how many chains had a step undone) of one of RUNS."""
    more, fault = RUNS[name]
    plain, nonfinite = rank_adaptive.simulate(*args, **settings, **more)
    return rank_adaptive.with_fault(plain, **fault) if fault else plain, int(nonfinite.sum())


def gibbs(name, *args, **settings):
    """(statistics, 0: no step is undone) of one of GIBBS."""
    return gibbs_calibration.simulate(*args, **settings, **GIBBS[name]), 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--sampler", choices=["sghmc", "gibbs"], default="sghmc")
    parser.add_argument("--formats", nargs="+", default=["cp", "tensor_train"], help="of gibbs also other subjects")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--runs", nargs="+", help="all but 'from the truth' by default")
    args = parser.parse_args()
    sampler, named = (gibbs, GIBBS) if args.sampler == "gibbs" else (sghmc, RUNS)
    runs = args.runs or [name for name in named if name != "from the truth"]
    label = "gibbs " if args.sampler == "gibbs" else ""
    rows = json.loads(args.out.read_text()) if args.out.exists() else {}
    for format in args.formats:
        for seed in args.seeds:
            for name in runs:
                begun = time.process_time()
                statistics, undone = sampler(name, format, args.simulations, seed=seed)
                smallest = {k: min(sbc.p_values(sbc.ranks(*pair, n))) for n, (k, pair) in enumerate(statistics.items())}
                row = {"holm": sbc.smallest_p(statistics), "tests": 3 * len(smallest), "smallest p": smallest}
                row |= {"undone steps": undone, "seconds": round(time.process_time() - begun)}
                rows[f"{label}{format} | {seed} | {name}"] = row
                args.out.write_text(json.dumps(rows, indent=1) + "\n")
                print(format, seed, name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
