"""Pruning by posterior mass: all draws cut to one shape, each draw by its own order of slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from bayestensor.inference.draws import Draws, in_batches
from bayestensor.ranks.explore import Tensorized, check_share, refuse_not_finite, shares
from bayestensor.ranks.select import RANK_THRESHOLD
from bayestensor.tensor.contract import norm
from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array, Position

__all__ = ["MassSelection", "prune_draws", "prune_pieces", "select_by_mass"]


class MassSelection(NamedTuple):
    """What stays of every draw, the same number of slices in each.

    Attributes:
        keep: layer -> bond -> [chain, draw, k], each draw's own k largest slices, ascending.
        lost: layer -> [chain, draw], sum of the norms of the dropped slices / ||X||: bounds the relative change of X.
    """

    keep: dict[str, dict[str, np.ndarray]]
    lost: dict[str, np.ndarray]

    @property
    def ranks(self) -> dict[str, dict[str, int]]:
        """Layer -> bond -> how many slices stay."""
        return {layer: {bond: kept.shape[-1] for bond, kept in bonds.items()} for layer, bonds in self.keep.items()}

    @property
    def largest_lost(self) -> dict[str, float]:
        """Layer -> `lost` of the draw that loses most."""
        return {layer: float(lost.max()) for layer, lost in self.lost.items()}


def select_by_mass(
    model: Tensorized,
    draws: Draws | Iterable[Draws],
    share: float = 0.05,
    threshold: float = RANK_THRESHOLD,
    max_lost: float | None = None,
) -> MassSelection:
    """Drops of every bond the slices alive in less than `share` of the draws, and at least one slice stays.

    With slices ordered by norm within each draw, `k = max {k : P(k-th largest alive) >= share}`; every draw keeps its
    own k largest, so that all draws keep one shape. Bonds are taken in the network's order, each judged on X with the
    earlier cuts made (see `ranks.select`): only so is X changed by at most `lost`, the second opinion on the cut.

    Args:
        model: whose positions the draws are.
        draws: [chain, draw, ...], or pieces of them (`draws.Pieces`), which are gone through once a bond: memory holds
            one piece and the norms.
        share: least posterior mass of a slice that stays.
        threshold: share of ||X|| that a living slice exceeds.
        max_lost: refuse where some draw may lose more than this share of ||X||.

    Raises:
        ValueError: a share or threshold outside [0, 1), draws that are not finite, or more lost than `max_lost`.
    """
    check_share("share", share)
    check_share("threshold", threshold)
    pieces = [draws] if isinstance(draws, Draws) else draws
    shapes, networks = _described(model, pieces)
    masks = [
        {
            layer: {bond: np.ones((*shape, size), np.float32) for bond, size in network.ranks.items()}
            for layer, network in networks.items()
        }
        for shape in shapes
    ]
    lost = [{layer: np.zeros(shape) for layer in networks} for shape in shapes]
    norms_of_cut = in_batches(partial(_norms_left, model))
    for turn in range(max((len(network.bonds) for network in networks.values()), default=0)):
        norms = [norms_of_cut(piece, mask) for piece, mask in zip(pieces, masks, strict=True)]  # of the draws as cut
        for layer, network in networks.items():
            if turn < len(network.bonds):
                _take_turn(layer, network.bonds[turn], norms, masks, lost, share, threshold)
    keep = {layer: {bond: _indices(mask) for bond, mask in bonds.items()} for layer, bonds in _joined(masks).items()}
    selection = MassSelection(keep, _joined(lost))
    for layer, most in selection.largest_lost.items():
        if max_lost is not None and most > max_lost:
            raise ValueError(
                f"layer {layer!r}: some draw would lose up to {most:.3g} of its norm, and max_lost is {max_lost}; "
                f"lower share (now {share}) or threshold (now {threshold}), or raise max_lost"
            )
    return selection


def _described(model: Tensorized, pieces: Iterable[Draws]) -> tuple[list[tuple[int, int]], dict[str, Network]]:
    """(chains, draws) of every piece, and the networks of a draw."""
    shapes: list[tuple[int, int]] = []
    networks: dict[str, Network] = {}
    for piece in pieces:
        shapes.append(piece.shape)
        if not networks:
            first = jax.tree.map(lambda x: x[0, 0], piece.positions)
            networks = {layer: tensor.network for layer, tensor in jax.eval_shape(model.tensors, first).items()}
    return shapes, networks


def _take_turn(
    layer: str, bond: str, norms: list[Any], masks: list[Any], lost: list[Any], share: float, threshold: float
) -> None:
    """Mask what one bond loses, in place, and count it."""
    values = [norm[layer][bond] for norm in norms]
    refuse_not_finite({layer: {bond: np.concatenate(values, axis=1)}})
    orders = [np.argsort(-value, axis=-1, kind="stable") for value in values]
    ordered = [np.take_along_axis(*pair, axis=-1) for pair in zip(values, orders, strict=True)]
    alive = (np.concatenate(ordered, axis=1) > threshold).mean(axis=(0, 1))
    k = max(int(np.sum(alive >= max(share, 1e-12))), 1)
    for mask, total, order, value in zip(masks, lost, orders, ordered, strict=True):
        np.put_along_axis(mask[layer][bond], order[..., k:], 0.0, axis=-1)
        total[layer] += value[..., k:].sum(axis=-1, dtype=np.float64)


def prune_draws(model: Tensorized, draws: Draws, selection: MassSelection) -> Draws:
    """The draws without the dropped slices: cores and scales are cut, each draw by its own indices; stats stay.

    The same model reads the smaller positions. Sizes must be those that the selection was made for.
    """
    return next(prune_pieces(model, [draws], selection))


def prune_pieces(model: Tensorized, pieces: Iterable[Draws], selection: MassSelection) -> Iterator[Draws]:
    """`prune_draws` of draws that come in pieces, one at a time."""

    def one(position: Position, keep: Any) -> Position:
        return jax.tree.map(lambda array, function: function(array), position, model.cuts(position, keep))

    cut, first = in_batches(one), 0
    for piece in pieces:
        last = first + piece.shape[1]
        keep = jax.tree.map(lambda kept: kept[:, first:last], selection.keep)  # noqa: B023
        yield Draws(cut(piece, keep), piece.stats)
        first = last


def _norms_left(model: Tensorized, position: Position, masks: Any) -> Any:
    """Norms of the slices that masks [R] of every bond leave, as shares of the whole ||X||."""
    whole = model.tensors(position)
    cut = {layer: _masked(tensor, masks[layer]) for layer, tensor in whole.items()}
    return shares(cut, {layer: norm(tensor) for layer, tensor in whole.items()})


def _masked(tensor: Factored, masks: Mapping[str, Array]) -> Factored:
    """The tensor with the slices of mask 0 zeroed: a mask on one core that has the bond is enough."""
    cores = dict(tensor.cores)
    for bond, mask in masks.items():
        core = next(core for core in tensor.network.cores if bond in core.legs)
        shape = [len(mask) if leg == bond else 1 for leg in core.legs]
        cores[core.name] = cores[core.name] * mask.reshape(shape).astype(cores[core.name].dtype)
    return Factored(tensor.network, cores)


def _joined(pieces: list[Any]) -> Any:
    """Pieces [chain, draw, ...], one after the other."""
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *pieces)


def _indices(mask: np.ndarray) -> np.ndarray:
    """[chain, draw, k] places of the ones, k of them in every draw."""
    k = int(mask[0, 0].sum())
    return np.nonzero(mask)[-1].reshape(*mask.shape[:2], k).astype(np.int32)
