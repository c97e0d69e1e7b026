"""Draws of a bond's gauge: what the tensor does not tell, of which only the prior has a say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayestensor.models.conditionals import pick_levels
from bayestensor.models.scale_moves import lattice_draw
from bayestensor.models.state import State
from bayestensor.priors.base import ScalePrior
from bayestensor.tensor.core_rows import split_legs
from bayestensor.tensor.network import Network
from bayestensor.typing import Array, Float, Key, Scalar


class Slices(NamedTuple):
    """One core cut along a bond, entries in units of what the other bonds make of their prior sd."""

    entries: Float[Array, "rank rows others"]
    correlations: Float[Array, "rank others"]  # of neighbouring rows; 0 where they are independent


def regauged(
    key: Key[Array, ""], network: Network, prior: ScalePrior, variance: float, state: State, draw: float | Array
) -> State:
    """The same tensor with a factor moved from bond to bond (`pick_levels`) and, where sweeps draw, slices sheared."""
    level_key, shear_key = jax.random.split(key)
    if len(state.scales) > 1:
        scales, by = pick_levels(level_key, network, prior, state.scales, draw)
        state = state._replace(
            cores={name: core * by[name] for name, core in state.cores.items()},
            covariances={name: spread * by[name] ** 2 for name, spread in state.covariances.items()},
            sides={name: own._replace(map=own.map * by[name]) for name, own in state.sides.items()},
            scales=scales,
        )
    if state.sides or not sheared_bonds(network):
        return state

    def sheared(cores, scales):
        return pick_gauges(shear_key, network, prior, variance, cores, scales, state.correlations)

    cores, scales = jax.lax.cond(draw > 0, sheared, lambda *same: same, state.cores, state.scales)
    return state._replace(cores=cores, scales=scales)


def sheared_bonds(network: Network) -> tuple[str, ...]:
    """Bonds between two cores that both shrink once."""
    return tuple(
        bond
        for bond in network.bonds
        if network.size[bond] > 1
        and [network.shrunk_by(c.name).count(bond) for c in network.cores if bond in c.legs] == [1, 1]
    )


def pick_gauges(
    key: Key[Array, ""],
    network: Network,
    prior: ScalePrior,
    variance: float,
    cores: Mapping[str, Array],
    scales: Mapping[str, Array],
    correlations: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(cores, bond -> v) after shears of every pair of slices of every bond that joins two cores; X as it was.

        A_s <- A_s + t A_r,   B_r <- B_r - t B_s,   v_i <- v_i M_i(t) / M_i(0) for i = r, s

    A and B are the cores, M the bond's energy. Of determinant one, and one after another they add up in t: so t may be
    drawn by `lattice_draw` from the density along this line, `sum over r, s of -(D / 2) log v + log p(log v)`, because
    M / v stays (Liu and Sabatti, Biometrika 87, 2000). Cores drawn one at a time hardly move this way: a spare slice in
    the span of live ones stays there for hundreds of sweeps, as large as they are, and carries noise.
    """
    cores, scales = dict(cores), dict(scales)
    for k, bond in enumerate(sheared_bonds(network)):
        first, second = (core.name for core in network.cores if bond in core.legs)
        sides, roots = [], []
        for name in (first, second):
            array, root = _cut(network, name, bond, cores[name], scales, variance)
            rho = _cut_correlations(network, name, bond, correlations, array)
            sides.append(Slices(array / root, rho))
            roots.append(root)
        count = network.bond_count(bond)
        new, log_v = _sheared(jax.random.fold_in(key, k), prior, count, sides, jnp.log(scales[bond]))
        scales[bond] = jnp.exp(log_v)
        for name, array, root in zip((first, second), new, roots, strict=True):
            cores[name] = _joined(network, name, bond, array * root)
    return cores, scales


def _sheared(
    key: Key[Array, ""], prior: ScalePrior, count: int, sides: list[Slices], log_v: Float[Array, "rank"]
) -> tuple[tuple[Array, Array], Array]:
    """Shears of every ordered pair of slices, one after another: (entries of both cores, log v)."""
    rank, (one, other) = len(log_v), (side.correlations for side in sides)

    def step(k, now):
        a, b, log_v = now
        s = k // (rank - 1)
        r = (s + 1 + k % (rank - 1)) % rank
        own, along, drag = _energies(a[s], a[r], one[s])
        there, back, draw_in = _energies(b[r], b[s], other[r])
        rest_s, rest_r = _energies(b[s], b[s], other[s])[0], _energies(a[r], a[r], one[r])[0]
        m_s, m_r = own + rest_s, there + rest_r
        level = rest_s + jnp.maximum(own - along**2 / jnp.maximum(drag, 1e-300), 0)  # least that M_s can be
        unit = jnp.where(
            (drag > 1e-300) & (m_s > 1e-300) & (m_r > 1e-300), jnp.sqrt(level / jnp.maximum(drag, 1e-300)), 0
        )

        def moved(x: Scalar) -> Array:
            t = unit * x
            up = jnp.log1p((2 * t * along + t**2 * drag) / jnp.maximum(m_s, 1e-300))
            down = jnp.log1p((-2 * t * back + t**2 * draw_in) / jnp.maximum(m_r, 1e-300))
            return log_v.at[s].add(up).at[r].add(down)

        def log_density(x: Scalar) -> Scalar:
            new = moved(x)
            return prior.log_density(new).sum() - 0.5 * count * (new[s] + new[r])

        x = lattice_draw(jax.random.fold_in(key, k), log_density, jnp.zeros((), log_v.dtype))
        t = unit * x
        return a.at[s].add(t * a[r]), b.at[r].add(-t * b[s]), moved(x)

    a, b, log_v = jax.lax.fori_loop(0, rank * (rank - 1), step, (sides[0].entries, sides[1].entries, log_v))
    return (a, b), log_v


def _energies(x: Array, y: Array, rho: Array) -> tuple[Scalar, Scalar, Scalar]:
    """(x . x, x . y, y . y) of the innovations of columns [rows, others] with these correlations."""
    x, y = (jnp.concatenate([c[:1] * jnp.sqrt(1 - rho**2)[None], c[1:] - rho[None] * c[:-1]]) for c in (x, y))
    return (x * x).sum(), (x * y).sum(), (y * y).sum()


def _order(network: Network, name: str, bond: str) -> tuple[list[str], tuple[str, ...], list[str]]:
    """(legs of a core with the bond first, modes next; its modes; its other bonds)."""
    modes, bonds = split_legs(network, network.core[name])
    others = [leg for leg in bonds if leg != bond]
    return [bond, *modes, *others], modes, others


def _cut(network: Network, name: str, bond: str, core: Array, scales: Mapping[str, Array], variance: float):
    """A core as [rank, rows, others], and the prior sd that the other bonds give it, [1, 1, others]."""
    order, modes, others = _order(network, name, bond)
    legs, sizes = network.core[name].legs, [network.size[leg] for leg in others]
    array = core.transpose([legs.index(leg) for leg in order])
    w = jnp.full(sizes, variance, core.dtype)
    for axis, leg in enumerate(others):
        if leg in network.shrunk_by(name):
            w = w * scales[leg].reshape([-1 if k == axis else 1 for k in range(len(others))])
    rows = math.prod(network.size[leg] for leg in modes)
    return array.reshape(network.size[bond], rows, -1), jnp.sqrt(w).reshape(1, 1, -1)


def _cut_correlations(network: Network, name: str, bond: str, correlations: Mapping[str, Array], array: Array) -> Array:
    """Those of a core's columns, as [rank, others]."""
    if name not in correlations:
        return jnp.zeros((array.shape[0], array.shape[2]), array.dtype)
    _, bonds = split_legs(network, network.core[name])
    columns = correlations[name].reshape([network.size[leg] for leg in bonds])
    return jnp.moveaxis(columns, bonds.index(bond), 0).reshape(array.shape[0], -1)


def _joined(network: Network, name: str, bond: str, array: Array) -> Array:
    """The inverse of `_cut`'s first."""
    order, legs = _order(network, name, bond)[0], network.core[name].legs
    return array.reshape([network.size[leg] for leg in order]).transpose([order.index(leg) for leg in legs])
