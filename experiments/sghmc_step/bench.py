"""The cost of a step of SGHMC beside MAP's on the MNIST network of a config.

python experiments/sghmc_step/bench.py

Inputs are random (784 numbers, batch 128): the cost does not depend on them. 50 steps are scanned at a time, after as
many of burn-in. Processor time of all threads, not wall time, so that other work on the machine counts less.
"""

from __future__ import annotations

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from bayestensor.experiment.build import neural_model
from bayestensor.experiment.config import load
from bayestensor.inference.gradient import Centre
from bayestensor.inference.map import map_estimate
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.sgld import sgld

NUM, BATCH, STEPS = 60_000, 128, 50


def main(path: str = "configs/mnist_fc_map.yaml", rounds: int = 7) -> None:
    model, initial = neural_model(load(path))
    posterior = replace(model.posterior(NUM), proper=True)  # only the cost is asked for
    position = jax.jit(initial)(jax.random.key(0))
    batch = jax.random.normal(jax.random.key(1), (BATCH, 784)), jnp.arange(BATCH) % 10
    centre = Centre(position, jax.tree.map(jnp.zeros_like, position))
    engines = {
        "MAP (Adam)": map_estimate(posterior, optax.adam(1e-3)),
        "SGHMC": sghmc(posterior, step_size=1e-3, burn_in=STEPS),
        "SGHMC, control variate": sghmc(posterior, step_size=1e-3, burn_in=STEPS, centre=centre),
        "SGLD": sgld(posterior, step_size=1e-6, burn_in=STEPS),
    }
    programs, states = {}, {}
    for name, engine in engines.items():

        def go(key, state, batch, engine=engine):
            step = lambda state, key: (engine.step(key, state, batch)[0], None)  # noqa: E731
            return jax.lax.scan(step, state, jax.random.split(key, STEPS))[0]

        states[name] = engine.init(jax.random.key(2), position)
        programs[name] = jax.jit(go)
        states[name] = jax.block_until_ready(programs[name](jax.random.key(3), states[name], batch))
    best = dict.fromkeys(engines, float("inf"))
    for _ in range(rounds):  # in turns, so that other work on the machine meets all alike
        for name, program in programs.items():
            start = time.process_time()
            jax.block_until_ready(program(jax.random.key(3), states[name], batch))
            best[name] = min(best[name], (time.process_time() - start) / STEPS)
    for name, seconds in best.items():
        print(f"{name:24} {1e3 * seconds:7.2f} ms   {seconds / best['MAP (Adam)']:5.2f}x")


if __name__ == "__main__":
    main()
