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
from bayestensor.experiment import build, folder, measure, model_file, pruning
from bayestensor.experiment.config import Config, Prune
from bayestensor.experiment.progress import Progress, Silent
from bayestensor.experiment.report import write_report
from bayestensor.inference import checkpoint
from bayestensor.inference.base import map_positions
from bayestensor.inference.train import Carry, Trainer
from bayestensor.metrics import classification
from bayestensor.tensor.plan import export_plans, restore_plans

CHUNKS_PER_EPOCH = 8  # how often progress moves and a checkpoint may fall due
SECONDS_PER_CHECKPOINT = 60.0  # besides one at each epoch's end
TWIN = "twin"  # the run folder of the dense twin, inside the run's own
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
        if found.path.name != TWIN and not (found.path / "report.html").exists():
            write_report([found.path])  # a stop fell between the summary and the report
        return found.summary()
    noted = found.manifest().get("data_dir")
    data_dir = data_dir or (Path(noted) if noted else None)
    return _Session(found.config(), found, data_dir, progress).finish()


class _Session:
    """One process's work on a run folder."""

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
        engine = build.ENGINES[config.engine.name](config, self.model, posterior, len(x) // config.train.batch_size)
        self.trainer = Trainer(engine, x, y, config.train.batch_size, build.preparation(config, self.scale), train_key)
        self.predict = measure.predictor(self.model, self.scale)
        fresh = self.trainer.start(initial, start_key)
        position = engine.position(fresh.state)
        self.initial_ranks = measure.ranks(self.model, position)
        self.params_initial = measure.num_weights(position)
        if self.folder.plans_file.exists():
            restore_plans(folder.read_json(self.folder.plans_file)["plans"])
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
            kept, out = split_indices(whole.y_train, section.validation, self.config.seed)
            self.held_out = (jnp.asarray(whole.x_train[out]), whole.y_train[out])
            self.data = replace(whole, x_train=whole.x_train[kept], y_train=whole.y_train[kept])
        self.shift, self.divisor = scaling(self.data, section.scaling)
        self.scale = build.scaler(self.shift, self.divisor)

    # --- training ---------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Train what is left, then measure and save."""
        steps = self.trainer.steps_per_epoch
        facts = {"name": self.config.name, "parameters": self.params_initial, "epochs": self.config.train.epochs}
        self.progress.started(facts | {"steps_per_epoch": steps, "first_epoch": self.epoch})
        while self.epoch < self.config.train.epochs:
            self._train_epoch()
        return self._conclude()

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
        if pruned or self.epoch % self.config.train.evaluate_every == 0 or self.epoch == self.config.train.epochs:
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

    def _conclude(self) -> dict[str, Any]:
        train_seconds = time.perf_counter() - self.started
        position = self._position
        spec, arrays = self._model_file(position)
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
            "temperature": self.config.engine.temperature,
            **self._quality(position),
            "train_seconds": train_seconds,
            "compile_seconds": self.trainer.compile_seconds,
            "first_step_seconds": self.first_step_seconds,
            "model_bytes": self.folder.model_stem.with_suffix(".npz").stat().st_size,
            "layers": layers,
            "collapsed": self.collapsed,
            "before_pruning": self.before_pruning,
            "dense_twin": self._dense_twin(),
        }
        self.folder.write_summary(summary)
        self.progress.finished(summary)
        if self.folder.path.name != TWIN:
            write_report([self.folder.path])
        return self.folder.summary()  # as `resume` returns it

    def _quality(self, position: Any) -> dict[str, Any]:
        log_p, labels = self.predict(position, self.data.x_test), self.data.y_test
        accuracy, nll = measure.accuracy_and_nll(log_p, labels)
        probabilities = np.exp(np.asarray(log_p, np.float64))
        return {
            "test_accuracy": accuracy,
            "test_nll": nll,
            "test_ece": classification.expected_calibration_error(probabilities, labels),
            "test_brier": classification.brier(probabilities, labels),
            "confusion": classification.confusion_matrix(probabilities, labels).tolist(),
            "reliability": _plain(classification.reliability(probabilities, labels)),
        }

    def _model_file(self, position: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        layers, arrays = measure.model_layers(self.model, position, self.config.model.activation)
        data = self.data
        return model_file.model_spec(layers, data.input_shape, data.num_classes, self.shift, self.divisor), arrays

    def _dense_twin(self) -> dict[str, Any] | None:
        """The same run without tensor networks, in a run folder of its own inside this one."""
        if not self.config.dense_twin or not self.model.kernels:
            return None
        twin = self.folder.path / TWIN
        self.progress.said("training the dense twin")
        if (twin / "config.yaml").exists():
            summary = resume(twin, self.data_dir, self.progress)
        else:
            shutil.rmtree(twin, ignore_errors=True)  # begun by a session that was stopped before it was a run
            summary = run(dense_config(self.config), twin, self.data_dir, self.progress)
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


def dense_config(config: Config) -> Config:
    """The dense twin of a config: the same data and schedule, ordinary layers with biases, no pruning."""
    model = config.model.model_copy(
        update={"format": "dense", "shapes": None, "hidden_bias": True, "output_bias": True}
    )
    engine = config.engine
    if config.twin_learning_rate is not None:
        optimizer = engine.optimizer.model_copy(update={"learning_rate": config.twin_learning_rate})
        engine = engine.model_copy(update={"optimizer": optimizer})
    changed = {"name": f"{config.name}-dense", "model": model, "engine": engine, "prune": Prune(), "dense_twin": False}
    return config.model_copy(update=changed)


def _plain(record: Any) -> dict[str, Any]:
    """A named tuple of arrays as JSON has it."""
    return {name: np.asarray(value).tolist() for name, value in record._asdict().items()}
