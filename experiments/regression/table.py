"""The table of README.md from results.jsonl: pooled over folds, then means over seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

rows = pd.read_json(Path(__file__).parent / "results.jsonl", lines=True)
rows = rows.drop_duplicates(["task", "method", "seed", "fold"], keep="last")
figures = [name for name in ("mse", "coverage", "width", "log_score", "auc", "accuracy") if name in rows]
keys = ["task", "response", "method", "seed"]
long = []
for row in rows.to_dict("records"):
    for k in range(max(len(row[name]) for name in figures if isinstance(row[name], list))):
        values = {n: row[n][min(k, len(row[n]) - 1)] for n in figures if isinstance(row[n], list)}
        long.append({name: row[name] for name in ("task", "method", "seed", "fold", "n")} | {"response": k} | values)
long = pd.DataFrame(long)
weighted = long[figures].mul(long["n"], axis=0).assign(**long[[*keys, "n"]])
pooled = weighted.groupby(keys)[[*figures, "n"]].sum(min_count=1)
pooled = pooled[figures].div(pooled["n"], axis=0)
pooled.insert(0, "rmse", np.sqrt(pooled.pop("mse")))
folds = long.groupby(keys)["fold"].nunique().rename("folds")
table = (
    pooled.join(folds).groupby(["task", "response", "method"]).agg({**dict.fromkeys(pooled, "mean"), "folds": "sum"})
)
oracle = table[table.index.get_level_values("method").str.startswith("tensorly")].reset_index()
oracle["kind"] = oracle["method"].str.split().str[1]
best = oracle.loc[oracle.groupby(["task", "response", "kind"])["rmse"].idxmin()] if len(oracle) else oracle
table = pd.concat([table.reset_index()[lambda t: ~t["method"].str.startswith("tensorly")], best.drop(columns="kind")])
print(table.sort_values(["task", "response", "method"]).round(4).dropna(axis=1, how="all").to_string(index=False))
