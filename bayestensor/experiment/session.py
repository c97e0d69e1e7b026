"""The MAP stage of a run: train, prune, measure, save; and the same gone on with after a stop."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.data import Dataset, first, load_dataset, scaling, split_indices
from bayestensor.errors import RunError
from bayestensor.experiment import build, folder, measure, pruning
from bayestensor.experiment.config import Config
from bayestensor.experiment.engines import map_section
from bayestensor.experiment.progress import Progress
from bayestensor.experiment.tally import scores
from bayestensor.inference import checkpoint
from bayestensor.inference.base import map_positions
from bayestensor.inference.train import Carry, Trainer
from bayestensor.metrics import classification
from bayestensor.tensor.plan import export_plans, restore_plans
from bayestensor.typing import Position

CHUNKS_PER_EPOCH = 8  # how often progress moves and a checkpoint may fall due
SECONDS_PER_CHECKPOINT = 60.0  # besides one at each epoch's end
_KEPT = ("epoch", "step", "collapsed", "before_pruning", "first_step_seconds", "lowest", "waited")  # in checkpoints


class Sets(NamedTuple):
    """The data of a run, the folder they were looked for in, and when: the run's time counts from there."""

    whole: Dataset
    ood: Dataset | None
    data_dir: Path | None
    began: float


def load_sets(config: Config, data_dir: Path | None) -> Sets:
    """What a config asks for; before a run's folder is made, so that missing data leave none behind.

    Raises:
        DataError: a file is missing or damaged.
    """
    section, began = config.data, time.perf_counter()
    ood = None if section.ood is None else first(load_dataset(section.ood, data_dir), section.limit)
    return Sets(first(load_dataset(section.name, data_dir), section.limit), ood, data_dir, began)


class Session:
    """One process's work on the MAP stage of a run: all of it, or what other engines start from."""

    carry: Carry
    epoch: int  # finished
    step: int  # finished in this epoch
    saved: float  # when the last checkpoint was written
    started: float  # when this session would have begun, had it trained without a stop

    def __init__(self, config: Config, run_folder: folder.RunFolder, sets: Sets, progress: Progress):
        self.config, self.folder, self.progress = config, run_folder, progress
        self.started = sets.began
        self._take_data(sets)
        self.model, initial = build.neural_model(config)
        start_key, train_key = jax.random.split(jax.random.key(config.seed))
        x, y = jnp.asarray(self.data.x_train), jnp.asarray(self.data.y_train)
        posterior = self.model.posterior(len(x))
        engine = build.map_engine(config, self.model, posterior, len(x) // config.train.batch_size)
        self.trainer = Trainer(engine, x, y, config.train.batch_size, build.preparation(config, self.scale), train_key)
        self.reference = measure.reference(self.model, x, self.scale, config.train.batch_size)
        self.predict = measure.predictor(self.model, self.scale, self.reference)
        fresh = self.trainer.start(initial, start_key)
        position = engine.position(fresh.state)
        self.initial_ranks = measure.ranks(self.model, position)
        self.params_initial = measure.num_weights(position)
        self._restore_plans()
        self.epochs = config.train.epochs if map_section(config.engine) else 0
        self.first_step_seconds: float | None = None
        self.collapsed: list[str] = []
        self.before_pruning: dict[str, Any] | None = None  # what the first cut found
        self.lowest: float | None = None  # validation NLL since the last cut, where training may stop early
        self.waited = 0  # measurements since
        self._restore(fresh)

    def _take_data(self, sets: Sets) -> None:
        section, whole = self.config.data, sets.whole
        self.data_dir, self.held_out = sets.data_dir, None
        self.data = whole
        if section.validation:
            kept, out = split_indices(whole.y_train, section.validation)  # the same for every seed and every start
            self.held_out = (jnp.asarray(whole.x_train[out]), whole.y_train[out])
            self.data = replace(whole, x_train=whole.x_train[kept], y_train=whole.y_train[kept])
        self.shift, self.divisor = scaling(self.data, section.scaling)
        self.scale = build.scaler(self.shift, self.divisor)
        self.strangers = None if sets.ood is None else jnp.asarray(sets.ood.x_test)

    def _restore_plans(self) -> None:
        """Contract in the order of the sessions before; without a whole plans.json, plan anew."""
        if not self.folder.plans_file.exists():
            return
        try:
            restore_plans(folder.read_json(self.folder.plans_file)["plans"])
        except (RunError, ValueError, KeyError, TypeError, AttributeError):
            self.progress.said(f"{self.folder.plans_file} is damaged: orders of contraction are planned anew")

    # --- training ---------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train what is left."""
        steps = self.trainer.steps_per_epoch
        facts = {"name": self.config.name, "parameters": self.params_initial, "epochs": self.epochs}
        self.progress.started(facts | {"steps_per_epoch": steps, "first_epoch": self.epoch})
        patience = self.config.train.patience
        while self.epoch < self.epochs and (patience is None or self.waited < patience):
            self._train_epoch()
        if self.waited:
            self._go_back()

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
            if self.config.train.patience is not None and self.epoch > max(self.config.prune.epochs, default=0):
                self._compare(record["validation_nll"])
            self.folder.append_metrics(record)
            self.progress.evaluated(record)
        self._save()

    def _compare(self, nll: float) -> None:
        """Note a validation NLL after the last cut; what has the lowest so far is kept beside the checkpoints."""
        if self.lowest is not None and not nll < self.lowest:
            self.waited += 1
            return
        self.lowest, self.waited = nll, 0
        path = checkpoint.step_path(self.folder.best, self.epoch * self.trainer.steps_per_epoch)
        checkpoint.save(path, self.carry, {"epoch": self.epoch}, keep=1)

    def _go_back(self) -> None:
        """To where the validation NLL was lowest; training ends there."""
        found = checkpoint.latest(self.folder.best)
        if found is None:
            raise RunError(f"{self.folder.best}: the best epoch's checkpoint is gone; start the run again")
        carry, meta = checkpoint.load(found, jax.eval_shape(lambda carry: carry, self.carry))
        self.carry = jax.tree.map(jnp.asarray, carry)
        self.progress.said(
            f"the model is that of epoch {meta['epoch']}, whose validation NLL {self.lowest:.4f} is lowest"
        )
        self._save()

    def _prune(self) -> None:
        position = self.position
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
    def position(self) -> Position:
        """Where training stands."""
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
        position = self.position
        found: dict[str, Any] = {}
        found["validation_accuracy"], found["validation_nll"] = self._held_out(position)
        log_p = self.predict(position, self.data.x_test)
        found["test_accuracy"], found["test_nll"] = measure.accuracy_and_nll(log_p, self.data.y_test)
        found["num_parameters"] = measure.num_weights(position)
        found["ranks"] = measure.ranks(self.model, position)
        found["scales"] = measure.scales(position)
        return found

    def quality(self, position: Position) -> dict[str, Any]:
        """Scores of one position, as summary.json has them."""
        log_p, labels = self.predict(position, self.data.x_test), self.data.y_test
        auroc = None
        if self.strangers is not None:
            logs = (log_p, self.predict(position, self.strangers))
            auroc = classification.ood_auroc(*(classification.predictive_entropy(np.exp(one)) for one in logs))
        found = scores(np.exp(np.asarray(log_p, np.float64)), labels)
        found |= {"test_nll": measure.accuracy_and_nll(log_p, labels)[1], "ood_auroc": auroc}
        return found | dict(zip(("validation_accuracy", "validation_nll"), self._held_out(position), strict=True))

    def _held_out(self, position: Position) -> tuple[float | None, float | None]:
        """Accuracy and NLL on what the config holds out of the training data."""
        if self.held_out is None:
            return None, None
        x, labels = self.held_out
        return measure.accuracy_and_nll(self.predict(position, x), labels)

    # --- checkpoints ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        meta = {name: getattr(self, name) for name in _KEPT}
        meta["ranks"] = measure.ranks(self.model, self.position)
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
            cuts = self.model.cuts(self.position, keep)
            template = jax.eval_shape(lambda carry: map_positions(carry, self.position, cuts), fresh)
            carry, _ = checkpoint.load(found, template)
            self.carry = jax.tree.map(jnp.asarray, carry)
            for name in _KEPT:
                setattr(self, name, meta.get(name, getattr(self, name)))  # a run begun by an earlier version lacks some
            self.started -= meta["seconds"]
            self.trainer.compile_seconds += meta["compile_seconds"]
            self.saved = time.perf_counter()
        self.folder.truncate_metrics(self.epoch * self.trainer.steps_per_epoch)
