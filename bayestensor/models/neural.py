"""A Flax model as a posterior: which of its weights are networks, their prior, and how to cut them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bayestensor.inference.base import Posterior
from bayestensor.models.likelihoods import Likelihood
from bayestensor.models.shrinkage import clip_scales, initial_log_scales, log_prior_network, mode_scales
from bayestensor.nn.weight import TensorWeight
from bayestensor.priors.base import CorePrior, ScalePrior
from bayestensor.tensor.network import Factored, Network, fitted
from bayestensor.tensor.surgery import keep_axes, keep_network
from bayestensor.typing import Array, Batch, Position, Scalar


@dataclass(frozen=True)
class Kernel:
    """A tensorized weight of a model: where it is, what it is, and sigma_core^2."""

    path: tuple
    network: Network
    variance: float


class NeuralModel:
    """An nnx model with shrinkage priors on its tensorized weights and a normal prior on all else.

    A position is `{"weights": ..., "log_scales": {layer: {bond: log v}}, "likelihood": ...}`. Every method takes one,
    and ranks are read off it, so one object serves before and after pruning.

    Args:
        model: the nnx model, with `bayestensor.nn` layers where weights are to be tensorized.
        prior: of the squared scales v of every bond, or a mapping layer -> prior.
        likelihood: what turns outputs into a density.
        weight_sd: sd of the normal prior on every weight outside the networks.
        compute_dtype: that the likelihood's forward and backward pass run in, bfloat16 for one; positions, their
            gradients and the prior stay as they are (Micikevicius et al. 2018, arXiv 1710.03740). None: as they are.
    """

    def __init__(
        self,
        model: nnx.Module,
        prior: ScalePrior | Mapping[str, ScalePrior],
        likelihood: Likelihood,
        weight_sd: float = 100.0,
        compute_dtype: Any = None,
    ):
        parts: Any = nnx.split(model, nnx.Param, ...)
        # as plain arrays: what a call writes to its own variables (batch statistics) is forgotten with them
        self.graphdef, self._rest = parts[0], nnx.State(jax.tree.map(_numbers, nnx.to_pure_dict(parts[2])))
        self._start = nnx.to_pure_dict(parts[1])
        self.likelihood = likelihood
        self.weight_sd, self.compute_dtype = weight_sd, compute_dtype
        self.kernels: dict[str, Kernel] = {
            layer_name(path): Kernel(path, module.network, module.core_variance)
            for path, module in nnx.iter_modules(model)
            if isinstance(module, TensorWeight)
        }
        if isinstance(prior, Mapping) and set(prior) != set(self.kernels):
            raise ValueError(f"priors name the layers {sorted(prior)}; the model's are {sorted(self.kernels)}")
        self.priors = dict(prior) if isinstance(prior, Mapping) else dict.fromkeys(self.kernels, prior)
        for name, own in self.priors.items():
            if isinstance(own, CorePrior):
                own.check(self.kernels[name].network)

    def initial_position(self) -> Position:
        """Weights as the model came, every v at 1."""
        scales = {name: initial_log_scales(kernel.network) for name, kernel in self.kernels.items()}
        return {"weights": self._start, "log_scales": scales, "likelihood": self.likelihood.initial()}

    def started(self, position: Position) -> Position:
        """The same weights in the gauge that the priors favour, where one is of the cores themselves."""
        cores = {}
        for name, tensor in self.tensors(position).items():
            prior = self.priors[name]
            cores[name] = (prior.start(tensor) if isinstance(prior, CorePrior) else tensor).cores
        return self.with_tensors(position, cores, position["log_scales"])

    def module(self, position: Position) -> nnx.Module:
        """The nnx model with a position's weights in it."""
        return nnx.merge(self.graphdef, nnx.State(position["weights"]), self._rest)

    def tensors(self, position: Position) -> dict[str, Factored]:
        """Layer -> its weight as a `Factored`, at the position's ranks."""
        return {
            name: fitted(kernel.network, _at(position["weights"], kernel.path)["cores"])
            for name, kernel in self.kernels.items()
        }

    @property
    def networks(self) -> dict[str, Network]:
        """Layer -> network as declared."""
        return {name: kernel.network for name, kernel in self.kernels.items()}

    @property
    def variances(self) -> dict[str, float]:
        """Layer -> sigma_core^2."""
        return {name: kernel.variance for name, kernel in self.kernels.items()}

    def log_scales(self, position: Position) -> dict[str, dict[str, Array]]:
        """Layer -> bond -> log v."""
        return position["log_scales"]

    def with_tensors(self, position: Position, cores: Mapping[str, Any], log_scales: Mapping[str, Any]) -> Position:
        """The position with other cores (layer -> name -> leaf) and log scales (layer -> bond -> leaf)."""
        weights = jax.tree.map(lambda x: x, position["weights"])
        for name, kernel in self.kernels.items():
            _at(weights, kernel.path)["cores"] = dict(cores[name])
        return position | {"weights": weights, "log_scales": {name: dict(log_scales[name]) for name in self.kernels}}

    def apply(self, position: Position, x: Array) -> Array:
        """The model's outputs."""
        return self.module(position)(x)

    def log_prior(self, position: Position) -> Scalar:
        """Cores and scales of every network, normal elsewhere, and the likelihood's own parameters."""
        total = self.log_prior_outside(position)
        for name, tensor in self.tensors(position).items():
            scales, variance = position["log_scales"][name], self.kernels[name].variance
            total += log_prior_network(self.priors[name], tensor, scales, variance)
        return total

    def log_prior_outside(self, position: Position) -> Scalar:
        """The part of the log prior that is neither of cores nor of scales."""
        total = self.likelihood.log_prior(position["likelihood"])
        for leaf in self._free(position):
            total += jax.scipy.stats.norm.logpdf(leaf, 0.0, self.weight_sd).sum()
        return total

    def log_likelihood(self, position: Position, batch: Batch) -> Array:
        """One number a datum; a batch is (x, targets)."""
        x, targets = batch
        if self.compute_dtype is None:
            return self.likelihood.log_prob(position["likelihood"], self.apply(position, x), targets)
        narrow, x = jax.tree.map(lambda leaf: _cast(leaf, self.compute_dtype), (position["weights"], x))
        outputs = self.apply(position | {"weights": narrow}, x)
        return self.likelihood.log_prob(position["likelihood"], outputs.astype(jnp.float32), targets)

    def posterior(self, num_data: int) -> Posterior:
        """The target of inference."""
        return Posterior(
            self.log_prior, self.log_likelihood, num_data, proper=all(p.proper for p in self.priors.values())
        )

    def mode_scales(self, position: Position, damping: float = 1.0, floor: float = 1e-8) -> Position:
        """The position with every v moved to its conditional mode given the cores (see `shrinkage.mode_scales`)."""
        scales = {
            name: mode_scales(
                self.priors[name], tensor, position["log_scales"][name], self.kernels[name].variance, damping, floor
            )
            for name, tensor in self.tensors(position).items()
        }
        return position | {"log_scales": scales}

    def clip_scales(self, position: Position, floor: float = 1e-8) -> Position:
        """Every v at least `floor` and inside its prior's support.

        The joint density of cores and scales is unbounded as both go to 0 under some priors: a mode needs a floor.
        """
        clipped = {name: clip_scales(self.priors[name], bonds, floor) for name, bonds in position["log_scales"].items()}
        return position | {"log_scales": clipped}

    def cuts(self, position: Position, keep: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
        """A tree like the position, of functions array -> array that keep the given indices of each layer's bonds.

        Raises:
            ValueError: an unknown layer or bond, no index left, or an index out of range.
        """
        unknown = sorted(set(keep) - set(self.kernels))
        if unknown:
            raise ValueError(f"no tensorized layer {unknown}; the model's are {sorted(self.kernels)}")
        cuts = jax.tree.map(lambda _: _same, position)
        for name, tensor in self.tensors(position).items():
            kept = keep.get(name, {})
            keep_network(tensor.network, kept)  # refuses what cannot be kept
            cores = _at(cuts["weights"], self.kernels[name].path)["cores"]
            for core in tensor.network.cores:
                cores[core.name] = keep_axes(core.legs, kept)
            for bond in tensor.network.bonds:
                cuts["log_scales"][name][bond] = keep_axes((bond,), kept)
        return cuts

    def num_free(self, position: Position) -> int:
        """Weights outside the networks: biases and dense layers."""
        return sum(leaf.size for leaf in self._free(position))

    def _free(self, position: Position) -> list[Array]:
        """Every weight outside the networks."""
        weights = jax.tree.map(lambda x: x, position["weights"])
        for kernel in self.kernels.values():
            del _at(weights, kernel.path)["cores"]
        return jax.tree.leaves(weights)


def layer_name(path: tuple) -> str:
    """`("layers", 0, "kernel")` -> `"layers.0"`: the layer that holds a kernel, other weights by their full path
    (`"kernel"` where the model is that layer)."""
    return ".".join(str(part) for part in (path[:-1] if path[1:] and path[-1] == "kernel" else path))


def _at(tree: Any, path: tuple) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def _numbers(leaf: Any) -> Any:
    """An array; zeros where an abstract model has none, for statistics are computed from each batch."""
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _cast(leaf: Array, dtype: Any) -> Array:
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _same(array: Array) -> Array:
    return array
