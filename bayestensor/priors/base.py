"""The contract of a shrinkage prior over the scales of one bond."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp

from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array, Float, Key, Scalar

__all__ = ["CorePrior", "ScalePrior", "conditional", "exp_in_range", "require_positive"]


@runtime_checkable
class ScalePrior(Protocol):
    """A law of v = s^2, one number an index of a bond: v multiplies the variance of the core entries tied to it.

    Implementations are frozen dataclasses of floats: hashable, hence static under `jax.jit`, equal where their
    hyperparameters are. With x = log v, energy M >= 0 and count D >= 1, one index's entries contribute
    `-(D/2) x - M/(2v)` to the log density (`bond_energy` and `Network.bond_count` hold M and D).

    Every array has the indices of ONE bond on its last axis, and every method takes the whole bond at a time.
    `log_density` returns an array of the same shape whose SUM over that axis is `log p(x_1, ..., x_R)`: rely on the
    sum alone. An independent prior returns the elementwise terms, a prior that couples the indices (cumulative
    shrinkage) the terms of the chain rule, `log p(x_r | x_1, ..., x_(r-1))`.

    Attributes:
        proper: whether the density integrates to one over log v; samplers refuse a prior where it does not.
        has_conditional: whether `sample_conditional` is there; `conditional` hands it out or refuses.
        support: (lowest, highest) log v of positive density, infinite where there is no bound.
    """

    proper: ClassVar[bool]
    has_conditional: ClassVar[bool]

    @property
    def support(self) -> tuple[float, float]: ...  # noqa: D102

    def log_density(self, log_v: Float[Array, "*r"]) -> Float[Array, "*r"]:
        """Terms of log p(log v), Jacobian and normaliser included; -inf outside the support."""
        ...

    def mode(self, energy: Float[Array, "*r"], count: float | Array) -> Float[Array, "*r"]:
        """v where `-(D/2) log v - M/(2v) + log p(log v)` is largest; 0 where M = 0 makes it grow without end."""
        ...

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        """Independent prior draws of v; the last axis of `shape` is the bond."""
        ...


@runtime_checkable
class CorePrior(ScalePrior, Protocol):
    """A density of the cores themselves in place of the normal one; the scales are held at 1, `support == (0, 0)`."""

    def check(self, network: Network) -> None:
        """Refuse a network that this prior is not for.

        Raises:
            ValueError: saying which it is for.
        """
        ...

    def log_density_cores(self, tensor: Factored) -> Scalar:
        """log p(cores), up to a constant where the prior is improper."""
        ...

    def start(self, tensor: Factored) -> Factored:
        """The same tensor in the gauge that the density favours."""
        ...


def conditional(prior: ScalePrior) -> Callable[..., Array]:
    """`prior.sample_conditional(key, v, energy, count) -> v`: one draw that leaves p(v | entries) invariant.

    Raises:
        ValueError: the prior has none.
    """
    if not prior.has_conditional:
        raise ValueError(
            f"{type(prior).__name__} has no conditional draw of its scales: move log v by gradient with the cores, "
            "or choose a prior whose `has_conditional` is true"
        )
    return prior.sample_conditional  # type: ignore[attr-defined]


def exp_in_range(log_v: Array) -> Array:
    """exp(log_v), kept inside the positive normal numbers of the type, so that log v stays finite."""
    info = jnp.finfo(log_v.dtype)
    return jnp.exp(jnp.clip(log_v, math.log(info.tiny) + 1e-3, math.log(info.max) - 1e-3))


def require_positive(prior: object, **values: float) -> None:
    """Check hyperparameters and store them as floats.

    Raises:
        ValueError: one is not a finite number between 1e-18 and 1e18 (so that squares stay within float32).
    """
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 1e-18 <= value <= 1e18:
            raise ValueError(f"{type(prior).__name__}: {name} must be a number from 1e-18 to 1e18, not {value!r}")
        object.__setattr__(prior, name, float(value))
