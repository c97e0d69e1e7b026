"""The table of the README from results.jsonl: means over seeds, and differences from the dense twin of the same seed.

python experiments/snips/table.py
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def main() -> None:
    rows = pd.read_json(Path(__file__).with_name("results.jsonl"), lines=True)
    rows["accuracy"] *= 100
    twin = ["setting", "model", "seed"]
    dense = rows[rows["format"] == "dense"].set_index(twin)["accuracy"]
    rows["difference"] = rows["accuracy"] - dense.reindex(pd.MultiIndex.from_frame(rows[twin])).to_numpy()
    rows["smaller"] = rows["dense"] / rows["parameters"]
    kept = ["table_rank", "rank", "parameters", "smaller", "nll", "cpu_seconds"]
    grouped = rows.groupby(["setting", "model", "format"], sort=False)
    table = grouped[kept].mean().join(grouped.size().rename("seeds"))
    for name in ("accuracy", "difference"):
        table[name], table[f"{name} s.e."] = grouped[name].mean(), grouped[name].sem()
    digits = {"smaller": 1, "nll": 4, "accuracy": 2, "difference": 2}
    print(table.round(digits | {f"{name} s.e.": 2 for name in ("accuracy", "difference")}).astype(object).to_string())


if __name__ == "__main__":
    main()
