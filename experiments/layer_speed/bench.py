"""Time a TT-matrix layer against its dense twin in JAX and both implementations of tensorly-torch, in turns.

    pip install -e '.[bench]' && python experiments/layer_speed/bench.py --out experiments/layer_speed

writes result.json and result.md there (result_cpu_time.* with --cpu-time).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from tltorch import FactorizedLinear

from bayestensor.tensor.contract import matrix, matvec
from bayestensor.tensor.formats import tt_matrix
from bayestensor.tensor.initialise import initialise
from bayestensor.tensor.network import Factored
from bayestensor.tensor.plan import matvec_flops, plan_matvec

SIZES = {  # columns (in), rows (out), ranks
    "784x625": ((7, 4, 7, 4), (5, 5, 5, 5), (4, 20)),
    "1024x1024": ((4, 8, 8, 4), (4, 8, 8, 4), (4, 8, 16)),
    "4096x4096": ((8, 8, 8, 8), (8, 8, 8, 8), (4, 8, 16)),
}
BATCHES = (1, 128, 1024)
THREADS = 2
OURS, DENSE, FACTORIZED, RECONSTRUCTED = "bayestensor", "dense JAX", "tltorch factorized", "tltorch reconstructed"


def jax_contenders(tensor: Factored, x: np.ndarray, backward: bool) -> dict[str, Callable]:
    network, x = tensor.network, jnp.asarray(x)
    plan = plan_matvec(network, x.shape[0], backward=backward)
    weight = jax.jit(matrix)(tensor)

    def compiled(function, weights):
        def gradient(weights, x):
            y, pull = jax.vjp(function, weights, x)
            return y, *pull(y)

        run = jax.jit(gradient if backward else function).lower(weights, x).compile()
        return lambda: jax.block_until_ready(run(weights, x))

    return {
        OURS: compiled(lambda cores, x: matvec(Factored(network, cores), x, plan), tensor.cores),
        DENSE: compiled(lambda weight, x: x @ weight.T, weight),
    }


def torch_contenders(tensor: Factored, x: np.ndarray, backward: bool) -> dict[str, Callable]:
    network, x = tensor.network, torch.tensor(x, requires_grad=backward)
    cols, rows = (tuple(network.size[leg] for leg in legs) for legs in (network.cols, network.rows))
    ranks = (1, *network.ranks.values(), 1)

    def made(implementation):
        layer = FactorizedLinear(
            cols, rows, bias=False, factorization="blocktt", rank=list(ranks), implementation=implementation
        )
        with torch.no_grad():
            for factor, core in zip(layer.weight.factors, tensor.cores.values(), strict=True):
                factor.copy_(torch.tensor(np.asarray(core)).reshape(factor.shape))

        def forward():
            with torch.no_grad():
                return layer(x)

        def both():
            layer.zero_grad(set_to_none=True)
            x.grad = None
            y = layer(x)
            y.backward(y.detach())
            return y, [factor.grad for factor in layer.weight.factors], x.grad

        return both if backward else forward

    return {FACTORIZED: made("factorized"), RECONSTRUCTED: made("reconstructed")}


def check_agreement(contenders: dict[str, Callable], tensor: Factored, backward: bool) -> None:
    """All outputs, and all gradients with respect to x and the cores, are the same to float32."""
    outcomes = {name: run() for name, run in contenders.items()}
    ours = outcomes[OURS]
    for name, other in outcomes.items():
        if not backward:
            close(other, ours)
            continue
        close(other[0], ours[0])
        close(other[2], ours[2])
        if name in (FACTORIZED, RECONSTRUCTED):
            for theirs, core in zip(other[1], tensor.cores, strict=True):
                close(theirs.reshape(ours[1][core].shape), ours[1][core])


def close(a, b) -> None:
    a, b = (v.detach().numpy() if isinstance(v, torch.Tensor) else np.asarray(v) for v in (a, b))
    error = np.abs(a - b).max() / np.abs(b).max()
    if not error < 1e-3:
        raise AssertionError(f"outputs differ by {error:.1e} of the largest entry")


def median_ms(contenders: dict[str, Callable], args) -> tuple[dict[str, float], bool]:
    """Medians of rounds in which every contender runs once, in an order that turns; and whether they are undisturbed.

    Rounds come in blocks of at least 0.2 s, and a block in which other processes took more than a tenth of the
    machine counts only if `patience` runs out before there are enough others.
    """
    clock = time.process_time if args.cpu_time else time.perf_counter
    names, quiet, disturbed = list(contenders), [], []
    start = time.perf_counter()
    while len(quiet) < args.least or (len(quiet) < args.most and time.perf_counter() - start < args.seconds):
        if time.perf_counter() - start > args.patience and len(quiet) + len(disturbed) >= args.least:
            break
        block, began, others = [], time.perf_counter(), others_seconds()
        while not block or time.perf_counter() - began < 0.2:
            block.append({})
            turn = len(block) % len(names)
            for name in names[turn:] + names[:turn]:
                begin = clock()
                contenders[name]()
                block[-1][name] = clock() - begin
        share = (others_seconds() - others) / (time.perf_counter() - began) / (os.cpu_count() or 1)
        (quiet if args.cpu_time or share < 0.1 else disturbed).extend(block)
    enough = len(quiet) >= args.least
    rounds = quiet if enough else quiet + disturbed
    return {name: 1e3 * float(np.median([times[name] for times in rounds])) for name in names}, enough


def others_seconds() -> float:
    """Processor seconds that all other processes have used (Linux; elsewhere 0, and nothing counts as disturbed)."""
    if not Path("/proc/stat").exists():
        return 0.0
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


def rows_of(size: str, args) -> list[dict]:
    cols, rows, ranks = SIZES[size]
    found = []
    for rank, batch, backward in itertools.product(ranks, BATCHES, (False, True)):
        network = tt_matrix(rows, cols, rank)
        tensor = initialise(jax.random.key(0), network, 1 / network.matrix_shape[1])
        x = np.random.default_rng(1).standard_normal((batch, network.matrix_shape[1])).astype(np.float32)
        contenders = jax_contenders(tensor, x, backward) | torch_contenders(tensor, x, backward)
        check_agreement(contenders, tensor, backward)
        ms, quiet = median_ms(contenders, args)
        plan = plan_matvec(network, batch, backward=backward)
        row = {"size": size, "rank": rank, "batch": batch, "pass": "both" if backward else "forward", "ms": ms}
        row["flops_ratio"] = matvec_flops(network, batch) / (2 * np.prod(network.matrix_shape) * batch)
        row |= {"plan": plan.to_dict(), "quiet": quiet} | judged(ms, row["flops_ratio"])
        print(line(row), flush=True)
        found.append(row)
    return found


def judged(ms: dict[str, float], flops_ratio: float) -> dict:
    against_torch = ms[OURS] / min(ms[FACTORIZED], ms[RECONSTRUCTED])
    against_dense = ms[OURS] / ms[DENSE]
    missed = ["0.5x tensorly-torch"] if against_torch > 0.5 else []
    missed += ["dense"] if flops_ratio <= 0.25 and against_dense >= 1 else []
    return {"against_torch": against_torch, "against_dense": against_dense, "missed": missed}


HEAD = (
    "| size | rank | batch | pass | bayestensor | dense JAX | tltorch fact. | tltorch rec. | / tltorch | / dense "
    "| FLOPs / dense | plan | missed | disturbed |\n|" + "---|" * 14
)


def line(row: dict) -> str:
    ms = " | ".join(f"{row['ms'][name]:.3g}" for name in (OURS, DENSE, FACTORIZED, RECONSTRUCTED))
    plan = row["plan"]
    chain = "·".join("".join(name.removeprefix("core") for name in group) for group in plan["groups"])
    marks = [f"tile {plan['tile']}"] * bool(plan["tile"]) + ["again"] * plan["rematerialise"]
    return (
        f"| {row['size']} | {row['rank']} | {row['batch']} | {row['pass']} | {ms} | {row['against_torch']:.2f} "
        f"| {row['against_dense']:.2f} | {row['flops_ratio']:.2f} | {', '.join([chain, *marks])} "
        f"| {', '.join(row['missed'])} "
        f"| {'' if row['quiet'] else 'yes'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seconds", type=float, default=2.0, help="time for one row, beyond the least rounds")
    parser.add_argument("--least", type=int, default=5, help="rounds at least")
    parser.add_argument("--most", type=int, default=200, help="rounds at most")
    parser.add_argument("--patience", type=float, default=60.0, help="s to wait, a row, for rounds without other load")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread on one core, its own time: for busy machines"
    )
    args = parser.parse_args()
    threads, name = (1, "result_cpu_time") if args.cpu_time else (THREADS, "result")
    if args.cpu_time:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"  # read when JAX first computes
    torch.set_num_threads(threads)
    print(HEAD)
    rows = [row for size in args.sizes for row in rows_of(size, args)]
    about = {
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "cpus": os.cpu_count(),
        "threads": threads,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    (args.out / f"{name}.md").write_text("\n".join([HEAD, *map(line, rows)]) + "\n")


if __name__ == "__main__":
    main()
