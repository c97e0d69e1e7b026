"""The interaction of Stein particles: RBF kernels over groups of coordinates, in O(n d) memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bayestensor.inference.base import Posterior
from bayestensor.inference.gradient import coordinates
from bayestensor.typing import Array, Float, Position, Scalar

Kernel: TypeAlias = Literal["all", "leaf", "blocks"] | int


class Interaction(NamedTuple):
    """Attributes:
    drift: sum over j of `k(x_j, x_i) g_j + temperature * grad_{x_j} k(x_j, x_i)`, [n, ...] a leaf.
    noise: `L xi` with `L L^T = K`, [n, ...] a leaf; nothing if there was no xi.
    bandwidth: h^2, one number a group (with a block size: an array of them, one a block).
    mass: mean row sum of K, one number a group: by how many particles one is moved.
    """

    drift: Position
    noise: Position
    bandwidth: list[Array]
    mass: list[Array]


def groups(kernel: Kernel, posterior: Posterior, particle: Position) -> list[list[int]]:
    """Which leaves share a kernel: lists of leaf numbers.

    "all": one kernel over everything. "leaf", or a block size: none is shared. "blocks": leaves of equal
    `posterior.blocks`, which gives one int a leaf; without it as "leaf".

    Raises:
        ValueError: the kernel is none of these, or the blocks are not one int a leaf.
    """
    count = len(jax.tree.leaves(particle))
    if kernel == "all":
        return [list(range(count))]
    if kernel == "blocks" and posterior.blocks is not None:
        numbers = jax.tree.leaves(posterior.blocks(particle))
        if len(numbers) != count:
            raise ValueError(
                f"posterior.blocks gives {len(numbers)} numbers for {count} leaves; one int a leaf is needed"
            )
        return [[i for i in range(count) if int(numbers[i]) == b] for b in sorted({int(b) for b in numbers})]
    if kernel in ("blocks", "leaf") or (isinstance(kernel, int) and kernel > 0):
        return [[i] for i in range(count)]
    raise ValueError(f'kernel = {kernel!r}; "all", "leaf", "blocks" or a block size (a positive int) is needed')


def interact(
    members: list[list[int]],
    kernel: Kernel,
    particles: Position,
    gradients: Position,
    xi: Position | None = None,
    frozen: tuple[Scalar, list[Array]] | None = None,
    temperature: float | Scalar = 1.0,
    several_modes: bool = False,
    least: float | Scalar = 0.0,
) -> Interaction:
    """The RBF direction (Liu and Wang 2016) of every group, by two matrix products:

        K = exp(-|x_i - x_j|^2 / (2 h^2))                        from X X^T, X less its mean, [n, n]
        drift = K (G - T X / h^2) + diag(K 1) T X / h^2           [n, d]

    Args:
        members: from `groups`.
        kernel: as in `groups`; a block size b cuts each leaf, flat, into stretches of b coordinates.
        particles: [n, ...] a leaf, n at least 2.
        gradients: of the log density, [n, ...] a leaf.
        xi: N(0, 1), [n, ...] a leaf, for the noise.
        frozen: a flag, and the h^2 of every group to be used where it is set; otherwise the median rule,
            `h^2 = median |x_i - x_j|^2 / (2 log(n + 1))`, over pairs.
        temperature: T.
        several_modes: the median is of every particle's least distance instead: that over pairs would be the distance
            of modes, and particles of one mode would move as one.
        least: h^2 is not below it, nor below the rounding of squared positions: particles that coincide would be thrown
            apart by the rounding of their mean over h^2.
    """
    x, tree = jax.tree.flatten(particles)
    n = x[0].shape[0]
    table = [[a.reshape(n, -1) for a in leaves] for leaves in (x, jax.tree.leaves(gradients), jax.tree.leaves(xi))]
    drift: list = [None] * len(x)
    noise: list = [None] * (len(x) if xi is not None else 0)
    widths, masses = [], []
    for number, group in enumerate(members):
        fixed = None if frozen is None else (frozen[0], frozen[1][number])
        parts = [[column[i] for i in group] for column in table if column]
        run = _one_group if isinstance(kernel, str) else _blocks(kernel)
        *moved, width, mass = run(parts, fixed, temperature, partial(_width, least, several_modes))
        for result, values in zip((drift, noise), moved, strict=False):
            for i, value in zip(group, values, strict=True):
                result[i] = value.reshape(x[i].shape)
        widths.append(width)
        masses.append(mass)
    return Interaction(
        jax.tree.unflatten(tree, drift), jax.tree.unflatten(tree, noise) if noise else None, widths, masses
    )


def affine(
    particles: Position, gradients: Position, xi: Float[Array, "n n"], temperature: float | Scalar
) -> tuple[Position, Position, Scalar]:
    """Drift, noise and rate of the affine-invariant interacting Langevin dynamics (Garbuno-Inigo, Nuesken, Reich 2020):

        drift_i = C g_i + T (d + 1) / n (x_i - mean x)            C = 1/n sum_j (x_j - mean x)(x_j - mean x)^T
        noise_i = n^(-1/2) sum_j xi_ij (x_j - mean x)
        rate = |A| + |A - A^T|^2 / 2                              A_ij = (g_i - mean g) . (x_j - mean x) / n

    Directions in which the particles spread far are swept in long strides, so that the time to mix does not depend on
    the condition number. On a Gaussian of precision H |A| bounds the eigenvalues of C H: a step e is stable where
    e rate < 2. There A is symmetric, however the particles lie. Elsewhere it is not: with several modes (a tensor's
    slices in another order are one) C spans the gaps between them and a stride sweeps a particle off its own. With x_i
    drawn independently `|A|^2 = tr(C mean g g^T)`, which bounds what C H can be, and half of it is antisymmetric. Two
    matrix products, [n, d] memory.
    """
    x, tree = jax.tree.flatten(particles)
    n, d = x[0].shape[0], sum(x.size for x in x) // x[0].shape[0]
    x = [x.reshape(n, -1) - mean_particle(x.reshape(n, -1)) for x in x]
    inner = sum(g.reshape(n, -1) @ x.T for x, g in zip(x, jax.tree.leaves(gradients), strict=True))  # g_i . x_j
    pull = inner / n + temperature * (d + 1) / n * jnp.eye(n, dtype=inner.dtype)
    shapes = [x.shape for x in jax.tree.leaves(particles)]
    drift, noise = ([(w @ x).reshape(s) for x, s in zip(x, shapes, strict=True)] for w in (pull, xi / n**0.5))
    a = (inner - inner.mean(0)) / n
    rate = jnp.sqrt((a**2).sum()) + ((a - a.T) ** 2).sum() / 2
    return jax.tree.unflatten(tree, drift), jax.tree.unflatten(tree, noise), rate


def _one_group(
    parts: Sequence[list[Float[Array, "n d"]]], fixed: Any, temperature: float | Scalar, rule: Callable
) -> list:
    """(x, g[, xi]) of a group's leaves -> drift[, noise], h^2, mean row sum of K."""
    means, g = [mean_particle(x) for x in parts[0]], parts[1]
    gram = sum(_gram(x, m) for x, m in zip(parts[0], means, strict=True))
    square = jnp.diag(gram)
    distance = jnp.maximum(square[:, None] + square[None, :] - 2 * gram, 0.0)
    size = sum(jnp.vdot(m, m) for m in means)
    h2 = (
        rule(distance, square, size)
        if fixed is None
        else jax.lax.cond(fixed[0], lambda *_: fixed[1], rule, distance, square, size)
    )
    k = jnp.exp(-distance / (2 * h2))
    k = k.at[jnp.diag_indices_from(k)].set(1.0)
    rows = k.sum(1, keepdims=True)
    pull = temperature / h2
    moved = [[_drift(k, rows, pull, *leaf) for leaf in zip(parts[0], means, g, strict=True)]]
    if len(parts) == 3:
        n = k.shape[0]
        root = jnp.linalg.cholesky(k + 1e-6 * n * jnp.eye(n, dtype=k.dtype))
        moved.append([root @ xi for xi in parts[2]])
    return [*moved, h2, rows.mean()]


def mean_particle(x: Float[Array, "n d"]) -> Float[Array, "d"]:
    """Mean over the particles as a product: XLA's reduction over a short first axis is 10 times slower on a CPU."""
    n = x.shape[0]
    return jnp.full(n, 1 / n, x.dtype) @ x


def variance_ratio(particles: Position, gradients: Position) -> Scalar:
    """`-sum_i (x_i - mean x) g_i / ((n - 1) d)`: 1 for draws of the posterior (Stein's identity)."""
    n = jax.tree.leaves(particles)[0].shape[0]
    rows = [[x.reshape(n, -1) for x in jax.tree.leaves(tree)] for tree in (particles, gradients)]
    products = [-((x - mean_particle(x)) * g).sum() for x, g in zip(*rows, strict=True)]
    return sum(products) * n / (n - 1) / coordinates(particles)


def _gram(x: Float[Array, "n d"], mean: Float[Array, "d"]) -> Float[Array, "n n"]:
    """Inner products of `x - mean` (near the mean, distances keep their digits), stretch by stretch."""

    def part(total: Array, start: Any, width: int) -> Array:
        y = _cut(x, start, width) - _cut(mean, start, width)
        return total + y @ y.T

    return _by_stretches(part, jnp.zeros((x.shape[0],) * 2, x.dtype), x.shape[1])


def _drift(
    k: Float[Array, "n n"],
    rows: Float[Array, "n 1"],
    pull: Scalar,
    x: Float[Array, "n d"],
    mean: Float[Array, "d"],
    g: Float[Array, "n d"],
) -> Float[Array, "n d"]:
    """`K (G - pull X) + pull diag(rows) X`, X less its mean, stretch by stretch."""

    def part(out: Array, start: Any, width: int) -> Array:
        y = _cut(x, start, width) - _cut(mean, start, width)
        moved = k @ (_cut(g, start, width) - pull * y) + pull * rows * y
        return jax.lax.dynamic_update_slice_in_dim(out, moved, start, axis=1)

    return _by_stretches(part, jnp.zeros_like(g), x.shape[1])


def _cut(a: Array, start: Any, width: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(a, start, width, axis=-1)


def _by_stretches(part: Callable[[Array, Any, int], Array], out: Array, d: int, width: int = 4096) -> Array:
    """`out = part(out, start, width)` over all of d coordinates, by stretches whose intermediates stay in cache."""
    whole = d // width
    if whole:
        out = jax.lax.fori_loop(0, whole, lambda i, out: part(out, i * width, width), out)
    return part(out, whole * width, d - whole * width)


def _blocks(size: int):
    """A group of one leaf, cut into stretches of `size`; the last one is filled up with zeros, which move nothing."""

    def run(parts, fixed, temperature, rule):
        n, d = parts[0][0].shape
        count = -(-d // size)

        def cut(a):  # [n, d] -> [block, n, size]
            return jnp.pad(a, ((0, 0), (0, count * size - d))).reshape(n, count, size).swapaxes(0, 1)

        def one(args):
            columns, h2 = args
            return _one_group([[a] for a in columns], None if fixed is None else (fixed[0], h2), temperature, rule)

        # so many blocks at a time that their n x n kernels hold no more than the particles do
        table = [cut(p[0]) for p in parts], None if fixed is None else fixed[1]
        *moved, width, mass = jax.lax.map(one, table, batch_size=max(1, min(count, d // n)))
        return [*[[a.swapaxes(0, 1).reshape(n, -1)[:, :d] for a in m] for m in moved], width, mass]

    return run


def _width(
    least: float | Scalar, several_modes: bool, distance: Float[Array, "n n"], square: Float[Array, "n"], size: Scalar
) -> Scalar:
    """h^2 by the median rule, from squared distances of pairs, from the mean, and of the mean from 0."""
    n = distance.shape[0]
    nearest = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, distance).min(1)
    squares = nearest if several_modes else distance[jnp.triu_indices(n, 1)]
    about = jnp.finfo(squares.dtype)
    rounding = about.eps * (square.max() + size) + about.tiny**0.5
    return jnp.maximum(jnp.median(squares) / (2 * jnp.log(n + 1)), jnp.maximum(rounding, least))


def per_leaf(members: list[list[int]], kernel: Kernel, values: list[Array], like: Position) -> Position:
    """One number a group (or block) as a tree like one particle, each leaf broadcastable to that particle's."""
    leaves, tree = jax.tree.flatten(like)
    out: list = [None] * len(leaves)
    for group, value in zip(members, values, strict=True):
        for i in group:
            blocks = isinstance(kernel, int)
            out[i] = jnp.repeat(value, int(kernel))[: leaves[i].size].reshape(leaves[i].shape) if blocks else value
    return jax.tree.unflatten(tree, out)
