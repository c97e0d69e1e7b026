"""The sampling stage of a run: chains or particles from the start that MAP found, in chunks that survive a stop.

Each chunk of draws goes to a verified file of its own, then a checkpoint holds the chains and the tally; what a stop
leaves unfinished is written again, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.errors import RunError
from bayestensor.experiment import build, check, folder
from bayestensor.experiment.engines import Langevin, Sampler, Svgd
from bayestensor.experiment.schedule import schedule
from bayestensor.experiment.tally import Tally
from bayestensor.inference import checkpoint, sample
from bayestensor.inference.base import Engine, Posterior, not_finite_arrays
from bayestensor.inference.draws import Draws, Pieces, piece_path
from bayestensor.inference.gradient import Centre, centre_at
from bayestensor.ranks.explore import unstack
from bayestensor.typing import Array, Batch, Key, Position

if TYPE_CHECKING:
    from bayestensor.experiment.config import Config
    from bayestensor.experiment.progress import Progress
    from bayestensor.models.neural import NeuralModel

CHUNKS = 20  # in which a chain's draws come: how often progress moves and a checkpoint may fall due
SECONDS_PER_CHECKPOINT = 10.0


@dataclass(frozen=True)
class Context:
    """What a stage is given.

    Attributes:
        config, folder, model, progress: of the run.
        starts: MAP solutions [start, ...] that chains begin at, or for shapes only where they begin at the prior.
        x, y: training data, raw, on the device.
        scale: raw inputs -> what the model sees.
        new_tally: (position, chains, draws) -> an empty tally.
    """

    config: Config
    folder: folder.RunFolder
    model: NeuralModel
    progress: Progress
    starts: Position
    x: Array
    y: Array
    scale: Callable[[Array], Array]
    new_tally: Callable[[Position, int, int], Tally]

    @property
    def position(self) -> Position:
        """The first of the starts."""
        return jax.tree.map(lambda x: x[0], self.starts)


class Stage:
    """One process's work on the sampling stage of a run."""

    run: sample.Run
    burnt: int  # steps of burn-in that are done
    seconds: float  # that earlier sessions spent here

    def __init__(self, context: Context):
        self.context, config = context, context.config
        engine, num = config.engine, len(context.x)
        assert isinstance(engine, Sampler)
        self.section, self.plan = engine, schedule(config, num)
        self.stacked = isinstance(engine, Svgd)  # the engine moves a stack of particles as one chain
        self.members = engine.particles if isinstance(engine, Svgd) else engine.chains  # type: ignore[attr-defined]
        self._refuse(check.size_problems(config, sum(leaf.size for leaf in jax.tree.leaves(context.position))))
        order = np.random.default_rng([config.seed, 2]).permutation(num)
        self.data: Batch = (context.x[order], context.y[order])
        self.coordinates = build.coordinates(config, context.model, num)
        self.prepare = _preparation(build.preparation(config, context.scale))
        self.start_key, self.run_key, self.look_key = jax.random.split(_key(config.seed), 3)
        try:
            self.engine = self._engine()
        except ValueError as error:
            raise RunError(f"engine.{error}") from error
        # as many draws a visit to the host as make about `CHUNKS` visits
        self.chunk = -(-self.plan.draws // CHUNKS)
        self.started = time.perf_counter()
        self.tally = context.new_tally(context.position, self.members, self.plan.draws)
        self._restore()

    # --- beginning --------------------------------------------------------------------------------------------

    def _starts(self, key: Key[Array, ""]) -> Position:
        """Where chains start, [chain, ...], in the coordinates that the engine runs on."""
        context = self.context
        which = jnp.arange(self.members) % len(jax.tree.leaves(context.starts)[0])

        def around(key: Key[Array, ""], k: Array) -> Position:
            return self.coordinates.around(key, jax.tree.map(lambda x: x[k], context.starts), self.section.jitter)

        def prior(key: Key[Array, ""], k: Array) -> Position:
            return build.prior_position(context.model, self.coordinates, key, context.position)

        one = prior if self.section.start.name == "prior" else around
        return jax.jit(lambda key: jax.vmap(one)(jax.random.split(key, self.members), which))(key)

    def _engine(self) -> Engine:
        """The engine of the config, on non-centred coordinates; its positions are those of the model."""
        maker = build.SAMPLERS[self.section.name]  # type: ignore[attr-defined]
        engine = maker(self.section, self.context.model, self.posterior, self.plan, self._centre())
        back = self.coordinates.to_position
        return engine._replace(
            position=lambda state: (
                jax.vmap(back)(engine.position(state)) if self.stacked else back(engine.position(state))
            )
        )

    @property
    def posterior(self) -> Posterior:
        """The target, over non-centred coordinates."""
        return self.coordinates.posterior

    def _centre(self) -> Centre | None:
        """The start and the whole data's gradient there, for a control variate."""
        if not (isinstance(self.section, Langevin) and self.section.control_variate):
            return None
        at, scale = jax.jit(self.coordinates.from_position)(self.context.position), self.context.scale
        posterior = self.posterior
        scaled = replace(posterior, log_likelihood=lambda q, b: posterior.log_likelihood(q, (scale(b[0]), b[1])))
        return centre_at(scaled, at, self.data)

    def _begin(self, start_key: Key[Array, ""], run_key: Key[Array, ""]) -> sample.Run:
        positions = self._starts(start_key)
        if self.stacked:
            positions = jax.tree.map(lambda x: x[None], positions)
        return sample.start(self.engine, run_key, positions)

    # --- going on ---------------------------------------------------------------------------------------------

    def finish(self) -> Pieces:
        """Burn in and draw what is left; pieces of all draws of the run, [chain, draw, ...] with a chain a particle."""
        engine, plan, progress = self.section, self.plan, self.context.progress
        facts = {"engine": engine.name, "members": self.members, "steps": plan.steps, "draws": plan.draws}  # type: ignore
        progress.sampling(facts | {"done": int(self.run.steps)})
        while self.burnt < plan.burn_in:
            self._burn()
        while self.tally.done < plan.draws:
            self._draw()
        self._save()
        return Pieces(self.context.folder.draws, like=self.context.position)

    @property
    def total_seconds(self) -> float:
        """All sessions' time in this stage."""
        return self.seconds + time.perf_counter() - self.started

    def _settings(self) -> dict[str, Any]:
        return {"batch_size": self.plan.batch_size, "chunk": self.chunk, "prepare": self.prepare}

    def _burn(self) -> None:
        steps = min(self.chunk * self.plan.thin, self.plan.burn_in - self.burnt)
        before = self._undone()
        self.run = sample.skip(self.engine, self.run, self.data, steps, **self._settings())
        self._refuse_stuck(before, steps)
        self.burnt += steps
        self.context.progress.sampled(int(self.run.steps))
        if time.perf_counter() - self.saved > SECONDS_PER_CHECKPOINT:
            self._save()

    def _draw(self) -> None:
        """One chunk: to disk, into the tally, into metrics; and a checkpoint where one is due."""
        count, first = min(self.chunk, self.plan.draws - self.tally.done), self.tally.done
        before = self._undone()
        (piece,) = sample.stream(self.engine, self.run, self.data, draws=count, thin=self.plan.thin, **self._settings())
        self.run = piece.run
        self._refuse_stuck(before, count * self.plan.thin)
        stats = {name: x for name, x in piece.info._asdict().items() if isinstance(x, np.ndarray) and x.ndim == 2}
        draws = Draws(piece.positions, stats)
        draws = unstack(draws) if self.stacked else draws
        if names := not_finite_arrays(draws.positions):
            self._refuse([f"engine.step_size: draw {first + 1} to {first + count} is not finite in {names}; lower it"])
        self.context.folder.draws.mkdir(exist_ok=True)
        draws.save(piece_path(self.context.folder.draws, first), first, self.plan.draws)
        self.tally.add(draws.positions)
        record = self._record(stats)
        self.context.folder.append_sampling(record)
        self.context.progress.sampled(int(self.run.steps))
        self.context.progress.drawn(record)
        if time.perf_counter() - self.saved > SECONDS_PER_CHECKPOINT:
            self._save()

    def _record(self, stats: dict[str, np.ndarray]) -> dict[str, Any]:
        record: dict[str, Any] = {"draw": self.tally.done, "step": int(self.run.steps)}
        followed = ("kinetic_temperature", "inflation", "acceptance", "variance_ratio", "log_density", "step_size")
        record |= {name: float(stats[name].mean()) for name in followed if name in stats}
        for name in ("validation", "test"):
            if name in self.tally.sets:
                record[f"{name}_nll"], record[f"{name}_nll_members"] = self.tally.nll(name)
                record[f"{name}_accuracy"] = self.tally.accuracy(name)
        ranks = self.tally.ranks().layers
        record["ranks"] = {layer: {bond: one.mean for bond, one in bonds.items()} for layer, bonds in ranks.items()}
        return record

    # --- bad ends ---------------------------------------------------------------------------------------------

    def _undone(self) -> np.ndarray:
        """Steps of each chain that were undone because they were not finite."""
        return np.asarray(getattr(self.run.states, "nonfinite", 0))

    def _refuse_stuck(self, before: np.ndarray, steps: int) -> None:
        """Stop where most of a chain's last steps were undone: it is going nowhere, and its draws are copies."""
        undone = self._undone() - before
        if (undone <= 0.5 * steps).all():
            return
        chain = int(undone.argmax())
        one = jax.tree.map(lambda x: x[chain], self.run.states)
        position = one.particles if self.stacked else one.position
        batch = self.prepare(self.look_key, jax.tree.map(lambda x: x[: self.plan.batch_size], self.data))
        value = jax.value_and_grad(self.posterior.log_density)
        found = jax.jit(jax.vmap(value, (0, None)) if self.stacked else value)(position, batch)
        names = not_finite_arrays({"log density": found[0], "gradient": found[1]}) or "the step, not where it starts"
        now = getattr(self.section, "step_size", None)
        self._refuse(
            [
                f"engine.step_size: given {now}; {undone.max()} of the last {steps} steps were undone, not finite in "
                f"{names}; expected a smaller one, or a longer engine.burn_in"
            ]
        )

    def _refuse(self, found: list[str]) -> None:
        if found:
            raise RunError(f"{found[0]} (sampling stage of {self.context.folder.path})")

    # --- checkpoints ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        meta = {"burnt": self.burnt, "seconds": self.total_seconds}
        tree = {"run": self.run, "tally": self.tally.arrays}
        path = checkpoint.step_path(self.context.folder.sampling_checkpoints, int(self.run.steps))
        checkpoint.save(path, tree, meta, keep=2)
        self.saved = time.perf_counter()

    def _restore(self) -> None:
        """Take up the last good checkpoint, or begin."""
        self.saved, self.seconds, self.burnt = time.perf_counter(), 0.0, 0
        found = checkpoint.latest(self.context.folder.sampling_checkpoints)
        if found is None:
            self.run = self._begin(self.start_key, self.run_key)
            self._save()
        else:
            template = {"run": jax.eval_shape(self._begin, self.start_key, self.run_key), "tally": self.tally.arrays}
            tree, meta = checkpoint.load(found, template)
            self.run = jax.tree.map(_on_device, tree["run"])
            self.tally.arrays = tree["tally"]
            self.burnt, self.seconds = meta["burnt"], meta["seconds"]
        self.context.folder.truncate_sampling(int(self.run.steps))


def _preparation(prepare: Callable) -> Callable[[Key[Array, ""], Batch], Batch]:
    return lambda key, batch: (prepare(key, batch[0]), batch[1])


def _on_device(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def _key(seed: int) -> Key[Array, ""]:
    """A key of this stage's own: the training stage splits that of the seed."""
    return jax.random.key(int(np.random.SeedSequence([seed, 2]).generate_state(1)[0]))
