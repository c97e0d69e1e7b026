"""From the draws of a run to what its summary says: cuts by posterior mass, the mixture's scores, a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bayestensor.errors import CheckpointError
from bayestensor.experiment import measure
from bayestensor.experiment.engines import Ensemble
from bayestensor.experiment.sampling import Context
from bayestensor.experiment.tally import Tally
from bayestensor.inference import checkpoint
from bayestensor.inference.diagnostics import diagnose
from bayestensor.inference.draws import Draws, piece_path
from bayestensor.models.neural import NeuralModel
from bayestensor.ranks.mass import MassSelection, prune_draws, select_by_mass
from bayestensor.tensor.surgery import pad
from bayestensor.typing import Position


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    draws: that the run is to predict from, all of one shape.
    quality: scores of their mixture, as summary.json has them.
    sampling: what summary.json says of the sampling stage.
    """

    draws: Draws
    quality: dict[str, Any]
    sampling: dict[str, Any]

    @property
    def position(self) -> Position:
        """One draw, for its sizes."""
        return jax.tree.map(lambda x: x[0, 0], self.draws.positions)


def outcome(context: Context, draws: Draws, tally: Tally) -> Outcome:
    """What the draws [chain, draw, ...] come to; writes those that lost slices to the run's folder.

    Args:
        context: of the sampling stage.
        draws: all of them.
        tally: theirs.
    """
    share = getattr(context.config.engine, "drop_below", None)
    ranks, found = tally.ranks(), None
    if share is not None and context.model.kernels:
        found = select_by_mass(context.model, draws, share)
        if found.ranks != measure.ranks(context.model, context.position):
            draws = prune_draws(context.model, draws, found)
            context.folder.pruned.mkdir(exist_ok=True)
            draws.save(piece_path(context.folder.pruned, 0))
            tally = context.new_tally(jax.tree.map(lambda x: x[0, 0], draws.positions), *draws.shape)
            tally.add(draws.positions)
    members, count = draws.shape
    figures = ("kinetic_temperature", "inflation", "acceptance", "variance_ratio")
    sampling = {
        "engine": context.config.engine.name,
        "members": members,
        "draws": count,
        "temperature": getattr(context.config.engine, "temperature", 1.0),
        **{name: float(np.mean(draws.stats[name])) for name in figures if name in draws.stats},
        "verdict": _verdict(context, draws, tally),
        "rank_posterior": ranks.to_dict(),
        "pruned": None if found is None else _pruned(found, share),
    }
    return Outcome(draws, tally.quality(), sampling)


def _pruned(found: MassSelection, share: float | None) -> dict[str, Any]:
    return {"share": share, "ranks": found.ranks, "largest_lost": found.largest_lost}


def _verdict(context: Context, draws: Draws, tally: Tally) -> dict[str, Any]:
    """`diagnose`, or why there is none."""
    if isinstance(context.config.engine, Ensemble):
        return {"converged": None, "advice": ["an ensemble is a set of modes, no chain: nothing to converge"]}
    members, count = draws.shape
    if members < 2 or count < 4:
        return {"converged": None, "advice": [f"{members} x {count} draws: at least 2 chains of 4 can be compared"]}
    return asdict(diagnose(tally.functionals(), draws.stats, temperature=context.config.engine.temperature))


def mixture_file(model: NeuralModel, draws: Draws, activation: str) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The layers of a model file and its arrays, one member a draw in front: see `model_file`."""
    flat = draws.flat()
    count = len(jax.tree.leaves(flat)[0])
    found = [measure.model_layers(model, jax.tree.map(lambda x: x[k], flat), activation) for k in range(count)]  # noqa: B023
    return found[0][0], {name: np.stack([arrays[name] for _, arrays in found]) for name in found[0][1]}


def stacked(model: NeuralModel, positions: Sequence[Position], log_floor: float) -> Draws:
    """Positions of different ranks as chains of one draw: smaller ones get slices of zeros, their v at the floor."""
    ranks = [measure.ranks(model, position) for position in positions]
    most = {
        layer: {bond: max(rank[layer][bond] for rank in ranks) for bond in bonds} for layer, bonds in ranks[0].items()
    }

    def grown(position: Position) -> Position:
        cores = {name: dict(pad(tensor, most[name]).cores) for name, tensor in model.tensors(position).items()}
        scales = {
            name: {b: np.pad(v, (0, most[name][b] - len(v)), constant_values=log_floor) for b, v in bonds.items()}
            for name, bonds in model.log_scales(position).items()
        }
        return model.with_tensors(position, cores, scales)

    return Draws(jax.tree.map(lambda *x: np.stack([np.asarray(a) for a in x])[:, None], *map(grown, positions)))


def saved_position(like: Position, checkpoints: Path) -> Position:
    """Where a finished MAP run ended, from its last checkpoint, in the structure of another position of the model.

    Raises:
        CheckpointError: no checkpoint verifies, or it is of another model.
    """
    found = checkpoint.latest(checkpoints)
    if found is None:
        raise CheckpointError(f"{checkpoints}: no checkpoint in it; start the run again")
    flat, _ = checkpoint.load(found)

    def saved(path, _):
        name = f"state/position/{jax.tree_util.keystr(path, simple=True, separator='/')}"
        if name not in flat:
            raise CheckpointError(f"{found}: has no {name!r}; it is of another model")
        return flat[name]

    return jax.tree_util.tree_map_with_path(saved, like)
