"""What closed-form sweeps pass on: where a fit stands, what it draws from, what a sweep does."""

from __future__ import annotations

from typing import NamedTuple

from bayestensor.models.compiled import AnyArray
from bayestensor.models.effects import Effects
from bayestensor.models.side import Side


class How(NamedTuple):
    """What a sweep does, as numbers, so that one compiled program serves all three engines."""

    draw: float | AnyArray  # 1: conditional draws; 0: conditional means and modes
    spreads: float | AnyArray  # 1: the other cores' posterior covariances count


GIBBS, VARIATIONAL, MAP = How(1.0, 0.0), How(0.0, 1.0), How(0.0, 0.0)


class Chance(NamedTuple):
    """What sweeps draw from, one row a sweep, made on the host (`Conjugate.chance`): quicker there, and no code here.

    What is left to keys are the laws that depend on what is drawn, of scales, effects and hidden variables.
    """

    bits: AnyArray  # [n, 2], unsigned: of a key
    normal: AnyArray  # [n, entries of all cores]
    gumbel: AnyArray  # [n, correlations, columns of smooth cores]
    gamma: AnyArray  # [n]: of the law of the noise precision, of mean 1


class State(NamedTuple):
    """Where a closed-form fit stands.

    `covariances[core]` is [q, p, p]: of the posterior of the core's rows in mean-field inference, zero for a draw. With
    none at all (`{}`) sweeps do without: draws and conditional modes the same, quicker where entries are a long list.
    """

    cores: dict[str, AnyArray]
    covariances: dict[str, AnyArray]
    scales: dict[str, AnyArray]  # bond -> v
    correlations: dict[str, AnyArray]  # of neighbouring rows: smooth core -> [p]
    precision: AnyArray  # of the noise
    effects: Effects
    sides: dict[str, Side]  # of cores whose mode has features
    noises: dict[str, AnyArray]  # lambda of the mode whose indices have a noise scale of their own (see `models.noise`)


class Swept(NamedTuple):
    """The cores after a sweep over them, and what all else is drawn from."""

    cores: dict[str, AnyArray]
    covariances: dict[str, AnyArray]
    seconds: dict[str, AnyArray]  # [q, p]: expected squares of the rows
    pairs: dict[str, AnyArray]  # [q - 1, p]: expected products of neighbouring rows, where smooth
    precisions: dict[str, AnyArray]  # [p]: the prior's
    residual: AnyArray  # expected weighted squares of data - X
