"""The one training loop: compiled chunks of steps over data that lives on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.inference.base import Engine, Posterior
from bayestensor.typing import Array, Int, Key, Position

Prepare = Callable[[Key[Array, ""], Array], Array]  # raw inputs of a batch -> what the model sees


# On CPU, level 1 compiles a step in 5/6 of the time of the default, and the step is no slower.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"xla_backend_optimization_level": 1}}


class Carry(NamedTuple):
    """What a chunk hands on: the engine's state, and the sums of its infos over the epoch so far."""

    state: Any
    totals: Any


class Trainer:
    """Steps of one engine over one data set.

    Data stay on the device as they came; a batch is gathered, prepared (scaled, augmented) and used inside the
    compiled step. An epoch's order and every draw follow from (key, epoch, step) alone, so a run that stops
    anywhere goes on to bitwise the same result.

    Args:
        engine: what to step.
        x, y: training inputs and targets, on the device.
        batch_size: data a step; the remainder of an epoch's random order is left out.
        prepare: (key, raw inputs) -> inputs.
        key: of this run.
    """

    def __init__(self, engine: Engine, x: Array, y: Array, batch_size: int, prepare: Prepare, key: Key[Array, ""]):
        self.engine, self.x, self.y = engine, x, y
        self.steps_per_epoch = len(x) // batch_size
        self._batch_size, self._prepare, self._key = batch_size, prepare, key
        self._compiled: dict[Any, Any] = {}
        self._step = jax.jit(engine.step)  # traced once for its shapes and for the chunk
        self._last_order: tuple[int, Array] | None = None
        self.compile_seconds = 0.0

    def start(self, initial: Callable[[Key[Array, ""]], Position], key: Key[Array, ""]) -> Carry:
        """A fresh state at `initial(key)`, nothing summed; both in one compiled call."""

        def begin(key: Key[Array, ""], engine_key: Key[Array, ""]) -> Any:
            return self.engine.init(engine_key, initial(key))

        keys = (key, jax.random.fold_in(self._key, 0))
        # runs once: its compilation is all that it costs
        options: dict[str, dict[str, Any]] = {"cpu": {"xla_backend_optimization_level": 0}}
        compiled = jax.jit(begin).lower(*keys).compile(options.get(jax.default_backend()))
        return self.new_epoch(compiled(*keys))

    def new_epoch(self, state: Any) -> Carry:
        """The same state, nothing summed."""
        order = jnp.zeros(len(self.x), jnp.int32)
        batch, _ = jax.eval_shape(self._batch, order, self._key, jnp.zeros((), jnp.int32), self.x, self.y)
        _, info = jax.eval_shape(self._step, self._key, state, batch)
        return Carry(state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), info))

    def advance(self, carry: Carry, epoch: int, first: int, last: int) -> Carry:
        """Steps first..last-1 of an epoch. The carry that comes in is used up."""
        bounds = (jnp.asarray(first, jnp.int32), jnp.asarray(last, jnp.int32))
        arguments = (carry, self._epoch_key(epoch), self._order(epoch), *bounds, self.x, self.y)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(carry))
        if shapes not in self._compiled:
            started = time.perf_counter()
            lowered = jax.jit(self._chunk, donate_argnums=0).lower(*arguments)
            self._compiled[shapes] = lowered.compile(COMPILER_OPTIONS.get(jax.default_backend()))
            self.compile_seconds += time.perf_counter() - started
        return self._compiled[shapes](*arguments)

    def not_finite(self, state: Any, posterior: Posterior, epoch: int, step: int) -> str:
        """Which arrays of the log density's value and gradient are not finite at a step, by name."""
        batch, _ = self._batch(self._order(epoch), self._epoch_key(epoch), step, self.x, self.y)
        value, gradient = jax.jit(jax.value_and_grad(posterior.log_density))(self.engine.position(state), batch)
        named = [("log density", value), ("inputs", batch[0])]
        named += [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)]
        bad = [name for name, leaf in named if not np.isfinite(leaf).all()]
        return ", ".join(bad) or "the update, whose gradient is finite"

    def _order(self, epoch: int) -> Array:
        """The random order of an epoch, drawn on the host: compiling a sort costs more than a run's sorting."""
        if self._last_order is None or self._last_order[0] != epoch:
            key_data = jax.random.key_data(self._key).ravel().tolist()
            order = np.random.default_rng([*key_data, epoch]).permutation(len(self.x))
            self._last_order = (epoch, jnp.asarray(order.astype(np.int32)))
        return self._last_order[1]

    def _epoch_key(self, epoch: int) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(self._key, 1), epoch)

    def _chunk(self, carry: Carry, epoch_key, order, first, last, x, y) -> Carry:
        def one_step(i: Int[Array, ""], carry: Carry) -> Carry:
            batch, step_key = self._batch(order, epoch_key, i, x, y)
            state, info = self._step(step_key, carry.state, batch)
            return Carry(state, jax.tree.map(jnp.add, carry.totals, info))

        return jax.lax.fori_loop(first, last, one_step, carry)

    def _batch(self, order, epoch_key, i, x, y):
        """Batch i of an epoch's order, and the key of its step."""
        # two keys by number rather than by split: the one that an engine leaves unused is never computed
        batch_key, step_key = (jax.random.fold_in(epoch_key, 2 * i + k) for k in range(2))
        chosen = jax.lax.dynamic_slice(order, (i * self._batch_size,), (self._batch_size,))
        return (self._prepare(batch_key, x[chosen]), y[chosen]), step_key


def in_pieces(apply: Callable[[Array], Array], x: Array, size: int = 1000) -> Array:
    """`apply(x)` a piece of `size` data at a time, which bounds the memory of its intermediates."""
    size = min(size, len(x))
    whole = len(x) // size * size
    outputs = jax.lax.map(apply, x[:whole].reshape(-1, size, *x.shape[1:]))
    outputs = outputs.reshape(whole, *outputs.shape[2:])
    return outputs if whole == len(x) else jnp.concatenate([outputs, apply(x[whole:])])
