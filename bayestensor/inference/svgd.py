"""Stein variational gradient descent: particles that repel each other, with the noise that keeps them spread."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayestensor.inference.base import Engine, Posterior, all_finite
from bayestensor.inference.gradient import (
    cond_together,
    coordinates,
    mean_over_coordinates,
    require_conditional,
    require_proper,
    running_mean,
    sparing_estimator,
)
from bayestensor.inference.parallel import Parallel, over
from bayestensor.inference.stein import Kernel, groups, variance_ratio
from bayestensor.inference.svgd_moves import Noisy, plain_move
from bayestensor.typing import Array, Batch, Int, Key, Position, Scalar


class State(NamedTuple):
    """Attributes:
    particles: [n, ...] a leaf.
    last: those before them, whose log densities were finite: where an undone step goes back to.
    scale: preconditioner, one number a coordinate, common to the particles; frozen after burn-in (noisy only).
    curvature: running mean of the curvature over steps and particles; frozen after burn-in (noisy only).
    noise: running mean of the gradient's variance over batches (noisy only).
    measured: how often curvature and noise have been measured (noisy only).
    bandwidth: h^2 a group; frozen after burn-in if noisy.
    mass: mean row sum of the kernel a group; frozen after burn-in if noisy.
    strength: weight of the affine-invariant part; frozen after burn-in (noisy only).
    variance_ratio: running mean of the variance ratio.
    optimiser: the optimiser's state (without noise only).
    step: steps taken.
    nonfinite: steps undone because something in them was not finite.
    """

    particles: Position
    last: Position
    scale: Position
    curvature: Position
    noise: Position
    measured: Int[Array, ""]
    bandwidth: list[Array]
    mass: list[Array]
    strength: Scalar
    variance_ratio: Scalar
    optimiser: Any
    step: Int[Array, ""]
    nonfinite: Int[Array, ""]


class Info(NamedTuple):
    """Attributes:
    log_density: mean over the particles, before the step.
    variance_ratio: running mean of `-sum_i (x_i - mean x) (g_i - mean g) / ((n - 1) d T)`: 1 for draws of the posterior
        (Stein's identity), the ratio of variances for an isotropic Gaussian, near 0 for collapsed particles. NaN with
        several modes, where the mean lies between them and the ratio would be noise.
    collapsed: whether `variance_ratio` is below 0.8 after burn-in; not with several modes.
    inflation: variance of the particles over the posterior's, as predicted from the measured gradient noise.
    noise_share: share of a particle's variance that the batches supply.
    particles: n.
    dimension: d.
    adapting: whether this step belongs to burn-in.
    finite: whether this step was finite; otherwise it was undone.
    nonfinite: undone steps so far.
    """

    log_density: Scalar
    variance_ratio: Scalar
    collapsed: Scalar
    inflation: Scalar
    noise_share: Scalar
    particles: Int[Array, ""]
    dimension: Int[Array, ""]
    adapting: Scalar
    finite: Scalar
    nonfinite: Int[Array, ""]


def svgd(
    posterior: Posterior,
    *,
    kernel: Kernel = "blocks",
    noisy: bool = True,
    several_modes: bool = False,
    step_size: float = 0.05,
    optimiser: optax.GradientTransformation | None = None,
    temperature: float = 1.0,
    burn_in: int = 1000,
    noise_share: float = 0.1,
    measure_every: int = 10,
    conditional_every: int | None = None,
    parallel: Parallel = "auto",
) -> Engine:
    """SVGD (Liu and Wang 2016), by default with the noise of Gallego and Insua (2018) that makes n chains of it.

    With K the kernel of a group of coordinates (`stein.interact`), z = x / scale, g the gradient in z, e = `step_size`:

        z = z + e / mass (K g + T div K) + sqrt(2 e T / mass) L xi          L L^T = K, xi ~ N(0, 1)
              + e strength (C g + T div C) + sqrt(2 e T strength) C^(1/2) xi'       C = covariance of the particles

    The second line is `stein.affine`: mixing does not wait for the worst direction. As e goes to 0 the stationary law
    is p^(1/T) for every particle, in any dimension and with any kernel. `scale`, bandwidths, `mass` and `strength` are
    adapted during `burn_in` steps and then frozen, since the law holds for fixed ones. `scale` is as in SGHMC, it and
    `strength` such that batches supply at most `noise_share` of a particle's variance; T is lowered by that share.
    Entries of g stop at 1 / e, and `strength` short of overshooting: a particle that a waking slice finds far out, by
    some 20 sds, would be led ever farther by explicit steps.

    With `noisy=False` the same direction over n, `(K g + T div K) / n`, goes to the optimiser: the published algorithm,
    whose spread collapses as d grows with one kernel over everything ("all").

    The position is the stack of particles, [n, ...] a leaf; they share each batch.

    Args:
        posterior: the target; proper.
        kernel: "all", "leaf", "blocks" (`posterior.blocks`, else a leaf each), or a block size.
        noisy: add the noise.
        several_modes: whether particles start at several modes. Then the second line is left out, since their
            covariance is that of the modes and would sweep them off; bandwidths are by each particle's nearest.
        step_size: e; without noise AdaGrad's, unless there is an optimiser.
        optimiser: any optax optimiser; only without noise.
        temperature: T; 1 is the posterior.
        burn_in: steps that adapt; drop their draws.
        noise_share: largest share of a particle's variance that batches may supply.
        measure_every: steps between two measurements of the noise; every step of burn-in takes one.
        conditional_every: after burn-in, steps between draws of each particle by `posterior.conditional_update`, which
            leaves the law of n independent draws as it is; None: never. (Earlier, on particles that do not fit the data
            yet, they put slices to death that short steps are slow to revive.)
        parallel: gradients of the particles by "vmap", by "map" (`lax.map`), or as the platform prefers.

    Raises:
        ValueError: an improper prior, a setting out of range, an optimiser for the noisy variant, or conditional draws
            that the posterior or the plain variant cannot have.
    """
    require_proper(posterior, "SVGD")
    _check(noisy, step_size, optimiser, temperature, burn_in, noise_share, measure_every, conditional_every)
    require_conditional(posterior, conditional_every, temperature)
    mover = optax.adagrad(step_size) if optimiser is None else optimiser
    estimate, gradient = sparing_estimator(posterior), jax.value_and_grad(posterior.log_density)
    moves = Noisy(posterior, kernel, several_modes, step_size, temperature, burn_in, noise_share)

    def init(key: Key[Array, ""], position: Position) -> State:
        del key
        one = jax.tree.map(lambda x: x[0], position)
        n = jax.tree.leaves(position)[0].shape[0]
        if n < 2:
            raise ValueError(f"{n} particle; a stack of at least 2, [n, ...] a leaf, is needed")
        dtype = jax.tree.leaves(one)[0].dtype
        members = groups(kernel, posterior, one)
        sizes = [
            () if isinstance(kernel, str) else (-(-jax.tree.leaves(one)[i].size // kernel),) for (i, *_) in members
        ]
        blank = [jnp.ones(size, dtype) for size in sizes]
        track = one if noisy else None
        return State(
            particles=position,
            last=position,
            scale=jax.tree.map(jnp.ones_like, track),
            curvature=jax.tree.map(jnp.zeros_like, track),
            noise=jax.tree.map(jnp.zeros_like, track),
            measured=jnp.int32(0),
            bandwidth=blank,
            mass=blank,
            strength=jnp.zeros((), dtype),
            variance_ratio=jnp.ones((), dtype),
            optimiser=None if noisy else mover.init(position),
            step=jnp.int32(0),
            nonfinite=jnp.int32(0),
        )

    def step(key: Key[Array, ""], state: State, batch: Batch) -> tuple[State, Info]:
        due = (state.step < burn_in) | (state.step % measure_every == 0)
        each = over(lambda x: estimate(due, x, batch) if noisy else gradient(x, batch), parallel)(state.particles)
        log_density, g = each[:2]
        ratio = variance_ratio(state.particles, g) / temperature
        if conditional_every is not None:
            key, update_key = jax.random.split(key)
        if noisy:
            measured, share = moves.measure(state, each, due)
            moved = moves.move(key, measured, each, share)
        else:
            share = None
            moved = plain_move(posterior, kernel, several_modes, temperature, mover, state, g)
        if conditional_every is not None:
            due = (state.step >= burn_in) & (state.step % conditional_every == 0)
            moved = moved._replace(particles=redraw(due, update_key, moved.particles))
        moved = moved._replace(
            last=state.particles,
            variance_ratio=running_mean(state.variance_ratio, ratio, state.step - state.nonfinite),
        )
        finite = all_finite((moved.particles if noisy else ratio, log_density))  # all gradients are in the ratio
        undone = state._replace(particles=state.last, nonfinite=state.nonfinite + 1)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), moved, undone)._replace(step=state.step + 1)
        n, adapting = len(log_density), state.step < burn_in
        told = jnp.full_like(new.variance_ratio, jnp.nan) if several_modes else new.variance_ratio
        info = Info(
            log_density=log_density.mean(),
            variance_ratio=told,
            collapsed=(told < 0.8) & ~adapting,
            inflation=mean_over_coordinates(jax.tree.map(lambda s: jnp.maximum(s, 1.0), share))
            if noisy
            else jnp.ones(()),
            noise_share=mean_over_coordinates(share) if noisy else jnp.zeros(()),
            particles=jnp.int32(n),
            dimension=jnp.int32(coordinates(state.particles) // n),
            adapting=adapting,
            finite=finite,
            nonfinite=new.nonfinite,
        )
        return new, info

    def redrawn(key, particles):
        assert posterior.conditional_update is not None  # require_conditional
        n = jax.tree.leaves(particles)[0].shape[0]
        return over(posterior.conditional_update, parallel)(jax.random.split(key, n), particles)

    redraw = cond_together(redrawn, lambda key, particles: particles)

    return Engine(init, step, lambda state: state.particles)


def _check(noisy, step_size, optimiser, temperature, burn_in, noise_share, measure_every, conditional_every):
    for name, value in {"step_size": step_size, "temperature": temperature}.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} = {value}; a positive number is needed")
    if not 0 < noise_share < 1:
        raise ValueError(f"noise_share = {noise_share}; it is a share of the variance, between 0 and 1")
    if burn_in < 0:
        raise ValueError(f"burn_in = {burn_in}; a number of steps, 0 or more, is needed")
    if measure_every < 1:
        raise ValueError(f"measure_every = {measure_every}; a positive number of steps is needed")
    if noisy and optimiser is not None:
        raise ValueError("an optimiser would change the law of the noisy variant: set noisy=False, or leave it None")
    if not noisy and conditional_every is not None:
        raise ValueError("conditional_every is for the noisy variant: set noisy=True, or leave it None")
