"""The tables of README.md from result.jsonl: of several lines of one row, mask and method the last counts.

python experiments/completion/tables.py [result.jsonl]
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

METHODS = ("ours", "bcpf", "tensorly")


def read(path: Path) -> pd.DataFrame:
    """One line a row, mask and method, of fits by the defaults."""
    lines = pd.read_json(path, lines=True)
    lines = lines[lines["format"].isna() & lines["chains"].isna()].copy()
    along = lines["along"].map(lambda modes: f":{modes[0]}" if isinstance(modes, list) and modes else "")
    lines["row"] = lines["data"] + ":" + lines["hidden"].astype(str) + along
    return (
        lines.groupby(["row", "mask_seed", "method"], sort=False)
        .tail(1)
        .drop_duplicates(["row", "mask_seed", "method"], keep="last")
    )


def cell(value: float, digits: str) -> str:
    return "" if pd.isna(value) else format(value, digits)


def first_mask(lines: pd.DataFrame) -> str:
    """Error, coverage, width and seconds of each method, mask seed 1."""
    table = lines[lines["mask_seed"] == 1].set_index(["row", "method"])
    heads = ["data:hidden", "ours", "cov90", "width", "s", "bcpf.py", "cov90", "width", "s", "sweeps", "TensorLy"]
    text = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in dict.fromkeys(lines["row"]):
        cells = [row]
        for method in METHODS:
            one = table.loc[(row, method)] if (row, method) in table.index else {}
            get = lambda key, one=one: one.get(key, float("nan"))  # noqa: E731
            compiling = get("cpu_seconds_compiling")
            seconds = get("cpu_seconds") - (0 if pd.isna(compiling) else compiling)
            cells.append(cell(get("rrse"), ".4f"))
            if method != "tensorly":
                cells += [cell(get("coverage_90"), ".3f"), cell(get("width_90"), ".3g")]
                note = "" if method == "bcpf" or not pd.isna(compiling) or pd.isna(seconds) else "*"
                cells.append(cell(seconds, ".0f") + note)
            if method == "bcpf":
                cells.append(cell(get("sweeps"), ".0f"))
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def several_masks(lines: pd.DataFrame) -> str:
    """Mean (least to greatest) over masks, where there are at least two."""
    text = ["| data:hidden | method | masks | error | cov90 | width |", "|---|---|---|---|---|---|"]
    for (row, method), found in lines.groupby(["row", "method"], sort=False):
        if len(found) > 1 and method != "tensorly":
            spread = [
                f"{found[key].mean():{form}} ({found[key].min():{form}} to {found[key].max():{form}})"
                for key, form in (("rrse", ".4f"), ("coverage_90", ".3f"), ("width_90", ".3g"))
            ]
            text.append(f"| {row} | {method} | {len(found)} | " + " | ".join(spread) + " |")
    return "\n".join(text)


def images(lines: pd.DataFrame) -> str:
    """PSNR and SSIM, mask seed 1."""
    found = lines[(lines["mask_seed"] == 1) & lines["psnr"].notna()]
    pairs = found["psnr"].map("{:.1f}".format) + " / " + found["ssim"].map("{:.3f}".format)
    table = found.assign(pair=pairs).pivot(index="row", columns="method", values="pair").reindex(columns=METHODS)
    text = ["| data:hidden | " + " | ".join(METHODS) + " |", "|---|---|---|---|"]
    text += [
        f"| {row} | " + " | ".join("" if pd.isna(x) else x for x in values) + " |"
        for row, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join(text)


if __name__ == "__main__":
    results = read(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("result.jsonl"))
    print("\n\n".join((first_mask(results), several_masks(results), images(results))))
