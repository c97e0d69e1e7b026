"""What the first fit of 100 data of 10 x 8 compiles: programs, seconds of CPU to trace, lower and compile each."""

from __future__ import annotations

import sys
import time
from collections import Counter

import jax
import numpy as np

jax.config.update("jax_enable_compilation_cache", False)  # before the package's import: nothing is read from disk
began = time.process_time()
from bayestensor import TensorClassifier, TensorRegressor  # noqa: E402

SPENT: Counter[str] = Counter()
LAST = [0.0]


def heard(event: str, _: float, **details: str) -> None:
    """A listener of `jax.monitoring`: CPU since the event before, which of lowering and compiling is all of it."""
    phase, now = event.rsplit("/", 1)[-1], time.process_time()
    SPENT[phase], LAST[0] = SPENT[phase] + now - LAST[0], now
    if "backend_compile" in phase:
        print(f"  {now - SPENT['before']:6.2f} s  {details.get('fun_name', '')}")
        SPENT["programs"] += 1
    SPENT["before"] = now


jax.monitoring.register_event_duration_secs_listener(heard)
rng = np.random.default_rng(0)
x, w = rng.normal(size=(100, 10, 8)), rng.normal(size=(10, 2)) @ rng.normal(size=(2, 8))
eta = np.tensordot(x, w, 2)
y = eta + 0.3 * eta.std() * rng.normal(size=100)
model = TensorClassifier(random_state=0) if sys.argv[1:] == ["classifier"] else TensorRegressor(random_state=0)
labels = np.digitize(y, np.quantile(y, [1 / 3, 2 / 3])) if sys.argv[1:] == ["classifier"] else y
print(f"import {time.process_time() - began:.2f} s of CPU")
for what in ("fit", "again"):
    began = time.process_time()
    model.fit(x, labels)
    fitted = time.process_time() - began
    model.predict(x)
    print(f"{what} {fitted:.2f}, predict {time.process_time() - began - fitted:.2f} s of CPU")
print({name: round(seconds, 2) for name, seconds in SPENT.items() if name != "before"})
