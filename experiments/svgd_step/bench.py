"""Seconds a step and temporaries of SVGD at 16 x 100,000 and 20 x 500,000, beside BlackJAX's and NumPyro's, in one run.

python experiments/svgd_step/bench.py [--sizes 16x100000,20x500000]

All: target N(0, I), RBF kernel over everything, median rule refreshed at every step, AdaGrad, float32. Processor time of
all threads, best of several steps, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import time

import blackjax
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from blackjax.vi.svgd import rbf_kernel, update_median_heuristic
from numpyro.contrib.einstein import SVGD, RBFKernel

from bayestensor.inference.base import Posterior
from bayestensor.inference.svgd import svgd

TARGET = Posterior(lambda x: -0.5 * (x**2).sum(), lambda x, batch: 0.0 * batch, 1)


def ours(particles, **settings):
    engine = svgd(TARGET, kernel="all", parallel="vmap", **settings)  # as the others do
    step = jax.jit(lambda state: engine.step(jax.random.fold_in(jax.random.key(0), state.step), state, jnp.zeros(1))[0])
    return step, engine.init(jax.random.key(0), particles)


def of_blackjax(particles):
    algorithm = blackjax.svgd(
        jax.grad(lambda x: -0.5 * (x**2).sum()), optax.adagrad(0.05), rbf_kernel, update_median_heuristic
    )
    return jax.jit(algorithm.step), algorithm.init(particles, {"length_scale": 1.0})


def of_numpyro(particles):
    n, d = particles.shape

    def model():
        numpyro.sample("x", dist.Normal(jnp.zeros(d), 1.0).to_event(1))

    algorithm = SVGD(model, numpyro.optim.Adagrad(0.05), RBFKernel(), num_stein_particles=n)
    state = algorithm.init(jax.random.PRNGKey(0))
    return jax.jit(lambda state: algorithm.update(state)[0]), state


SUBJECTS = {
    "ours, plain": lambda x: ours(x, noisy=False),
    "ours, noisy (default)": lambda x: ours(x, burn_in=2),
    "NumPyro": of_numpyro,
    "BlackJAX": of_blackjax,
}


def measure(build, particles, repeats):
    step, state = build(particles)
    compiled = step.lower(state).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    state = jax.block_until_ready(compiled(state))
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        state = jax.block_until_ready(compiled(state))
        seconds.append(time.process_time() - start)
    return min(seconds), temporaries / particles.nbytes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="16x100000,20x500000")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for size in arguments.sizes.split(","):
        n, d = map(int, size.split("x"))
        particles = jax.random.normal(jax.random.key(0), (n, d))
        print(f"{n} x {d:,}")
        base = None
        for name, build in SUBJECTS.items():
            seconds, temporaries = measure(build, particles, arguments.repeats)
            base = base or seconds
            print(
                f"  {name:24} {1e3 * seconds:9.1f} ms   {seconds / base:6.1f}x   temporaries {temporaries:5.1f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
