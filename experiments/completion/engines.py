"""One completion by every engine: closed form (Gibbs, variational, MAP) and by gradients (SGHMC, SVGD).

python experiments/completion/engines.py [--seeds 1 2 3] [--out experiments/completion/engines.jsonl]

A CP tensor 30 x 30 x 30 of rank 3 behind noise (10 dB), a tenth of its entries shown, fitted at rank 6 by all.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from recovery import problem

from bayestensor.estimators import TensorCompletion
from bayestensor.estimators.fitting import default_prior, rank_shares
from bayestensor.estimators.starting import seen_noise
from bayestensor.inference.sample import sample
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.svgd import svgd
from bayestensor.metrics.regression import coverage, rrse
from bayestensor.models.completion import LAYER, CompletionModel
from bayestensor.models.likelihoods import Gaussian
from bayestensor.models.noncentred import noncentred
from bayestensor.tensor.contract import dense
from bayestensor.tensor.formats import cp

RANK, CHAINS, PARTICLES = 6, 4, 20


def closed_form(holed: np.ndarray, seed: int, inference: str):
    """(mean, ends of the 90 % interval, rank)"""
    model = TensorCompletion(max_rank=RANK, smooth=(), inference=inference, random_state=seed).fit(holed)
    return model.predict(), *model.predict_interval(0.9), model.rank_


def by_gradients(holed: np.ndarray, seed: int, name: str):
    """The same model (non-centred), noise learnt as well, from prior draws."""
    at, scale = np.argwhere(np.isfinite(holed)), np.sqrt(np.nanmean(holed**2))
    values = jnp.asarray(holed[tuple(at.T)] / scale, jnp.float32)
    network = cp(holed.shape, rank=RANK)
    model, data = CompletionModel(network, default_prior(network), Gaussian(0.3)), (jnp.asarray(at), values)
    moved = noncentred(model, len(values))
    keys = jax.random.split(jax.random.key(seed), CHAINS if name == "sghmc" else PARTICLES)
    starts = jax.jit(jax.vmap(lambda key: moved.from_position(model.initial_position(key))))(keys)
    run_key = jax.random.fold_in(jax.random.key(seed), 1)
    if name == "sghmc":
        engine = sghmc(
            moved.posterior, step_size=0.1, friction=0.1, burn_in=3000, precondition="leaf", conditional_every=20
        )
        draws, _ = sample(engine, run_key, starts, data, draws=100, thin=20, burn_in=3000, chunk=100, parallel="vmap")
    else:
        engine = svgd(moved.posterior, burn_in=3000)
        stacked = jax.tree.map(lambda x: x[None], starts)
        draws, _ = sample(engine, run_key, stacked, data, draws=20, thin=50, burn_in=3000, chunk=20)
    lead = 2 if name == "sghmc" else 3  # chain, draw (and particle)
    flat = jax.tree.map(lambda x: np.reshape(x, (-1, *x.shape[lead:])), draws.positions)

    @jax.jit
    def read(at):
        def one(at):
            position = moved.to_position(at)
            return (
                dense(model.tensors(position)[LAYER]),
                position["cores"],
                jnp.exp(position["likelihood"]["log_noise"]),
            )

        return jax.lax.map(one, at)

    x, cores, noise = map(lambda tree: jax.tree.map(np.asarray, tree), read(flat))
    noisy = x + noise[:, None, None, None] * np.random.default_rng(seed).normal(size=x.shape)
    shares = rank_shares(network, cores, seen_noise(network, noise**-2.0, len(values)))["rank"]
    low, high = np.quantile(noisy, [0.05, 0.95], axis=0)
    return x.mean(0) * scale, low * scale, high * scale, int(shares.argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--engines", nargs="*", default=["gibbs", "variational", "map", "sghmc", "svgd"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("engines.jsonl"))
    options = parser.parse_args()
    for seed in options.seeds:
        truth, holed, hidden = problem(3, "10", 0.9, seed)
        noisy = truth + np.nanstd(holed - truth) * np.random.default_rng(seed + 100).normal(size=truth.shape)
        for name in options.engines:
            began = time.process_time()
            fit = by_gradients if name in ("sghmc", "svgd") else closed_form
            mean, low, high, rank = fit(holed, seed, name)
            found = {"engine": name, "seed": seed, "rrse": rrse(mean[hidden], truth[hidden])}
            found |= {"coverage_90": coverage(low[hidden], high[hidden], noisy[hidden])}
            found |= {"width_90": float(np.mean((high - low)[hidden])), "cpu_seconds": time.process_time() - began}
            found = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()} | {"rank": rank}
            print(json.dumps(found), flush=True)
            with options.out.open("a") as lines:
                lines.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
