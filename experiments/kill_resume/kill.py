"""SIGKILLs at random moments: is what a resumed run leaves bitwise what it leaves without a stop?

python experiments/kill_resume/kill.py [--engines svgd nuts] [--kills 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from bayestensor.experiment import config, run, sampling, session

MAP = {"name": "map", "optimizer": {"name": "adam", "learning_rate": 0.02}}
SHORT = {"start": MAP, "burn_in": 4, "epochs": 8, "draws": 40}
ENGINES = {
    "map": MAP,
    "sghmc": {"name": "sghmc", "chains": 2, "scale_draws": 5, **SHORT},
    "sgld": {"name": "sgld", "chains": 2, **SHORT},
    "svgd": {"name": "svgd", "particles": 4, **SHORT},
    "nuts": {"name": "nuts", "chains": 2, "max_doublings": 2, **SHORT, "burn_in": 20, "epochs": 40},
    "variational": {"name": "variational", **SHORT},
    "ensemble": {"name": "ensemble", "start": MAP, "members": 4},
}
SETTINGS = {
    "name": "kill",
    "data": {"name": "digits", "scaling": "standard"},
    "model": {"name": "mlp", "hidden": [16], "rank": 4, "activation": "gelu"},
    "prior": {"name": "half_cauchy"},
    "train": {"epochs": 9, "batch_size": 128},
    "prune": {"epochs": [3, 6], "threshold": 0.2},
    "dense_twin": False,
}
LEFT = ("draws/*", "pruned/*", "sampling.jsonl", "metrics.jsonl", "model.npz", "starts/*/model.npz")
PROGRESS = ("checkpoints/*", "starts/*/checkpoints/*", "sampling/*", "draws/*")
START_UP = 0.2  # share of the kills that come before a process, begun or resumed, may have written
PHASES = ("start-up", "training", "burn-in", "drawing", "ending")


def child(work) -> int:
    """The process id of a fork that works and ends; JAX has started no backend before it."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def go_on(out: Path, engine: str) -> None:
    """Begin or resume, with a checkpoint as often as the loop allows one."""
    sampling.SECONDS_PER_CHECKPOINT = session.SECONDS_PER_CHECKPOINT = 0.02
    run.write_report = lambda run_dirs: None
    if (out / "config.yaml").exists():
        run.resume(out)
    else:
        shutil.rmtree(out, ignore_errors=True)  # killed before it was a run
        run.run(config.build(SETTINGS | {"engine": ENGINES[engine]}), out)


def written(out: Path) -> int:
    """When training or sampling last left something in a run's folder (ns); 0: never."""
    files = (file for names in PROGRESS for file in out.glob(names))
    return max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)


def ended(pid: int) -> bool:
    """Whether a child is done; it stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def until_it_writes(pid: int, out: Path) -> None:
    """Returns once a child has written something new, or has ended."""
    before = written(out)
    while written(out) == before and not ended(pid):
        time.sleep(0.005)


def phase(out: Path, before: int) -> str:
    """How far a killed run had come; `before`: when its folder was written last before it began."""
    if written(out) == before:
        return "start-up"
    if (out / "summary.json").exists() or (out / "model.npz").exists() or (out / "pruned").exists():
        return "ending"
    if any(out.glob("draws/draws-*")):
        return "drawing"
    return "burn-in" if (out / "sampling").exists() else "training"


def left(out: Path) -> dict[str, bytes]:
    """What must not depend on where a run was stopped."""
    return {str(file.relative_to(out)): file.read_bytes() for names in LEFT for file in sorted(out.glob(names))}


def without_a_stop(engine: str, whole: Path) -> tuple[float, float]:
    """Seconds of start-up and of work of a run without a stop, taken with a warm compilation cache."""
    for _ in range(2):
        shutil.rmtree(whole, ignore_errors=True)
        began = time.perf_counter()
        pid = child(lambda: go_on(whole, engine))
        until_it_writes(pid, whole)
        wrote = time.perf_counter()
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"{engine}: the run without a stop failed"
    return wrote - began, time.perf_counter() - wrote


def trial(engine: str, kills: int, rng: random.Random, place: Path) -> tuple[Counter, int, int]:
    """(kills by phase, runs finished, runs that left other bytes than the one without a stop)."""
    whole = place / f"{engine}-whole"
    start_up, work = without_a_stop(engine, whole)
    expected, found, finished, wrong = left(whole), Counter(), 0, 0
    while True:  # until the kills are spent and the run that the last one hit has ended
        out = place / f"{engine}-{finished}"
        before = written(out)
        pid = child(lambda out=out: go_on(out, engine))
        if found.total() < kills:
            if rng.random() < START_UP:
                time.sleep(rng.uniform(0, start_up))
            else:
                until_it_writes(pid, out)
                time.sleep(rng.uniform(0, work / 2))
            os.kill(pid, signal.SIGKILL)  # a finished child waits for its parent, so this reaches no other process
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            found[phase(out, before)] += 1
            print(f"{engine}: {dict(found)}, {finished} finished, {wrong} other bytes", file=sys.stderr, flush=True)
            continue
        assert status == 0, f"{engine}: a resumed run failed"
        finished, wrong = finished + 1, wrong + (left(out) != expected)
        if found.total() >= kills:
            return found, finished, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"| engine | kills | {' | '.join(PHASES)} | runs finished | of these not bitwise alike |")
    print("|---" * (len(PHASES) + 4) + "|")
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        for engine in options.engines:
            found, finished, wrong = trial(engine, options.kills, random.Random(options.seed), Path(place))
            cells = [engine, found.total(), *(found[name] for name in PHASES), finished, wrong]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            failed += wrong
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
