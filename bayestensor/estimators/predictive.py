"""What a fitted tensor regression says of new data: means, intervals, samples and densities, a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.utils.validation import check_is_fitted

from bayestensor.estimators.covariates import Units, filled, in_network, read_covariates, seed_of
from bayestensor.estimators.remainder import Remainder
from bayestensor.inference.draws import Draws
from bayestensor.metrics.regression import mixture_interval
from bayestensor.models.compiled import quick_jit
from bayestensor.models.regression import Centred
from bayestensor.tensor.design import responses
from bayestensor.tensor.network import Network

_BLOCK = 4_000_000  # predictive means held at once
_MEMBERS = 100  # draws whose mixture gives the intervals: each is a Gaussian that knows noise and remainder


class GaussianPredictive:
    """Predictions of a fit whose draws each give a new response a Gaussian; the fit sets what is named."""

    network_: Network
    draws_: Draws
    covariate_shape_: tuple[int, ...]
    response_shape_: tuple[int, ...]
    random_state: Any
    _x_units: Units
    _y_units: Units
    _bases: list[np.ndarray]
    _members: list[tuple[list[Any], Remainder, Centred]]  # handfuls of draws, and what they were drawn with
    _spread: np.ndarray  # what the standard deviations of each draw's Gaussian are multiplied by, [response]

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Posterior mean of the response; with `return_std` also the standard deviation of a new one with its noise."""
        means, spreads = [], []
        for mean, variance in self._predictive(X):
            means.append(mean.mean(axis=0))
            spreads.append(np.sqrt(variance.mean(axis=0) + mean.var(axis=0)))
        mean = self._to_response(np.concatenate(means))
        return (mean, self._to_response(np.concatenate(spreads), 0.0)) if return_std else mean

    def predict_interval(self, X: Any, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper): holds a new response with probability `level`, each of its entries by itself."""
        ends = []
        for mean, variance in self._predictive(X):
            thin = slice(None, None, -(-len(mean) // _MEMBERS))
            ends.append(mixture_interval(mean[thin], np.sqrt(variance[thin]), level))
        return tuple(self._to_response(np.concatenate(end)) for end in zip(*ends, strict=True))  # type: ignore[return-value]

    def sample(self, X: Any, n: int = 1) -> np.ndarray:
        """`n` draws of new responses, noise included, along a new first axis."""
        rng = np.random.default_rng(seed_of(self.random_state))
        blocks = []
        for mean, variance in self._predictive(X):
            picked = rng.integers(len(mean), size=n)
            blocks.append(mean[picked] + np.sqrt(variance[picked]) * rng.standard_normal((n, *mean.shape[1:])))
        return np.stack([self._to_response(draw) for draw in np.concatenate(blocks, axis=1)])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2, the mean over responses."""
        from sklearn.metrics import r2_score

        y, predicted = (np.asarray(a).reshape(len(a), -1) for a in (y, self.predict(X)))
        return float(r2_score(y, predicted, sample_weight=sample_weight))

    def log_score(self, X: Any, y: Any) -> float:
        """Mean predictive log density of the entries of new responses: of the mixture over draws."""
        y = np.asarray(y, np.float64).reshape(len(y), -1)
        scale, total, at = self._y_units.scale, 0.0, 0
        for mean, variance in self._predictive(X):
            z = (y[at : at + mean.shape[1]] - self._y_units.mean) / scale
            log_p = -0.5 * np.log(2 * np.pi * variance) - 0.5 * (z[None] - mean) ** 2 / variance - np.log(scale)
            total += (np.logaddexp.reduce(log_p, axis=0) - math.log(len(mean))).sum()
            at += mean.shape[1]
        return float(total / y.size)

    def _predictive(self, X: Any) -> Iterator[tuple[np.ndarray, ...]]:
        """Blocks of data: (means, variances) of new responses, [draw, datum, response], in the units of the fit."""
        check_is_fitted(self)
        x, _ = read_covariates(self, X, self.covariate_shape_)
        x = self._x_units.into(x)
        flat, k = self.draws_.flat(), self._y_units.mean.size
        size = max(1, _BLOCK // (len(flat["precision"]) * k))
        for at in range(0, len(x), size):
            block = x[at : at + size]
            rows = in_network(block, self.covariate_shape_, self._bases, self.network_)
            few = partial(filled, step=min(size, 32))  # data at once, of many responses
            found = []
            for hands, remainder, data in self._members:
                kernel, own = remainder.at(block)
                args = few(rows), filled(few(kernel), (1,)), few(own)
                for hand in hands:
                    some = jax.tree.map(lambda a, at=hand: a[at], flat)
                    with jax.enable_x64(True):
                        found.append(_predictive(self.network_, some, data, *args))
            parts = [[np.asarray(a).reshape(len(a), -1, k)[:, : len(block)] for a in part] for part in found]
            mean, variance = (np.concatenate(part) for part in zip(*parts, strict=True))
            yield mean, np.square(self._spread)[None, None] * variance

    def _to_response(self, values: np.ndarray, shift: float = 1.0) -> np.ndarray:
        return (values * self._y_units.scale + shift * self._y_units.mean).reshape(-1, *self.response_shape_)


@partial(quick_jit, static_argnames="network")
def _predictive(network: Network, draws: Any, data: Centred, x, kernel, own):
    """Of each draw (mean, variance) of a new response: `<x, W>`, the remainder given the residuals, and noise.

    With c_j = ratio / (1 + ratio s_j) and residuals r_j, the remainder has mean `sum_j c_j k_j r_j` and variance
    `ratio (k(x, x) - sum_j c_j k_j^2) / precision`; the intercept adds `1 / (n precision)`.
    """
    kernel_square = kernel**2

    def one(draw):
        k = data.y[0].size
        precision, ratio = draw["precision"].reshape(1, k), draw["ratio"].reshape(1, k)
        shrunk = ratio / (1 + ratio * data.spectrum[:, None])  # [m, k]
        residual = (data.y - responses(network, draw["cores"], data.x)).reshape(-1, k)
        mean = responses(network, draw["cores"], x).reshape(-1, k) + kernel @ (shrunk * residual)
        left = ratio * jnp.maximum(own[:, None] - kernel_square @ shrunk, 0)
        return mean, (1 + 1 / (data.count + 1) + left) / precision

    return jax.lax.map(one, draws)
