"""The prior over a network's cores and scales, written once for every format."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax.numpy as jnp

from bayestensor.priors.base import CorePrior, ScalePrior
from bayestensor.tensor.contract import bond_energy
from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array, Scalar

LogScales = Mapping[str, Array]  # bond -> log v, v the squared scale of each index


def initial_log_scales(network: Network) -> dict[str, Array]:
    """Every v at 1, where the prior's core variance equals the initialisation's."""
    return {bond: jnp.zeros(size) for bond, size in network.ranks.items()}


def log_variance(network: Network, name: str, log_scales: LogScales, variance: float) -> Array:
    """`log(sigma_core^2 * product of v_b over shrunk_by)` of a core's entries, axes as its legs (1 where constant)."""
    core = network.core[name]
    total = jnp.full((1,) * len(core.legs), math.log(variance))  # weakly typed: it takes the type of the scales
    for bond in network.shrunk_by(name):
        total = total + log_scales[bond][tuple(slice(None) if leg == bond else None for leg in core.legs)]
    return total


def log_prior_network(prior: ScalePrior, tensor: Factored, log_scales: LogScales, variance: float) -> Scalar:
    """log density of a network's cores and scales: normal cores given the scales, or what the prior puts there."""
    if isinstance(prior, CorePrior):
        return prior.log_density_cores(tensor)
    return log_prior_cores(tensor, log_scales, variance) + log_prior_scales(prior, log_scales)


def log_prior_cores(tensor: Factored, log_scales: LogScales, variance: float) -> Scalar:
    """`sum over core entries of log N(entry; 0, sigma_core^2 * product of v_b over shrunk_by)`.

    Args:
        tensor: cores and network.
        log_scales: bond -> log v.
        variance: sigma_core^2.
    """
    network = tensor.network
    total = jnp.asarray(0.0)  # weakly typed: the sum takes the type of the cores
    for core in network.cores:
        entries, log_v = tensor.cores[core.name], log_variance(network, core.name, log_scales, variance)
        copies = entries.size // log_v.size  # entries that share one variance: the core's mode legs
        z = entries * jnp.exp(-0.5 * log_v)  # not entries^2 / v: five dead bonds' v multiply to below float32
        total += -0.5 * ((z**2).sum() + copies * log_v.sum() + entries.size * math.log(2 * math.pi))
    return total


def log_prior_scales(prior: ScalePrior, log_scales: LogScales) -> Scalar:
    """`sum over bonds of log p(log v)`, Jacobian included."""
    return sum((prior.log_density(log_v).sum() for log_v in log_scales.values()), start=jnp.asarray(0.0))


def mode_scales(
    prior: ScalePrior,
    tensor: Factored,
    log_scales: LogScales,
    variance: float,
    damping: float = 1.0,
    floor: float = 1e-8,
) -> dict[str, Array]:
    """`v <- max(floor, (1 - damping) v + damping * argmax p(log v | cores))`, one bond after another.

    Hawkins, Liu & Zhang 2022 (arXiv 2010.08689).
    """
    network, scales = tensor.network, {bond: jnp.exp(log_v) for bond, log_v in log_scales.items()}
    for bond in network.bonds:
        energy = bond_energy(network, tensor.cores, scales, bond, variance)
        mode = prior.mode(energy, network.bond_count(bond))
        scales[bond] = jnp.maximum((1 - damping) * scales[bond] + damping * mode, floor)
    return {bond: jnp.log(v) for bond, v in scales.items()}


def clip_scales(prior: ScalePrior, log_scales: LogScales, floor: float) -> dict[str, Array]:
    """Every v at least `floor` and inside the prior's support."""
    low, high = prior.support
    return {bond: jnp.clip(log_v, max(low, math.log(floor)), high) for bond, log_v in log_scales.items()}
