"""One completion by every engine: closed form (Gibbs, variational, MAP) and by gradients (SGHMC, SVGD).

python experiments/completion/engines.py [synthetic birmingham] [--seeds 1 2 3] [--engines gibbs ...] [--start prior]

Synthetic: CP 30 x 30 x 30 of rank 3 behind noise (10 dB), nine tenths hidden, fitted at rank 6. Birmingham: parking
counts, nine tenths hidden, at rank 10. No smooth modes, because the engines by gradients have none. Those begin around
four MAP solutions (Adam from prior draws), as runs of the command line do; their budget is STEPS.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from run import holes

from bayestensor.estimators import TensorCompletion
from bayestensor.estimators.counting import rank_shares, seen_noise
from bayestensor.estimators.fitting import default_prior
from bayestensor.inference.ensemble import ensemble
from bayestensor.inference.map import map_estimate
from bayestensor.inference.sample import sample
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.svgd import svgd
from bayestensor.metrics.regression import coverage, rrse, width
from bayestensor.models.completion import LAYER, CompletionModel
from bayestensor.models.likelihoods import Gaussian
from bayestensor.models.noncentred import noncentred
from bayestensor.tensor.contract import dense
from bayestensor.tensor.formats import cp

ENGINES = ("gibbs", "variational", "map", "sghmc", "svgd")
RANKS = {"synthetic": 6, "birmingham": 10}
STARTS, CHAINS, PARTICLES = 4, 4, 20
STEPS = {"map": 2000, "burn_in": 3000, "sghmc": 2000, "svgd": 1000}  # of Adam; before the first draw; after it


def problem(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(observations, what is shown of them, which are hidden)"""
    if name != "synthetic":
        return holes(name, 0.9, seed)
    rng = np.random.default_rng(seed)
    truth = np.einsum("ir,jr,kr->ijk", *(rng.normal(size=(30, 3)) for _ in range(3)))
    noisy = truth + truth.std() * 10**-0.5 * rng.normal(size=truth.shape)
    hidden = rng.random(truth.shape) < 0.9
    return noisy, np.where(hidden, np.nan, noisy), hidden


def closed_form(holed: np.ndarray, rank: int, seed: int, inference: str):
    """(mean, ends of the 90 % interval, rank)"""
    model = TensorCompletion(max_rank=rank, smooth=(), inference=inference, random_state=seed).fit(holed)
    return model.predict(), *model.predict_interval(0.9), model.rank_


def map_solutions(model: CompletionModel, data, key):
    """Where Adam ends from STARTS prior draws, [start, ...]: half of the steps with every scale at 1, then the scales
    moved to their mode after every step (from the first step on that puts slices to death before they fit anything).
    """
    posterior, half = model.posterior(len(data[1])), STEPS["map"] // 2
    unit = model.initial_position(key)["log_scales"]
    after = (lambda at: at | {"log_scales": unit}, lambda at: model.clip_scales(model.mode_scales(at, 0.1)))

    @jax.jit
    def run(key):
        positions = jax.vmap(model.initial_position)(jax.random.split(key, STARTS))
        for part, settle in enumerate(after):
            adam = optax.adam(optax.cosine_decay_schedule(0.02, half))
            engine = ensemble(map_estimate(posterior, adam, after_step=settle), parallel="vmap")
            own = jax.random.fold_in(key, part)
            state, steps = engine.init(own, positions), jax.random.split(own, half)
            state = jax.lax.scan(lambda at, k: (engine.step(k, at, data)[0], None), state, steps)[0]  # noqa: B023
            positions = engine.position(state)
        return positions

    return run(key)


def starts(model: CompletionModel, moved, data, key, members: int, where: str):
    """(z, u) of each member: a prior draw, or the neighbourhood of a MAP solution."""
    own, keys = jax.random.fold_in(key, 0), jax.random.split(jax.random.fold_in(key, 1), members)
    if where == "prior":
        return jax.jit(jax.vmap(lambda k: moved.from_position(model.initial_position(k))))(keys)
    solutions = map_solutions(model, data, own)
    spread = jax.tree.map(lambda x: x[jnp.arange(members) % STARTS], solutions)
    return jax.jit(jax.vmap(lambda k, at: moved.around(k, at, 0.01)))(keys, spread)


def by_gradients(holed: np.ndarray, rank: int, seed: int, name: str, where: str):
    """The same model (non-centred), noise learnt as well."""
    at, scale = np.argwhere(np.isfinite(holed)), np.sqrt(np.nanmean(holed**2))
    values = jnp.asarray(holed[tuple(at.T)] / scale, jnp.float32)
    network = cp(holed.shape, rank=rank)
    model, data = CompletionModel(network, default_prior(network), Gaussian(0.3)), (jnp.asarray(at), values)
    moved = noncentred(model, len(values))
    start_key, run_key = jax.random.split(jax.random.key(seed))
    begun = starts(model, moved, data, start_key, CHAINS if name == "sghmc" else PARTICLES, where)
    burn_in = STEPS["burn_in"]
    if name == "sghmc":
        engine = sghmc(
            moved.posterior, step_size=0.1, friction=0.1, burn_in=burn_in, precondition="leaf", conditional_every=20
        )
        often = {"draws": 100, "thin": STEPS["sghmc"] // 100, "chunk": 100}
        draws, _ = sample(engine, run_key, begun, data, burn_in=burn_in, parallel="vmap", **often)
    else:
        engine = svgd(moved.posterior, burn_in=burn_in, several_modes=where == "map", parallel="vmap")
        stacked = jax.tree.map(lambda x: x[None], begun)
        often = {"draws": 20, "thin": STEPS["svgd"] // 20, "chunk": 20}
        draws, _ = sample(engine, run_key, stacked, data, burn_in=burn_in, **often)
    lead = 2 if name == "sghmc" else 3  # chain, draw (and particle)
    flat = jax.tree.map(lambda x: np.reshape(x, (-1, *x.shape[lead:])), draws.positions)

    @jax.jit
    def read(at):
        def one(at):
            position = moved.to_position(at)
            noise = jnp.exp(position["likelihood"]["log_noise"])
            return dense(model.tensors(position)[LAYER]), position["cores"], noise

        return jax.lax.map(one, at)

    x, cores, noise = map(lambda tree: jax.tree.map(np.asarray, tree), read(flat))
    noisy = x + noise[:, None, None, None] * np.random.default_rng(seed).normal(size=x.shape)
    shares = rank_shares(network, cores, seen_noise(network, noise**-2.0, len(values)))["rank"]
    low, high = np.quantile(noisy, [0.05, 0.95], axis=0)
    return x.mean(0) * scale, low * scale, high * scale, int(shares.argmax())


def draw(path: Path) -> None:
    """Error, coverage and time of every engine, a column a row of data; a point a seed."""
    import matplotlib.pyplot as plt
    import pandas as pd

    table = pd.DataFrame(map(json.loads, path.read_text().splitlines()))
    rows = [row for row in RANKS if row in set(table["data"])]
    measures = {"rrse": "RRSE", "coverage_90": "90 % interval covers", "cpu_seconds": "CPU seconds"}
    figure, axes = plt.subplots(3, len(rows), figsize=(4 * len(rows), 6.5), squeeze=False, layout="constrained")
    for column, row in enumerate(rows):
        for line, (key, label) in enumerate(measures.items()):
            ax, part = axes[line, column], table[table["data"] == row]
            part = part[part["engine"].isin(ENGINES)]
            ran = [name for name in ENGINES if name in set(part["engine"])]
            ax.plot([ran.index(name) for name in part["engine"]], part[key], "o", alpha=0.6)
            ax.set_xticks(range(len(ran)), ran)
            ax.set(title=row if line == 0 else None, ylabel=label if column == 0 else None)
            ax.margins(0.12)
            if key == "coverage_90":
                ax.axhline(0.9, color="grey", linewidth=0.8)
            else:
                ax.set_ylim(bottom=0)
    figure.savefig(path.with_suffix(".png"), dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=tuple(RANKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--engines", nargs="*", default=ENGINES)
    parser.add_argument("--start", default="map", choices=["map", "prior"], help="of the engines by gradients")
    parser.add_argument("--budget", type=int, default=1, help="times the steps of the engines by gradients")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("engines.jsonl"))
    options = parser.parse_args()
    STEPS.update({name: STEPS[name] * options.budget for name in ("burn_in", "sghmc", "svgd")})
    for row in options.rows:
        for seed in options.seeds:
            truth, holed, hidden = problem(row, seed)
            for name in options.engines:
                began = time.process_time()
                if name in ("sghmc", "svgd"):
                    mean, low, high, rank = by_gradients(holed, RANKS[row], seed, name, options.start)
                else:
                    mean, low, high, rank = closed_form(holed, RANKS[row], seed, name)
                found = {"rrse": rrse(mean[hidden], truth[hidden])}
                found |= {"coverage_90": coverage(low[hidden], high[hidden], truth[hidden])}
                found |= {"width_90": width(low[hidden], high[hidden]), "cpu_seconds": time.process_time() - began}
                label = name if options.start == "map" or name not in ("sghmc", "svgd") else f"{name}, prior draws"
                label += f", {options.budget} times the steps" * (options.budget > 1 and name in ("sghmc", "svgd"))
                found = {"data": row, "engine": label, "seed": seed} | {k: round(v, 4) for k, v in found.items()}
                print(json.dumps(found | {"rank": rank}), flush=True)
                with options.out.open("a") as lines:
                    lines.write(json.dumps(found | {"rank": rank}) + "\n")
    draw(options.out)


if __name__ == "__main__":
    main()
