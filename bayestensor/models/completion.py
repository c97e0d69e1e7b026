"""A tensor observed at coordinates as a posterior: one network, its shrinkage prior, a likelihood of the entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.inference.base import Posterior
from bayestensor.models.likelihoods import Likelihood
from bayestensor.models.shrinkage import clip_scales, initial_log_scales, log_prior_network, mode_scales
from bayestensor.priors.base import CorePrior, ScalePrior
from bayestensor.tensor import initialise as law
from bayestensor.tensor.contract import entries
from bayestensor.tensor.network import Factored, Network, fitted
from bayestensor.tensor.surgery import keep_axes, keep_network
from bayestensor.typing import Array, Batch, Key, Position, Scalar

LAYER = "tensor"  # the one network, under this name wherever a model's networks are named


class CompletionModel:
    """`values[n] ~ likelihood(X[coords[n]])`, X a tensor network with shrinkage priors on its cores.

    A position is `{"cores": {name: array}, "log_scales": {bond: log v}, "likelihood": ...}`; a batch is
    (coords [n, order] of ints, values [n]). Ranks are read off the position, so one object serves before and after
    pruning. Methods are those of `NeuralModel`.

    Args:
        network: the tensor's format and largest ranks; its modes are the columns of `coords`.
        prior: of the squared scales v of every bond.
        likelihood: what turns entries into a density of the values.
        core_variance: sigma_core^2; None: entries of X have variance 1 where every v is 1.
    """

    def __init__(self, network: Network, prior: ScalePrior, likelihood: Likelihood, core_variance: float | None = None):
        self.network, self.likelihood = network, likelihood
        self.networks = {LAYER: network}
        self.priors = {LAYER: prior}
        self.variances = {LAYER: law.core_variance(network, 1.0) if core_variance is None else core_variance}
        if not self.variances[LAYER] > 0:
            raise ValueError(f"core_variance = {core_variance}; a positive number is needed")
        if isinstance(prior, CorePrior):
            prior.check(network)

    def initial_position(self, key: Key[Array, ""]) -> Position:
        """Cores drawn from the prior given every v at 1."""
        unit = law.initialise(key, self.network, 1.0)
        ratio = (self.variances[LAYER] / law.core_variance(self.network, 1.0)) ** 0.5
        return {
            "cores": {name: ratio * core for name, core in unit.cores.items()},
            "log_scales": initial_log_scales(self.network),
            "likelihood": self.likelihood.initial(),
        }

    def tensors(self, position: Position) -> dict[str, Factored]:
        """The tensor, at the position's ranks."""
        return {LAYER: fitted(self.network, position["cores"])}

    def log_scales(self, position: Position) -> dict[str, dict[str, Array]]:
        """Bond -> log v, under the tensor's name."""
        return {LAYER: position["log_scales"]}

    def with_tensors(self, position: Position, cores: Mapping[str, Any], log_scales: Mapping[str, Any]) -> Position:
        """The position with other cores and log scales."""
        return position | {"cores": dict(cores[LAYER]), "log_scales": dict(log_scales[LAYER])}

    def apply(self, position: Position, coords: Array) -> Array:
        """X at coordinates, [n]."""
        return entries(self.tensors(position)[LAYER], coords)

    def log_prior(self, position: Position) -> Scalar:
        """Cores, scales and the likelihood's own parameters."""
        tensor = self.tensors(position)[LAYER]
        own = log_prior_network(self.priors[LAYER], tensor, position["log_scales"], self.variances[LAYER])
        return self.log_prior_outside(position) + own

    def log_prior_outside(self, position: Position) -> Scalar:
        """The part of the log prior that is neither of cores nor of scales."""
        return self.likelihood.log_prior(position["likelihood"])

    def log_likelihood(self, position: Position, batch: Batch) -> Array:
        """One number an observed entry; a batch is (coords, values)."""
        coords, values = batch
        outputs = self.apply(position, coords)
        return self.likelihood.log_prob(position["likelihood"], outputs[:, None], values[:, None])

    def posterior(self, num_data: int) -> Posterior:
        """The target of inference in the position's own (centred) coordinates."""
        return Posterior(self.log_prior, self.log_likelihood, num_data, proper=self.priors[LAYER].proper)

    def mode_scales(self, position: Position, damping: float = 1.0, floor: float = 1e-8) -> Position:
        """The position with every v moved to its conditional mode given the cores (see `shrinkage.mode_scales`)."""
        tensor, log_scales = self.tensors(position)[LAYER], position["log_scales"]
        moved = mode_scales(self.priors[LAYER], tensor, log_scales, self.variances[LAYER], damping, floor)
        return position | {"log_scales": moved}

    def clip_scales(self, position: Position, floor: float = 1e-8) -> Position:
        """Every v at least `floor` and inside its prior's support."""
        return position | {"log_scales": clip_scales(self.priors[LAYER], position["log_scales"], floor)}

    def cuts(self, position: Position, keep: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
        """A tree like the position, of functions array -> array that keep the given indices of the tensor's bonds.

        Raises:
            ValueError: a layer other than the tensor, an unknown bond, no index left, or an index out of range.
        """
        if set(keep) - {LAYER}:
            raise ValueError(f"no network {sorted(set(keep) - {LAYER})}; a completion has one, {LAYER!r}")
        tensor, kept = self.tensors(position)[LAYER], keep.get(LAYER, {})
        keep_network(tensor.network, kept)  # refuses what cannot be kept
        same = jax.tree.map(lambda _: jnp.asarray, position)
        return same | {
            "cores": {core.name: keep_axes(core.legs, kept) for core in tensor.network.cores},
            "log_scales": {bond: keep_axes((bond,), kept) for bond in tensor.network.bonds},
        }
