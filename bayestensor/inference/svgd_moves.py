"""How the particles of `svgd` move in one step: with the noise that keeps them spread, or as published, without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

from bayestensor.inference.base import Posterior, normals
from bayestensor.inference.gradient import Estimate, coordinates, mean_over_coordinates, preconditioner, running_mean
from bayestensor.inference.stein import Kernel, affine, groups, interact, per_leaf
from bayestensor.typing import Array, Key, Position, Scalar

if TYPE_CHECKING:
    from bayestensor.inference.svgd import State


@dataclass(frozen=True)
class Noisy:
    """The noisy variant; its equation, and what the settings mean, in `svgd`."""

    posterior: Posterior
    kernel: Kernel
    several_modes: bool
    step_size: float
    temperature: float
    burn_in: int
    noise_share: float

    def measure(self, state: State, each: Estimate, due: Scalar) -> tuple[State, Position]:
        """The state with this step's noise and curvature (in burn-in with the scale they give), and the batches' share.

        The scale is used at once: one step at scale 1 would leave a mode 1/1000 wide for good.
        """
        adapting, steps = state.step < self.burn_in, state.step - state.nonfinite
        now = jax.tree.map(lambda a: a.mean(0), (each.noise, each.curvature))
        noise = running_mean(state.noise, now[0], state.measured)
        noise = jax.tree.map(lambda a, b: jnp.where(due, a, b), noise, state.noise)
        curvature = running_mean(state.curvature, now[1], steps)
        least = self.step_size / (self.noise_share * self.temperature)  # half; the sweep may take the other
        scale = jax.tree.map(lambda v, b: preconditioner(v, least * b, steps), curvature, noise)
        kept = jax.tree.map(lambda a, b: jnp.where(adapting, a, b), (scale, curvature), (state.scale, state.curvature))
        share = jax.tree.map(
            lambda x, s, b: self.step_size * (s**2 + state.strength * x.var(0)) * b / (2 * self.temperature),
            state.particles,
            kept[0],
            noise,
        )
        new = state._replace(scale=kept[0], curvature=kept[1], noise=noise, measured=state.measured + due)
        return new, share

    def move(self, key: Key[Array, ""], state: State, each: Estimate, share: Position) -> State:
        """The particles after the step, and in burn-in the bandwidths, mass and strength that it gives."""
        e = self.step_size
        members = groups(self.kernel, self.posterior, state.scale)
        adapting, steps = state.step < self.burn_in, state.step - state.nonfinite
        xi_key, sweep_key = jax.random.split(key)
        n = jax.tree.leaves(state.particles)[0].shape[0]
        z = jax.tree.map(lambda x, s: x / s, state.particles, state.scale)
        g = jax.tree.map(lambda g, s: jnp.clip(g * s, -1 / e, 1 / e), each.gradient, state.scale)
        left = self.temperature * jnp.maximum(1 - mean_over_coordinates(share), 0.0)  # the batches bring the rest
        frozen = (~adapting, state.bandwidth) if self.burn_in else None
        least = e * left  # narrower than a step's own noise, particles would be driven past each other
        now = interact(members, self.kernel, z, g, normals(xi_key, z), frozen, left, self.several_modes, least)
        mass = jax.tree.map(lambda a, b: jnp.where(adapting | (self.burn_in == 0), a, b), now.mass, state.mass)
        mass = per_leaf(members, self.kernel, mass, state.scale)
        *swept, rate = affine(z, g, normals(sweep_key, jnp.zeros((n, n), each.log_density.dtype)), left)

        stable = 0.5 / (e * rate)  # particles far wider than the posterior would be swept past it, ever farther
        sweeping = jnp.minimum(state.strength, jnp.where(adapting, stable, 2 * stable))

        def stride(by, drift, noise):
            return by * drift + jnp.sqrt(2 * by * left) * noise

        particles = jax.tree.map(
            lambda x, s, m, *to: x + s * (stride(e / m, *to[:2]) + stride(e * sweeping, *to[2:])),
            state.particles,
            state.scale,
            mass,
            now.drift,
            now.noise,
            *swept,
        )
        before = (state.bandwidth, state.mass, state.strength)
        strength = jnp.zeros_like(stable) if self.several_modes else jnp.minimum(self._strongest(state), stable)
        averages = running_mean(before, (now.bandwidth, now.mass, strength), steps)
        widths, masses, strength = jax.tree.map(lambda a, b: jnp.where(adapting, a, b), averages, before)
        return state._replace(particles=particles, bandwidth=widths, mass=masses, strength=strength)

    def _strongest(self, state: State) -> Scalar:
        """At most 1, n / d (a particle is pulled with force d / n) and what brings the batches' share to its bound."""
        n = jax.tree.leaves(state.particles)[0].shape[0]
        e, t = self.step_size, self.temperature
        forces = jax.tree.map(lambda x, b: x.var(0) * e * b / (2 * t), state.particles, state.noise)
        batches = jnp.maximum(mean_over_coordinates(forces), 1e-30)
        return jnp.minimum(min(1.0, n * n / coordinates(state.particles)), self.noise_share / 2 / batches)


def plain_move(
    posterior: Posterior,
    kernel: Kernel,
    several_modes: bool,
    temperature: float,
    optimiser: optax.GradientTransformation,
    state: State,
    gradient: Position,
) -> State:
    """The published algorithm: the direction over n, `(K g + T div K) / n`, handed to an optimiser."""
    one = jax.tree.map(lambda x: x[0], state.particles)
    members = groups(kernel, posterior, one)
    now = interact(members, kernel, state.particles, gradient, None, None, temperature, several_modes)
    n = jax.tree.leaves(state.particles)[0].shape[0]
    descent = jax.tree.map(lambda drift: -drift / n, now.drift)
    updates, after = optimiser.update(descent, state.optimiser, state.particles)
    particles = optax.apply_updates(state.particles, updates)
    return state._replace(particles=particles, bandwidth=now.bandwidth, mass=now.mass, optimiser=after)
