"""From the draws of a run to what its summary says: cuts by posterior mass, the mixture's scores, a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bayestensor.errors import CheckpointError
from bayestensor.experiment import measure
from bayestensor.experiment.engines import Ensemble, Variational
from bayestensor.experiment.sampling import Context
from bayestensor.experiment.tally import Tally
from bayestensor.inference import checkpoint
from bayestensor.inference.diagnostics import diagnose
from bayestensor.inference.draws import Draws, Pieces, piece_path
from bayestensor.models.convnet import Reference
from bayestensor.models.neural import NeuralModel
from bayestensor.ranks.mass import MassSelection, prune_pieces, select_by_mass
from bayestensor.tensor.surgery import pad
from bayestensor.typing import Position


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    pieces: of the draws that the run is to predict from, all of one shape.
    position: one draw, for its sizes.
    quality: scores of their mixture, as summary.json has them.
    sampling: what summary.json says of the sampling stage.
    """

    pieces: Iterable[Draws]
    position: Position
    quality: dict[str, Any]
    sampling: dict[str, Any]

    @property
    def members(self) -> int:
        """Draws of all chains."""
        return int(self.sampling["members"] * self.sampling["draws"])


def outcome(context: Context, pieces: Iterable[Draws], tally: Tally) -> Outcome:
    """What the draws [chain, draw, ...] come to; writes those that lost slices to the run's folder.

    Args:
        context: of the sampling stage.
        pieces: of all draws; gone through several times, one in memory at a time.
        tally: theirs.
    """
    share = getattr(context.config.engine, "drop_below", None)
    ranks, found = tally.ranks(), None
    if share is not None and context.model.kernels:
        found = select_by_mass(context.model, pieces, share)
        if found.ranks != measure.ranks(context.model, context.position):
            pieces, tally = _pruned_pieces(context, pieces, found, tally)
    stats = [piece.stats for piece in pieces]
    joined = {name: np.concatenate([one[name] for one in stats], axis=1) for name in stats[0]}
    members, count = tally.shape
    figures = ("kinetic_temperature", "inflation", "acceptance", "variance_ratio")
    sampling = {
        "engine": context.config.engine.name,
        "members": members,
        "draws": count,
        "temperature": getattr(context.config.engine, "temperature", 1.0),
        **{name: float(np.mean(joined[name])) for name in figures if name in joined},
        "verdict": _verdict(context, joined, tally),
        "rank_posterior": ranks.to_dict(),
        "pruned": None if found is None else _pruned(found, share),
    }
    return Outcome(pieces, _first(pieces), tally.quality(), sampling)


def _first(pieces: Iterable[Draws]) -> Position:
    return jax.tree.map(lambda x: x[0, 0], next(iter(pieces)).positions)


def _pruned_pieces(
    context: Context, pieces: Iterable[Draws], found: MassSelection, tally: Tally
) -> tuple[Iterable[Draws], Tally]:
    """The draws cut, in the run's folder, and their tally."""
    target, total = context.folder.pruned, tally.done
    target.mkdir(exist_ok=True)
    cut_tally: Tally | None = None
    for piece in prune_pieces(context.model, pieces, found):
        if cut_tally is None:
            cut_tally = context.new_tally(_first([piece]), *tally.shape)
        piece.save(piece_path(target, cut_tally.done), cut_tally.done, total)
        cut_tally.add(piece.positions)
    assert cut_tally is not None  # there is a draw
    return Pieces(target, like=context.position), cut_tally


def _pruned(found: MassSelection, share: float | None) -> dict[str, Any]:
    return {"share": share, "ranks": found.ranks, "largest_lost": found.largest_lost}


def _verdict(context: Context, stats: dict[str, np.ndarray], tally: Tally) -> dict[str, Any]:
    """`diagnose`, or why there is none."""
    if isinstance(context.config.engine, Ensemble):
        return {"converged": None, "advice": ["an ensemble is a set of modes, no chain: nothing to converge"]}
    members, count = tally.shape
    if isinstance(context.config.engine, Variational) and members == 1:
        return {"converged": None, "advice": ["draws of one fit are independent; engine.chains=2 compares two fits"]}
    if members < 2 or count < 4:
        return {"converged": None, "advice": [f"{members} x {count} draws: at least 2 chains of 4 can be compared"]}
    return asdict(diagnose(tally.functionals(), stats, temperature=context.config.engine.temperature))


def mixture_file(
    model: NeuralModel, pieces: Iterable[Draws], members: int, at: Reference | None
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The layers of a model file and its arrays, one of `members` draws in front: see `model_file`."""
    layers: list[dict] = []
    arrays: dict[str, np.ndarray] = {}
    k = 0
    for piece in pieces:
        for chain, draw in np.ndindex(*piece.shape):
            one = jax.tree.map(lambda x: x[chain, draw], piece.positions)  # noqa: B023
            layers, own = measure.model_layers(model, one, at)
            if not arrays:
                arrays = {name: np.empty((members, *array.shape), np.float32) for name, array in own.items()}
            for name, array in own.items():
                arrays[name][k] = array
            k += 1
    return layers, arrays


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
