"""Do chains that start with a weak slice dead and with it live agree on the probability that it lives? See README.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.inference.diagnostics import diagnose
from bayestensor.inference.nuts import nuts
from bayestensor.inference.sample import sample
from bayestensor.inference.sghmc import sghmc
from bayestensor.models.completion import CompletionModel
from bayestensor.models.likelihoods import Gaussian
from bayestensor.models.noncentred import noncentred
from bayestensor.tensor.formats import FORMATS

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import small

SHAPE, NOISE, SEEN, CHAINS = (6, 5, 4), 0.3, 72, 8
DEAD, LIVE = (0.0, -8.0, -8.0), (0.0, 0.0, 0.0)  # log v of the three slices at the start


def problem(weight: float) -> small.Problem:
    """The completion of `notebooks/map_sghmc_svgd.ipynb`: two slices, the second of a weight, fitted at rank 3."""
    rng = np.random.default_rng(0)
    factors = [rng.normal(size=(n, 2)) for n in SHAPE]
    unit = [factor / np.sqrt((factor**2).mean(0)) for factor in factors]
    truth = np.einsum("ar,br,cr,r->abc", *unit, [1.0, weight])
    seen = rng.permutation(np.arange(truth.size) < SEEN).reshape(SHAPE)
    coords = jnp.asarray(np.argwhere(seen))
    data = coords, jnp.asarray((truth + NOISE * rng.normal(size=SHAPE))[seen], jnp.float32)
    model = CompletionModel(FORMATS["cp"](SHAPE, (), 3), small.PRIOR, Gaussian(NOISE))
    return small.Problem(model, data, noncentred(model, SEEN, data), noncentred(model, SEEN))


def starts(this: small.Problem, seed: int, chains: int, log_v) -> dict:
    def start(key):
        at = this.moved.from_position(this.model.initial_position(key))
        scaled = {"log_scales": {bond: jnp.asarray(log_v) for bond in at["log_scales"]}}
        return at | {"log_scales": this.moved.from_position(at | scaled)["log_scales"]}

    return jax.jit(jax.vmap(start))(jax.random.split(jax.random.key(seed), chains))


def draws(this: small.Problem, name: str, step: float, chains: int):
    both = jax.tree.map(lambda *x: jnp.concatenate(x), starts(this, 1, chains, DEAD), starts(this, 2, chains, LIVE))
    if name == "nuts":
        engine = nuts(this.moved.posterior, burn_in=500, max_doublings=8, target_acceptance=0.9)
        return sample(engine, jax.random.key(8), both, this.data, draws=600, burn_in=500, chunk=300)[0]
    burn_in, thin = round(600 / step), round(3.2 / step)
    engine = sghmc(
        this.moved.posterior,
        step_size=step,
        friction=0.1,
        burn_in=burn_in,
        precondition="leaf",
        conditional_every=5,
    )
    keep = {"draws": 500, "thin": thin, "burn_in": burn_in, "chunk": 500, "parallel": "vmap"}
    return sample(engine, jax.random.key(7), both, this.data, **keep)[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", nargs="+", type=float, default=[0.5, 0.25])
    parser.add_argument("--engines", nargs="+", default=["nuts", "sghmc"], choices=["nuts", "sghmc"])
    parser.add_argument("--step", type=float, default=0.08)
    args = parser.parse_args()
    for weight in args.weights:
        this = problem(weight)
        for name in args.engines:
            values = this.functionals(draws(this, name, args.step, CHAINS if name == "sghmc" else CHAINS // 2))
            rhat = max(diagnose(values).rhat.values())
            for rank in (2, 3):
                shares = np.split((values["rank rank"] >= rank).mean(1), 2)
                said = [f"{x.mean():.3f} +- {x.std(ddof=1) / len(x) ** 0.5:.3f}" for x in shares]
                print(f"{weight} | {name} | P(rank >= {rank}) | {said[0]} | {said[1]} | R-hat {rhat:.3f}", flush=True)


if __name__ == "__main__":
    main()
