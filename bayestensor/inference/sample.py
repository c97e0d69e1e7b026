"""Running engines: many chains, compiled once, scanned in chunks, thinned, resumed to the same draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.inference.base import Engine, normals
from bayestensor.inference.draws import Draws
from bayestensor.inference.gradient import batch_size as length
from bayestensor.inference.parallel import Parallel, over
from bayestensor.typing import Array, Batch, Int, Key, Position

Prepare = Callable[[Key[Array, ""], Batch], Batch]

# On CPU an engine's step compiles in half the time without fusion emitters at LLVM's lowest level that still optimises,
# and runs no slower: small problems 1.4 times as fast, the MNIST network alike (`experiments/sghmc_step`).
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
}


class Run(NamedTuple):
    """Where a run stands; all that is needed to go on.

    Attributes:
        states: the engine's states, each leaf [chain, ...].
        keys: one key a chain; the key of step t is `fold_in(key, t)`, so chunks leave no trace in the draws.
        steps: steps taken.
    """

    states: Any
    keys: Key[Array, "chains"]
    steps: Int[Array, ""]


class Chunk(NamedTuple):
    """A piece of a run, on the host: positions and info with leaves [chain, draw, ...], and the run after it."""

    positions: Any
    info: Any
    run: Run


def draw_batch(key: Key[Array, ""], data: Batch, size: int) -> Batch:
    """`size` of the N data, without replacement and fresh at every call, in time that does not grow with N.

    index[k] = floor((k + uniform[k]) N / size), one datum from each of `size` equal stretches: every datum is as likely
    as any other, and in shuffled data the variance of a mean is that of simple sampling, (1 - size / N) S^2 / size.
    Neighbours swap at random, so that the two halves by which `gradient.estimator` measures noise are exchangeable.
    """
    num = length(data)
    if size == num:
        return data
    place_key, swap_key = jax.random.split(key)
    edge = np.arange(size) * num / size
    within = (edge % 1 + jax.random.uniform(place_key, (size,)) * (num / size)).astype(jnp.int32)
    index = jnp.minimum(jnp.asarray(edge.astype(np.int64), jnp.int32) + within, num - 1)
    if size % 2 == 0:
        pairs = index.reshape(-1, 2)
        swap = jax.random.bernoulli(swap_key, shape=(size // 2, 1))
        index = jnp.where(swap, pairs[:, ::-1], pairs).reshape(-1)
    return jax.tree.map(lambda x: x[index], data)


def start(engine: Engine, key: Key[Array, ""], positions: Position, parallel: Parallel = "auto") -> Run:
    """A fresh run from one position a chain, each leaf [chain, ...]."""
    chains = jax.tree.leaves(positions)[0].shape[0]
    init_key, run_key = jax.random.split(key)
    states = jax.jit(over(engine.init, parallel))(jax.random.split(init_key, chains), positions)
    return Run(states, jax.random.split(run_key, chains), jnp.int32(0))


def stream(
    engine: Engine,
    run: Run,
    data: Batch,
    *,
    draws: int,
    thin: int = 1,
    batch_size: int | None = None,
    chunk: int = 100,
    parallel: Parallel = "auto",
    prepare: Prepare | None = None,
) -> Iterator[Chunk]:
    """Yields `draws` draws a chain, one every `thin` steps, `chunk` at a time: memory holds one chunk.

    Args:
        engine: any engine.
        run: from `start`, or from an earlier chunk to go on; the draws are bitwise the same wherever the run is cut.
        data: pytree of arrays with a common first axis, kept on the device; shuffle it first (`sample` does).
        draws: draws a chain.
        thin: steps a draw. Info is that of the draw's own step.
        batch_size: data a step; None for all.
        chunk: draws between two visits to the host.
        parallel: chains by "vmap" or by "map" (`lax.map`); "auto" chooses by platform.
        prepare: what becomes of each batch before the engine sees it (scaling, augmentation).
    """
    size = _size(data, batch_size)
    for first in range(0, draws, chunk):
        count = min(chunk, draws - first)
        steps = np.where(np.arange(chunk) < count, thin, 0)  # a short last chunk runs the same program
        run, out = _program()(run, data, steps, engine=engine, size=size, parallel=parallel, prepare=prepare)
        positions, info = jax.tree.map(lambda x: np.asarray(x[:, :count]), out)  # noqa: B023
        yield Chunk(positions, info, run)


def skip(
    engine: Engine,
    run: Run,
    data: Batch,
    steps: int,
    *,
    batch_size: int | None = None,
    chunk: int = 100,
    parallel: Parallel = "auto",
    prepare: Prepare | None = None,
) -> Run:
    """Takes steps and keeps no draw, by the program that `stream` with the same settings has compiled or will."""
    spread = np.diff(np.linspace(0, steps, chunk + 1).astype(int))
    size = _size(data, batch_size)
    return _program()(run, data, spread, engine=engine, size=size, parallel=parallel, prepare=prepare)[0]


def _size(data: Batch, batch_size: int | None) -> int:
    size = length(data) if batch_size is None else batch_size
    if not 0 < size <= length(data):
        raise ValueError(f"batch_size = {batch_size}; between 1 and the {length(data)} data is needed")
    return size


@cache
def _program() -> Callable:
    """`_advance`, to be compiled for the platform at hand."""
    static = ("engine", "size", "parallel", "prepare")
    return jax.jit(_advance, static_argnames=static, compiler_options=COMPILER_OPTIONS.get(jax.default_backend()))


def _advance(
    run: Run,
    data: Batch,
    steps: Int[Array, "draws"],
    *,
    engine: Engine,
    size: int,
    parallel: Parallel,
    prepare: Prepare | None,
) -> tuple[Run, tuple[Position, Any]]:
    """One draw after each of the given numbers of steps: the run after them, (positions, info) [chain, draw, ...]."""
    ends = run.steps + jnp.cumsum(steps)

    def batch_of(key):
        if prepare is None:
            return draw_batch(key, data, size)
        batch_key, prepare_key = jax.random.split(key)
        return prepare(prepare_key, draw_batch(batch_key, data, size))

    def chain(state, key):
        def step(t, carry):
            batch_key, step_key = jax.random.split(jax.random.fold_in(key, t))
            return engine.step(step_key, carry[0], batch_of(batch_key))

        info = jax.eval_shape(lambda state: step(0, (state, None))[1], state)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), info)

        def draw(state, bounds):
            state, info = jax.lax.fori_loop(bounds[0], bounds[1], step, (state, blank))
            return state, (engine.position(state), info)

        return jax.lax.scan(draw, state, (ends - steps, ends))

    states, out = over(chain, parallel)(run.states, run.keys)
    return Run(states, run.keys, ends[-1]), out


def sample(
    engine: Engine,
    key: Key[Array, ""],
    positions: Position,
    data: Batch,
    *,
    draws: int,
    burn_in: int = 0,
    thin: int = 1,
    batch_size: int | None = None,
    chunk: int = 100,
    parallel: Parallel = "auto",
) -> tuple[Draws, Run]:
    """Runs one chain a position, drops the first `burn_in` steps, and collects the draws; the Run goes on by `stream`.

    The scalars of the engine's Info become `stats`. Warns if a kept draw comes from a step that still adapts, and if
    steps were undone because they were not finite. Arguments as in `stream` and `start`.
    """
    shuffle_key, start_key = jax.random.split(key)
    if batch_size is not None:
        order = jax.random.permutation(shuffle_key, length(data))
        data = jax.jit(lambda data: jax.tree.map(lambda x: x[order], data))(data)
    run = start(engine, start_key, positions, parallel)
    settings: dict[str, Any] = {"batch_size": batch_size, "chunk": chunk, "parallel": parallel}
    if burn_in:
        run = skip(engine, run, data, burn_in, **settings)
    pieces = []
    for piece in stream(engine, run, data, draws=draws, thin=thin, **settings):
        pieces.append((piece.positions, piece.info._asdict()))
        run = piece.run
    kept, stats = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *pieces)
    stats = {name: x for name, x in stats.items() if isinstance(x, np.ndarray) and x.ndim == 2}
    _warn(stats)
    return Draws(kept, stats), run


def _warn(stats: dict[str, np.ndarray]) -> None:
    if "adapting" in stats and stats["adapting"].any():
        share = stats["adapting"].mean()
        warnings.warn(
            f"{share:.0%} of the kept draws come from steps that adapt; drop at least the engine's burn_in steps",
            stacklevel=3,
        )
    if "collapsed" in stats and stats["collapsed"][:, -1].any():
        ratio, particles, dimension = (stats[name][:, -1] for name in ("variance_ratio", "particles", "dimension"))
        warnings.warn(_collapse_warning(float(ratio.min()), int(particles[0]), int(dimension[0])), stacklevel=3)
    if "nonfinite" in stats and stats["nonfinite"].any():
        counts = stats["nonfinite"][:, -1].tolist()
        warnings.warn(
            f"steps undone because they were not finite, by chain: {counts}; take a smaller step_size", stacklevel=3
        )


def _collapse_warning(ratio: float, particles: int, dimension: int) -> str:
    """What to say when particles have collapsed (`Info.collapsed`)."""
    return (
        f"SVGD's {particles} particles in {dimension} dimensions have collapsed: their variance is about {ratio:.2f} "
        "of the posterior's. Intervals from them are too narrow; take noisy=True, kernels on small blocks, or sghmc."
    )


def jitter(key: Key[Array, ""], position: Position, chains: int, relative: float = 0.01) -> Position:
    """`chains` copies of a position, each leaf plus N(0, (relative * its rms)^2): starts around a MAP solution."""
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((chains, *x.shape), x.dtype), position)

    def spread(x, xi):
        return x + relative * jnp.linalg.norm(x) / math.sqrt(max(x.size, 1)) * xi

    return jax.tree.map(spread, position, normals(key, like))
