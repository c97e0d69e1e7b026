"""Spread of SGHMC's and SVGD's draws on targets with known moments, on other seeds than the tests': see README.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import test_noncentred
import test_samplers
import test_svgd


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13])
    parser.add_argument("--engines", nargs="+", default=["sghmc", "svgd", "prior"])
    parser.add_argument("--dimensions", nargs="+", type=int, default=[2, 20, 200])
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else {}

    def keep(name, row):
        rows[name] = row
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(name, row, flush=True)

    for seed in args.seeds:
        for correlation in (0.0, 0.5) if "sghmc" in args.engines else ():
            thin = 80 if correlation else 20  # correlated covariates mix more slowly
            ratio, reported = test_samplers.against_nuts(correlation, seed, thin)
            least, mean, largest = (float(x) for x in (ratio.min(), ratio.mean(), ratio.max()))
            row = {"least": least, "mean": mean, "largest": largest, "reported": float(reported)}
            keep(f"sghmc | logistic regression, correlation {correlation} | {seed}", row)
        for name, prior in test_noncentred.PROPER.items() if "prior" in args.engines else ():
            keep(f"no data | {name} | {seed}", {"smallest Holm p": float(test_noncentred.without_data(prior, seed))})
        for d in args.dimensions if "svgd" in args.engines else ():
            for name, covariance in test_svgd.COVARIANCES.items():
                ratio, draws = test_svgd.spread(covariance(d), seed)
                row = {"ratio": float(ratio), "reported": float(draws.stats["variance_ratio"][:, -1].mean())}
                keep(f"svgd | {name}, d = {d} | {seed}", row)


if __name__ == "__main__":
    main()
