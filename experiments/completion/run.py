"""Completion of real tensors, `TensorCompletion` with its defaults beside the BCPF model by variational Bayes and
masked CP by TensorLy.

python experiments/completion/run.py amino:0.5 amino:0.9 ... [--seeds 1 2 3] [--methods ours bcpf tensorly]
                                     [--sweeps 100] [--once] [--set format=tucker] [--out result.jsonl]

A row is data:share hidden, or data:share:mode where whole fibres along a mode are hidden. The larger tensors are there
whole ('jasper') and in part ('jasper-part', see PARTS).
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from bcpf import bcpf
from scipy.ndimage import gaussian_filter

from bayestensor.estimators import TensorCompletion
from bayestensor.experiment.task import Completion, hide
from bayestensor.metrics.regression import coverage, gaussian_interval, rrse, width

ROWS = (
    "amino:0.5",
    "amino:0.9",
    "serology:0.2",
    "serology:0.5",
    "birmingham:0.5",
    "birmingham:0.9",
    "facade:0.5",
    "facade:0.9",
)
PARTS: dict[str, dict] = {
    "jasper": {"every": (4, 2, 2)},  # 50 bands x 50 x 50 pixels
    "kinetic": {"every": (2, 1, 1, 2)},  # 32 measurements x 12 x 10 x 30 times
    "mri": {"every": (2, 2, 1, 1)},  # 64 x 48 x 24 x 2
    "nyc": {"first": (30, 30, 168)},  # the first week
}
TENSORLY_RANKS = (2, 3, 5, 10, 20)


def holes(name: str, share: float, seed: int, along: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tensor, tensor with holes, hidden): hidden entries that are known, at random, or whole fibres along a mode."""
    part = PARTS[name.removesuffix("-part")] if name.endswith("-part") else {}
    known = hide(Completion(data=name.removesuffix("-part"), hidden=share, along=along, seed=seed, **part))
    (holed,), at = known.given, tuple(known.coords.T)
    whole, hidden = holed.copy(), np.zeros(holed.shape, bool)
    whole[at], hidden[at] = known.truth, True
    return whole, holed, hidden


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al., IEEE TIP 13, 2004), windows of sd 1.5 pixels, mean over pixels and colours."""
    blur = lambda x: gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5)  # noqa: E731
    means, (c1, c2) = (blur(image), blur(truth)), ((0.01 * 255) ** 2, (0.03 * 255) ** 2)
    variances = blur(image**2) - means[0] ** 2 + blur(truth**2) - means[1] ** 2
    covariance = blur(image * truth) - means[0] * means[1]
    light = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
    return float(np.mean(light * (2 * covariance + c2) / (variances + c2)))


def image_scores(mean: np.ndarray, whole: np.ndarray, hidden: np.ndarray) -> dict:
    """PSNR and SSIM of the whole image, with the entries shown as they are."""
    if whole.ndim != 3 or whole.shape[2] != 3:
        return {}
    image = np.where(hidden, np.clip(mean, 0, 255), whole)
    return {"psnr": 10 * np.log10(255**2 / np.mean((image - whole) ** 2)), "ssim": ssim(image, whole)}


def scores(mean, low, high, truth) -> dict:
    ends = coverage(low, high, truth), width(low, high)
    return {"rrse": rrse(mean, truth), "coverage_90": ends[0], "width_90": ends[1]}


def ours(holed, hidden, whole, seed, once, **settings) -> dict:
    """The same fit twice: the second has nothing to compile."""
    taken = []
    for _ in range(1 if once else 2):
        began, spent = time.perf_counter(), time.process_time()
        model = TensorCompletion(random_state=seed, **settings).fit(holed)
        mean = model.predict()
        taken.append((time.perf_counter() - began, time.process_time() - spent))
    times = dict(zip(("seconds", "cpu_seconds"), taken[0], strict=True))
    if not once:
        times |= {"seconds_again": taken[1][0], "cpu_seconds_compiling": taken[0][1] - taken[1][1]}
    spent = time.process_time()
    low, high = model.conformal_interval(0.9) if model.conformal else model.predict_interval(0.9)
    times |= {"cpu_seconds_intervals": time.process_time() - spent}
    found = scores(mean[hidden], low[hidden], high[hidden], whole[hidden]) | image_scores(mean, whole, hidden)
    return found | times | {"rank": model.rank_ if isinstance(model.rank_, int) else list(model.rank_.values())}


def theirs(holed, hidden, whole, seed, sweeps) -> dict:
    began, spent = time.perf_counter(), time.process_time()
    mean, sd, rank, taken = bcpf(holed, sweeps=sweeps, seed=seed)
    times = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    found = scores(mean[hidden], *gaussian_interval(mean[hidden], sd[hidden], 0.9), whole[hidden])
    return found | image_scores(mean, whole, hidden) | times | {"rank": rank, "sweeps": taken}


def tensorly(holed, hidden, whole, seed) -> dict:
    """The best rank by the hidden error itself, which no user could pick; no intervals."""
    from tensorly import cp_to_tensor
    from tensorly.decomposition import parafac

    began, spent, found = time.perf_counter(), time.process_time(), []
    mask = np.isfinite(holed)
    filled = np.where(mask, holed, holed[mask].mean())  # hidden entries get into its start
    for rank in TENSORLY_RANKS:
        mean = cp_to_tensor(parafac(filled, rank, n_iter_max=200, mask=mask, tol=1e-6, random_state=seed))
        found.append({"rrse": rrse(mean[hidden], whole[hidden]), "rank": rank} | image_scores(mean, whole, hidden))
    times = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    return min(found, key=lambda one: one["rrse"]) | times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--methods", nargs="*", default=["ours", "bcpf"], choices=["ours", "bcpf", "tensorly"])
    parser.add_argument("--sweeps", type=int, default=100, help="the most that bcpf takes")
    parser.add_argument("--once", action="store_true", help="ours without the second fit that tells compilation apart")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters other than the defaults")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.jsonl"))
    options = parser.parse_args()
    settings = {name: yaml.safe_load(value) for name, value in (item.split("=") for item in options.set)}
    for seed in options.seeds:
        for row in options.rows:
            name, share, *along = row.split(":")
            whole, holed, hidden = holes(name, float(share), seed, *map(int, along))
            for method in options.methods:
                fit = {
                    "ours": partial(ours, once=options.once, **settings),
                    "bcpf": partial(theirs, sweeps=options.sweeps),
                    "tensorly": tensorly,
                }[method]
                found = {"data": name, "hidden": float(share), "along": along, "mask_seed": seed, "method": method}
                scored = fit(holed, hidden, whole, seed)
                found |= (settings if method == "ours" else {}) | {
                    k: round(v, 4) if isinstance(v, float) else v for k, v in scored.items()
                }
                print(json.dumps(found), flush=True)
                with options.out.open("a") as lines:
                    lines.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
