"""Pruning by posterior mass: all draws cut to one shape, each draw by its own order of slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.inference.draws import Draws
from bayestensor.ranks.explore import Tensorized, check_share, refuse_not_finite, shares
from bayestensor.ranks.select import RANK_THRESHOLD
from bayestensor.tensor.contract import norm
from bayestensor.tensor.network import Factored
from bayestensor.typing import Array, Position

__all__ = ["MassSelection", "prune_draws", "select_by_mass"]


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
    draws: Draws,
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
        draws: [chain, draw, ...].
        share: least posterior mass of a slice that stays.
        threshold: share of ||X|| that a living slice exceeds.
        max_lost: refuse where some draw may lose more than this share of ||X||.

    Raises:
        ValueError: a share or threshold outside [0, 1), draws that are not finite, or more lost than `max_lost`.
    """
    check_share("share", share)
    check_share("threshold", threshold)
    first = jax.tree.map(lambda x: x[0, 0], draws.positions)
    networks = {layer: tensor.network for layer, tensor in jax.eval_shape(model.tensors, first).items()}
    masks = {
        layer: {bond: np.ones((*draws.shape, size), np.float32) for bond, size in network.ranks.items()}
        for layer, network in networks.items()
    }
    lost = {layer: np.zeros(draws.shape) for layer in networks}
    norms_of_cut = _compiled(model)
    for turn in range(max((len(network.bonds) for network in networks.values()), default=0)):
        norms = norms_of_cut(draws, masks)  # of the draws as cut so far, by one compiled program
        refuse_not_finite(norms)
        for layer, network in networks.items():
            if turn < len(network.bonds):
                bond = network.bonds[turn]
                values = norms[layer][bond]
                order = np.argsort(-values, axis=-1, kind="stable")
                ordered = np.take_along_axis(values, order, axis=-1)
                alive = (ordered > threshold).mean(axis=(0, 1))
                k = max(int(np.sum(alive >= max(share, 1e-12))), 1)
                np.put_along_axis(masks[layer][bond], order[..., k:], 0.0, axis=-1)
                lost[layer] += ordered[..., k:].sum(axis=-1, dtype=np.float64)
    keep = {layer: {bond: _indices(mask) for bond, mask in bonds.items()} for layer, bonds in masks.items()}
    selection = MassSelection(keep, lost)
    for layer, most in selection.largest_lost.items():
        if max_lost is not None and most > max_lost:
            raise ValueError(
                f"layer {layer!r}: some draw would lose up to {most:.3g} of its norm, and max_lost is {max_lost}; "
                f"lower share (now {share}) or threshold (now {threshold}), or raise max_lost"
            )
    return selection


def prune_draws(model: Tensorized, draws: Draws, selection: MassSelection) -> Draws:
    """The draws without the dropped slices: cores and scales are cut, each draw by its own indices; stats stay.

    The same model reads the smaller positions. Sizes must be those that the selection was made for.
    """

    @jax.jit
    def cut(positions: Position, keep: Any) -> Position:
        def one(position: Position, keep: Any) -> Position:
            return jax.tree.map(lambda array, function: function(array), position, model.cuts(position, keep))

        return jax.vmap(jax.vmap(one))(positions, keep)

    positions = jax.tree.map(jnp.asarray, draws.positions)
    return Draws(jax.tree.map(np.asarray, cut(positions, selection.keep)), draws.stats)


def _compiled(model: Tensorized) -> Callable[[Draws, Any], Any]:
    """(draws, masks [chain, draw, R] of every bond) -> norms of the slices left, as shares of the whole ||X||."""

    def one(position: Position, masks: Any) -> Any:
        whole = model.tensors(position)
        cut = {layer: _masked(tensor, masks[layer]) for layer, tensor in whole.items()}
        return shares(cut, {layer: norm(tensor) for layer, tensor in whole.items()})

    program = jax.jit(lambda pair: jax.lax.map(lambda both: one(*both), pair, batch_size=32))

    def norms(draws: Draws, masks: Any) -> Any:
        values = program((draws.flat(), Draws(masks).flat()))
        return jax.tree.map(lambda x: np.asarray(x).reshape(*draws.shape, *x.shape[1:]), values)

    return norms


def _masked(tensor: Factored, masks: Mapping[str, Array]) -> Factored:
    """The tensor with the slices of mask 0 zeroed: a mask on one core that has the bond is enough."""
    cores = dict(tensor.cores)
    for bond, mask in masks.items():
        core = next(core for core in tensor.network.cores if bond in core.legs)
        shape = [len(mask) if leg == bond else 1 for leg in core.legs]
        cores[core.name] = cores[core.name] * mask.reshape(shape).astype(cores[core.name].dtype)
    return Factored(tensor.network, cores)


def _indices(mask: np.ndarray) -> np.ndarray:
    """[chain, draw, k] places of the ones, k of them in every draw."""
    k = int(mask[0, 0].sum())
    return np.nonzero(mask)[-1].reshape(*mask.shape[:2], k).astype(np.int32)
