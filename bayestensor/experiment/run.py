"""One run from a config to a run folder: MAP, what another engine finds from there, and a summary of it all."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.experiment import folder, measure, model_file, outcome
from bayestensor.experiment.config import Config, Prune
from bayestensor.experiment.engines import DEFAULT_START, Ensemble, Sampler, map_section
from bayestensor.experiment.progress import Progress, Silent
from bayestensor.experiment.report import write_report
from bayestensor.experiment.sampling import Context, Stage
from bayestensor.experiment.session import Session, load_sets
from bayestensor.experiment.tally import Tally, Watched
from bayestensor.files import vacant
from bayestensor.inference.parallel import num_devices
from bayestensor.typing import Position

TWIN = "twin"  # the run folder of the dense twin, inside the run's own
STARTS = "starts"  # the run folders of further MAP solutions: members of an ensemble, starts of chains


def run(config: Config, out: Path, data_dir: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Train the model of a config in a new run folder; return what summary.json gets.

    Raises:
        BayestensorError: the folder exists or cannot be written, data are missing, a step was not finite.
    """
    vacant(Path(out))
    sets = load_sets(config, data_dir)
    return _finish(Session(config, folder.create(out, config, data_dir), sets, progress or Silent()))


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
    config = found.config()
    return _finish(Session(config, found, load_sets(config, data_dir), progress))


def _inner(path: Path) -> bool:
    """Whether a run folder belongs to another run, and so has no report of its own."""
    return path.name == TWIN or path.parent.name == STARTS


def _finish(session: Session) -> dict[str, Any]:
    """Train what is left, sample what is left, then measure and save."""
    session.train()
    train_seconds, found = time.perf_counter() - session.started, _beyond_map(session)
    position = session.position if found is None else found.position
    spec, arrays = _model_file(session, position, found)
    model_file.save_model(session.folder.model_stem, spec, arrays)
    layers = measure.layer_table(session.model, session.initial_ranks, position)
    dense = sum(layer["params_dense"] for layer in layers)
    final = measure.num_weights(position)
    summary = {
        "name": session.config.name,
        "seed": session.config.seed,
        "params_dense": dense,
        "params_initial": session.params_initial,
        "params_final": final,
        "compression": dense / final,
        "ranks": measure.ranks(session.model, position),
        "ranks_initial": session.initial_ranks,
        "temperature": (map_section(session.config.engine) or DEFAULT_START).temperature,
        **(session.quality(position) if found is None else found.quality),
        "train_seconds": train_seconds,
        "compile_seconds": session.trainer.compile_seconds,
        "first_step_seconds": session.first_step_seconds,
        "model_bytes": session.folder.model_stem.with_suffix(".npz").stat().st_size,
        "layers": layers,
        "collapsed": session.collapsed,
        "before_pruning": session.before_pruning,
        "dense_twin": _dense_twin(session),
    }
    if found is not None:
        summary |= {
            "params_stored": final * found.members,
            "sampling": found.sampling | {"start": _start_quality(session)},
        }
    session.folder.write_summary(summary)
    session.progress.finished(summary)
    if not _inner(session.folder.path):
        write_report([session.folder.path])
    return session.folder.summary()  # as `resume` returns it


def _model_file(
    session: Session, position: Position, found: outcome.Outcome | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    data, at = session.data, session.reference
    members = None if found is None else found.members
    if found is None:
        layers, arrays = measure.model_layers(session.model, position, at)
    else:
        layers, arrays = outcome.mixture_file(session.model, found.pieces, found.members, at)
    spec = model_file.model_spec(layers, data.input_shape, data.num_classes, session.shift, session.divisor, members)
    return spec, arrays


def _beyond_map(session: Session) -> outcome.Outcome | None:
    """What another engine finds from here."""
    engine = session.config.engine
    if isinstance(engine, Ensemble):
        positions = [session.position, *_more_starts(session, engine.members - 1)]
        draws = outcome.stacked(session.model, positions, np.log(engine.start.scale_floor))
        context = _context(session, jax.tree.map(lambda x: x[:, 0], draws.positions))
        tally = context.new_tally(context.position, *draws.shape)
        tally.add(draws.positions)
        return outcome.outcome(context, [draws], tally)
    if not isinstance(engine, Sampler):
        return None
    more = _more_starts(session, engine.starts - 1) if map_section(engine) else []
    starts = outcome.stacked(session.model, [session.position, *more], np.log(DEFAULT_START.scale_floor))
    context = _context(session, jax.tree.map(lambda x: jnp.asarray(x[:, 0]), starts.positions))
    stage = Stage(context)
    found = outcome.outcome(context, stage.finish(), stage.tally)
    facts = stage.plan._asdict() | {"devices": num_devices(stage.members), "seconds": stage.total_seconds}
    return replace(found, sampling=found.sampling | facts)


def _context(session: Session, starts: Position) -> Context:
    sets = {"test": Watched(jnp.asarray(session.data.x_test), session.data.y_test)}
    if session.held_out is not None:
        sets["validation"] = Watched(*session.held_out)
    if session.strangers is not None:
        sets["ood"] = Watched(session.strangers, None)

    def new_tally(position: Position, chains: int, draws: int) -> Tally:
        return Tally(session.model, session.predict, sets, position, chains, draws)

    x, y = session.trainer.x, session.trainer.y
    facts = (session.config, session.folder, session.model, session.progress)
    return Context(*facts, starts, x, y, session.scale, new_tally)


def _more_starts(session: Session, count: int) -> list[Position]:
    """Further MAP solutions, each a run with a seed of its own in a folder inside this one."""
    seeds = np.random.SeedSequence([session.config.seed, 3]).generate_state(max(count, 1)).tolist()
    positions = []
    for k, seed in enumerate(seeds[:count], 1):
        config = map_config(session.config, seed).model_copy(update={"name": f"{session.config.name}-start-{k}"})
        inside = session.folder.path / STARTS / str(k)
        session.progress.said(f"training start {k + 1} of {count + 1}")
        _inner_run(session, config, inside)
        positions.append(outcome.saved_position(session.position, inside / "checkpoints"))
    return positions


def _start_quality(session: Session) -> dict[str, Any] | None:
    """The first MAP solution, which the draws are to be compared with."""
    if not map_section(session.config.engine):
        return None
    scores = [f"{which}_{what}" for which in ("test", "validation") for what in ("accuracy", "nll")]
    kept = [*scores, "test_ece", "test_brier", "ood_auroc"]
    found = session.quality(session.position)
    return {"params": measure.num_weights(session.position)} | {name: found[name] for name in kept}


def _inner_run(session: Session, config: Config, path: Path) -> dict[str, Any]:
    """A run inside this one, gone on with where it has begun."""
    if (path / "config.yaml").exists():
        return resume(path, session.data_dir, session.progress)
    shutil.rmtree(path, ignore_errors=True)  # begun by a session that was stopped before it was a run
    return run(config, path, session.data_dir, session.progress)


def _dense_twin(session: Session) -> dict[str, Any] | None:
    """The same run without tensor networks, in a run folder of its own inside this one."""
    if not session.config.dense_twin or not session.model.kernels:
        return None
    twin = session.folder.path / TWIN
    session.progress.said("training the dense twin")
    summary = _inner_run(session, dense_config(session.config), twin)
    kept = ("test_accuracy", "test_nll", "test_ece", "train_seconds")
    return {name: summary[name] for name in kept} | {"params": summary["params_final"]}


def map_config(config: Config, seed: int) -> Config:
    """The MAP start of a config as a run of its own."""
    changed = {"engine": map_section(config.engine) or DEFAULT_START, "seed": seed, "dense_twin": False}
    return config.model_copy(update=changed)


def dense_config(config: Config) -> Config:
    """The dense twin of a config: the same data and schedule by MAP, ordinary layers with biases, no pruning."""
    ordinary = {"format": "dense", "shapes": None, "hidden_bias": True, "output_bias": True}
    known = type(config.model).model_fields
    model = config.model.model_copy(update={key: value for key, value in ordinary.items() if key in known})
    engine = map_section(config.engine) or DEFAULT_START
    if config.twin_learning_rate is not None:
        optimizer = engine.optimizer.model_copy(update={"learning_rate": config.twin_learning_rate})
        engine = engine.model_copy(update={"optimizer": optimizer})
    changed = {"name": f"{config.name}-dense", "model": model, "engine": engine, "prune": Prune(), "dense_twin": False}
    return config.model_copy(update=changed)
