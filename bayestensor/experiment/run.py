"""One run from a config to a run folder: train, prune, measure, save; and the same run gone on with after a stop."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.data import load_dataset, scaling, split_indices
from bayestensor.errors import RunError
from bayestensor.experiment import build, folder, measure, model_file, outcome, pruning
from bayestensor.experiment.config import Config, Prune
from bayestensor.experiment.engines import DEFAULT_START, Ensemble, Sampler, map_section
from bayestensor.experiment.progress import Progress, Silent
from bayestensor.experiment.report import write_report
from bayestensor.experiment.sampling import Context, Stage
from bayestensor.experiment.tally import Tally, Watched, scores
from bayestensor.inference import checkpoint
from bayestensor.inference.base import map_positions
from bayestensor.inference.train import Carry, Trainer
from bayestensor.metrics import classification
from bayestensor.tensor.plan import export_plans, restore_plans
from bayestensor.typing import Position

CHUNKS_PER_EPOCH = 8  # how often progress moves and a checkpoint may fall due
SECONDS_PER_CHECKPOINT = 60.0  # besides one at each epoch's end
TWIN = "twin"  # the run folder of the dense twin, inside the run's own
STARTS = "starts"  # the run folders of further MAP solutions: members of an ensemble, starts of chains
_KEPT = ("epoch", "step", "collapsed", "before_pruning", "first_step_seconds")  # of a session, in its checkpoints


def run(config: Config, out: Path, data_dir: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Train the model of a config in a new run folder; return what summary.json gets.

    Raises:
        BayestensorError: the folder exists or cannot be written, data are missing, a step was not finite.
    """
    return _Session(config, folder.create(out, config, data_dir), data_dir, progress or Silent()).finish()


def resume(run_dir: Path, data_dir: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Go on with a run from its last good checkpoint, to the same result as without the stop."""
    found, progress = folder.open_run(run_dir), progress or Silent()
    if found.summary_file.exists():
        progress.said(f"{run_dir} is already finished")
        if not _inner(found.path) and not (found.path / "report.html").exists():
            write_report([found.path])  # a stop fell between the summary and the report
        return found.summary()
    noted = found.manifest().get("data_dir")
    data_dir = data_dir or (Path(noted) if noted else None)
    return _Session(found.config(), found, data_dir, progress).finish()


def _inner(path: Path) -> bool:
    """Whether a run folder belongs to another run, and so has no report of its own."""
    return path.name == TWIN or path.parent.name == STARTS


class _Session:
    """One process's work on a run folder: MAP, then (for other engines) what starts from it."""

    carry: Carry
    epoch: int  # finished
    step: int  # finished in this epoch
    saved: float  # when the last checkpoint was written
    started: float  # when this session would have begun, had it trained without a stop

    def __init__(self, config: Config, run_folder: folder.RunFolder, data_dir: Path | None, progress: Progress):
        self.config, self.folder, self.data_dir, self.progress = config, run_folder, data_dir, progress
        self.started = time.perf_counter()
        self._load_data()
        self.model, initial = build.neural_model(config)
        start_key, train_key = jax.random.split(jax.random.key(config.seed))
        x, y = jnp.asarray(self.data.x_train), jnp.asarray(self.data.y_train)
        posterior = self.model.posterior(len(x))
        engine = build.map_engine(config, self.model, posterior, len(x) // config.train.batch_size)
        self.trainer = Trainer(engine, x, y, config.train.batch_size, build.preparation(config, self.scale), train_key)
        self.predict = measure.predictor(self.model, self.scale)
        fresh = self.trainer.start(initial, start_key)
        position = engine.position(fresh.state)
        self.initial_ranks = measure.ranks(self.model, position)
        self.params_initial = measure.num_weights(position)
        self._restore_plans()
        self.epochs = config.train.epochs if map_section(config.engine) else 0
        self.first_step_seconds: float | None = None
        self.collapsed: list[str] = []
        self.before_pruning: dict[str, Any] | None = None  # what the first cut found
        self._restore(fresh)

    def _load_data(self) -> None:
        section = self.config.data
        whole = load_dataset(section.name, self.data_dir)
        self.held_out = None
        self.data = whole
        if section.validation:
            kept, out = split_indices(whole.y_train, section.validation)  # the same for every seed and every start
            self.held_out = (jnp.asarray(whole.x_train[out]), whole.y_train[out])
            self.data = replace(whole, x_train=whole.x_train[kept], y_train=whole.y_train[kept])
        self.shift, self.divisor = scaling(self.data, section.scaling)
        self.scale = build.scaler(self.shift, self.divisor)
        ood = None if section.ood is None else load_dataset(section.ood, self.data_dir)
        self.strangers = None if ood is None else jnp.asarray(ood.x_test)

    def _restore_plans(self) -> None:
        """Contract in the order of the sessions before; without a whole plans.json, plan anew."""
        if not self.folder.plans_file.exists():
            return
        try:
            restore_plans(folder.read_json(self.folder.plans_file)["plans"])
        except (RunError, ValueError, KeyError, TypeError, AttributeError):
            self.progress.said(f"{self.folder.plans_file} is damaged: orders of contraction are planned anew")

    # --- training ---------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Train what is left, sample if the engine samples, then measure and save."""
        steps = self.trainer.steps_per_epoch
        facts = {"name": self.config.name, "parameters": self.params_initial, "epochs": self.epochs}
        self.progress.started(facts | {"steps_per_epoch": steps, "first_epoch": self.epoch})
        while self.epoch < self.epochs:
            self._train_epoch()
        return self._conclude(time.perf_counter() - self.started, self._beyond_map())

    def _train_epoch(self) -> None:
        steps = self.trainer.steps_per_epoch
        while self.step < steps:
            chunk = 1 if self.first_step_seconds is None else -(-steps // CHUNKS_PER_EPOCH)
            last = min(self.step + chunk, steps)
            self.carry = self.trainer.advance(self.carry, self.epoch, self.step, last)
            self._refuse_failure()
            self.step = last
            if self.first_step_seconds is None:
                self.first_step_seconds = time.perf_counter() - self.started
            self.progress.stepped(self.epoch, self.step)
            if time.perf_counter() - self.saved > SECONDS_PER_CHECKPOINT:
                self._save()
        self._close_epoch()

    def _close_epoch(self) -> None:
        """Prune if it is time, measure, write the metrics line, save."""
        info = jax.tree.map(lambda total: float(total) / self.trainer.steps_per_epoch, self.carry.totals)
        self.epoch, self.step = self.epoch + 1, 0
        record: dict[str, Any] = {"epoch": self.epoch, "step": self.epoch * self.trainer.steps_per_epoch}
        record |= {f"train_{name}": value for name, value in info._asdict().items()}
        pruned = self.epoch in self.config.prune.epochs and bool(self.model.kernels)
        record["event"] = "pruned" if pruned else None
        if pruned:
            self._prune()
        self.carry = self.trainer.new_epoch(self.carry.state)
        if pruned or self.epoch % self.config.train.evaluate_every == 0 or self.epoch == self.epochs:
            record |= self._measured()
            self.folder.append_metrics(record)
            self.progress.evaluated(record)
        self._save()

    def _prune(self) -> None:
        position = self._position
        if self.before_pruning is None:
            accuracy, nll = measure.accuracy_and_nll(self.predict(position, self.data.x_test), self.data.y_test)
            self.before_pruning = {"epoch": self.epoch, "test_accuracy": accuracy, "test_nll": nll}
        section, last = self.config.prune, self.epoch == max(self.config.prune.epochs)
        try:
            chosen = pruning.selection(section, self.model, position, last=last)
            if last and section.max_ms is not None:
                x = jnp.asarray(self.data.x_test[: self.config.train.batch_size])
                chosen = pruning.faster(section, self.model, position, chosen, self.predict, x)
        except ValueError as error:
            raise RunError(f"pruning after epoch {self.epoch}: {error}") from error
        state = map_positions(self.carry.state, position, self.model.cuts(position, chosen.keep))
        self.carry = self.carry._replace(state=state)
        for collapse in map(str, chosen.collapsed):
            if collapse not in self.collapsed:  # a later cut finds it at rank 1 still
                self.collapsed.append(collapse)
                self.progress.said(f"{collapse} has collapsed; its largest slice is kept, so it stays at rank 1")

    @property
    def _position(self) -> Any:
        return self.trainer.engine.position(self.carry.state)

    def _refuse_failure(self) -> None:
        failed = int(self.carry.state.failed_at)
        if failed < 0:
            return
        epoch, step = divmod(failed, self.trainer.steps_per_epoch)
        names = self.trainer.not_finite(self.carry.state, self.model.posterior(len(self.trainer.x)), epoch, step)
        raise RunError(
            f"step {failed} (epoch {epoch}) is not finite in {names}; lower engine.optimizer.learning_rate or set "
            f"engine.optimizer.clip; the last good checkpoint is in {self.folder.checkpoints}"
        )

    # --- measuring --------------------------------------------------------------------------------------------

    def _measured(self) -> dict[str, Any]:
        position = self._position
        found: dict[str, Any] = {"validation_accuracy": None, "validation_nll": None}
        if self.held_out is not None:
            x, labels = self.held_out
            log_p = self.predict(position, x)
            found["validation_accuracy"], found["validation_nll"] = measure.accuracy_and_nll(log_p, labels)
        log_p = self.predict(position, self.data.x_test)
        found["test_accuracy"], found["test_nll"] = measure.accuracy_and_nll(log_p, self.data.y_test)
        found["num_parameters"] = measure.num_weights(position)
        found["ranks"] = measure.ranks(self.model, position)
        found["scales"] = measure.scales(position)
        return found

    def _conclude(self, train_seconds: float, found: outcome.Outcome | None) -> dict[str, Any]:
        position = self._position if found is None else found.position
        spec, arrays = self._model_file(position, found)
        model_file.save_model(self.folder.model_stem, spec, arrays)
        layers = measure.layer_table(self.model, self.initial_ranks, position)
        dense = sum(layer["params_dense"] for layer in layers)
        final = measure.num_weights(position)
        summary = {
            "name": self.config.name,
            "seed": self.config.seed,
            "params_dense": dense,
            "params_initial": self.params_initial,
            "params_final": final,
            "compression": dense / final,
            "ranks": measure.ranks(self.model, position),
            "ranks_initial": self.initial_ranks,
            "temperature": (map_section(self.config.engine) or DEFAULT_START).temperature,
            **(self._quality(position) if found is None else found.quality),
            "train_seconds": train_seconds,
            "compile_seconds": self.trainer.compile_seconds,
            "first_step_seconds": self.first_step_seconds,
            "model_bytes": self.folder.model_stem.with_suffix(".npz").stat().st_size,
            "layers": layers,
            "collapsed": self.collapsed,
            "before_pruning": self.before_pruning,
            "dense_twin": self._dense_twin(),
        }
        if found is not None:
            stored = final * found.draws.shape[0] * found.draws.shape[1]
            summary |= {"params_stored": stored, "sampling": found.sampling | {"start": self._start_quality()}}
        self.folder.write_summary(summary)
        self.progress.finished(summary)
        if not _inner(self.folder.path):
            write_report([self.folder.path])
        return self.folder.summary()  # as `resume` returns it

    def _quality(self, position: Position) -> dict[str, Any]:
        log_p, labels = self.predict(position, self.data.x_test), self.data.y_test
        auroc = None
        if self.strangers is not None:
            logs = (log_p, self.predict(position, self.strangers))
            auroc = classification.ood_auroc(*(classification.predictive_entropy(np.exp(one)) for one in logs))
        found = scores(np.exp(np.asarray(log_p, np.float64)), labels)
        return found | {"test_nll": measure.accuracy_and_nll(log_p, labels)[1], "ood_auroc": auroc}

    def _model_file(
        self, position: Position, found: outcome.Outcome | None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        activation, data = self.config.model.activation, self.data
        members = None if found is None else found.draws.shape[0] * found.draws.shape[1]
        if found is None:
            layers, arrays = measure.model_layers(self.model, position, activation)
        else:
            layers, arrays = outcome.mixture_file(self.model, found.draws, activation)
        spec = model_file.model_spec(layers, data.input_shape, data.num_classes, self.shift, self.divisor, members)
        return spec, arrays

    # --- beyond MAP -------------------------------------------------------------------------------------------

    def _beyond_map(self) -> outcome.Outcome | None:
        """What another engine finds from here."""
        engine = self.config.engine
        if isinstance(engine, Ensemble):
            positions = [self._position, *self._more_starts(engine.members - 1)]
            draws = outcome.stacked(self.model, positions, np.log(engine.start.scale_floor))
            context = self._context(jax.tree.map(lambda x: x[:, 0], draws.positions))
            tally = context.new_tally(context.position, *draws.shape)
            tally.add(draws.positions)
            return outcome.outcome(context, draws, tally)
        if not isinstance(engine, Sampler):
            return None
        more = self._more_starts(engine.starts - 1) if map_section(engine) else []
        starts = outcome.stacked(self.model, [self._position, *more], np.log(DEFAULT_START.scale_floor))
        context = self._context(jax.tree.map(lambda x: jnp.asarray(x[:, 0]), starts.positions))
        stage = Stage(context)
        draws = stage.finish()
        found = outcome.outcome(context, draws, stage.tally)
        return replace(found, sampling=found.sampling | stage.plan._asdict() | {"seconds": stage.total_seconds})

    def _context(self, starts: Position) -> Context:
        sets = {"test": Watched(jnp.asarray(self.data.x_test), self.data.y_test)}
        if self.held_out is not None:
            sets["validation"] = Watched(*self.held_out)
        if self.strangers is not None:
            sets["ood"] = Watched(self.strangers, None)

        def new_tally(position: Position, chains: int, draws: int) -> Tally:
            return Tally(self.model, self.predict, sets, position, chains, draws)

        data = (self.trainer.x, self.trainer.y)
        return Context(self.config, self.folder, self.model, self.progress, starts, *data, self.scale, new_tally)

    def _more_starts(self, count: int) -> list[Position]:
        """Further MAP solutions, each a run with a seed of its own in a folder inside this one."""
        seeds = np.random.SeedSequence([self.config.seed, 3]).generate_state(max(count, 1)).tolist()
        positions = []
        for k, seed in enumerate(seeds[:count], 1):
            config = map_config(self.config, seed).model_copy(update={"name": f"{self.config.name}-start-{k}"})
            inside = self.folder.path / STARTS / str(k)
            self.progress.said(f"training start {k + 1} of {count + 1}")
            self._inner_run(config, inside)
            positions.append(outcome.saved_position(self._position, inside / "checkpoints"))
        return positions

    def _start_quality(self) -> dict[str, Any] | None:
        """The first MAP solution, which the draws are to be compared with."""
        if not map_section(self.config.engine):
            return None
        kept = ("test_accuracy", "test_nll", "test_ece", "test_brier", "ood_auroc")
        found = self._quality(self._position)
        return {"params": measure.num_weights(self._position)} | {name: found[name] for name in kept}

    def _inner_run(self, config: Config, path: Path) -> dict[str, Any]:
        """A run inside this one, gone on with where it has begun."""
        if (path / "config.yaml").exists():
            return resume(path, self.data_dir, self.progress)
        shutil.rmtree(path, ignore_errors=True)  # begun by a session that was stopped before it was a run
        return run(config, path, self.data_dir, self.progress)

    def _dense_twin(self) -> dict[str, Any] | None:
        """The same run without tensor networks, in a run folder of its own inside this one."""
        if not self.config.dense_twin or not self.model.kernels:
            return None
        twin = self.folder.path / TWIN
        self.progress.said("training the dense twin")
        summary = self._inner_run(dense_config(self.config), twin)
        kept = ("test_accuracy", "test_nll", "test_ece", "train_seconds")
        return {name: summary[name] for name in kept} | {"params": summary["params_final"]}

    # --- checkpoints ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        meta = {name: getattr(self, name) for name in _KEPT}
        meta["ranks"] = measure.ranks(self.model, self._position)
        meta["seconds"] = time.perf_counter() - self.started
        meta["compile_seconds"] = self.trainer.compile_seconds
        steps = self.epoch * self.trainer.steps_per_epoch + self.step
        checkpoint.save(checkpoint.step_path(self.folder.checkpoints, steps), self.carry, meta, keep=3)
        folder.write_json(self.folder.plans_file, {"plans": export_plans()})
        self.saved = time.perf_counter()

    def _restore(self, fresh: Carry) -> None:
        """Take up the last good checkpoint, or begin; either way the run can be resumed from now on."""
        self.carry, self.epoch, self.step = fresh, 0, 0
        found = checkpoint.latest(self.folder.checkpoints)
        if found is None:
            self._save()
        else:
            _, meta = checkpoint.load(found)
            keep = {
                layer: {bond: np.arange(rank) for bond, rank in bonds.items()} for layer, bonds in meta["ranks"].items()
            }
            cuts = self.model.cuts(self._position, keep)
            template = jax.eval_shape(lambda carry: map_positions(carry, self._position, cuts), fresh)
            carry, _ = checkpoint.load(found, template)
            self.carry = jax.tree.map(jnp.asarray, carry)
            for name in _KEPT:
                setattr(self, name, meta[name])
            self.started -= meta["seconds"]
            self.trainer.compile_seconds += meta["compile_seconds"]
            self.saved = time.perf_counter()
        self.folder.truncate_metrics(self.epoch * self.trainer.steps_per_epoch)


def map_config(config: Config, seed: int) -> Config:
    """The MAP start of a config as a run of its own."""
    changed = {"engine": map_section(config.engine) or DEFAULT_START, "seed": seed, "dense_twin": False}
    return config.model_copy(update=changed)


def dense_config(config: Config) -> Config:
    """The dense twin of a config: the same data and schedule by MAP, ordinary layers with biases, no pruning."""
    model = config.model.model_copy(
        update={"format": "dense", "shapes": None, "hidden_bias": True, "output_bias": True}
    )
    engine = map_section(config.engine) or DEFAULT_START
    if config.twin_learning_rate is not None:
        optimizer = engine.optimizer.model_copy(update={"learning_rate": config.twin_learning_rate})
        engine = engine.model_copy(update={"optimizer": optimizer})
    changed = {"name": f"{config.name}-dense", "model": model, "engine": engine, "prune": Prune(), "dense_twin": False}
    return config.model_copy(update=changed)
