"""Tensor regression: tensor covariates and a scalar, vector or tensor response in; predictions with intervals out."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted

from bayestensor.estimators.coefficient import (
    CoefficientEstimator,
    check_mixing,
    check_plan,
    coefficient_model,
    mean_coefficient,
    rank_shares,
    run_chains,
    standing_out,
    starts,
    warmed_up,
)
from bayestensor.estimators.counting import most_frequent_rank
from bayestensor.estimators.covariates import (
    covariate_units,
    expand,
    filled,
    in_network,
    mode_bases,
    read_covariates,
    response_units,
    seed_of,
)
from bayestensor.estimators.left_out import left_out_density
from bayestensor.estimators.remainder import build_remainder, check_remainder
from bayestensor.inference.draws import Draws
from bayestensor.metrics.regression import mixture_interval
from bayestensor.models.coefficient import Coefficient, Family
from bayestensor.models.compiled import quick_jit
from bayestensor.models.regression import Centred, RegressionState, share_left, sweeps
from bayestensor.models.rows import CORRELATIONS
from bayestensor.tensor.design import responses
from bayestensor.tensor.network import Network

_WATCHED = 32  # responses whose fitted values are compared between chains
_BLOCK = 4_000_000  # predictive means held at once
_TRIAL = 50  # draws of the low rank alone by which it is compared
_OTHER = 2**29  # portions of these are numbered from here
_MEMBERS = 100  # draws whose mixture gives the intervals: each is a Gaussian that knows noise and remainder


class TensorRegressor(RegressorMixin, CoefficientEstimator):
    """`y = intercept + <X, W> + remainder(X) + noise`: W a low-rank tensor whose rank, scale and smoothness are learnt.

    X holds one covariate tensor a datum, as (n, *shape) or flat as (n, p) with `shape`; y is (n,), (n, k) or a tensor
    (n, ...). W has the covariates' modes and then the response's. The remainder is a Gaussian process, independent for
    each response, for what no low rank reaches; its variance is learnt with the noise (and can be 0).

    Args:
        format: name of the network of W, one of `bayestensor.FORMATS`.
        shape: of one covariate tensor, where X is flat.
        max_rank: largest size of each bond, a number or a mapping bond -> number, or 'auto'.
        prior: of the scales, or its name in `bayestensor.PRIORS`; `estimators.fitting.default_prior` when None.
        smooth: covariate modes whose neighbouring indices may resemble each other; 'auto' for every one of size 3 or
            more, because a correlation of 0 is among the values that are learnt; () for none.
        remainder: 'linear' (a dense coefficient), 'smooth' (a squared-exponential kernel), None, or 'auto': of the
            kernels the one of highest evidence, if data left out are then better predicted than without.
        inference: 'gibbs' (draws) or 'map' (the mode; no uncertainty but noise and remainder).
        num_draws, burn_in: Gibbs sweeps of each chain that are kept, and before that dropped.
        chains: independent ones.
        random_state: a seed or a `numpy.random.RandomState`.

    Attributes:
        coef_: posterior mean of W, in the units of y per unit of X.
        intercept_: the response at the mean of X under W alone is `intercept_ + <mean X, coef_>`.
        rank_: the most frequent rank, an int for one bond, else bond -> int. A rank counts the indices that stand out
            from the noise (see `estimators.coefficient.standing_out`).
        rank_posterior_: bond -> share of the draws with rank 0, 1, 2, ...
        noise_: posterior root mean square of the noise, in the units of y, one number a response.
        draws_: `Draws` of cores, noise precisions and ratios, in the units of centred and scaled data.
        diagnostics_: seconds, R-hat of predictions and noise, kernel of the remainder, correlations of
            neighbours, share of independent responses.
        n_features_in_: p.
    """

    def fit(self, X: Any, y: Any) -> TensorRegressor:
        """Learn W, remainder and noise.

        Raises:
            ValueError: X and y do not match, hold NaN or infinities, fewer than 2 data, or a parameter that is none of
                its values.
        """
        began = time.perf_counter()
        check_plan(self)
        check_remainder(self.remainder)
        x, self.covariate_shape_ = read_covariates(self, X)
        y = self._read_response(y, len(x))
        self.response_shape_ = y.shape[1:]
        flat_y = y.reshape(len(y), -1)
        self._x_units, self._y_units = covariate_units(x), response_units(flat_y)
        x, flat_y = self._x_units.into(x), self._y_units.into(flat_y)
        self._remainder = build_remainder(self.remainder, x, flat_y)
        with jax.enable_x64(True):
            self._bases = mode_bases(x, self.covariate_shape_)
            cols = tuple(n for n in self.response_shape_ if n > 1)  # a column is the same fit as a vector
            model, families = coefficient_model(self, self._bases, cols, len(x))
            data = self._centred(x, flat_y, model.network, families)
            self._data = jax.tree.map(np.asarray, data)  # JAX's own would come out of a pickle with 32 bits
            self.network_ = model.network
            trace, left_out = self._run(model, flat_y)
        self.draws_ = _as_draws(trace)
        self._summarise(trace)
        self.diagnostics_["left_out_density"] = left_out
        self.diagnostics_["seconds"] = time.perf_counter() - began
        return self

    def _run(self, model: Coefficient, y: np.ndarray) -> tuple[RegressionState, dict[str, float]]:
        """(states, left-out log density with and without the remainder): of 'auto', those with the higher density."""
        seed, chains = seed_of(self.random_state), self.chains if self.inference == "gibbs" else 1
        k, moves = (chains, *self._data.y.shape[1:]), partial(sweeps, model)
        first = RegressionState(starts(model, chains, seed), jnp.asarray(np.full(k, 2.0)), jnp.asarray(np.zeros(k)))
        none = jax.tree.map(jnp.zeros_like, first.coefficient.cores)
        data = self._shared(model, first._replace(coefficient=first.coefficient._replace(cores=none)))
        first = warmed_up(self, moves, seed, first, _alone(data))._replace(ratio=first.ratio)
        self._data = self._shared(model, first)
        run = partial(run_chains, self, moves, seed)
        trace = run(first, self._data, self.burn_in, self.num_draws)
        if self.remainder != "auto" or self.inference != "gibbs":
            return trace, {}
        alone = _alone(self._data)
        trial = run(first, alone, self.burn_in // 2, min(_TRIAL, self.num_draws), first=_OTHER)
        found = {
            name: float(left_out_density(model.network, _as_draws(t).flat(), data, self._remainder.vectors, y).mean())
            for name, t, data in (("with", trace, self._data), ("without", trial, alone))
        }
        if found["without"] > found["with"]:
            self._data = jax.tree.map(np.asarray, alone)
            self._remainder = replace(self._remainder, kind=None, spectrum=0 * self._remainder.spectrum, length=0.0)
            trace = run(jax.tree.map(lambda a: a[:, -1], trial), alone, 0, self.num_draws, first=2 * _OTHER)
        return trace, found

    def _shared(self, model: Coefficient, states: RegressionState) -> Centred:
        """The data with the share of independent responses that these W leave; 1 of a single response."""
        if self._y_units.mean.size == 1:
            return self._data
        return replace(self._data, share=np.asarray(share_left(model, states, self._data)))

    def _centred(self, x: np.ndarray, y: np.ndarray, network: Network, families: dict[str, Family]) -> Centred:
        """The data in the eigenvectors of the remainder's kernel."""
        vectors = self._remainder.vectors
        turned, cols = vectors.T @ y, network.shape[len(network.rows) :]
        lost = np.maximum((y**2).sum(axis=0) - (turned**2).sum(axis=0), 0)
        if self._remainder.kind is None and len(vectors) == vectors.shape[1]:
            lost = np.zeros_like(lost)  # nothing was lost: the vectors are the identity
        arrays = (
            filled(in_network(vectors.T @ x, self.covariate_shape_, self._bases, network)),
            filled(turned.reshape(-1, *cols)),
            filled(self._remainder.spectrum),
            lost.reshape(cols),
            np.asarray(len(x) - 1.0),
            np.asarray(1.0),
        )
        x_, y_, spectrum, lost_, count, share = map(jnp.asarray, arrays)
        return Centred(x_, y_, spectrum, lost_, count, share, families)

    def _summarise(self, trace: RegressionState) -> None:
        flat = self.draws_.flat()
        shape, k = (*self.covariate_shape_, *self.response_shape_), self._y_units.mean.size
        weight = mean_coefficient(self.network_, flat["cores"]).reshape(*[b.shape[1] for b in self._bases], k)
        weight = expand(weight, self._bases).reshape(-1, k) * (self._y_units.scale / self._x_units.scale)
        self.coef_ = weight.reshape(shape)
        self.intercept_ = _plain((self._y_units.mean - self._x_units.mean @ weight).reshape(self.response_shape_))
        variance = np.mean(1 / flat["precision"], axis=0).reshape(-1)
        self.noise_ = _plain((np.sqrt(variance) * self._y_units.scale).reshape(self.response_shape_))
        with jax.enable_x64(True):
            counted, fitted = _summary(self.network_, flat, self._data)
        self.rank_posterior_ = rank_shares(counted)
        self.rank_ = most_frequent_rank(self.rank_posterior_)
        by_chain = {"predictions": np.asarray(fitted), "noise": -0.5 * np.log(flat["precision"])}
        shape = self.draws_.shape
        self.diagnostics_: dict[str, Any] = {
            "r_hat": check_mixing(self, {name: a.reshape(*shape, *a.shape[1:]) for name, a in by_chain.items()}),
            "remainder": (self._remainder.kind, self._remainder.length),
            "correlations": {k: float(CORRELATIONS[v].mean()) for k, v in trace.coefficient.member.items()},
            "independent_share": float(self._data.share),
        }

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

    def _predictive(self, X: Any):
        """Blocks of data: (means, variances) of new responses, [draw, datum, response], in the units of the fit."""
        check_is_fitted(self)
        x, _ = read_covariates(self, X, self.covariate_shape_)
        x = self._x_units.into(x)
        flat, k = self.draws_.flat(), self._y_units.mean.size
        size = max(1, _BLOCK // (len(flat["precision"]) * k))
        for at in range(0, len(x), size):
            block = x[at : at + size]
            kernel, own = self._remainder.at(block)
            rows = in_network(block, self.covariate_shape_, self._bases, self.network_)
            few = partial(filled, step=min(size, 32))  # data at once, of many responses
            with jax.enable_x64(True):
                args = map(jnp.asarray, (few(rows), filled(few(kernel), (1,)), few(own)))
                found = _predictive(self.network_, flat, self._data, *args)
            yield tuple(np.asarray(a).reshape(len(a), -1, k)[:, : len(block)] for a in found)

    def _to_response(self, values: np.ndarray, shift: float = 1.0) -> np.ndarray:
        return (values * self._y_units.scale + shift * self._y_units.mean).reshape(-1, *self.response_shape_)

    def _read_response(self, y: Any, n: int) -> np.ndarray:
        from sklearn.utils.validation import _check_y, check_consistent_length

        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        y = y if hasattr(y, "shape") else np.asarray(y)
        axes = y.shape
        flat = _check_y(np.asarray(y).reshape(axes[0], -1) if len(axes) > 2 else y, multi_output=True, y_numeric=True)
        check_consistent_length(np.empty(n), flat)
        return np.asarray(flat, np.float64).reshape(axes)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


@partial(quick_jit, static_argnames="network")
def _summary(network: Network, draws: Any, data: Centred):
    """Of each draw which indices count, and the fitted responses of low rank and remainder together.

    In the eigenvectors of the remainder's kernel the latter is `(eta_j + ratio s_j y_j) / (1 + ratio s_j)`.
    """

    def one(draw):
        gain = draw["ratio"][None] * data.spectrum.reshape(-1, *[1] * draw["ratio"].ndim)
        eta = responses(network, draw["cores"], data.x)
        fitted = ((eta + gain * data.y) / (1 + gain)).reshape(len(eta), -1)
        counted = standing_out(network, draw["cores"], data.x, data.share * draw["precision"][None] / (1 + gain))
        return counted, fitted[:, :: -(-fitted.shape[1] // _WATCHED)]

    return jax.lax.map(one, draws)


def _alone(data: Centred) -> Centred:
    """The data of the low rank without a remainder."""
    return replace(data, spectrum=jnp.zeros_like(jnp.asarray(data.spectrum)))


def _as_draws(trace: RegressionState) -> Draws:
    cores = {name: np.asarray(core) for name, core in trace.coefficient.cores.items()}
    return Draws({"cores": cores, "precision": np.asarray(trace.precision), "ratio": np.asarray(trace.ratio)})


def _plain(value: np.ndarray) -> Any:
    return float(value) if value.ndim == 0 else value


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
