"""What a model says in every draw, whatever the gauge: the quantities by which draws are judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from bayestensor.inference.draws import Draws
from bayestensor.ranks.explore import Tensorized, shares
from bayestensor.ranks.select import RANK_THRESHOLD
from bayestensor.tensor.contract import norm
from bayestensor.typing import Array, Batch, Position

__all__ = ["Probabilistic", "functionals"]


class Probabilistic(Tensorized, Protocol):
    """A model with its density, as `functionals` reads it."""

    def log_prior(self, position: Position) -> Array:
        """Log density of the prior."""
        ...

    def log_likelihood(self, position: Position, batch: Batch) -> Array:
        """One number a datum."""
        ...


def functionals(
    model: Probabilistic,
    draws: Draws,
    data: Batch,
    predict: Callable[[Position], Any] | None = None,
    threshold: float = RANK_THRESHOLD,
) -> dict[str, np.ndarray]:
    """What a model says in every draw, [chain, draw, ...], for `inference.diagnostics.diagnose` and ArviZ.

    `predictions`; per layer `norm layer`, and per bond `slices layer.bond`: its slice norms in descending order, of
    slices alive in at least 5 % of the draws; and the likelihood's own parameters: the same whatever the sign, scale
    and order of factors. `log density` on the given data: the prior in it knows scales, but no order or sign.

    Args:
        model: whose positions the draws are.
        draws: [chain, draw, ...].
        data: a batch of a few hundred data; the log likelihoods of the first eight are the default predictions.
        predict: position -> array of predictions, in a form that the likelihood identifies (log probabilities, means).
        threshold: share of ||X|| that a living slice exceeds.
    """

    def of(position: Position) -> dict[str, Any]:
        tensors, terms = model.tensors(position), model.log_likelihood(position, data)
        return {
            "log density": model.log_prior(position) + terms.sum(),
            "predictions": terms[:8] if predict is None else predict(position),
            "norms": {layer: norm(tensor) for layer, tensor in tensors.items()},
            "shares": shares(tensors),
            "likelihood": dict(position["likelihood"]),
        }

    values = draws.map(of)
    out = {name: values[name] for name in ("log density", "predictions")}
    for layer, norms in values["norms"].items():
        out[f"norm {layer}"] = norms
        for bond, x in values["shares"][layer].items():
            ordered = -np.sort(-x, axis=-1)
            alive = (ordered > threshold).mean(axis=(0, 1)) >= 0.05
            if alive.any():
                out[f"slices {layer}.{bond}"] = norms[..., None] * ordered[..., alive]
    return out | values["likelihood"]
