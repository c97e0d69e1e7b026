"""Non-centred coordinates of a tensor model: what samplers run on, so that slices can die and come back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from bayestensor.inference.base import Posterior
from bayestensor.models.shrinkage import log_prior_scales, log_variance
from bayestensor.priors.base import ScalePrior, conditional, exp_in_range
from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array, Batch, Key, Position, Scalar

EDGE = 1e-4  # share of a bounded support's length that a start keeps from its ends, where u is infinite


class TensorModel(Protocol):
    """What `noncentred` asks of a model; networks are named (layers of a net, "tensor" of a completion).

    Attributes:
        priors: name -> prior of the squared scales of its bonds.
        variances: name -> sigma_core^2.
        networks: name -> network as declared.
    """

    @property
    def networks(self) -> Mapping[str, Network]: ...  # noqa: D102

    @property
    def priors(self) -> Mapping[str, ScalePrior]: ...  # noqa: D102

    @property
    def variances(self) -> Mapping[str, float]: ...  # noqa: D102

    def tensors(self, position: Position) -> dict[str, Factored]:
        """Name -> network with the position's cores."""

    def log_scales(self, position: Position) -> dict[str, dict[str, Array]]:
        """Name -> bond -> log v."""

    def with_tensors(self, position: Position, cores: Mapping[str, Any], log_scales: Mapping[str, Any]) -> Position:
        """The position with other cores and log scales."""

    def log_prior_outside(self, position: Position) -> Scalar:
        """The part of the log prior that is neither of cores nor of scales."""

    def log_likelihood(self, position: Position, batch: Batch) -> Array:
        """One number a datum."""


@dataclass(frozen=True)
class Noncentred:
    """A model's posterior in coordinates (z, u); the trees are those of the model's positions, leaf for leaf.

        core = z sqrt(sigma_core^2 prod v_b)                  z ~ N(0, 1)
        log v = u                                             where the prior's support is the whole line
        log v = low + (high - low) / (1 + exp(-u))            where it is [low, high]

    Attributes:
        posterior: the target over (z, u): Jacobian in its prior, `blocks` for SVGD (a core with its bonds, a bond with
            the first core that it shrinks, every other leaf alone), and `conditional_update`, the draw of all scales
            that makes sampling an interweaving of both coordinates; None where a prior has no conditional draw.
        from_position: position -> (z, u).
        to_position: (z, u) -> position.
    """

    posterior: Posterior
    from_position: Callable[[Position], Position]
    to_position: Callable[[Position], Position]


def noncentred(model: TensorModel, num_data: int) -> Noncentred:
    """The model's posterior in non-centred coordinates.

    In centred coordinates a dead slice has v pinned by its own tiny cores and moves log v by about sqrt(2 / D) a sweep;
    in non-centred ones v is free there, but stiff where the data speak. `conditional_update` draws every bond's v
    given the cores and keeps X as it is: both moves leave the posterior as it is, and together mix where either would
    not (interweaving, Yu and Meng 2011).

    Args:
        model: a `NeuralModel` or a `CompletionModel`.
        num_data: how many data the whole set holds.
    """

    def to_position(at: Position) -> Position:
        log_scales = {
            name: {bond: _log_v(model.priors[name], u) for bond, u in bonds.items()}
            for name, bonds in model.log_scales(at).items()
        }
        return model.with_tensors(at, _scaled(model, at, log_scales, 0.5), log_scales)

    def from_position(position: Position) -> Position:
        log_scales = model.log_scales(position)
        unconstrained = {
            name: {bond: _unconstrained(model.priors[name], log_v) for bond, log_v in bonds.items()}
            for name, bonds in log_scales.items()
        }
        return model.with_tensors(position, _scaled(model, position, log_scales, -0.5), unconstrained)

    def log_prior(at: Position) -> Scalar:
        total = model.log_prior_outside(at)
        for name, tensor in model.tensors(at).items():
            for z in tensor.cores.values():
                total += -0.5 * ((z**2).sum() + z.size * math.log(2 * math.pi))
            bonds, prior = model.log_scales(at)[name], model.priors[name]
            total += log_prior_scales(prior, {bond: _log_v(prior, u) for bond, u in bonds.items()})
            total += sum((_log_jacobian(prior, u).sum() for u in bonds.values()), start=jnp.asarray(0.0))
        return total

    def log_likelihood(at: Position, batch: Batch) -> Array:
        return model.log_likelihood(to_position(at), batch)

    posterior = Posterior(
        log_prior,
        log_likelihood,
        num_data,
        proper=all(prior.proper for prior in model.priors.values()),
        blocks=lambda at: _blocks(model, at),
        conditional_update=(lambda key, at: _redraw(model, key, at)) if _has_conditional(model) else None,
    )
    return Noncentred(posterior, from_position, to_position)


def _scaled(model: TensorModel, at: Position, log_scales: Mapping[str, Mapping[str, Array]], power: float) -> dict:
    """Every core times its variance to a power: 0.5 makes entries of z, -0.5 z of entries."""
    return {
        name: {
            core: array * jnp.exp(power * log_variance(tensor.network, core, log_scales[name], model.variances[name]))
            for core, array in tensor.cores.items()
        }
        for name, tensor in model.tensors(at).items()
    }


def _bounds(prior: ScalePrior) -> tuple[float, float] | None:
    low, high = prior.support
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _log_v(prior: ScalePrior, u: Array) -> Array:
    if (bounds := _bounds(prior)) is None:
        return u
    return bounds[0] + (bounds[1] - bounds[0]) * jax.nn.sigmoid(u)


def _unconstrained(prior: ScalePrior, log_v: Array) -> Array:
    if (bounds := _bounds(prior)) is None:
        return log_v
    share = (log_v - bounds[0]) / (bounds[1] - bounds[0])
    return jax.scipy.special.logit(jnp.clip(share, EDGE, 1 - EDGE))


def _log_jacobian(prior: ScalePrior, u: Array) -> Array:
    """log(d log v / du)."""
    if (bounds := _bounds(prior)) is None:
        return jnp.zeros_like(u)
    return math.log(bounds[1] - bounds[0]) - jax.nn.softplus(u) - jax.nn.softplus(-u)


def _redraw(model: TensorModel, key: Key[Array, ""], at: Position) -> Position:
    """Draws every bond's v given the cores, one bond after another; cores and X stay, z changes.

    The energy of an index (`contract.bond_energy`) is `M = v * sum of z^2` over the entries tied to it, which no
    product of tiny scales can push below float32.
    """
    cores: dict[str, dict[str, Array]] = {}
    scales: dict[str, dict[str, Array]] = {}
    tensors, old = model.tensors(at), model.log_scales(at)
    keys = iter(jax.random.split(key, sum(len(tensor.network.bonds) for tensor in tensors.values())))
    for name, tensor in tensors.items():
        prior, network, z = model.priors[name], tensor.network, dict(tensor.cores)
        scales[name] = {}
        for bond in network.bonds:
            log_v = _log_v(prior, old[name][bond])
            v = exp_in_range(log_v)
            v = conditional(prior)(next(keys), v, v * _squares(network, z, bond), network.bond_count(bond))
            scales[name][bond] = _unconstrained(prior, jnp.log(v))
            ratio = jnp.exp(0.5 * (log_v - _log_v(prior, scales[name][bond])))
            z = {core: _times(network, core, array, bond, ratio) for core, array in z.items()}
        cores[name] = z
    return model.with_tensors(at, cores, scales)


def _squares(network: Network, z: Mapping[str, Array], bond: str) -> Array:
    """Sum of z^2 over the entries tied to each index of a bond, [rank]."""
    tied = [core for core in network.cores if bond in network.shrunk_by(core.name)]
    return sum(
        ((z[c.name] ** 2).sum([axis for axis, leg in enumerate(c.legs) if leg != bond]) for c in tied),
        start=jnp.asarray(0.0),
    )


def _times(network: Network, name: str, array: Array, bond: str, ratio: Array) -> Array:
    """A core times `ratio` along a bond that shrinks it."""
    if bond not in network.shrunk_by(name):
        return array
    return array * ratio[tuple(slice(None) if leg == bond else None for leg in network.core[name].legs)]


def _has_conditional(model: TensorModel) -> bool:
    """Whether all scales can be drawn: by their priors, and no core shrunk twice by one bond."""
    counts = [
        network.shrunk_by(core.name).count(bond)
        for network in model.networks.values()
        for core in network.cores
        for bond in network.bonds
    ]
    return all(prior.has_conditional for prior in model.priors.values()) and max(counts, default=0) <= 1


def _blocks(model: TensorModel, at: Position) -> Any:
    """Ints in the position's tree: a core and the bonds that shrink it, but no core before it, share one."""
    leaves, tree = jax.tree.flatten(at)
    alone = jax.tree.unflatten(tree, list(range(len(leaves))))
    cores, bonds, number = {}, {}, len(leaves)
    for name, tensor in model.tensors(at).items():
        network = tensor.network
        cores[name] = {core.name: number + k for k, core in enumerate(network.cores)}
        bonds[name] = {
            bond: next((cores[name][c.name] for c in network.cores if bond in network.shrunk_by(c.name)), number)
            for bond in network.bonds
        }
        number += len(network.cores)
    return model.with_tensors(alone, cores, bonds)
