"""The table of the README from results.jsonl: means over seeds, and differences from the dense twin of the same seed.

python experiments/snips/table.py
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def main() -> None:
    rows = pd.read_json(Path(__file__).with_name("results.jsonl"), lines=True)
    rows["accuracy"] *= 100
    dense = rows[rows["format"] == "dense"].set_index(["model", "seed"])["accuracy"]
    rows["difference"] = rows["accuracy"] - dense.reindex(pd.MultiIndex.from_frame(rows[["model", "seed"]])).to_numpy()
    rows["smaller"] = rows["dense"] / rows["parameters"]
    kept = ["table_rank", "rank", "parameters", "smaller", "nll", "cpu_seconds"]
    grouped = rows.groupby(["model", "format"], sort=False)
    table = grouped[kept].mean().join(grouped.size().rename("seeds"))
    for name in ("accuracy", "difference"):
        table[name], table[f"{name} s.e."] = grouped[name].mean(), grouped[name].sem()
    print(table.round({"smaller": 1, "nll": 4, "cpu_seconds": 0}).round(2).to_string())


if __name__ == "__main__":
    main()
