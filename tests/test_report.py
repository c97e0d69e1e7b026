"""The report says what the run folder says, is self-contained, and copes with unfinished runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bayestensor.errors import RunError
from bayestensor.experiment.report import write_report

EPOCHS, CUTS = 24, (6, 12, 18)
NETWORK = {"layers.0": ("b1", "b2", "b3"), "layers.1": ("b1",)}
START = {"layers.0": {"b1": 20, "b2": 20, "b3": 20}, "layers.1": {"b1": 10}}


def _ranks_at(epoch: int) -> dict:
    falls = sum(epoch >= cut for cut in CUTS)
    return {
        layer: {bond: max(2, size - falls * (3 + k)) for k, (bond, size) in enumerate(bonds.items())}
        for layer, bonds in START.items()
    }


def metrics_of(seed: int, best: float, shrinks: bool = True) -> list[dict]:
    rng = np.random.default_rng(seed)
    records = []
    for epoch in range(1, EPOCHS + 1):
        ranks = _ranks_at(epoch if shrinks else 0)
        cut = shrinks and epoch in CUTS
        accuracy = best - 0.25 * math.exp(-epoch / 2.5) - 0.004 * cut + 0.0008 * rng.normal()
        size = 635 + sum(40 * rank**1.4 for bonds in ranks.values() for rank in bonds.values())
        records.append(
            {
                "epoch": epoch,
                "step": 375 * epoch,
                "loss": 0.9 * math.exp(-epoch / 3) + 0.06,
                "train_nll": 0.8 * math.exp(-epoch / 3) + 0.03,
                "validation_accuracy": accuracy - 0.001 if epoch > 2 else None,
                "test_accuracy": accuracy,
                "test_nll": 0.7 * math.exp(-epoch / 2.5) + 0.07,
                "num_parameters": round(size),
                "prior_weight": min(1.0, epoch / 8),
                "ranks": ranks if shrinks else {},
                "scales": {
                    layer: {
                        bond: sorted(
                            (np.exp(-np.arange(rank) * 0.05 * epoch) * rng.uniform(0.7, 1.3, rank)).tolist(),
                            reverse=True,
                        )
                        for bond, rank in bonds.items()
                    }
                    for layer, bonds in (ranks if shrinks else {}).items()
                },
                "seconds": 1.7 * epoch,
                "event": "pruned" if cut else None,
            }
        )
    return records


def summary_of(name: str, seed: int, records: list[dict]) -> dict:
    rng = np.random.default_rng(seed + 100)
    confusion = np.diag(rng.integers(880, 1130, 10)) + rng.integers(0, 9, (10, 10))
    confidence = [None, None, *(np.linspace(0.13, 0.98, 13) + 0.01).round(3).tolist()]
    final = records[-1]["num_parameters"]
    return {
        "name": name,
        "seed": seed,
        "params_dense": 496_885,
        "params_initial": 27_235,
        "params_final": final,
        "compression": 496_885 / final,
        "ranks": records[-1]["ranks"],
        "ranks_initial": START,
        "temperature": 2.0,
        "test_accuracy": records[-1]["test_accuracy"],
        "test_nll": 0.0712,
        "test_ece": 0.0061,
        "test_brier": 0.0299,
        "train_seconds": 71.34,
        "compile_seconds": 3.21,
        "first_step_seconds": 2.87,
        "model_bytes": 11_932,
        "layers": [
            {
                "name": "layers.0",
                "shape": [625, 784],
                "params_dense": 490_625,
                "params_initial": 26_600,
                "params_final": final - 500,
                "flops_dense": 980_000,
                "flops_final": 61_440,
            },
            {
                "name": "layers.1",
                "shape": [10, 625],
                "params_dense": 6_260,
                "params_initial": 635,
                "params_final": 500,
                "flops_dense": 12_500,
                "flops_final": 1_270,
            },
        ],
        "confusion": confusion.tolist(),
        "reliability": {
            "bins": 15,
            "confidence": confidence,
            "accuracy": [c and round(min(1.0, c * 0.96 + 0.02), 3) for c in confidence],
            "count": [0, 0, *(int(4 * 1.7**k) for k in range(13))],
        },
        "collapsed": [],
        "dense_twin": {
            "test_accuracy": 0.9841,
            "test_nll": 0.0622,
            "test_ece": 0.0088,
            "params": 496_885,
            "train_seconds": 65.02,
        },
    }


def make_run(path: Path, name: str = "mnist_fc_map", seed: int = 0, best: float = 0.983, **changes) -> Path:
    """A synthetic run folder; `changes` replace keys of its summary (`summary=None` leaves it out)."""
    (path / "twin").mkdir(parents=True)
    records = metrics_of(seed, best)
    (path / "config.yaml").write_text(f"name: {json.dumps(name)}\nseed: {seed}\nprior:\n  name: log-uniform\n")
    manifest = {
        "versions": {"python": "3.11.9", "jax": "0.10.2"},
        "commit": "431d029",
        "seed": seed,
        "hardware": {"cpu": "an ordinary one", "cores": 2, "device": "cpu"},
        "started": "2026-11-21T09:00:00+00:00",
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    _write_lines(path / "metrics.jsonl", records)
    _write_lines(path / "twin" / "metrics.jsonl", metrics_of(seed + 7, 0.984, shrinks=False))
    if changes.get("summary", True) is not None:
        (path / "summary.json").write_text(json.dumps(summary_of(name, seed, records) | changes))
    return path


def _write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
