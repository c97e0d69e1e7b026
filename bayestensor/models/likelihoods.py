"""Log densities of observations given a model's outputs, one number a datum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from bayestensor.typing import Array, Float, Int, Position, Scalar


class Likelihood(Protocol):
    """What turns outputs into a density: `log_prob(parameters, outputs, targets)`, one number a datum.

    `initial()` gives the likelihood's own parameters (a pytree, empty where there are none), and
    `log_prior(parameters)` their proper prior.
    """

    def initial(self) -> Position:
        """The parameters to start from."""

    def log_prior(self, parameters: Position) -> Scalar:
        """Log density of the parameters, unconstrained space."""

    def log_prob(self, parameters: Position, outputs: Array, targets: Array) -> Float[Array, "batch"]:
        """Log density of each target."""


@dataclass(frozen=True)
class Categorical:
    """`p(y | outputs) = softmax(outputs)[y]`: outputs (batch, classes), targets (batch,) of ints.

    A datum may have several targets (the characters of a text): outputs (batch, ..., classes), targets (batch, ...).
    """

    def initial(self) -> Position:
        """No parameters."""
        return {}

    def log_prior(self, parameters: Position) -> Scalar:
        """Nothing to weigh."""
        return jnp.asarray(0.0)

    def log_prob(
        self, parameters: Position, outputs: Float[Array, "batch *each classes"], targets: Int[Array, "batch *each"]
    ) -> Float[Array, "batch"]:
        """`log softmax(outputs)[targets]`, summed over the targets of a datum."""
        wanted = outputs.shape[:-1]
        if targets.shape != wanted:
            raise ValueError(f"targets have shape {targets.shape}; outputs {outputs.shape} ask for {wanted}")
        chosen = jnp.take_along_axis(outputs, targets[..., None].astype(jnp.int32), axis=-1)[..., 0]
        each = chosen - jax.nn.logsumexp(outputs, axis=-1)
        return each.sum(axis=tuple(range(1, each.ndim)))


@dataclass(frozen=True)
class Bernoulli:
    """`p(y = 1 | outputs) = 1 / (1 + exp(-outputs))`: outputs (batch,), targets (batch,) of zeros and ones."""

    def initial(self) -> Position:
        """No parameters."""
        return {}

    def log_prior(self, parameters: Position) -> Scalar:
        """Nothing to weigh."""
        return jnp.asarray(0.0)

    def log_prob(
        self, parameters: Position, outputs: Float[Array, "batch"], targets: Int[Array, "batch"]
    ) -> Float[Array, "batch"]:
        """`log sigmoid(outputs)` of a one, `log sigmoid(-outputs)` of a zero."""
        if targets.shape != outputs.shape:
            raise ValueError(f"targets have shape {targets.shape}; they need that of the outputs, {outputs.shape}")
        return jax.nn.log_sigmoid(jnp.where(targets > 0, outputs, -outputs))


@dataclass(frozen=True)
class Gaussian:
    """`p(y | outputs) = N(outputs, noise^2)` with `log noise ~ N(log(noise_scale), 2^2)`, learnt with the rest.

    Outputs and targets are (batch, responses); `noise_scale` is in the units of the targets.
    """

    noise_scale: float = 1.0

    def __post_init__(self):
        if not 0 < self.noise_scale < math.inf:
            raise ValueError(f"noise_scale is {self.noise_scale!r}; it is a positive number in the targets' units")

    def initial(self) -> Position:
        """`log_noise` at the centre of its prior."""
        return {"log_noise": jnp.log(jnp.asarray(self.noise_scale, jnp.float32))}

    def log_prior(self, parameters: Position) -> Scalar:
        """Log-normal prior of the noise, as a density of `log_noise`."""
        return jax.scipy.stats.norm.logpdf(parameters["log_noise"], jnp.log(self.noise_scale), 2.0)

    def log_prob(
        self, parameters: Position, outputs: Float[Array, "batch responses"], targets: Float[Array, "batch responses"]
    ) -> Float[Array, "batch"]:
        """Sum over responses of the normal log density."""
        if targets.shape != outputs.shape:  # (n,) against (n, 1) would broadcast to (n, n)
            raise ValueError(f"targets have shape {targets.shape}; they need that of the outputs, {outputs.shape}")
        noise = jnp.exp(parameters["log_noise"])
        return jax.scipy.stats.norm.logpdf(targets, outputs, noise).sum(axis=1)
