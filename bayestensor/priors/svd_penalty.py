"""The penalties of SVD training as an unnormalised density of the cores u, s, v."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array, Float, Key, Scalar

_TINY = 1e-30  # under the root, for the gradient at s = 0


def _ratio(s: Float[Array, "r"]) -> Scalar:
    """`||s||_1 / ||s||_2`, from 1 (one singular value alone) to sqrt(R) (all alike)."""
    return jnp.abs(s).sum() / jnp.sqrt((s**2).sum() + _TINY)


MEASURES: dict[str, Callable[[Float[Array, "r"]], Scalar]] = {
    "hoyer": lambda s: _ratio(s) - 1,
    "squared_hoyer": lambda s: _ratio(s) ** 2 - 1,
    "l1": lambda s: jnp.abs(s).sum(),
}


@dataclass(frozen=True)
class SvdPenalty:
    """`log p(u, s, v) = -orthogonality (gap(u) + gap(v)) - sparsity measure(s)` up to a constant, of format 'svd'.

    `gap(a) = ||a' a - I||^2 / R^2`, a flattened to (modes, R): where it is 0 the entries of s are singular values, and
    the measure makes few of them count: 'hoyer' is `||s||_1 / ||s||_2 - 1`, 'squared_hoyer' the same of the squared
    ratio, 'l1' is `||s||_1`. Cut by `energy_share`. Yang et al. 2020 (arXiv 2004.09031), whose weights are of the loss
    a datum: multiply them by the number of data for these. It does not integrate to one, and with a ratio of norms not
    to any number, for s may grow at no cost: MAP takes it, samplers refuse it. The scales of the bond are held at 1.
    """

    orthogonality: float
    sparsity: float
    measure: str = "hoyer"

    proper: ClassVar[bool] = False
    has_conditional: ClassVar[bool] = False
    support: ClassVar[tuple[float, float]] = (0.0, 0.0)  # of log v

    def __post_init__(self):
        for name in ("orthogonality", "sparsity"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"SvdPenalty: {name} must be a finite number of at least 0, not {value!r}")
        if self.measure not in MEASURES:
            raise ValueError(f"SvdPenalty: measure is {self.measure!r}; it is one of {', '.join(MEASURES)}")

    def check(self, network: Network) -> None:
        """Refuse what is no SVD, or has more columns than can be orthonormal.

        Raises:
            ValueError: naming the cores or the rank.
        """
        own = {name: core.legs if name == "s" else core.legs[-1:] for name, core in network.core.items()}
        if own != dict.fromkeys(("u", "s", "v"), network.bonds):
            raise ValueError(
                f"SvdPenalty is of networks with cores u, s and v that share one bond, not {list(network.core)}: "
                "take format 'svd', or a shrinkage prior"
            )
        rank, rows = network.size[network.bonds[0]], min(math.prod(network.core_shape(c)[:-1]) for c in "uv")
        if rank > rows:
            raise ValueError(f"rank {rank} of an SVD whose sides have {rows} rows: no more columns are orthonormal")

    def log_density_cores(self, tensor: Factored) -> Scalar:
        """The density above."""
        u, s, v = _matrices(tensor)
        sparse = MEASURES[self.measure](s)
        return -self.orthogonality * (_gap(u) + _gap(v)) - self.sparsity * sparse

    def start(self, tensor: Factored) -> Factored:
        """The same tensor with orthonormal u and v and its singular values in s, largest first."""
        u, s, v = _matrices(tensor)
        (q_u, r_u), (q_v, r_v) = jnp.linalg.qr(u), jnp.linalg.qr(v)
        left, s, right = jnp.linalg.svd((r_u * s[None]) @ r_v.T)
        cores = {"u": q_u @ left, "s": s, "v": q_v @ right.T}
        return Factored(tensor.network, {name: cores[name].reshape(core.shape) for name, core in tensor.cores.items()})

    def log_density(self, log_v: Float[Array, "*r"]) -> Float[Array, "*r"]:
        """0: the scales are no variables."""
        return jnp.zeros_like(log_v)

    def mode(self, energy: Float[Array, "*r"], count: float | Array) -> Float[Array, "*r"]:
        """v = 1."""
        return jnp.ones_like(energy)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        """v = 1."""
        return jnp.ones(shape, dtype)


def _matrices(tensor: Factored) -> tuple[Array, Array, Array]:
    u, s, v = (tensor.cores[name] for name in "usv")
    return u.reshape(-1, len(s)), s, v.reshape(-1, len(s))


def _gap(a: Float[Array, "n r"]) -> Scalar:
    return ((a.T @ a - jnp.eye(a.shape[1], dtype=a.dtype)) ** 2).sum() / a.shape[1] ** 2
