"""Minibatch gradients with their own error bars: what every stochastic-gradient engine starts from."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from bayestensor.inference.base import Posterior
from bayestensor.typing import Array, Batch, Position, Scalar


class Estimate(NamedTuple):
    """What one batch says about the log density at a position.

    Attributes:
        log_density: unbiased estimate of the log density.
        gradient: unbiased estimate of its gradient.
        noise: variance of `gradient` over batches, one number a coordinate (unbiased; zero for the whole data).
        curvature: size of minus the second derivative, one number a coordinate, from squared gradients only.
    """

    log_density: Scalar
    gradient: Position
    noise: Position
    curvature: Position


class Centre(NamedTuple):
    """A point near the mode with the gradient of the whole log likelihood there (control variate)."""

    position: Position
    gradient: Position


def batch_size(batch: Batch) -> int:
    """Length of the first axis, common to every array of the batch.

    Raises:
        ValueError: the batch has no arrays, or they differ in length.
    """
    sizes = {x.shape[0] if x.ndim else -1 for x in jax.tree.leaves(batch)}  # -1: a scalar has no first axis
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            f"a batch is a pytree of arrays with a common first axis; first axes here: {sorted(map(str, sizes))}"
        )
    return sizes.pop()


def centre_at(posterior: Posterior, position: Position, data: Batch, chunk: int = 1000) -> Centre:
    """The control variate of Baker et al. (2019): the full gradient at `position`, in chunks of the data."""
    num = batch_size(data)

    @jax.jit
    def gradient(total, position, batch):
        part = jax.grad(lambda p: posterior.log_likelihood(p, batch).sum())(position)
        return jax.tree.map(jnp.add, total, part)

    total = jax.tree.map(jnp.zeros_like, position)
    for start in range(0, num, chunk):
        total = gradient(total, position, jax.tree.map(operator.itemgetter(slice(start, start + chunk)), data))
    return Centre(position, total)


def _halves(
    posterior: Posterior, centre: Centre | None
) -> Callable[[Position, Batch], tuple[Scalar, Position, Position]]:
    """(position, part of a batch) -> N mean log likelihood, its gradient, and the same with the control variate."""

    def half(position: Position, batch: Batch) -> tuple[Scalar, Position]:
        return jax.value_and_grad(lambda p: posterior.num_data * posterior.mean_log_likelihood(p, batch))(position)

    def half_with_control(position: Position, batch: Batch) -> tuple[Scalar, Position, Position]:
        value, raw = half(position, batch)
        if centre is None:
            return value, raw, raw
        at_centre = half(centre.position, batch)[1]
        return value, raw, jax.tree.map(lambda g, gc, full: g - gc + full, raw, at_centre, centre.gradient)

    return half_with_control


def estimator(posterior: Posterior, centre: Centre | None = None) -> Callable[[Position, Batch], Estimate]:
    """Builds `estimate(position, batch)`: the gradient with its noise and the curvature, for one gradient's work.

    The batch B is cut into even and odd places with likelihood gradients g_a, g_b, each scaled to the whole data:

        gradient  = grad log_prior + (g_a + g_b) / 2
        noise     = (1 - len(B) / N) (g_a - g_b)^2 / 4                       batches drawn without replacement
        curvature = (grad log_prior)^2 + len(B) / N (g_a - g_b)^2 / 4        N Var(grad log p(y_n | position)), Fisher

    The second term of the curvature is the empirical Fisher information. With the whole data in one batch the squared
    gradient is added, whose mean over the posterior is the curvature itself. With a `centre` c (Baker et al. 2019)
    each half becomes `g(position) - g(c) + full gradient at c`, whose noise vanishes as the position nears c.
    """
    half_with_control = _halves(posterior, centre)

    def estimate(position: Position, batch: Batch) -> Estimate:
        size = batch_size(batch)
        share = size / posterior.num_data  # of the data in the batch
        prior, prior_gradient = jax.value_and_grad(posterior.log_prior)(position)
        if size == 1:
            if share < 1:
                raise ValueError("a batch of 1 datum has no gradient noise to measure: take 2 or more, or all data")
            value, likelihood_gradient, _ = half_with_control(position, batch)
            gradient = jax.tree.map(jnp.add, prior_gradient, likelihood_gradient)
            zeros = jax.tree.map(jnp.zeros_like, gradient)
            return Estimate(prior + value, gradient, zeros, jax.tree.map(jnp.square, gradient))
        even = size - size % 2
        halves = jax.tree.map(lambda x: x[:even].reshape(even // 2, 2, *x.shape[1:]), batch)  # neighbours: [pair, half]
        values, raw, controlled = jax.vmap(half_with_control, (None, 1))(position, halves)
        value, likelihood_gradient = values.mean(), jax.tree.map(lambda g: g.mean(0), controlled)
        if size % 2:  # the odd one out counts in the gradient, not in the noise
            last_value, _, last = half_with_control(position, jax.tree.map(lambda x: x[even:], batch))
            value += (last_value - value) / size
            likelihood_gradient = jax.tree.map(lambda g, one: g + (one - g) / size, likelihood_gradient, last)
        gradient = jax.tree.map(jnp.add, prior_gradient, likelihood_gradient)
        noise = jax.tree.map(lambda g: max(1 - share, 0.0) * jnp.square(g[0] - g[1]) / 4, controlled)
        curvature = jax.tree.map(lambda g0, g: g0**2 + share * jnp.square(g[0] - g[1]) / 4, prior_gradient, raw)
        if share >= 1:
            curvature = jax.tree.map(lambda c, g: c + g**2, curvature, gradient)
        return Estimate(prior + value, gradient, noise, curvature)

    return estimate


def cond_together(yes: Callable, no: Callable) -> Callable:
    """`lax.cond(due, yes, no, *args)` as a function of (due, *args), where chains under vmap share one decision.

    A decision that differs between them would cost both branches at every step; so `yes` is taken if any is due, and
    both branches must be right at any time. What the branches close over may itself be side by side (a data set each).
    """

    def decided(due, *args):
        (yes_of, yes_over), (no_of, no_over) = (jax.closure_convert(branch, *args) for branch in (yes, no))

        @custom_vmap
        def chosen(due, args, over):
            return jax.lax.cond(due, lambda: yes_of(*args, *over[0]), lambda: no_of(*args, *over[1]))

        @chosen.def_vmap
        def side_by_side(size, batched, due, *operands):
            axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched[1:]))
            branches = (lambda args, over: yes_of(*args, *over[0])), (lambda args, over: no_of(*args, *over[1]))
            both = (jax.vmap(branch, axes, axis_size=size) for branch in branches)
            out = jax.lax.cond(jnp.any(due), *both, *operands)
            return out, jax.tree.map(lambda _: True, out)

        return chosen(due, args, (yes_over, no_over))

    return decided


def plain_estimator(posterior: Posterior, centre: Centre | None = None) -> Callable[[Position, Batch], Estimate]:
    """Builds `estimate(position, batch)` as `estimator` does, noise and curvature left at 0."""
    half = _halves(posterior, centre)

    def estimate(position: Position, batch: Batch) -> Estimate:
        prior, prior_gradient = jax.value_and_grad(posterior.log_prior)(position)
        value, _, controlled = half(position, batch)
        gradient = jax.tree.map(jnp.add, prior_gradient, controlled)
        zeros = jax.tree.map(jnp.zeros_like, gradient)
        return Estimate(prior + value, gradient, zeros, zeros)

    return estimate


def sparing_estimator(
    posterior: Posterior, centre: Centre | None = None
) -> Callable[[Scalar, Position, Batch], Estimate]:
    """Builds `estimate(due, position, batch)`: as `estimator` where `due`, else noise and curvature are 0.

    Two half batches cost more than a whole one where a layer's weight is formed from its factors.
    """
    return cond_together(estimator(posterior, centre), plain_estimator(posterior, centre))


def running_mean(mean: Position, value: Position, count: Scalar) -> Position:
    """The average of a stream that forgets its start: value number t weighs about t^3, whatever the length."""
    rate = 4 / (count + 4)
    return jax.tree.map(lambda m, x: m + (rate * (x - m)).astype(m.dtype), mean, value)


def coordinates(tree: Position) -> int:
    """How many numbers a pytree of arrays holds."""
    return sum(x.size for x in jax.tree.leaves(tree))


def mean_over_coordinates(tree: Position) -> Scalar:
    """The mean over all coordinates of a pytree."""
    return sum(x.sum() for x in jax.tree.leaves(tree)) / coordinates(tree)


def preconditioner(curvature: Array, least: Array, steps: Scalar) -> Array:
    """`min(max(curvature, least)^(-1/2), 1.1^steps)`, for one leaf.

    A few squared gradients say little, so at first they are mixed with their leaf's mean, and the scale is at most 1:
    at a mode gradients vanish, and 1 / 0 would throw the chain to where squared gradients are large and hold it there.
    """
    prior = 10 / (steps + 10)
    smooth = (1 - prior) * curvature + prior * curvature.mean()
    smallest = jnp.finfo(curvature.dtype).tiny ** 0.5
    scale = jax.lax.rsqrt(jnp.maximum(jnp.maximum(smooth, least), smallest))
    return jnp.minimum(scale, (1.1**steps).astype(scale.dtype))


def require_proper(posterior: Posterior, engine: str) -> None:
    """Refuses a target that cannot be sampled.

    Raises:
        ValueError: the prior is improper.
    """
    if not posterior.proper:
        raise ValueError(
            f"{engine} draws from a posterior, and this prior is improper: the chain would drift for ever. Truncate "
            "the prior or take a proper one (half-Cauchy, inverse-gamma, gamma), or fit by MAP."
        )


def require_conditional(posterior: Posterior, every: int | None, temperature: float) -> None:
    """Refuses conditional draws that cannot be made.

    Raises:
        ValueError: not one every positive number of steps, none that the posterior has, or another temperature than 1.
    """
    if every is None:
        return
    if every < 1:
        raise ValueError(f"conditional_every = {every}; a positive number of steps is needed")
    if posterior.conditional_update is None:
        raise ValueError(
            "conditional_every is set, but this posterior has no conditional_update: leave it None (scales then move "
            "by gradient), take noncentred(model, num_data).posterior, or a prior that has_conditional"
        )
    if temperature != 1:
        raise ValueError(f"conditional draws have temperature 1, the chain {temperature}: set one of them back")
