"""Mean-field variational inference: one Gaussian a coordinate, scales by a closed form that knows their variances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayestensor.inference.base import Engine, Posterior, all_finite, normals
from bayestensor.inference.gradient import require_proper
from bayestensor.inference.parallel import Parallel, over
from bayestensor.typing import Array, Batch, Int, Key, Position, Scalar


class State(NamedTuple):
    """Attributes:
    mean: m.
    log_sd: log s; of no meaning at the point estimates.
    draw: the position drawn last.
    opt_state: the optimiser's.
    step: steps taken.
    nonfinite: steps undone because something in them was not finite.
    """

    mean: Position
    log_sd: Position
    draw: Position
    opt_state: Any
    step: Int[Array, ""]
    nonfinite: Int[Array, ""]


class Info(NamedTuple):
    """Attributes:
    log_density: estimate at the draw.
    elbo: estimate of the evidence lower bound (up to the log density's constant).
    adapting: whether this step belongs to burn-in.
    finite: whether this step was finite; otherwise it was undone.
    nonfinite: undone steps so far.
    """

    log_density: Scalar
    elbo: Scalar
    adapting: Scalar
    finite: Scalar
    nonfinite: Int[Array, ""]


def variational(
    posterior: Posterior,
    *,
    optimiser: optax.GradientTransformation | None = None,
    burn_in: int = 2000,
    initial_sd: float = 1e-2,
    pairs: int = 1,
    points: tuple[str, ...] = (),
    closed_form: Callable[[Position, Position], Position] | None = None,
    position: Literal["draw", "mean"] = "draw",
    parallel: Parallel = "auto",
) -> Engine:
    """Maximise `elbo = E_q log p(x, data) + sum log s` over q = prod N(m, s^2), by draws x = m + s xi, xi ~ N(0, 1).

        gradient in m     = mean of g(x)                                 g = grad log p(x, batch), x in pairs of +-xi
        gradient in log s = mean of g(x) s xi + 1

    The pairs make the first line exact where log p is quadratic. The first `burn_in` steps learn q; then it is frozen,
    and every later step is an independent draw of it. q has no correlations: on a Gaussian its mean is right and its
    variances are 1 / diag(precision), never more than the posterior's.

    Coordinates under the top-level names `points` of the position are point estimates (s = 0), which a gradient moves,
    or `closed_form(m, s^2)` after each step. With the log scales as points and the mode under `E[M] = sum (m^2 + s^2)`
    this is Hawkins, Liu, Zhang (arXiv 2010.08689): `lambda m, s2: model.mode_scales(second_moment(m, s2))`.

    Args:
        posterior: the target; proper.
        optimiser: of (m, log s) on the loss `-elbo / N`; Adam at 1e-2, falling by a cosine, when None.
        burn_in: steps that learn; drop their draws.
        initial_sd: s to begin with.
        pairs: of draws a step; each costs two gradients.
        points: names of the parts of the position that have no spread.
        closed_form: (means, variances) -> a position, of which the point estimates are taken.
        position: what `Engine.position` hands out, a draw of q or its mean.
        parallel: the step's draws by "vmap", by "map" (`lax.map`), or as the platform prefers.

    Raises:
        ValueError: an improper prior, a setting out of range, a name that the position lacks.
    """
    require_proper(posterior, "Variational inference")
    _check(burn_in, initial_sd, pairs, points, closed_form, position)
    mover = optimiser or optax.adam(optax.cosine_decay_schedule(1e-2, burn_in))

    def init(key: Key[Array, ""], position: Position) -> State:
        del key
        _free(position, points)  # refuses unknown names before anything runs
        log_sd = jax.tree.map(lambda x: jnp.full_like(x, math.log(initial_sd)), position)
        return State(position, log_sd, position, mover.init((position, log_sd)), jnp.int32(0), jnp.int32(0))

    def step(key: Key[Array, ""], state: State, batch: Batch) -> tuple[State, Info]:
        free = _free(state.mean, points)
        sd = _spread(state.log_sd, free)
        entropy = sum(
            (x + 0.5 * math.log(2 * math.pi * math.e)).sum()
            for x, f in zip(jax.tree.leaves(state.log_sd), jax.tree.leaves(free), strict=True)
            if f
        )

        xi = jax.vmap(lambda key: normals(key, state.mean))(jax.random.split(key, pairs))
        xi = jax.tree.map(lambda e: jnp.concatenate([e, -e]), xi)  # [2 pairs, ...]

        def at(xi: Position) -> Position:
            return jax.tree.map(lambda m, s, e: m + s * e, state.mean, sd, xi)

        def learn(state: State) -> tuple[State, Scalar, Scalar, Scalar]:
            x = jax.vmap(at)(xi)
            values, g = over(jax.value_and_grad(lambda x: posterior.log_density(x, batch)), parallel)(x)
            down = -1.0 / posterior.num_data
            g_mean = jax.tree.map(lambda g, f: float(f or closed_form is None) * down * g.mean(0), g, free)
            g_log_sd = jax.tree.map(lambda g, s, e, f: float(f) * down * ((g * e).mean(0) * s + 1), g, sd, xi, free)
            parameters = (state.mean, state.log_sd)
            updates, opt_state = mover.update((g_mean, g_log_sd), state.opt_state, parameters)
            mean, log_sd = optax.apply_updates(parameters, updates)
            if closed_form is not None:
                variance = jax.tree.map(jnp.square, _spread(log_sd, free))
                mean = jax.tree.map(lambda m, c, f: m if f else c, mean, closed_form(mean, variance), free)
            moved = state._replace(mean=mean, log_sd=log_sd, draw=jax.tree.map(lambda x: x[0], x), opt_state=opt_state)
            return moved, values[0], values.mean(), all_finite((values, g, mean, log_sd))

        def rest(state: State) -> tuple[State, Scalar, Scalar, Scalar]:
            draw = at(jax.tree.map(lambda e: e[0], xi))
            value = posterior.log_density(draw, batch)
            return state._replace(draw=draw), value, value, all_finite((value, draw))

        learning = state.step < burn_in
        moved, value, mean_value, finite = jax.lax.cond(learning, learn, rest, state)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), moved, state)
        new = new._replace(step=state.step + 1, nonfinite=state.nonfinite + jnp.where(finite, 0, 1))
        return new, Info(value, mean_value + entropy, learning, finite, new.nonfinite)

    return Engine(init, step, lambda state: state.draw if position == "draw" else state.mean)


def second_moment(mean: Position, variance: Position) -> Position:
    """`sqrt(m^2 + s^2)` where s > 0, m at the point estimates: for closed forms that read the rest by squares alone."""
    return jax.tree.map(lambda m, s2: jnp.where(s2 > 0, jnp.sqrt(m**2 + s2), m), mean, variance)


def _free(position: Position, points: tuple[str, ...]) -> Any:
    """A tree like the position: False at the point estimates."""
    if not points:
        return jax.tree.map(lambda _: True, position)
    names = sorted(position) if isinstance(position, dict) else []
    unknown = sorted(set(points) - set(names))
    if unknown:
        raise ValueError(f"points names {unknown}; the position's parts are {names or 'without names'}")
    return {name: jax.tree.map(lambda _, f=name not in points: f, part) for name, part in position.items()}


def _spread(log_sd: Position, free: Any) -> Position:
    return jax.tree.map(lambda x, f: jnp.exp(x) if f else jnp.zeros_like(x), log_sd, free)


def _check(burn_in, initial_sd, pairs, points, closed_form, position):
    if burn_in < 1 or pairs < 1:
        raise ValueError(f"burn_in = {burn_in} and pairs = {pairs}; each is at least 1")
    if not 0 < initial_sd < math.inf:
        raise ValueError(f"initial_sd = {initial_sd}; a positive number is needed")
    if closed_form is not None and not points:
        raise ValueError('closed_form sets point estimates: name them in points, such as points=("log_scales",)')
    if isinstance(points, str):
        raise ValueError(f"points = {points!r}; a tuple of names is needed: ({points!r},)")
    if position not in ("draw", "mean"):
        raise ValueError(f'position = {position!r}; "draw" or "mean" is needed')
