"""Simulation-based calibration of the rank-adaptive model, with seeded faults: see README.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import rank_adaptive
import sbc

RUNS = {
    "as it is": ({}, {}),
    "sd x 0.8": ({}, {"width": 0.8}),
    "mean + 0.3 sd": ({}, {"shift": 0.3}),
    "a dropped prior term": ({"drop_prior": True}, {}),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--formats", nargs="+", default=["cp", "tensor_train"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else {}
    for format in args.formats:
        for seed in args.seeds:
            for name in args.runs:
                settings, fault = RUNS[name]
                begun = time.process_time()
                plain, nonfinite = rank_adaptive.simulate(format, args.simulations, seed=seed, **settings)
                statistics = rank_adaptive.with_fault(plain, **fault) if fault else plain
                smallest = {k: min(sbc.p_values(sbc.ranks(*pair, n))) for n, (k, pair) in enumerate(statistics.items())}
                row = {"holm": sbc.smallest_p(statistics), "tests": 3 * len(smallest), "smallest p": smallest}
                row |= {"undone steps": int(nonfinite.sum()), "seconds": round(time.process_time() - begun)}
                rows[f"{format} | {seed} | {name}"] = row
                args.out.write_text(json.dumps(rows, indent=1) + "\n")
                print(format, seed, name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
