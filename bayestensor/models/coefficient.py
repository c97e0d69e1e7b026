"""A low-rank coefficient of tensor covariates and its closed-form draws, whatever the likelihood.

`eta[n, k] = <X_n, W[:, k]>`, W a network with shrinkage scales. Given a Gaussian likelihood (or one made Gaussian by
augmentation) with weights w and targets t, `-w eta^2 / 2 + t eta`, each core is Gaussian given the others. The rows of
a core with a smooth covariate mode are correlated, `cov(core[q, p], core[q', p]) = K[q, q'] * variance`, K one of a
family of matrices of which the data choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.models.conjugate import pick_scales
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
from bayestensor.typing import Array, Float, Key

PORTION = 25  # sweeps of one call: one compiled program runs any number of them


class CoefficientState(NamedTuple):
    """Cores, bond -> v, and which matrix of its family each smooth core has."""

    cores: dict[str, Array]
    scales: dict[str, Array]
    member: dict[str, Array]


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

    def move(
        self,
        key: Key[Array, ""],
        state: CoefficientState,
        x: Float[Array, "n *rows"],
        weight: Float[Array, "n *cols"],
        target: Float[Array, "n *cols"],
        families: Mapping[str, Family],
        draw: float | Array,
    ) -> CoefficientState:
        """Every core given the others, then the members of the families and the scales.

        Args:
            key: of this sweep.
            state: where W stands.
            x: covariates.
            weight: w.
            target: t; 0 where the weight is.
            families: for each smooth core.
            draw: 1 to draw, 0 for conditional means and modes.
        """
        network, cores = self.network, dict(state.cores)
        core_key, member_key, scale_key = jax.random.split(key, 3)
        sizes = [self._noise_size(core.name, weight.shape) for core in network.cores]
        noise = jnp.split(jax.random.normal(core_key, (sum(sizes),), x.dtype) * draw, np.cumsum(sizes)[:-1])
        member: dict[str, Any] = dict(state.member)
        for piece, core in zip(noise, network.cores, strict=True):
            name, family = core.name, families.get(core.name)
            cores[name], member[name] = self._core(
                name, cores, state.scales, x, weight, target, family, member.get(name), piece, draw
            )
        chosen, white = self._members(member_key, cores, state.scales, families, draw)
        scales = pick_scales(scale_key, self.network, self.prior, self.variance, state.scales, white, draw)
        return CoefficientState(cores, scales, chosen)

    def _systems(self, name: str, shape: tuple[int, ...]) -> tuple[int, int, int, bool]:
        """(systems, rows of the design, unknowns, whether to solve in the space of the rows)."""
        b, q, p = system_shape(self.network, name)
        rows = int(np.prod(shape)) // b
        return b, rows, q * p, q * p > rows

    def _noise_size(self, name: str, shape: tuple[int, ...]) -> int:
        b, rows, u, dual = self._systems(name, shape)
        return 2 + (b * (u + rows) if dual else b * u)

    def _core(self, name, cores, scales, x, weight, target, family, member, noise, draw) -> tuple[Array, Any]:
        """One core given the others (and the member of its family with the core integrated out).

        In whitened coordinates the prior of the core is N(0, I). The member is moved by a Metropolis step whose ratio
        is that of the evidences: given the core itself it would hardly move, since a core that the data leave open
        looks like whatever it was drawn from.
        """
        network = self.network
        b, rows, u, dual = self._systems(name, weight.shape)
        (z, legs), far = core_covariates(network, cores, name, x)
        _, q, p = system_shape(network, name)
        sd = jnp.broadcast_to(core_sd(network, name, scales, self.variance)[None], (q, p)).reshape(-1)
        w, t = by_system(network, name, weight), by_system(network, name, target)

        def drawn(root):
            near = (z, legs)
            if root is not None:
                (mode,) = unknowns(network, name).own
                near = contract([near, (root, (mode, "white"))], tuple("white" if x == mode else x for x in legs)), legs
            if dual:
                rows_ = design(network, name, near, far) * sd[None]
                white, log_z = row_space_draw(
                    rows_, w, t, noise[2 : 2 + b * u].reshape(b, u), noise[2 + b * u :].reshape(b, rows)
                )
            else:
                gram, moment = normal_equations(network, name, near, far, weight, target)
                outer = sd[:, None] * sd[None, :]
                white, log_z = unknown_space_draw(gram * outer[None], moment * sd[None], noise[2:].reshape(b, u))
            core = (white * sd[None]).reshape(b, q, p)
            return (core if root is None else jnp.einsum("qr,brp->bqp", root, core)), log_z.sum()

        if family is None:
            return from_systems(network, name, drawn(None)[0]), member
        steps = jnp.floor(jax.scipy.special.ndtr(noise[0]) * len(family.log_det)).astype(int)
        tried = jnp.stack([member, (member + steps) % len(family.log_det)])
        both, log_z = jax.vmap(lambda k: drawn(family.root[k]))(tried)
        better = log_z[1] - log_z[0] > draw * jax.scipy.special.log_ndtr(noise[1])
        taken = better.astype(int)
        return from_systems(network, name, both[taken]), tried[taken]

    def _members(self, key, cores, scales, families, draw) -> tuple[dict[str, Array], dict[str, Array]]:
        """Member of each family given its core, and the cores with that covariance taken out.

        `log p(K) = -p log det(root) - sum_p |root^-1 core[:, p]|^2 / (2 variance_p)`.
        """
        member, white = {}, dict(cores)
        for k, name in enumerate(self.smooth):
            family, rows = families[name], to_systems(self.network, name, cores[name])[0]
            every = family.inverse @ rows[None]  # [g, q, p]
            sd = core_sd(self.network, name, scales, self.variance)
            log_p = -rows.shape[1] * family.log_det - 0.5 * ((every / sd[None, None]) ** 2).sum((1, 2))
            log_p = log_p + draw * jax.random.gumbel(jax.random.fold_in(key, k), log_p.shape, log_p.dtype)
            member[name] = jnp.argmax(log_p)
            white[name] = from_systems(self.network, name, every[member[name]][None])
        return member, white


def run_portion(sweep: Callable[[Array, Any], Any], seed: Array, part: Array, states: Any) -> tuple[Any, Any]:
    """PORTION sweeps of each chain, the `part`-th portion of the run: (last states, all states [chain, sweep, ...])."""
    chains = len(jax.tree.leaves(states)[0])
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), part), (chains, PORTION))

    def one(state, key):
        state = sweep(key, state)
        return state, state

    return jax.lax.map(lambda now: jax.lax.scan(one, now[0], now[1]), (states, keys))


def core_sd(network: Network, name: str, scales: dict[str, Array], variance: float) -> Float[Array, "p"]:
    """`sigma_core * sqrt(product of v over shrunk_by)`, one number for each bond index of the core."""
    _, _, bonds = unknowns(network, name)
    dtype = jnp.result_type(*scales.values()) if scales else jnp.zeros(()).dtype
    terms = [(jnp.ones(network.size[b], dtype), (b,)) for b in bonds]
    terms += [(jnp.sqrt(scales[b]), (b,)) for b in network.shrunk_by(name)]
    product = contract(terms, bonds) if terms else jnp.ones((), dtype)
    return jnp.asarray(variance**0.5, dtype) * product.reshape(-1)


def unknown_space_draw(
    gram: Float[Array, "b u u"], moment: Float[Array, "b u"], noise: Float[Array, "b u"]
) -> tuple[Float[Array, "b u"], Float[Array, "b"]]:
    """(draw, log evidence) of `N(A^-1 moment, A^-1)`, `A = I + gram`: where noise is 0, the mean.

    The evidence is up to what does not depend on the design: `-log det(A) / 2 + moment A^-1 moment / 2`.
    """
    root = jnp.linalg.cholesky(jnp.eye(gram.shape[-1], dtype=gram.dtype)[None] + gram)
    half = _solve(root, moment[..., None], transposed=False)
    draw = _solve(root, half + noise[..., None], transposed=True)[..., 0]
    return draw, 0.5 * (half**2).sum((1, 2)) - _log_det(root)


def row_space_draw(
    rows: Float[Array, "n u"],
    weight: Float[Array, "b n"],
    target: Float[Array, "b n"],
    noise: Float[Array, "b u"],
    row_noise: Float[Array, "b n"],
) -> tuple[Float[Array, "b u"], Float[Array, "b"]]:
    """As `unknown_space_draw` with `gram = rows^T diag(weight) rows`, by n x n systems: for more unknowns than rows.

    `u ~ N(0, I)`, `(R R^T + I) s = t / sqrt(w) - R u - noise`, `u + R^T s`, R = sqrt(w) rows (Bhattacharya,
    Chakraborty, Mallick, Biometrika 103, 2016).
    """
    half = jnp.sqrt(weight)
    aim = jnp.where(weight > 0, target / jnp.where(weight > 0, half, 1.0), 0.0)
    kernel = half[:, :, None] * half[:, None, :] * (rows @ rows.T)[None]
    root = jnp.linalg.cholesky(jnp.eye(len(rows), dtype=rows.dtype)[None] + kernel)
    gap = aim - half * (noise @ rows.T) - row_noise
    both = _solve(root, jnp.stack([gap, aim], axis=-1), transposed=False)
    s = _solve(root, both[..., :1], transposed=True)[..., 0]
    log_z = 0.5 * (aim**2).sum(1) - 0.5 * (both[..., 1] ** 2).sum(1) - _log_det(root)
    return noise + (half * s) @ rows, log_z


def _log_det(root: Float[Array, "b u u"]) -> Float[Array, "b"]:
    return jnp.log(jnp.diagonal(root, axis1=1, axis2=2)).sum(1)


def _solve(root: Array, right: Array, transposed: bool) -> Array:
    return jax.lax.linalg.triangular_solve(root, right, left_side=True, lower=True, transpose_a=transposed)
