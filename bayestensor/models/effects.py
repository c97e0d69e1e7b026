"""Additive effects beside a tensor network: a constant, and an offset for each index of some modes.

`y ~ likelihood(X[x] + constant + sum over modes k of offset_k[x_k])`, offset_k[i] ~ N(0, v_k), v_k learnt. Offsets are
drawn mode by mode given the network and each other, in the sweep that draws the cores (see `models.conjugate`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models.augment import DISCRETE
from bayestensor.models.compiled import AnyArray
from bayestensor.priors import InverseGamma
from bayestensor.tensor.observations import Observations
from bayestensor.typing import Array, Key

CONSTANT = "constant"  # its name among the modes'
SPREAD = InverseGamma(0.5, 0.5e-4)  # of v_k: sd 0.01 and up, in units of the data's root mean square
_CONSTANT_PRECISION = 0.01  # prior of the constant: sd 10 in the same units, or of a log rate


class Effects(NamedTuple):
    """Constant and offsets under their modes' names; variances are those of mean-field inference, zero for a draw."""

    values: dict[str, AnyArray]  # constant []; mode -> [size]
    variances: dict[str, AnyArray]
    scales: dict[str, AnyArray]  # mode -> v


def start(names: tuple[str, ...], sizes: Mapping[str, int], constant: float, dtype) -> Effects:
    """The constant alone; no effects at all where there are no names."""
    values: dict[str, AnyArray] = {name: np.zeros(sizes[name], dtype) for name in names if name != CONSTANT}
    if CONSTANT in names:
        values[CONSTANT] = np.asarray(constant, dtype)
    scales = {name: np.full((), 0.1, dtype) for name in names if name != CONSTANT}
    return Effects(values, {name: np.zeros_like(a) for name, a in values.items()}, scales)


def spread_out(values: Mapping[str, Array], data: Observations, modes: tuple[str, ...], like: Array) -> Array:
    """The sum of constant and offsets at the observations."""
    total = jnp.zeros_like(like)
    for name, row in values.items():
        total = total + (row if name == CONSTANT else data.spread(row, modes.index(name)))
    return total


def update(
    key: Key[Array, ""], effects: Effects, data: Observations, modes: tuple[str, ...], x: Array, precision: Array, draw
) -> tuple[Effects, Array]:
    """Every effect given the rest, then their scales: (effects, their sum at the observations).

    Args:
        key: for the draws.
        effects: so far.
        data: weights and targets, as cores see them.
        modes: of the tensor, by name.
        x: the network at the observations.
        precision: of the noise.
        draw: 1 draws, 0 takes means (and modes of the scales).
    """
    values, variances, scales = dict(effects.values), dict(effects.variances), dict(effects.scales)
    total = spread_out(values, data, modes, x)
    for k, (name, old) in enumerate(sorted(values.items())):
        left = data.target - data.weight * (x + total)
        if name == CONSTANT:
            weight, moment, own = data.weight.sum(), left.sum(), jnp.asarray(_CONSTANT_PRECISION, x.dtype)
        else:
            weight, moment = (data.total(a, modes.index(name)) for a in (data.weight, left))
            own = 1 / jnp.broadcast_to(scales[name], old.shape)
        variances[name] = 1 / (precision * weight + own)
        noise = draw * jax.random.normal(jax.random.fold_in(key, 2 * k), old.shape, old.dtype)
        values[name] = variances[name] * precision * (moment + weight * old) + jnp.sqrt(variances[name]) * noise
        variances[name] = (1 - draw) * variances[name]
        moved = values[name] - old
        total = total + (moved if name == CONSTANT else data.spread(moved, modes.index(name)))
        if name != CONSTANT:
            energy = (values[name] ** 2 + variances[name]).sum(keepdims=True)
            drawn = SPREAD.sample_conditional(jax.random.fold_in(key, 2 * k + 1), energy, energy, float(old.size))
            scales[name] = jnp.where(draw > 0, drawn, SPREAD.mode(energy, old.size))[0]
    return Effects(values, variances, scales), total


def taken_off(data: Observations, effects: Effects, modes: tuple[str, ...], total: Array) -> Observations:
    """What the network is left to explain: the observations less the effects.

    With y = target / weight, `energy = sum of weight (y - effects)^2`, expected where the effects are uncertain.
    """
    uncertain = spread_out(effects.variances, data, modes, total)
    energy = data.energy + (data.weight * (total**2 + uncertain) - 2 * data.target * total).sum()
    return dataclasses.replace(data, target=data.target - data.weight * total, energy=energy)


def constant_start(likelihood: str, values: np.ndarray) -> float:
    """Where the constant starts: of counts and answers at the log rate or log odds of all of them; else at 0."""
    if likelihood not in DISCRETE:
        return 0.0
    mean = float(values.mean())
    if likelihood == "poisson":
        return float(np.log(max(mean, 0.5 / len(values))))
    share = (mean * len(values) + 0.5) / (len(values) + 1)
    return float(np.log(share / (1 - share)))


def effect_names(likelihood: str, effects: Any, modes: tuple[str, ...], order: int) -> tuple[str, ...]:
    """Names of the effects asked for; a constant goes with any of them, and with answers and counts.

    Args:
        likelihood: one of LIKELIHOODS.
        effects: 'auto' for every mode, or modes by number.
        modes: of the network, by name.
        order: how many of them are the tensor's own.

    Raises:
        ValueError: a mode that is none.
    """
    if isinstance(effects, str):
        if effects != "auto":
            raise ValueError(f"effects is {effects!r}; 'auto' or a tuple of modes (0, 1, ...) is needed")
        effects = range(order)
    chosen = tuple(effects)
    wrong = [k for k in chosen if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 0 <= k < order]
    if wrong or len(set(chosen)) < len(chosen):
        raise ValueError(f"effects is {effects!r}; different modes from 0 to {order - 1} are needed")
    names = tuple(modes[k] for k in chosen)
    return (CONSTANT, *names) if names or likelihood in DISCRETE else ()
