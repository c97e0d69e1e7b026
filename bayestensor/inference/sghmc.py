"""Stochastic-gradient Hamiltonian Monte Carlo: underdamped Langevin dynamics that knows its gradient noise."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bayestensor.inference.base import Engine, Posterior, all_finite, normals
from bayestensor.inference.gradient import (
    Centre,
    Estimate,
    cond_together,
    mean_over_coordinates,
    plain_estimator,
    preconditioner,
    require_conditional,
    require_proper,
    running_mean,
    sparing_estimator,
)
from bayestensor.typing import Array, Batch, Int, Key, Position, Scalar

Precondition: TypeAlias = bool | Literal["leaf"]


class State(NamedTuple):
    """Attributes:
    position: x.
    momentum: u, in units of `1 / scale`: N(0, temperature) at stationarity.
    scale: preconditioner, an estimate of each coordinate's posterior sd; 0 until measured, frozen after burn-in.
    curvature: running mean of the curvature; frozen after burn-in.
    noise: running mean of the gradient's variance over batches.
    measured: how often curvature and noise have been measured.
    step: steps taken.
    nonfinite: steps undone because something in them was not finite.
    """

    position: Position
    momentum: Position
    scale: Position
    curvature: Position
    noise: Position
    measured: Int[Array, ""]
    step: Int[Array, ""]
    nonfinite: Int[Array, ""]


class Info(NamedTuple):
    """Attributes:
    log_density: estimate at the new position.
    kinetic_temperature: mean of u^2 in the middle of the kick; `temperature` where all is well.
    inflation: variance of the draws over the posterior's, as predicted from the measured gradient noise.
    noise_share: share of the random force that the batches supply: what it would add, uncorrected, to `inflation`.
    step_size: h.
    adapting: whether this step belongs to burn-in.
    finite: whether this step was finite; otherwise it was undone.
    nonfinite: undone steps so far.
    """

    log_density: Scalar
    kinetic_temperature: Scalar
    inflation: Scalar
    noise_share: Scalar
    step_size: Scalar
    adapting: Scalar
    finite: Scalar
    nonfinite: Int[Array, ""]


def sghmc(
    posterior: Posterior,
    *,
    step_size: float = 0.1,
    friction: float = 1.0,
    temperature: float = 1.0,
    burn_in: int = 1000,
    cycle: int | None = None,
    precondition: Precondition = True,
    correct_noise: bool = True,
    noise_share: float = 0.1,
    measure_every: int = 10,
    centre: Centre | None = None,
    conditional_every: int | None = None,
) -> Engine:
    """SGHMC (Chen, Fox, Guestrin 2014) in the BAOAB splitting (Leimkuhler and Matthews 2013), stationary at p^(1/T).

    One step, per coordinate, with g an estimate of grad log p at x whose variance is B (`noise`), h = `step_size`:

        n = (h scale)^2 B / (4 T)
        c = min(exp(-friction h), (1 - n / noise_share) / (1 + n / noise_share))
        x = x + h/2 scale u
        u = c u + sqrt(T (1 - c^2) - T n (1 + c)^2) xi              xi ~ N(0, 1)
        x = x + h/2 scale u
        u = u + (h + h') / 2 scale g(x)                             h' is the next step's h

    With the exact gradient x has the right variance on any Gaussian at any stable h. Batches add variance
    n (1 + c) / (1 - c) in units of the posterior's; the second line raises the friction where that passes
    `noise_share`, and the fourth injects that much less. B is taken as diagonal, so no direction's variance falls below
    `1 - noise_share`. B is measured inside every batch, hence batches are to be drawn afresh at every step, without
    replacement within one (`sample` does); epochs anticorrelate the noise and the correction then overshoots.

    A conditional draw comes in the middle of the kick, where u knows nothing of x (elsewhere it would bias both by
    O(h)), and takes a second gradient for the other half.

    During the first `burn_in` steps `scale = curvature^(-1/2)`, with curvature the running Fisher information
    (`gradient.estimator`), so that h is in posterior standard deviations; then it is frozen, and the chain has no
    memory but its state. It is never so long that c would be negative. The first step only measures.

    Args:
        posterior: the target; proper.
        step_size: h; the largest one if there is a cycle.
        friction: least friction; infinity gives SGLD.
        temperature: T; 1 is the posterior.
        burn_in: steps that adapt; drop their draws.
        cycle: steps in a cosine cycle h (1 + cos(pi t / cycle)) / 2, t < cycle (Zhang et al. 2020); None: constant.
        precondition: adapt `scale`; otherwise it is 1. "leaf": alike for all of an array. That is for coordinates
            that change roles, as indices of a bond do: one that was dead in burn-in has a scale that is long for one
            alive. It mixes slowly: the scales of dead indices then hardly move, where the live ones' steps are short.
        correct_noise: raise the friction and inject less; otherwise the noise is only reported.
        noise_share: largest share of the random force that batches may supply.
        measure_every: steps between two measurements of the noise; every step of burn-in takes one.
        centre: control variate (`gradient.centre_at`): two gradients a step, little noise near the centre.
        conditional_every: steps between draws by `posterior.conditional_update`, from the second half of burn-in on;
            None: never. Earlier a slice that does not fit yet would be drawn dead, and a chain far out then waits long
            in a mode of too few slices.

    Raises:
        ValueError: an improper prior, a setting out of range, or conditional draws that the posterior cannot give.
    """
    require_proper(posterior, "SGHMC")
    _check(posterior, step_size, friction, temperature, burn_in, noise_share, conditional_every, precondition)
    _check_counts(cycle=cycle, measure_every=measure_every)
    estimate, again = sparing_estimator(posterior, centre), plain_estimator(posterior, centre)
    adapts = bool(precondition) and burn_in > 0

    def init(key: Key[Array, ""], position: Position) -> State:
        zeros = jax.tree.map(jnp.zeros_like, position)
        momentum = normals(key, position, math.sqrt(temperature))
        # nothing moves before the curvature is known: one step at scale 1 would leave a mode 1/1000 wide for good
        scale = jax.tree.map(jnp.zeros_like if adapts else jnp.ones_like, position)
        return State(position, momentum, scale, zeros, zeros, jnp.int32(0), jnp.int32(0), jnp.int32(0))

    def step(key: Key[Array, ""], state: State, batch: Batch) -> tuple[State, Info]:
        noise_key, update_key = jax.random.split(key)
        h, h_next = size_at(state.step), size_at(state.step + 1)
        n = jax.tree.map(lambda s, b: (h * s) ** 2 * b / (4 * temperature), state.scale, state.noise)
        c = jax.tree.map(lambda n: damping(n, h), n)
        share = jax.tree.map(lambda n, c: n * (1 + c) / (1 - c), n, c)  # of the variance

        position = _drift(state.position, state.momentum, state.scale, h)
        xi = normals(noise_key, position)
        momentum = jax.tree.map(refresh, state.momentum, xi, c, share)
        position = _drift(position, momentum, state.scale, h)
        due = (state.step < burn_in) | (state.step % measure_every == 0)
        now = estimate(due, position, batch)
        scale, curvature, noise = adapt(state, now, due)
        middle = _kick(momentum, now.gradient, scale, h / 2)
        if conditional_every is not None:
            drawn = (state.step % conditional_every == 0) & (state.step >= burn_in // 2)
            position, now = redraw(drawn, update_key, position, batch, now)
        moved = State(
            position=position,
            momentum=_kick(middle, now.gradient, scale, h_next / 2),
            scale=scale,
            curvature=curvature,
            noise=noise,
            measured=state.measured + due,
            step=state.step + 1,
            nonfinite=state.nonfinite,
        )
        undone = state._replace(
            momentum=jax.tree.map(lambda xi: -math.sqrt(temperature) * xi, xi),  # fresh, and not that way again
            step=state.step + 1,
            nonfinite=state.nonfinite + 1,
        )
        finite = all_finite(now)  # at the new position; to look at `moved` would keep XLA from fusing its parts
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), moved, undone)
        info = Info(
            log_density=now.log_density,
            kinetic_temperature=mean_over_coordinates(jax.tree.map(jnp.square, middle)),
            inflation=mean_over_coordinates(jax.tree.map(inflation, share)),
            noise_share=mean_over_coordinates(share),
            step_size=jnp.asarray(h, jnp.float32),
            adapting=state.step < burn_in,
            finite=finite,
            nonfinite=new.nonfinite,
        )
        return new, info

    def redrawn(key, position, batch, now: Estimate) -> tuple[Position, Estimate]:
        """A draw by the posterior's own update, and what the batch says there."""
        assert posterior.conditional_update is not None  # _check
        position = posterior.conditional_update(key, position)
        return position, again(position, batch)

    redraw = cond_together(redrawn, lambda key, position, batch, now: (position, now))

    def size_at(step):
        return step_size if cycle is None else step_size * (1 + jnp.cos(jnp.pi * (step % cycle) / cycle)) / 2

    def damping(n, h):
        c = math.exp(-friction * step_size) if cycle is None else jnp.exp(-friction * h)
        if not correct_noise:
            return jnp.full_like(n, c)
        return jnp.clip((1 - n / noise_share) / (1 + n / noise_share), 0.0, c)

    def refresh(u, xi, c, share):
        left = jnp.maximum(1 - share, 0.0) if correct_noise else 1.0
        return c * u + jnp.sqrt(temperature * (1 - c**2) * left) * xi

    def inflation(share):
        return jnp.maximum(share, 1.0) if correct_noise else 1 + share

    def adapt(state: State, now: Estimate, due: Scalar) -> tuple[Position, Position, Position]:
        means = running_mean((state.curvature, state.noise), (now.curvature, now.noise), state.measured)
        curvature, noise = jax.tree.map(lambda a, b: jnp.where(due, a, b), means, (state.curvature, state.noise))
        if not adapts:
            return state.scale, state.curvature, noise
        least = step_size**2 / (4 * noise_share * temperature) if correct_noise else 0.0
        by = curvature, noise
        if precondition == "leaf":
            by = jax.tree.map(lambda x: jnp.full_like(x, x.mean()), by)
        scale = jax.tree.map(lambda v, b: preconditioner(v, least * b, state.measured), *by)
        adapted, frozen = (scale, curvature), (state.scale, state.curvature)
        scale, curvature = jax.tree.map(lambda a, b: jnp.where(state.step < burn_in, a, b), adapted, frozen)
        return scale, curvature, noise

    return Engine(init, step, lambda state: state.position)


def _drift(position, momentum, scale, h):
    return jax.tree.map(lambda x, u, s: x + h / 2 * s * u, position, momentum, scale)


def _kick(momentum, gradient, scale, h):
    return jax.tree.map(lambda u, g, s: u + h * s * g, momentum, gradient, scale)


def _check(posterior, step_size, friction, temperature, burn_in, noise_share, conditional_every, precondition):
    for name, value in {"step_size": step_size, "friction": friction, "temperature": temperature}.items():
        if not value > 0:
            raise ValueError(f"{name} = {value}; a positive number is needed")
    if not 0 < noise_share < 1:
        raise ValueError(f"noise_share = {noise_share}; it is a share of the random force, between 0 and 1")
    if precondition not in (True, False, "leaf"):
        raise ValueError(f'precondition = {precondition!r}; True, False or "leaf" is needed')
    if burn_in < 0:
        raise ValueError(f"burn_in = {burn_in}; a number of steps, 0 or more, is needed")
    require_conditional(posterior, conditional_every, temperature)


def _check_counts(**counts: int | None) -> None:
    for name, steps in counts.items():
        if steps is not None and steps < 1:
            raise ValueError(f"{name} = {steps}; a positive number of steps is needed")
