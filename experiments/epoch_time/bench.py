"""Epoch time of configs/mnist_fc_map.yaml against its dense twin, side by side, and the wait for its first step.

python experiments/epoch_time/bench.py [--data-dir DIR] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.data import load_dataset
from bayestensor.experiment import build
from bayestensor.experiment.config import load
from bayestensor.experiment.run import dense_config
from bayestensor.inference.base import map_positions
from bayestensor.inference.train import Trainer

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "mnist_fc_map.yaml"
PRUNED = {"layers.0": {"b1": 6, "b2": 4, "b3": 4}, "layers.1": {"b1": 6}}  # what seed 0 ends with
STEPS = 117  # a quarter of an epoch at a time


class Contender:
    """A training loop that is timed a few steps at a time."""

    def __init__(self, config, data, ranks=None):
        model, initial = build.neural_model(config)
        x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
        steps = len(x) // config.train.batch_size
        engine = build.ENGINES[config.engine.name](config, model, model.posterior(len(x)), steps)
        prepare = build.preparation(config, build.scaler(33.3, 78.6))
        self.trainer = Trainer(engine, x, y, config.train.batch_size, prepare, jax.random.key(0))
        self.carry = self.trainer.start(initial, jax.random.key(1))
        if ranks:
            position = engine.position(self.carry.state)
            keep = {layer: {b: np.arange(r) for b, r in bonds.items()} for layer, bonds in ranks.items()}
            state = map_positions(self.carry.state, position, model.cuts(position, keep))
            self.carry = self.trainer.new_epoch(state)
        self.at = 0
        self.seconds_per_epoch: list[float] = []
        self.advance(record=False)

    def advance(self, record=True):
        start = time.perf_counter()
        self.carry = self.trainer.advance(self.carry, 0, self.at, self.at + STEPS)
        jax.block_until_ready(self.carry)
        if record:
            self.seconds_per_epoch.append((time.perf_counter() - start) * self.trainer.steps_per_epoch / STEPS)
        self.at = (self.at + STEPS) % (self.trainer.steps_per_epoch - STEPS)


# the command line itself, ended when its progress hears of the first step
UNTIL_FIRST_STEP = """
import os, sys
from bayestensor.cli import main
from bayestensor.experiment import console
console.Console.stepped = lambda *_: os._exit(0)
main()
"""


def first_step(data_dir: str | None, cache: str) -> float:
    """Wall seconds from the start of a process to the end of the run's first step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", UNTIL_FIRST_STEP, "run", str(CONFIG), "--out", f"{folder}/run"]
        command += ["--data-dir", data_dir] if data_dir else []
        start = time.perf_counter()
        subprocess.run(command, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}, capture_output=True, check=True)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", default=os.environ.get("BAYESTENSOR_DATA"))
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    cold, warm = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(first_step(arguments.data_dir, cache))
            warm.append(first_step(arguments.data_dir, cache))
    print(f"first step, from the start of the process: {statistics.median(cold):.1f} s cold, ", end="")
    print(f"{statistics.median(warm):.1f} s with a warm compilation cache (medians of 3)\n")
    config = load(CONFIG)
    data = load_dataset("mnist", arguments.data_dir)
    contenders = {
        "rank 20": Contender(config, data),
        "pruned": Contender(config, data, PRUNED),
        "dense twin": Contender(dense_config(config), data),
    }
    for _ in range(arguments.rounds):
        for contender in contenders.values():
            contender.advance()
    dense = contenders["dense twin"].seconds_per_epoch
    print(
        f"| network | seconds an epoch, median ({arguments.rounds} interleaved rounds) | against dense, median of pairs |"
    )
    print("|---|---|---|")
    for name, contender in contenders.items():
        ratio = statistics.median(a / b for a, b in zip(contender.seconds_per_epoch, dense, strict=True))
        print(f"| {name} | {statistics.median(contender.seconds_per_epoch):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
