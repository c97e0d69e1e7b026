"""The no-U-turn sampler, by BlackJAX: the reference that the other engines are held against on small problems."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.mass_matrix import mass_matrix_adaptation
from blackjax.adaptation.staged_adaptation import build_schedule
from blackjax.adaptation.step_size import dual_averaging_adaptation
from blackjax.mcmc import hmc
from blackjax.mcmc.nuts import build_kernel

from bayestensor.inference.base import Engine, Posterior, all_finite
from bayestensor.inference.gradient import batch_size, coordinates, require_proper
from bayestensor.typing import Array, Batch, Float, Int, Key, Position, Scalar


class State(NamedTuple):
    """Attributes:
    position: x.
    step_size: leapfrog step in units of `variance^(1/2)`; frozen after burn-in.
    variance: inverse mass matrix, [d] or [d, d], from the last slow window; frozen after burn-in.
    dual_averaging: BlackJAX's running state of the step size.
    welford: BlackJAX's running state of the variance.
    step: steps taken.
    """

    position: Position
    step_size: Scalar
    variance: Float[Array, "..."]
    dual_averaging: Any
    welford: Any
    step: Int[Array, ""]


class Info(NamedTuple):
    """Attributes:
    log_density: at the new position.
    acceptance: mean Metropolis acceptance over the trajectory.
    diverging: whether the trajectory's energy error passed 1,000.
    leapfrogs: gradients taken.
    adapting: whether this step belongs to burn-in.
    finite: whether the new position is.
    """

    log_density: Scalar
    acceptance: Scalar
    diverging: Scalar
    leapfrogs: Int[Array, ""]
    adapting: Scalar
    finite: Scalar


def nuts(
    posterior: Posterior,
    *,
    burn_in: int = 1000,
    target_acceptance: float = 0.8,
    dense_mass: bool = False,
    max_doublings: int = 10,
    max_dimension: int = 2000,
) -> Engine:
    """NUTS (Hoffman and Gelman 2014; multinomial trajectories) with Stan's warm-up windows inside the step.

    The first `burn_in` steps adapt `step_size` by dual averaging and `variance` by Welford sums over windows of
    doubling length; then both are frozen. Every step takes the whole data: a minibatch has no acceptance rule.

    Args:
        posterior: the target; proper.
        burn_in: steps that adapt; drop their draws.
        target_acceptance: of the dual averaging.
        dense_mass: a full inverse mass matrix instead of a diagonal one.
        max_doublings: longest trajectory, 2^max_doublings leapfrogs.
        max_dimension: refuse larger positions.

    Raises:
        ValueError: an improper prior, more than `max_dimension` coordinates, or a batch that is not the whole data.
    """
    require_proper(posterior, "NUTS")
    kernel = build_kernel()
    average, average_update, average_final = dual_averaging_adaptation(target_acceptance)
    welford, welford_update, welford_final = mass_matrix_adaptation(not dense_mass)
    schedule = np.array(build_schedule(burn_in), np.int32).reshape(-1, 2)  # [step, (slow?, end of a slow window?)]

    def init(key: Key[Array, ""], position: Position) -> State:
        del key
        size = coordinates(position)
        if size > max_dimension:
            raise ValueError(
                f"NUTS is the reference for small problems: this position has {size} coordinates, the limit is "
                f"{max_dimension}. Take sghmc, or raise max_dimension and wait."
            )
        masses = _arrays(welford(size))
        return State(
            position, jnp.float32(1.0), masses.inverse_mass_matrix, _arrays(average(1.0)), masses, jnp.int32(0)
        )

    def step(key: Key[Array, ""], state: State, batch: Batch) -> tuple[State, Info]:
        if batch_size(batch) != posterior.num_data:
            raise ValueError(
                f"NUTS needs the whole data at every step: {posterior.num_data} data, but got {batch_size(batch)}"
            )

        def log_density(position):
            return posterior.log_density(position, batch)

        at = hmc.init(state.position, log_density)
        # BlackJAX's loops carry their keys; chains under vmap turn that into selects, which JAX's checker of key reuse
        # takes for a second use. It does not follow raw key data.
        raw = jax.random.key_data(key)
        new, told = kernel(raw, at, log_density, state.step_size, state.variance, max_doublings)
        state = state._replace(position=new.position)
        adapting = state.step < burn_in
        if burn_in:
            state = jax.lax.cond(adapting, adapt, lambda state, _: state, state, told.acceptance_rate)
        info = Info(
            log_density=new.logdensity,
            acceptance=told.acceptance_rate,
            diverging=told.is_divergent,
            leapfrogs=told.num_integration_steps,
            adapting=adapting,
            finite=all_finite(new),
        )
        return state._replace(step=state.step + 1), info

    def adapt(state: State, acceptance: Scalar) -> State:
        slow, ends = jnp.asarray(schedule)[state.step]
        masses = jax.lax.cond(slow == 1, welford_update, lambda masses, _: masses, state.welford, state.position)
        averaged = average_update(state.dual_averaging, acceptance)
        masses, averaged = jax.lax.cond(
            ends == 1, lambda m, a: (welford_final(m), average(average_final(a))), lambda m, a: (m, a), masses, averaged
        )
        last = state.step == burn_in - 1
        step_size = jnp.exp(jnp.where(last, averaged.log_step_size_avg, averaged.log_step_size))
        return state._replace(
            step_size=step_size, variance=masses.inverse_mass_matrix, dual_averaging=averaged, welford=masses
        )

    return Engine(init, step, lambda state: state.position)


def _arrays(tree: Any) -> Any:
    """Python numbers and weak types as strongly typed arrays: a state whose types change is compiled for twice."""
    floating = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.floating)  # noqa: E731
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.result_type(x, jnp.float32) if floating(x) else jnp.result_type(x)), tree
    )
