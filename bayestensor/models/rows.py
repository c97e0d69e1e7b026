"""Rows of one core given all else, independent or each column an autoregression: exact means, covariances, draws."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.typing import Array, Float

CORRELATIONS = np.concatenate([[0.0], 1 - np.geomspace(0.7, 1e-4, 40)])  # the values it can take, equally likely


def row_posterior(
    gram: Float[Array, "q p p"], moment: Float[Array, "q p"], d: Float[Array, "p"], noise: Float[Array, "q p"]
) -> tuple[Float[Array, "q p"], Float[Array, "q p p"]]:
    """(rows, covariances) of `N(A^-1 moment, A^-1)`, `A = gram + diag(d)`: rows are its mean where noise is zero."""
    root = jnp.linalg.cholesky(gram + jnp.diag(d)[None])
    inverse_root = _inverse_root(root)
    white = jnp.einsum("qpr,qr->qp", inverse_root, moment) + noise
    return jnp.einsum("qrp,qr->qp", inverse_root, white), jnp.matmul(inverse_root.mT, inverse_root)


def chain_posterior(
    gram: Float[Array, "q p p"],
    moment: Float[Array, "q p"],
    d: Float[Array, "p"],
    noise: Float[Array, "q p"],
    rho: Float[Array, "p"],
    spreads: float | Array = 1.0,
) -> tuple[Float[Array, "q p"], Float[Array, "q p p"], Float[Array, "q p"]]:
    """As `row_posterior`, each column an autoregression: (rows, covariances, covariance of each entry with its next).

    Where `spreads` is 0 covariances are zero, and a third of the work is saved.

    The joint precision is block tridiagonal, off the diagonal `-diag(link)`. Block elimination forwards and
    substitution backwards give one exact joint draw of the whole core (or its exact means and covariances).
    """
    link = d * rho
    ends = (jnp.arange(len(gram)) == 0) | (jnp.arange(len(gram)) == len(gram) - 1)
    inside = jnp.where(ends[:, None], d[None], (d * (1 + rho**2))[None])
    gram = gram + inside[:, :, None] * jnp.eye(len(d), dtype=d.dtype)[None]

    def forward(carry, now):
        coupling, pulled = carry
        gram_i, moment_i = now
        inverse_root = _inverse_root(jnp.linalg.cholesky(gram_i - coupling))
        white = inverse_root @ (moment_i + pulled)
        across = inverse_root * link[None, :]
        return (across.T @ across, across.T @ white), (inverse_root, white)

    def backward(after, now):
        inverse_root, white, noise_i = now
        row = inverse_root.T @ (white + inverse_root @ (link * after) + noise_i)
        return row, row

    def spread_backward(spread, inverse_root):
        own = inverse_root.T @ inverse_root
        gain = own * link[None, :]
        onward = gain @ spread
        spread = own + onward @ gain.T
        return spread, (spread, jnp.diagonal(onward))

    zero = jnp.zeros_like(gram[0]), jnp.zeros_like(moment[0])
    _, (inverse_roots, whites) = jax.lax.scan(forward, zero, (gram, moment))
    rows = jax.lax.scan(backward, zero[1], (inverse_roots, whites, noise), reverse=True)[1]
    found = jax.lax.cond(
        spreads > 0,
        lambda: jax.lax.scan(spread_backward, zero[0], inverse_roots, reverse=True)[1],
        lambda: (jnp.zeros_like(gram), jnp.zeros_like(moment)),
    )
    return rows, *found


def _inverse_root(root: Float[Array, "*q p p"]) -> Float[Array, "*q p p"]:
    eye = jnp.broadcast_to(jnp.eye(root.shape[-1], dtype=root.dtype), root.shape)
    return jax.lax.linalg.triangular_solve(root, eye, left_side=True, lower=True)


def pick_correlations(
    own: Mapping[str, Float[Array, "q p"]],
    pairs: Mapping[str, Float[Array, "n p"]],
    precisions: Mapping[str, Float[Array, "p"]],
    gumbel: Float[Array, "k columns"],
) -> dict[str, Array]:
    """For each column of each smooth core one of CORRELATIONS: drawn from its conditional, or the best.

    Args:
        own: second moments of the rows of each core.
        pairs: core -> expected products of neighbouring rows.
        precisions: core -> prior precision of each column.
        gumbel: numbers of that law to draw, zeros for the best; columns of all cores.
    """
    sums = [
        precisions[name][None] * jnp.stack([own[name][0], own[name][:-1].sum(0), pair.sum(0)])
        for name, pair in pairs.items()
    ]
    first, before, cross = jnp.concatenate(sums, axis=1)  # each [columns of all cores]
    rho = jnp.asarray(CORRELATIONS, first.dtype)[:, None]
    first, before, cross = first[None], before[None], cross[None]
    error = (1 - rho**2) * first - 2 * rho * cross + rho**2 * before
    log_p = 0.5 * jnp.log1p(-(rho**2)) - 0.5 * error
    best = rho[jnp.argmax(log_p + gumbel, axis=0), 0]
    ends = np.cumsum([pair.shape[1] for pair in pairs.values()])[:-1]
    return dict(zip(pairs, jnp.split(best, ends), strict=True))


def innovations(own: Float[Array, "q p"], pairs: Float[Array, "n p"], rho: Float[Array, "p"]) -> Float[Array, "q p"]:
    """Expected squares of `rows[q + 1] - rho rows[q]`; of the first row, brought to the same variance.

    Args:
        own: second moments of the rows.
        pairs: expected products of neighbouring rows.
        rho: correlation of each column.
    """
    rho = rho[None]
    return jnp.concatenate([own[:1] * (1 - rho**2), own[1:] - 2 * rho * pairs + rho**2 * own[:-1]])
