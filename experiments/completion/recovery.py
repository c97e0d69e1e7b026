"""Synthetic tensors 30 x 30 x 30 of known rank: is the rank found, and the tensor?

python experiments/completion/recovery.py [FORMAT:RANK:SNR:HIDDEN ...] [--seeds 0 1 2 3 4]      SNR in dB, or 'exact'
python experiments/completion/recovery.py --prior cumulative_shrinkage cp:6:10:0.7           another prior, by its name
python experiments/completion/recovery.py --table

Every fit appends its line to the result file as it ends; a fit that the file holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bayestensor.estimators import TensorCompletion
from bayestensor.metrics.regression import rrse
from bayestensor.tensor.contract import dense
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.initialise import initialise
from bayestensor.tensor.network import Factored

SHAPE = (30, 30, 30)
ROWS = (
    *(f"cp:{rank}:{snr}:{hidden}" for hidden in (0.0, 0.7, 0.8) for snr in (20, 10, 0) for rank in (3, 6, 18, 24)),
    "cp:3:exact:0.95",
    "cp:3:exact:0.97",
    *(f"{form}:{rank}:{snr}:{hidden}" for hidden in (0.0, 0.7) for snr in (20, 10) for form, rank in
      (("tensor_train", 3), ("tensor_train", 5), ("tucker", 3), ("tucker", 5), ("tensor_ring", 3))),
)  # fmt: skip


def problem(
    rank: int, snr: str, hidden: float, seed: int, form: str = "cp"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(truth, tensor with holes, entries to score): the hidden ones, or all where none is."""
    rng = np.random.default_rng(seed)
    cores = true_cores(rank, rng, seed, form)
    if form == "cp":
        truth = np.einsum("ir,jr,kr->ijk", *cores.values())
    else:
        truth = np.asarray(dense(Factored(FORMATS[form](SHAPE, rank=rank), cores)))
    noise = 0.0 if snr == "exact" else truth.std() * 10 ** (-float(snr) / 20)
    away = rng.random(truth.shape) < hidden
    noisy = truth + noise * rng.normal(size=truth.shape)
    return truth, np.where(away, np.nan, noisy), away if hidden else np.ones_like(away)


def true_cores(rank: int, rng: np.random.Generator, seed: int, form: str) -> dict[str, Any]:
    """Core name -> array of the tensor that a seed stands for."""
    if form == "cp":
        return {f"factor{k}": rng.normal(size=(30, rank)) for k in range(3)}
    return initialise(jax.random.key(seed), FORMATS[form](SHAPE, rank=rank)).cores


def from_the_truth(row: str, seed: int, sweeps: int = 10) -> float:
    """Error after sweeps of least squares, at the true ranks, from the true cores."""
    form, rank, snr, hidden = row.split(":")
    network = FORMATS[form](SHAPE, rank=int(rank))
    truth, holed, scored = problem(int(rank), snr, float(hidden), seed, form)
    cores = true_cores(int(rank), np.random.default_rng(seed), seed, form)
    cores = {name: np.asarray(core, np.float64) for name, core in cores.items()}
    letters = dict(zip([*network.modes, *network.bonds], "ijkabcd", strict=False))
    legs = {core.name: "".join(letters[leg] for leg in core.legs) for core in network.cores}
    for _ in range(sweeps):
        for name, own in legs.items():
            others = {other: core for other, core in cores.items() if other != name}
            rest = "".join(mode for mode in "ijk" if mode not in own)
            mode, bonds = "".join(set(own) & set("ijk")), "".join(leg for leg in own if leg not in "ijk")
            terms = ",".join(legs[other] for other in others)
            rows = np.einsum(f"{terms}->{rest}{bonds}", *others.values(), optimize=True)
            rows = rows.reshape(30 ** len(rest), -1)  # the entries of a mode's index: [entries, unknowns]
            values = np.einsum(f"ijk->{mode}{rest}", holed).reshape(-1, len(rows))
            seen = np.isfinite(values)
            gram = rows.T @ (seen[:, :, None] * rows) if hidden != "0.0" else (rows.T @ rows)[None]
            found = np.linalg.solve(gram, (np.where(seen, values, 0) @ rows)[..., None])
            sizes = [cores[name].shape[own.index(leg)] for leg in mode + bonds]
            cores[name] = np.einsum(f"{mode}{bonds}->{own}", found.reshape(sizes))
    return rrse(np.einsum(",".join(legs.values()) + "->ijk", *cores.values(), optimize=True)[scored], truth[scored])


def fitted(row: str, seed: int, prior: str | None = None) -> dict:
    """One fit at the defaults (but for a prior): rank (of each bond), error, processor seconds."""
    form, rank, snr, hidden = row.split(":")
    truth, holed, scored = problem(int(rank), snr, float(hidden), seed, form)
    began = time.process_time()
    model = TensorCompletion(format=form, prior=prior, random_state=seed).fit(holed)
    found = {"row": row, "seed": seed} | ({"prior": prior} if prior else {})
    found |= {"rank": model.rank_, "rrse": rrse(model.predict()[scored], truth[scored])}
    if form == "tensor_ring":  # its ranks are not identifiable
        found["parameters"] = model.network_.resized(model.rank_).num_parameters
    return found | {"cpu_seconds": round(time.process_time() - began, 1)}


def table(lines: list[dict]) -> str:
    """A line a row: seeds, how often the rank (of every bond) was exact, others, error (mean, from truth, worst)."""
    rows = defaultdict(list)
    for line in lines:
        rows[line["row"], line.get("prior")].append(line)
    out = [
        "| row | seeds | exact rank | other ranks | error | from the truth | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for (row, prior), fits in sorted(rows.items(), key=lambda item: (item[0][1] or "", ROWS.index(item[0][0]))):
        form, rank, snr, _ = row.split(":")
        ranks = [list(f["rank"].values()) if isinstance(f["rank"], dict) else [f["rank"]] for f in fits]
        wrong = [r[0] if len(r) == 1 else r for r in ranks if set(r) != {int(rank)}]
        exact, others = str(len(fits) - len(wrong)), " ".join(map(str, wrong))
        if form == "tensor_ring":
            true = FORMATS[form](SHAPE, rank=int(rank)).num_parameters
            exact, others = "", f"parameters {true}: " + ", ".join(str(f["parameters"]) for f in fits)
        errors = [f["rrse"] for f in fits]
        least = "" if snr == "exact" else f"{np.mean([from_the_truth(row, f['seed']) for f in fits]):.3g}"
        named = row + (f", {prior}" if prior else "")
        shown = f"{np.mean(errors):.3g} | {least} | {np.max(errors):.3g}"
        out.append(f"| {named} | {len(fits)} | {exact} | {others} | {shown} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--seeds", nargs="*", type=int, default=range(5))
    parser.add_argument("--prior", help="its name in bayestensor.PRIORS, in place of the default")
    parser.add_argument("--table", action="store_true", help="print the table of the result file and stop")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("recovery.jsonl"))
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.table:
        print(table(lines))
        return
    done = {(line["row"], line["seed"], line.get("prior")) for line in lines}
    for seed in options.seeds:
        for row in options.rows:
            if (row, seed, options.prior) not in done:
                found = json.dumps(fitted(row, seed, options.prior))
                print(found, flush=True)
                with options.out.open("a") as file:
                    file.write(found + "\n")


if __name__ == "__main__":
    main()
