"""Entries of a large CP tensor of rank 10 behind noise: time, memory, rank, error and coverage by their number.

python experiments/completion_scale/run.py [--entries 100000 1000000 10000000] [--seeds 1] [--oracle]
python experiments/completion_scale/run.py --plot scale.png
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

SHAPES = {100_000: (400, 400, 100), 1_000_000: (2000, 2000, 400), 10_000_000: (10_000, 10_000, 1000)}
RANK, DECIBELS, HIDDEN = 10, 10.0, 1_000_000


def problem(entries: int, seed: int):
    """(shape, factors, coordinates, noisy values, hidden coordinates, their values without noise, noise)."""
    shape, rng = SHAPES[entries], np.random.default_rng(seed)
    factors = [rng.normal(size=(n, RANK)) for n in shape]
    noise = RANK**0.5 * 10 ** (-DECIBELS / 20)

    def at(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        coords = np.stack(np.unravel_index(flat, shape), axis=1).astype(np.int32)
        blocks = np.array_split(coords, max(1, len(coords) // 100_000))
        return coords, np.concatenate([np.prod([f[b[:, k]] for k, f in enumerate(factors)], 0).sum(1) for b in blocks])

    size = int(np.prod(shape))
    flat = rng.permutation(np.unique(rng.integers(size, size=int(1.3 * entries) + 2000)))[: int(1.1 * entries)]
    coords, values = at(flat[:entries])
    hidden, truth = at(flat[entries:][:HIDDEN])
    return shape, factors, coords, values + noise * rng.normal(size=len(values)), hidden, truth, noise


def started_at_truth(shape, factors, coords, values, sweeps: int = 10):
    """Factors after sweeps of least squares, ridge of the noise's size, from the true ones: what a start can lead to."""
    import jax

    from bayestensor.models.conjugate import Conjugate
    from bayestensor.models.conjugate import sweeps as run
    from bayestensor.models.state import MAP
    from bayestensor.priors import InverseGamma
    from bayestensor.tensor.formats import cp
    from bayestensor.tensor.observations import Entries

    with jax.enable_x64(True):
        network = cp(shape, rank=RANK)
        data = Entries.build(network, coords, values)
        model = Conjugate(network, InverseGamma(0.5, 0.5), 1.0)
        state = model.start({f"factor{k}": f for k, f in enumerate(factors)}, 1.0)._replace(covariances={})
        chance = model.chance(np.random.default_rng(0), sweeps, len(values), False)
        state, _ = run(model, chance, state, data, MAP, np.zeros(sweeps, bool))
        return [np.asarray(state.cores[f"factor{k}"]) for k in range(len(shape))]


def measured(entries: int, seed: int, oracle: bool, draws: int | None) -> dict:
    """One fit at max_rank 20, a quarter as many sweeps dropped as drawn, or least squares from the true factors."""
    shape, factors, coords, values, hidden, truth, noise = problem(entries, seed)
    found = {"entries": entries, "shape": shape, "seed": seed, "method": "truth" if oracle else "ours"}
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, spent = time.perf_counter(), time.process_time()
    if oracle:
        reached = started_at_truth(shape, factors, coords, values)
        mean = np.prod([f[hidden[:, k]] for k, f in enumerate(reached)], axis=0).sum(1)
    else:
        from bayestensor.estimators import TensorCompletion

        sizes = {} if draws is None else {"num_draws": draws, "burn_in": draws // 4}
        model = TensorCompletion(max_rank=20, **sizes, random_state=seed).fit(coords, values, shape)
        found |= {"draws": draws or "default", "rank": model.rank_, "noise": round(model.noise_ / noise, 4)}
    times = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found |= {k: round(v, 1) for k, v in times.items()} | {
        "GiB": round(peak / 2**20, 2),
        "GiB_before": round(base / 2**20, 2),
    }
    if not oracle:
        part = hidden[:100_000]
        mean = model.predict(hidden)
        low, high = model.predict_interval(0.9, part)
        noisy = truth[: len(part)] + noise * np.random.default_rng(seed + 1).normal(size=len(part))
        found |= {"cover90": round(float(np.mean((low <= noisy) & (noisy <= high))), 4)}
    return found | {"rrse": round(float(np.linalg.norm(mean - truth) / np.linalg.norm(truth)), 5)}


def plot(lines: list[dict], out: str) -> None:
    """Processor seconds and memory of our fits by the number of entries, with a line of slope one."""
    import matplotlib.pyplot as plt

    ours = [line for line in lines if line["method"] == "ours"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.5), constrained_layout=True)
    for ax, name in zip(axes, ("cpu_seconds", "GiB"), strict=True):
        n, y = np.array(sorted((line["entries"], line[name]) for line in ours)).T
        ax.loglog(n, y, "o-")
        ax.loglog(n, y[-1] * n / n[-1], ":", color="grey", label="in proportion")
        ax.set(xlabel="observed entries", ylabel=name.replace("_", " "))
        ax.legend()
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", nargs="*", type=int, default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--draws", type=int, help="in place of the estimator's default; a quarter as many before")
    parser.add_argument("--oracle", action="store_true", help="least squares from the true factors instead")
    parser.add_argument("--plot", metavar="PNG", help="draw the result file and stop")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.jsonl"))
    options = parser.parse_args()
    if options.plot:
        plot([json.loads(line) for line in options.out.read_text().splitlines()], options.plot)
        return
    for seed in options.seeds:
        for entries in options.entries:
            found = json.dumps(measured(entries, seed, options.oracle, options.draws))
            print(found, flush=True)
            with options.out.open("a") as lines:
                lines.write(found + "\n")


if __name__ == "__main__":
    main()
