"""Non-centred coordinates of a tensor model: what samplers run on, so that slices can die and come back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from bayestensor.inference.base import Posterior, normals
from bayestensor.models.scale_moves import draw_each, exchange_levels
from bayestensor.models.shrinkage import log_prior_scales, log_variance
from bayestensor.priors.base import ScalePrior, conditional, exp_in_range
from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array, Batch, Key, Position, Scalar

EDGE = 1e-4  # share of a bounded support's length that a start keeps from its ends, where u is infinite
DEAD = 1e-2  # an index is dead where its mean z^2 and its v over the largest of its bond are below this


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
        around: (key, position, relative) -> (z, u), a start near a MAP solution: see `noncentred`.
    """

    posterior: Posterior
    from_position: Callable[[Position], Position]
    to_position: Callable[[Position], Position]
    around: Callable[[Key[Array, ""], Position, float], Position]


def noncentred(model: TensorModel, num_data: int, data: Batch | None = None) -> Noncentred:
    """The model's posterior in non-centred coordinates.

    In centred coordinates a dead slice has v pinned by its own tiny cores and moves log v by about sqrt(2 / D) a sweep;
    in non-centred ones v is free there, but stiff where the data speak. `conditional_update` draws every bond's v
    given the cores and keeps X as it is: both moves leave the posterior as it is, and together mix where either would
    not (interweaving, Yu and Meng 2011). Then it moves common factors from bond to bond, which keeps X as well. With
    `data` it also draws every v given z: a slice goes from dead to live and back at once, under every prior, and
    exactly so whatever the engine's batches. That costs 16 likelihoods of the whole data for every scale: take it where
    the data are small. (`models.scale_moves`)

    `around` moves z and log v by N(0, relative^2), every other array by that share of its rms. Entries of z tied to a
    dead index (`DEAD`) are drawn from N(0, 1): a mode has them at 0, where no posterior draw has them, and X hardly
    notices. (Noise in shares of the rms of u would be in shares of how dead the dead are.)

    Args:
        model: a `NeuralModel` or a `CompletionModel`.
        num_data: how many data the whole set holds.
        data: the whole data, for draws of v given z; None: given the cores only.

    Raises:
        ValueError: `data` is not `num_data` long.
    """
    if data is not None and (length := jax.tree.leaves(data)[0].shape[0]) != num_data:
        raise ValueError(f"data holds {length} data, num_data says {num_data}: give the whole data, or None")

    def to_position(at: Position) -> Position:
        log_scales = _all_log_v(model, at)
        return model.with_tensors(at, _scaled(model, at, log_scales, 0.5), log_scales)

    def from_position(position: Position) -> Position:
        log_scales = model.log_scales(position)
        unconstrained = {
            name: {bond: _unconstrained(model.priors[name], log_v) for bond, log_v in bonds.items()}
            for name, bonds in log_scales.items()
        }
        return model.with_tensors(position, _scaled(model, position, log_scales, -0.5), unconstrained)

    def around(key: Key[Array, ""], position: Position, relative: float) -> Position:
        noise, at = normals(key, position), from_position(position)
        log_scales, noise_scales = model.log_scales(position), model.log_scales(noise)
        cores, scales = {}, {}
        for name, z in model.tensors(at).items():
            fresh, dead = model.tensors(noise)[name].cores, _dead(z, log_scales[name])
            cores[name] = {c: jnp.where(dead[c], fresh[c], x + relative * fresh[c]) for c, x in z.cores.items()}
            scales[name] = {
                bond: u + relative * noise_scales[name][bond] / _steepest(model.priors[name])
                for bond, u in model.log_scales(at)[name].items()
            }
        outside = jax.tree.map(lambda x, e: x + relative * jnp.sqrt(jnp.mean(x**2)) * e, at, noise)
        return model.with_tensors(outside, cores, scales)

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
    )
    by_cores = _has_conditional(model)

    def update(key: Key[Array, ""], at: Position) -> Position:
        cores_key, level_key, data_key = jax.random.split(key, 3)
        at = _redraw(model, cores_key, at) if by_cores else at
        at = _exchange(model, level_key, at)
        return at if data is None else _redraw_by_data(model, data, data_key, at)

    if by_cores or data is not None:
        posterior = replace(posterior, conditional_update=update)
    return Noncentred(posterior, from_position, to_position, around)


def _scaled(model: TensorModel, at: Position, log_scales: Mapping[str, Mapping[str, Array]], power: float) -> dict:
    """Every core times its variance to a power: 0.5 makes entries of z, -0.5 z of entries."""
    return {
        name: {
            core: array * jnp.exp(power * log_variance(tensor.network, core, log_scales[name], model.variances[name]))
            for core, array in tensor.cores.items()
        }
        for name, tensor in model.tensors(at).items()
    }


def _dead(z: Factored, log_scales: Mapping[str, Array]) -> dict[str, Array]:
    """Core -> whether an entry is tied to an index that is dead (1 where constant)."""
    network, dead = z.network, {}
    for bond, log_v in log_scales.items():
        small = _squares(network, z.cores, bond) < DEAD * network.bond_count(bond)
        dead[bond] = (small & (log_v < log_v.max() + math.log(DEAD))).astype(log_v.dtype)
    return {core: log_variance(network, core, dead, 1.0) > 0 for core in z.cores}


def _steepest(prior: ScalePrior) -> float:
    """The largest d log v / du."""
    bounds = _bounds(prior)
    return 1.0 if bounds is None else (bounds[1] - bounds[0]) / 4


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


def _redraw_by_data(model: TensorModel, data: Batch, key: Key[Array, ""], at: Position) -> Position:
    """Draws every bond's v given z and everything else; z stays, cores and X change."""
    scales = _all_log_v(model, at)
    for name, own_key in zip(scales, jax.random.split(key, len(scales)), strict=True):

        def log_density(bonds: Mapping[str, Array], name: str = name) -> Scalar:
            log_scales = scales | {name: dict(bonds)}
            position = model.with_tensors(at, _scaled(model, at, log_scales, 0.5), log_scales)
            return model.log_likelihood(position, data).sum() + log_prior_scales(model.priors[name], bonds)

        scales[name] = draw_each(own_key, log_density, scales[name])
    return _with_log_v(model, at, scales)


def _exchange(model: TensorModel, key: Key[Array, ""], at: Position) -> Position:
    """Moves common factors between the bonds of every network; z and X stay."""
    scales = _all_log_v(model, at)
    for name, own_key in zip(scales, jax.random.split(key, len(scales)), strict=True):
        scales[name] = exchange_levels(own_key, model.priors[name], model.networks[name], scales[name])
    return _with_log_v(model, at, scales)


def _all_log_v(model: TensorModel, at: Position) -> dict[str, dict[str, Array]]:
    return {
        name: {bond: _log_v(model.priors[name], u) for bond, u in bonds.items()}
        for name, bonds in model.log_scales(at).items()
    }


def _with_log_v(model: TensorModel, at: Position, log_scales: Mapping[str, Mapping[str, Array]]) -> Position:
    """z as in `at`, u from log v."""
    u = {
        name: {bond: _unconstrained(model.priors[name], log_v) for bond, log_v in bonds.items()}
        for name, bonds in log_scales.items()
    }
    return model.with_tensors(at, {name: tensor.cores for name, tensor in model.tensors(at).items()}, u)


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
