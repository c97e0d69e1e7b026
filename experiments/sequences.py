"""What the experiments on sequences share: models of a budget, built in one compiled call, and rows as they finish."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from flax import nnx

from bayestensor.compression.report import count


def size(build: Callable[[nnx.Rngs], nnx.Module]) -> int:
    """Parameters of a model that is never made."""
    return count(nnx.eval_shape(lambda: build(nnx.Rngs(0))))


def largest_rank(build: Callable[[int, nnx.Rngs], nnx.Module], budget: int, most: int = 256) -> int:
    """The largest rank, the same for every bond, within a budget of parameters."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(lambda rngs, r=middle: build(r, rngs)) <= budget else (low, middle - 1)
    return low


def created(build: Callable[[nnx.Rngs], nnx.Module], seed: int) -> nnx.Module:
    """A model whose arrays come from one compiled call: an eager start compiles every draw by itself."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(seed))))
    create = jax.jit(lambda key: nnx.state(build(nnx.Rngs(key))))
    return nnx.merge(graph, create(jax.random.key(seed)))


def missing(path: Path, keys: Sequence[str], wanted: Sequence[tuple], again: bool) -> Iterator[tuple]:
    """Those of the wanted (values of `keys`) that have no row in a file of JSON lines; all of them `again`."""
    lines = path.read_text().splitlines() if path.exists() and not again else []
    done = {tuple(record[key] for key in keys) for record in map(json.loads, lines)}
    return (values for values in wanted if values not in done)


def append(path: Path, record: dict) -> None:
    """One row, at once: a run that is cut short loses the row that it was at."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
