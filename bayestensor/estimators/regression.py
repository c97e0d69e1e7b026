"""Tensor regression: tensor covariates and a scalar, vector or tensor response in; predictions with intervals out."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from sklearn.base import RegressorMixin

from bayestensor.estimators.chains import agreed, is_dear, portions, pruned, run_chains, starts, warmed_up
from bayestensor.estimators.coefficient import (
    CoefficientEstimator,
    check_plan,
    coefficient_model,
    mean_coefficient,
    rank_shares,
    standing_out,
)
from bayestensor.estimators.counting import most_frequent_rank
from bayestensor.estimators.covariates import (
    covariate_units,
    expand,
    filled,
    gathered,
    in_network,
    mode_bases,
    read_covariates,
    read_response,
    response_units,
    seed_of,
)
from bayestensor.estimators.left_out import left_out_density
from bayestensor.estimators.predictive import GaussianPredictive
from bayestensor.estimators.remainder import Remainder, build_remainder, check_remainder
from bayestensor.estimators.stacking import FEWEST, MOST, dealt, noise_given, stacked
from bayestensor.inference.draws import Draws
from bayestensor.models.coefficient import Coefficient, Family
from bayestensor.models.compiled import closed_form, quick_jit
from bayestensor.models.regression import Centred, RegressionState, share_left, sweeps
from bayestensor.models.rows import CORRELATIONS
from bayestensor.tensor.design import responses
from bayestensor.tensor.network import Network

_WATCHED = 32  # responses whose fitted values are compared between chains
_TRIAL = 50  # draws of the low rank alone by which it is compared
_OTHER = 2**29  # portions of these are numbered from here


class TensorRegressor(GaussianPredictive, RegressorMixin, CoefficientEstimator):
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
            kernels the one of highest evidence, if data left out are then better predicted than without; predictions
            then mix several kernels, weighed by cross-validated density (of 30 to 500 data; `estimators.stacking`).
        inference: 'gibbs' (draws) or 'map' (the mode; no uncertainty but noise and remainder).
        num_draws, burn_in: Gibbs sweeps of each chain that are kept, and before that dropped. Where the chains then
            disagree they run on, up to seven times num_draws in all, and thinned draws of the last run are kept.
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
        diagnostics_: seconds, R-hat of predictions and noise, kernel of the remainder that W was drawn with, kernels
            of the predictions (weight, kind, length) and by how much they narrow each response's standard deviations
            ("spread"), correlations of neighbours, share of independent responses.
        n_features_in_: p.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TensorRegressor:
        """Learn W, remainder and noise.

        Args:
            X: covariates.
            y: responses.
            sample_weight: (n,): likelihoods are taken to this power. A datum of weight 2 is the same as that datum
                twice, one of weight 0 as none: the precision of its noise is multiplied by the weight, and the noise
                has as many degrees of freedom as the weights' sum, less one. Whole numbers above 1 thus say that
                measurements agree exactly, and where a remainder can follow them all the noise goes to 0. Where
                weights are relative precisions rather than counts, give them with mean 1.

        Raises:
            ValueError: X and y do not match, hold NaN or infinities, fewer than 2 data, weights that are negative or
                sum to 1 or less, or a parameter that is none of its values.
        """
        began = time.perf_counter()
        check_plan(self)
        check_remainder(self.remainder)
        x, self.covariate_shape_ = read_covariates(self, X)
        y = read_response(y, len(x))
        self.response_shape_ = y.shape[1:]
        x, flat_y, weight = gathered(x, y.reshape(len(y), -1), sample_weight)
        if sample_weight is not None and not weight.sum() > 1:
            advice = "a weight is how many data one stands for; where they are relative, divide them by their mean"
            raise ValueError(f"the sample weights sum to {weight.sum():.3g}; more than 1 is needed: {advice}")
        self._x_units, self._y_units = covariate_units(x, weight), response_units(flat_y, weight)
        x, flat_y = self._x_units.into(x), self._y_units.into(flat_y)
        self._remainder = build_remainder(self.remainder, x, flat_y, weight)
        with closed_form():
            self._bases = mode_bases(np.sqrt(weight)[:, None] * x, self.covariate_shape_)
            cols = tuple(n for n in self.response_shape_ if n > 1)  # a column is the same fit as a vector
            model, families = coefficient_model(self, self._bases, cols, len(x))
            self._data = self._centred(self._remainder, x, flat_y, model.network, families)
            trace, counted, r_hat, left_out = self._run(model, flat_y)
        self.draws_ = _as_draws(trace)
        self._summarise(trace, counted, r_hat)
        self._deal(x, flat_y, families)
        self.diagnostics_["left_out_density"] = left_out
        self.diagnostics_["seconds"] = time.perf_counter() - began
        return self

    def _run(
        self, model: Coefficient, y: np.ndarray
    ) -> tuple[RegressionState, Any, dict[str, float], dict[str, float]]:
        """(states, which indices count, R-hat, left-out log density with and without the remainder)."""
        model, first = self._start(model)
        self.network_ = model.network
        run = partial(run_chains, self, partial(sweeps, model), seed_of(self.random_state))
        left_out: dict[str, float] = {}
        if self.remainder == "auto" and self.inference == "gibbs":
            trace, left_out = self._compared(run, first, y)
        else:
            trace = run(first, self._data, self.burn_in, self.num_draws)

        def more(last: RegressionState, draws: int, at: int) -> RegressionState:
            return run(last, self._data, 0, draws, first=at)

        return *agreed(self, more, trace, self._described), left_out

    def _compared(self, run: Any, first: RegressionState, y: np.ndarray) -> tuple[RegressionState, dict[str, float]]:
        """With or without the remainder: states with the higher left-out log density, and both densities."""
        data, few = {"with": self._data, "without": _alone(self._data)}, min(_TRIAL, self.num_draws)
        plans = {"with": (self.burn_in, 0), "without": (self.burn_in // 2, _OTHER)}  # W stood alone in its warm-up
        traces = {name: run(first, data[name], burn_in, few, first=at) for name, (burn_in, at) in plans.items()}
        found = {}
        for name, t in traces.items():
            density = left_out_density(self.network_, _flat(t), data[name], self._remainder, y)
            found[name] = float(np.average(density, weights=self._remainder.half**2))
        chosen = max(found, key=lambda name: found[name])
        if chosen == "without":
            self._remainder = replace(self._remainder, kind=None, spectrum=0 * self._remainder.spectrum, length=0.0)
        self._data, trace, (burn_in, at) = data[chosen], traces[chosen], plans[chosen]
        last, at = jax.tree.map(lambda a: a[:, -1], trace), at + portions(burn_in + few)
        if chosen == "without":  # its burn-in was short: the draws that were compared are the rest of it
            return run(last, self._data, 0, self.num_draws, first=at), found
        if self.num_draws > few:
            more = run(last, self._data, 0, self.num_draws - few, first=at)
            trace = jax.tree.map(lambda *a: np.concatenate(a, axis=1), trace, more)
        return trace, found

    def _start(self, model: Coefficient) -> tuple[Coefficient, RegressionState]:
        """The low rank warmed up alone, of smaller rank where its systems of equations are large."""
        seed, chains = seed_of(self.random_state), self.chains if self.inference == "gibbs" else 1
        k = (chains, *self._data.y.shape[1:])
        noise: tuple[Any, Any] = np.full(k, 2.0), np.zeros(k)
        first = RegressionState(starts(model, chains, seed), *noise)
        none = first.coefficient._replace(cores=jax.tree.map(np.zeros_like, first.coefficient.cores))
        alone = _alone(self._shared(model, first._replace(coefficient=none)))
        first, trace = warmed_up(self, partial(sweeps, model), seed, first, alone)
        first = first._replace(ratio=noise[1])
        self._data = self._shared(model, first)
        if trace is not None and is_dear(model, len(alone.y)):
            counted, _ = _summary(model.network, _flat(trace), alone)
            model, coefficient = pruned(model, first.coefficient, counted)
            first = first._replace(coefficient=coefficient)
        return model, first

    def _shared(self, model: Coefficient, states: RegressionState) -> Centred:
        """The data with the share of independent responses that these W leave; 1 of a single response."""
        if self._y_units.mean.size == 1:
            return self._data
        share: Any = np.asarray(share_left(model, states, self._data))
        return replace(self._data, share=share)

    def _deal(self, x: np.ndarray, y: np.ndarray, families: dict[str, Family]) -> None:
        """Where 'auto' keeps a remainder, draws dealt to several kernels: W stays, noise and ratio are drawn anew."""
        flat, seed = self.draws_.flat(), seed_of(self.random_state)
        noise = {name: np.array(flat[name]) for name in ("precision", "ratio")}
        several = self.remainder == "auto" and self.inference == "gibbs" and self._remainder.kind is not None
        kernels: list[tuple[float, Remainder]] = []
        self._spread = np.ones(y.shape[1])
        if several and FEWEST <= len(x) <= MOST:
            kernels, self._spread = stacked(x, y, self._remainder.half**2)
        hands = dealt([weight for weight, _ in kernels], len(noise["ratio"]))
        self._members = [] if kernels else [([slice(None)], self._remainder, self._data)]
        for k, ((_, remainder), mine) in enumerate(zip(kernels, hands, strict=True)):
            if not mine:
                continue
            data, at = self._centred(remainder, x, y, self.network_, families), np.concatenate(mine)
            with jax.enable_x64(True):
                found = noise_given(self.network_, seed, 3 * _OTHER + k, flat["cores"], data)
            for name, values in zip(noise, found, strict=True):
                noise[name][at] = np.asarray(values)[at]
            self._members.append((mine, remainder, data))
        shaped = {name: a.reshape(*self.draws_.shape, *a.shape[1:]) for name, a in noise.items()}
        self.draws_ = Draws({"cores": self.draws_.positions["cores"]} | shaped)
        variance = np.mean(1 / noise["precision"], axis=0).reshape(-1)
        self.noise_ = _plain((np.sqrt(variance) * self._y_units.scale).reshape(self.response_shape_))
        found = kernels or [(1.0, self._remainder)]
        self.diagnostics_["spread"] = self._spread.tolist()
        self.diagnostics_["kernels"] = [(weight, kernel.kind, float(kernel.length)) for weight, kernel in found]

    def _centred(
        self, remainder: Remainder, x: np.ndarray, y: np.ndarray, network: Network, families: dict[str, Family]
    ) -> Centred:
        """The data in the eigenvectors of the remainder's kernel."""
        vectors, x, y = remainder.vectors, remainder.half[:, None] * x, remainder.half[:, None] * y
        turned, cols = vectors.T @ y, network.shape[len(network.rows) :]
        lost = np.maximum((y**2).sum(axis=0) - (turned**2).sum(axis=0), 0)
        if remainder.kind is None and len(vectors) == vectors.shape[1]:
            lost = np.zeros_like(lost)  # nothing was lost: the vectors are the identity
        arrays: Any = (
            filled(in_network(vectors.T @ x, self.covariate_shape_, self._bases, network)),
            filled(turned.reshape(-1, *cols)),
            filled(remainder.spectrum),
            lost.reshape(cols),
            np.asarray((remainder.half**2).sum() - 1),
            np.asarray(1.0),
            families,
        )
        return Centred(*arrays)

    def _described(self, trace: RegressionState) -> tuple[Any, dict[str, np.ndarray]]:
        """Which indices count in each draw, and what chains must agree about."""
        flat, shape = _flat(trace), trace.precision.shape[:2]
        counted, fitted = _summary(self.network_, flat, self._data)
        by_chain = {"predictions": np.asarray(fitted), "noise": -0.5 * np.log(flat["precision"])}
        return counted, {name: a.reshape(*shape, *a.shape[1:]) for name, a in by_chain.items()}

    def _summarise(self, trace: RegressionState, counted: Any, r_hat: dict[str, float]) -> None:
        flat = self.draws_.flat()
        shape, k = (*self.covariate_shape_, *self.response_shape_), self._y_units.mean.size
        weight = mean_coefficient(self.network_, flat["cores"]).reshape(*[b.shape[1] for b in self._bases], k)
        weight = expand(weight, self._bases).reshape(-1, k) * (self._y_units.scale / self._x_units.scale)
        self.coef_ = weight.reshape(shape)
        self.intercept_ = _plain((self._y_units.mean - self._x_units.mean @ weight).reshape(self.response_shape_))
        self.rank_posterior_ = rank_shares(counted)
        self.rank_ = most_frequent_rank(self.rank_posterior_)
        self.diagnostics_: dict[str, Any] = {
            "r_hat": r_hat,
            "remainder": (self._remainder.kind, self._remainder.length),
            "correlations": {k: float(CORRELATIONS[v].mean()) for k, v in trace.coefficient.member.items()},
            "independent_share": float(self._data.share),
        }

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
    none: Any = np.zeros_like(data.spectrum)
    return replace(data, spectrum=none)


def _as_draws(trace: RegressionState) -> Draws:
    cores = {name: np.asarray(core) for name, core in trace.coefficient.cores.items()}
    return Draws({"cores": cores, "precision": np.asarray(trace.precision), "ratio": np.asarray(trace.ratio)})


def _flat(trace: RegressionState) -> Any:
    """All draws of all chains along one axis, named as `Draws` names them."""
    return _as_draws(trace).flat()


def _plain(value: np.ndarray) -> Any:
    return float(value) if value.ndim == 0 else value
