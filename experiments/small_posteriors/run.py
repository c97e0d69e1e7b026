"""Samplers against NUTS on small tensor posteriors: see README.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import optax

from bayestensor.inference.diagnostics import diagnose
from bayestensor.inference.draws import Draws
from bayestensor.inference.map import map_estimate
from bayestensor.inference.nuts import nuts
from bayestensor.inference.sample import sample
from bayestensor.inference.sghmc import sghmc
from bayestensor.inference.svgd import svgd
from bayestensor.ranks.explore import unstack

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import small

FORMATS = {"cp": "cp", "tt": "tensor_train"}
CHAINS, PARTICLES, GROUPS = 8, 50, 4


def run_nuts(problem, key, args):
    engine = nuts(problem.moved.posterior, burn_in=args.nuts_draws, max_doublings=8, target_acceptance=0.9)
    keep = {"draws": args.nuts_draws, "burn_in": args.nuts_draws, "chunk": 500}
    return sample(engine, key, problem.starts(jax.random.key(1), CHAINS), problem.data, **keep)[0]


def run_sghmc(problem, key, args, moves="data"):
    """In non-centred coordinates, with the scales drawn given the data ("data"), the cores ("cores") or not at all."""
    posterior = (problem.moved if moves == "data" else problem.sparing).posterior
    every = None if moves == "gradient" else 5
    longer = 0.08 / args.step  # more steps, so that burn-in and draws are as far apart in time
    burn_in, thin = round(5000 * longer), round(40 * longer)
    settings = {"step_size": args.step, "friction": 0.1, "burn_in": burn_in, "precondition": "leaf"}
    engine = sghmc(posterior, conditional_every=every, **settings)
    keep = {"draws": 800, "thin": thin, "burn_in": burn_in, "chunk": 500, "parallel": "vmap"}
    return sample(engine, key, problem.starts(jax.random.key(2), CHAINS), problem.data, **keep)[0]


def around_modes(problem, key):
    """Particles near the MAP solution of their group: 3,000 steps of Adam from a draw of the prior."""
    map_key, near_key = jax.random.split(key)
    adam = optax.adam(optax.cosine_decay_schedule(2e-2, 3000))
    engine = map_estimate(problem.model.posterior(len(problem.data[1])), adam, after_step=problem.model.clip_scales)
    starts = jax.jit(jax.vmap(problem.model.initial_position))(jax.random.split(map_key, GROUPS))
    found, _ = sample(engine, map_key, starts, problem.data, draws=1, burn_in=2999, chunk=1, parallel="vmap")
    modes = jax.tree.map(lambda x: x[:, 0].repeat(PARTICLES, axis=0), found.positions)
    near = jax.vmap(lambda key, mode: problem.moved.around(key, mode, 0.05))
    return jax.jit(near)(jax.random.split(near_key, GROUPS * PARTICLES), modes)


def run_svgd(problem, key, args, noisy=True, moves="data", modes=False):
    """Four groups of 50 particles from prior draws, or each group around a MAP solution of its own.

    The published variant (no noise) keeps its last particles only.
    """
    posterior = (problem.moved if moves == "data" else problem.sparing).posterior
    every = 5 if noisy and moves == "data" else None
    engine = svgd(posterior, noisy=noisy, burn_in=6000, conditional_every=every)
    start_key = jax.random.key(3)
    starts = around_modes(problem, start_key) if modes else problem.starts(start_key, GROUPS * PARTICLES)
    starts = jax.tree.map(lambda x: x.reshape(GROUPS, PARTICLES, *x.shape[1:]), starts)
    keep = {"draws": 50, "thin": 200} if noisy else {"draws": 1, "thin": 10_000}
    draws, _ = sample(engine, key, starts, problem.data, burn_in=6000, chunk=10, parallel="vmap", **keep)
    return unstack(Draws(draws.positions, draws.stats))


ENGINES = {
    "nuts": run_nuts,
    "sghmc": run_sghmc,
    "sghmc, v given cores only": lambda *a: run_sghmc(*a, moves="cores"),
    "sghmc, v by gradient only": lambda *a: run_sghmc(*a, moves="gradient"),
    "svgd": run_svgd,
    "svgd, v by gradient only": lambda *a: run_svgd(*a, moves="gradient"),
    "svgd, around MAP": lambda *a: run_svgd(*a, modes=True),
    "svgd without noise": lambda *a: run_svgd(*a, noisy=False),
}


def measure(name, format, seed, args):
    """Functionals of every draw, and the figures of the run."""
    problem = small.problem(FORMATS[format], seed, known=False)
    begun = time.process_time()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        draws = ENGINES[name](problem, jax.random.key(seed), args)
    seconds = time.process_time() - begun
    values = problem.functionals(draws)
    figures = {"seconds": seconds, "warnings": sorted({str(w.message) for w in said if w.category is UserWarning})}
    if draws.shape[1] > 3:
        verdict = diagnose(values)
        figures |= {"rhat": max(verdict.rhat.values())}
        figures |= {"ess rank": min(x for k, x in verdict.ess_bulk.items() if k.startswith("rank"))}
        figures |= {"ess entries": verdict.ess_bulk["entries"]}
    return values, figures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--nuts-draws", type=int, default=1000, help="of each chain, after as many of burn-in")
    parser.add_argument("--step", type=float, default=0.08, help="of SGHMC")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    setting = {
        "nuts": "" if args.nuts_draws == 1000 else f", {args.nuts_draws} draws",
        "sghmc": "" if args.step == 0.08 else f", step {args.step:g}",
        "svgd": "",
        "svgd without noise": "",
    }
    table = args.out / "result.json"
    rows = json.loads(table.read_text()) if table.exists() else {}
    for format in args.formats:
        for seed in args.seeds:
            kept = args.out / f"nuts_{format}_{seed}.npz"
            for name in args.engines:
                values, figures = measure(name, format, seed, args)
                if name == "nuts":
                    np.savez(kept, **values)
                else:
                    figures |= small.compared(values, np.load(kept))
                rows[f"{format} | {seed} | {name}{setting[name.split(',')[0]]}"] = figures
                table.write_text(json.dumps(rows, indent=1) + "\n")
                print(format, seed, name, json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
