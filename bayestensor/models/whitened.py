"""Draws of Gaussian unknowns whose prior is N(0, I), with their evidence: many small systems at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bayestensor.typing import Array, Float


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
