"""How well a regression predicts each datum that it is not given, from the draws of one fit."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayestensor.estimators.covariates import filled
from bayestensor.estimators.remainder import Remainder
from bayestensor.models.compiled import quick_jit
from bayestensor.models.regression import Centred
from bayestensor.tensor.design import responses
from bayestensor.tensor.network import Network

_MOST_DRAWS = 100


def left_out_density(
    network: Network, draws: dict[str, Any], data: Centred, remainder: Remainder, y: np.ndarray
) -> np.ndarray:
    """`log p(y_i | all other data)` of each datum (n,), summed over its responses.

    Given W, noise and ratio the density of what is left out is exact, remainder and intercept integrated out:

        mean residual a_i / h_i, variance 1 / (precision h_i),   a = C^-1 (y - <X, W>),
        h = diag(C^-1) - w / sum w,   C = I + ratio kernel

    (Sundararajan, Keerthi, Neural Computation 13, 2001), y and kernel multiplied by the roots of the data's weights
    w, so that a y like y_i has the variance `(1 + (1 / h_i - 1) / w_i) / precision`. The draws are weighed by the
    likelihood without datum i, by the inverse of `(precision / 2 pi)^(w/2) sqrt(h) exp(-precision a^2 / 2 h)` (Vehtari
    et al., JMLR 17, 2016), weights cut at sqrt(draws) times their mean (Ionides, JCGS 17, 2008).

    Args:
        network: of W.
        draws: "cores", "precision" and "ratio", [draw, ...].
        data: of the fit.
        remainder: whose eigenvectors `data` is in.
        y: (n, k) centred responses, in the data's own order.
    """
    thin = slice(None, None, -(-len(draws["precision"]) // _MOST_DRAWS))
    some = jax.tree.map(lambda a: a[thin], draws)
    vectors, y = remainder.vectors, remainder.half[:, None] * y
    outside = y - vectors @ (vectors.T @ y)
    with jax.enable_x64(True):
        args = filled(vectors, (0, 1)), filled(outside), filled(remainder.half)
        found = _log_densities(network, some, data, *args)
    lost, log_p = (np.asarray(values)[:, : len(y)] for values in found)
    log_w = -float(data.share) * lost
    log_w -= np.logaddexp.reduce(log_w, axis=0)
    log_w = np.minimum(log_w, -0.5 * np.log(len(log_w)))
    return np.logaddexp.reduce(log_w + log_p, axis=0) - np.logaddexp.reduce(log_w, axis=0)


@partial(quick_jit, static_argnames="network")
def _log_densities(network: Network, draws: Any, data: Centred, vectors, outside, half):
    """Of each draw and datum: (log likelihood that goes with it, log density of another like it by the rest)."""
    squares, k = vectors**2, data.y[0].size
    weight = jnp.where(half > 0, half**2, 1.0)[:, None]
    free = 1 - weight / (data.count + 1) - squares.sum(1, keepdims=True)  # of what no vector reaches

    def one(draw):
        precision, ratio = draw["precision"].reshape(1, k), draw["ratio"].reshape(1, k)
        shrunk = 1 / (1 + ratio * data.spectrum[:, None])  # [m, k]
        residual = (data.y - responses(network, draw["cores"], data.x)).reshape(-1, k)
        a, h = outside + vectors @ (shrunk * residual), jnp.maximum(free + squares @ shrunk, 1e-12)
        lost = weight * jnp.log(precision / (2 * jnp.pi)) + jnp.log(h) - precision * a**2 / h
        alone = precision / (1 + (1 / h - 1) / weight)
        log_p = jnp.log(alone / (2 * jnp.pi)) - alone * (a / h) ** 2 / weight
        return 0.5 * lost.sum(1), 0.5 * log_p.sum(1)

    return jax.lax.map(one, draws)
