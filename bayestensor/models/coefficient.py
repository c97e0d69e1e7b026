"""A low-rank coefficient of tensor covariates and its closed-form draws, whatever the likelihood.

`eta[n, k] = <X_n, W[:, k]>`, W a network with shrinkage scales. Given a Gaussian likelihood (or one made Gaussian by
augmentation) with weights w and targets t, `-w eta^2 / 2 + t eta`, each core is Gaussian given the others. The rows of
a core with a smooth covariate mode are correlated, `cov(core[q, p], core[q', p]) = K[q, q'] * variance`, K one of a
family of matrices of which the data choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models.compiled import AnyArray
from bayestensor.models.conditionals import pick_scales
from bayestensor.models.whitened import row_space_draw, unknown_space_draw
from bayestensor.priors.base import ScalePrior
from bayestensor.tensor.contract import contract
from bayestensor.tensor.design import (
    by_system,
    core_covariates,
    design,
    from_systems,
    normal_equations,
    system_shape,
    to_systems,
    unknowns,
)
from bayestensor.tensor.network import Network
from bayestensor.typing import Array, Float

_STEPS = math.log(0.1), math.log(10.0)  # ends of the log-uniform size of a step of log v, of either sign
PORTION = 25  # sweeps of one call: one compiled program runs any number of them


class CoefficientState(NamedTuple):
    """Cores, bond -> v, and which matrix of its family each smooth core has."""

    cores: dict[str, Array]
    scales: dict[str, Array]
    member: dict[str, Array]


class Numbers(NamedTuple):
    """What `move` draws from, made on the host as completion's `Chance` is: quicker there, and no code here."""

    bits: AnyArray  # [2], unsigned: of a key, for the scales, whose laws depend on what is drawn
    normal: AnyArray  # [entries of all cores, and rows of those solved by rows]
    choice: AnyArray  # [core, 5], U(0, 1): of the Metropolis steps
    member: AnyArray  # [smooth core], U(0, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Family:
    """Covariances `K = root root^T` of the rows of a core, all equally likely beforehand."""

    root: Float[Array, "g q q"]  # lower
    inverse: Float[Array, "g q q"]  # of the root
    log_det: Float[Array, "g"]  # of the root


@dataclass(frozen=True)
class Coefficient:
    """The prior of W: static under `jax.jit`.

    Attributes:
        network: its row modes are those of the covariates, its column modes those of the response.
        prior: of the scales.
        variance: sigma_core^2.
        smooth: names of cores with a family of row covariances; each has one mode leg, of the covariates.
    """

    network: Network
    prior: ScalePrior
    variance: float
    smooth: tuple[str, ...] = ()

    def numbers(self, rng: np.random.Generator, n: int, shape: tuple[int, ...]) -> Numbers:
        """Those of n moves over weights of that shape, along a new first axis."""
        cores = self.network.cores
        return Numbers(
            rng.integers(2**32, size=(n, 2), dtype=np.uint32),
            rng.standard_normal((n, sum(self._noise_size(core.name, shape) for core in cores))),
            rng.random((n, len(cores), 5)),
            rng.random((n, len(self.smooth))),
        )

    def move(
        self,
        numbers: Numbers,
        state: CoefficientState,
        x: Float[Array, "n *rows"],
        weight: Float[Array, "n *cols"],
        target: Float[Array, "n *cols"],
        families: Mapping[str, Family],
        draw: float | Array,
    ) -> CoefficientState:
        """Every core given the others, then the members of the families and the scales.

        Args:
            numbers: of this move.
            state: where W stands.
            x: covariates.
            weight: w.
            target: t; 0 where the weight is.
            families: for each smooth core.
            draw: 1 to draw, 0 for conditional means and modes.
        """
        network, cores, scales = self.network, dict(state.cores), dict(state.scales)
        ends = np.cumsum([self._noise_size(core.name, weight.shape) for core in network.cores])
        pieces = jnp.split(draw * numbers.normal, ends[:-1])
        member: dict[str, Any] = dict(state.member)
        for piece, choice, core in zip(pieces, numbers.choice, network.cores, strict=True):
            name, family = core.name, families.get(core.name)
            now = cores, scales, member.get(name)
            cores, scales, member[name] = self._core(name, now, x, weight, target, family, piece, choice, draw)
        chosen, white = self._members(numbers.member, cores, scales, families, draw)
        key = jax.random.wrap_key_data(numbers.bits)
        scales = pick_scales(key, self.network, self.prior, self.variance, scales, white, draw)
        return CoefficientState(cores, scales, chosen)

    def _systems(self, name: str, shape: tuple[int, ...]) -> tuple[int, int, int, bool]:
        """(systems, rows of the design, unknowns, whether to solve in the space of the rows)."""
        b, q, p = system_shape(self.network, name)
        rows = int(np.prod(shape)) // b
        return b, rows, q * p, q * p > rows

    def _noise_size(self, name: str, shape: tuple[int, ...]) -> int:
        b, rows, u, dual = self._systems(name, shape)
        return b * (u + rows) if dual else b * u

    def _core(
        self, name, now, x, weight, target, family, noise, choice, draw
    ) -> tuple[dict[str, Array], dict[str, Array], Any]:
        """One core given the others, and with the core integrated out a Metropolis step of scales or smoothness.

        In whitened coordinates (every core divided by the root of its prior's covariance) the prior of all cores is
        N(0, I), and v_r -> v_r exp(delta_r) multiplies slice r of the design by exp(k delta_r / 2), k how often the
        bond shrinks a core: the ratio of such a step is that of the evidences and of the priors of v. The other step
        exchanges the member of the family. Given the core itself neither would move far, since a core that the data
        leave open looks like whatever it was drawn from.
        """
        (cores, scales, member), network = now, self.network
        b, rows, u, dual = self._systems(name, weight.shape)
        (z, legs), far = core_covariates(network, cores, name, x)
        _, q, p = system_shape(network, name)
        sd = core_sd(network, name, scales, self.variance)
        w, t = by_system(network, name, weight), by_system(network, name, target)
        bond, delta, own, all_ = self._growth(name, scales, choice, draw)

        def drawn(grown, root):
            near = (z, legs)
            if root is not None:
                (mode,) = unknowns(network, name).own
                near = contract([near, (root, (mode, "white"))], tuple("white" if x == mode else x for x in legs)), legs
            sds = jnp.broadcast_to((sd * jnp.exp(grown * all_))[None], (q, p)).reshape(-1)
            if dual:
                rows_ = design(network, name, near, far) * sds[None]
                first, second = noise[: b * u].reshape(b, u), noise[b * u :].reshape(b, rows)
                white, log_z = row_space_draw(rows_, w, t, first, second)
            else:
                gram, moment = normal_equations(network, name, near, far, weight, target)
                outer = sds[:, None] * sds[None, :]
                white, log_z = unknown_space_draw(gram * outer[None], moment * sds[None], noise.reshape(b, u))
            core = white.reshape(b, q, p) * (sd * jnp.exp(grown * own))[None, None]
            return (core if root is None else jnp.einsum("qr,brp->bqp", root, core)), log_z.sum()

        grows = jnp.asarray([0.0, 1.0], x.dtype)
        if family is None:
            both, log_z = jax.vmap(lambda grown: drawn(grown, None))(grows)
        else:
            smoother = choice[0] < 0.5
            grows = jnp.where(smoother, 0.0, grows)
            steps = jnp.where(smoother, jnp.floor(choice[1] * len(family.log_det)).astype(int), 0)
            tried = jnp.stack([member, (member + steps) % len(family.log_det)])
            both, log_z = jax.vmap(lambda grown, k: drawn(grown, family.root[k]))(grows, tried)
        gain = log_z[1] - log_z[0]
        if bond is not None:
            level = jnp.log(scales[bond])
            change = self.prior.log_density(level + grows[1] * delta) - self.prior.log_density(level)
            gain = gain + change.sum()
        taken = (gain > draw * jnp.log(choice[2])).astype(int)
        member = member if family is None else tried[taken]
        cores = cores | {name: from_systems(network, name, both[taken])}
        if bond is None:
            return cores, scales, member
        delta = delta * grows[taken]
        for core in network.cores:
            if core.name != name and bond in network.shrunk_by(core.name):
                factor = jnp.exp(0.5 * network.shrunk_by(core.name).count(bond) * delta)
                at = tuple(slice(None) if leg == bond else None for leg in core.legs)
                cores[core.name] = cores[core.name] * factor[at]
        return cores, scales | {bond: scales[bond] * jnp.exp(delta)}, member

    def _growth(self, name, scales, choice, draw) -> tuple[str | None, Array, Array, Array]:
        """A step of the log v of one bond of a core, of all its indices alike or of one.

        Returns:
            The bond (None where nothing shrinks the core), delta, and by bond index of the core the logs of what delta
            multiplies: its sd, its whitened design.
        """
        network = self.network
        bonds = unknowns(network, name).bonds
        place = [core.name for core in network.cores].index(name)
        mine = [bond for bond in dict.fromkeys(network.shrunk_by(name)) if bond in bonds]
        if not mine:
            zero = jnp.zeros(system_shape(network, name)[2], choice.dtype)
            return None, zero, zero, zero
        bond = mine[place % len(mine)]
        sign, size = jnp.where(choice[3] < 0.5, -1.0, 1.0), jnp.abs(2 * choice[3] - 1)
        step = draw * sign * jnp.exp(_STEPS[0] + (_STEPS[1] - _STEPS[0]) * size)
        index = jnp.floor(choice[4] * 2 * network.size[bond])  # half of the time no index: all of them
        one = jnp.arange(network.size[bond], dtype=choice.dtype) == index
        delta = jnp.where(one | (index >= network.size[bond]), step, 0.0).astype(choice.dtype)
        along = contract([(delta, (bond,)), *_unit(network, bonds, bond, choice.dtype)], bonds).reshape(-1)
        counts = [network.shrunk_by(core.name).count(bond) for core in network.cores]
        return bond, delta, 0.5 * counts[place] * along, 0.5 * sum(counts) * along

    def _members(self, u, cores, scales, families, draw) -> tuple[dict[str, Array], dict[str, Array]]:
        """Member of each family given its core, and the cores with that covariance taken out.

        `log p(K) = -p log det(root) - sum_p |root^-1 core[:, p]|^2 / (2 variance_p)`.
        """
        member, white = {}, dict(cores)
        for k, name in enumerate(self.smooth):
            family, rows = families[name], to_systems(self.network, name, cores[name])[0]
            every = family.inverse @ rows[None]  # [g, q, p]
            sd = core_sd(self.network, name, scales, self.variance)
            log_p = -rows.shape[1] * family.log_det - 0.5 * ((every / sd[None, None]) ** 2).sum((1, 2))
            member[name] = pick_place(u[k], log_p, draw)
            white[name] = from_systems(self.network, name, every[member[name]][None])
        return member, white


def pick_place(u: Float[Array, "*k"], log_p: Float[Array, "g *k"], draw: float | Array) -> Array:
    """Places along the first axis, drawn with probabilities `exp(log_p)` up to a factor; the best where `draw` is 0.

    One number u of U(0, 1) each, against their running sum.
    """
    mass = jnp.cumsum(jnp.exp(log_p - jnp.max(log_p, axis=0)[None]), axis=0)
    drawn = (mass <= (u * mass[-1])[None]).sum(0)
    return jnp.where(draw > 0, jnp.minimum(drawn, len(log_p) - 1), jnp.argmax(log_p, axis=0))


def portion_numbers(make: Callable[[np.random.Generator, int], Any], seed: int, part: int, chains: int) -> Any:
    """Numbers of the `part`-th portion of a run's sweeps [chain, sweep, ...], of each chain a stream of its own.

    Args:
        make: (generator, n) -> the numbers of n sweeps.
        seed: of the run.
        part: number of the portion, below 2^32.
        chains: how many.
    """
    every = [make(generator(seed, part, chain), PORTION) for chain in range(chains)]
    return jax.tree.map(lambda *a: np.stack(a), *every)


def generator(seed: int, *key: int) -> np.random.Generator:
    """One of its own for each seed and key; of a plain list of numbers, zeros at the end would make no difference."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def run_portion(sweep: Callable[[Any, Any], Any], numbers: Any, states: Any) -> tuple[Any, Any]:
    """As many sweeps of each chain as there are numbers: (last states, all states [chain, sweep, ...]).

    Args:
        sweep: (numbers, state) -> the next state.
        numbers: [chain, sweep, ...].
        states: of the chains.
    """

    def one(state, now):
        state = sweep(now, state)
        return state, state

    return jax.lax.map(lambda now: jax.lax.scan(one, now[0], now[1]), (states, numbers))


def _unit(network: Network, bonds: tuple[str, ...], without: str, dtype) -> list[Any]:
    return [(jnp.ones(network.size[b], dtype), (b,)) for b in bonds if b != without]


def core_sd(network: Network, name: str, scales: dict[str, Array], variance: float) -> Float[Array, "p"]:
    """`sigma_core * sqrt(product of v over shrunk_by)`, one number for each bond index of the core."""
    _, _, bonds = unknowns(network, name)
    dtype = jnp.result_type(*scales.values()) if scales else jnp.zeros(()).dtype
    terms = _unit(network, bonds, "", dtype)
    terms += [(jnp.sqrt(scales[b]), (b,)) for b in network.shrunk_by(name)]
    product = contract(terms, bonds) if terms else jnp.ones((), dtype)
    return jnp.asarray(variance**0.5, dtype) * product.reshape(-1)
