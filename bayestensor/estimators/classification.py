"""Tensor classification: tensor covariates and class labels in; calibrated probabilities out."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from bayestensor.estimators.chains import agreed, run_chains, starts, warmed_up
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
    seed_of,
)
from bayestensor.estimators.remainder import build_remainder, check_remainder
from bayestensor.inference.draws import Draws
from bayestensor.models.augment import polya_gamma_mean
from bayestensor.models.coefficient import Coefficient
from bayestensor.models.compiled import closed_form, quick_jit
from bayestensor.models.logistic import Labelled, LogisticState, stick_probabilities, sweeps
from bayestensor.models.rows import CORRELATIONS
from bayestensor.tensor.design import responses
from bayestensor.tensor.network import Network

_BLOCK = 4_000_000  # log odds held at once


class TensorClassifier(ClassifierMixin, CoefficientEstimator):
    """Classes by stick breaking over `<X, W> + intercept + remainder(X)`: W a low-rank tensor, its rank learnt.

    The most frequent class is taken with probability `sigmoid(eta_1)`, if not it the second with `sigmoid(eta_2)`, and
    so on; of two classes, as in logistic regression, `classes_[1]` is. X holds one covariate tensor a datum, as
    (n, *shape) or flat as (n, p) with `shape`. W has the covariates' modes and, of more than two classes, one for the
    sticks.

    Args:
        format: name of the network of W, one of `bayestensor.FORMATS`.
        shape: of one covariate tensor, where X is flat.
        max_rank: largest size of each bond, a number or a mapping bond -> number, or 'auto'.
        prior: of the scales, or its name in `bayestensor.PRIORS`; `estimators.fitting.default_prior` when None.
        smooth: covariate modes whose neighbouring indices may resemble each other; see `TensorRegressor`.
        remainder: a Gaussian process on the log odds: 'linear', 'smooth', 'auto' or None; see `TensorRegressor`.
        inference: 'gibbs' (draws) or 'map' (the mode, by expectation maximisation).
        num_draws, burn_in: Gibbs sweeps of each chain that are kept, and before that dropped; more where the chains
            disagree, see `TensorRegressor`.
        chains: independent ones.
        random_state: a seed or a `numpy.random.RandomState`.

    Attributes:
        classes_: the labels, sorted.
        sticks_: the labels in the order in which they are taken.
        coef_: posterior mean of W, per unit of X.
        rank_, rank_posterior_: as `TensorRegressor` has them.
        draws_: `Draws` of cores, biases, remainder and its ratio, in the units of centred and scaled covariates.
        diagnostics_: seconds, R-hat of the predictions, kernel of the remainder, correlations of neighbours.
        n_features_in_: p.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TensorClassifier:
        """Learn W, intercepts and remainder.

        Args:
            X: covariates.
            y: labels.
            sample_weight: (n,): likelihoods are taken to this power. A datum of weight 2 is the same as that datum
                twice, one of weight 0 as none; weights need not be whole numbers.

        Raises:
            ValueError: X and y do not match, hold NaN or infinities, one class only (of data with a weight), negative
                weights, or a parameter that is none of its values.
        """
        began = time.perf_counter()
        check_plan(self)
        check_remainder(self.remainder)
        x, self.covariate_shape_ = read_covariates(self, X)
        labels, index = np.unique(self._checked_labels(x, y), return_inverse=True)
        x, number, weight = gathered(x, index[:, None].astype(float), sample_weight)
        place = self._order_labels(labels[number[:, 0].astype(int)], weight)
        self._x_units = covariate_units(x, weight)
        x = self._x_units.into(x)
        kappa = weight[:, None] * _kappa(place, len(self.classes_))
        indicators = np.eye(len(self.classes_))[place][:, :-1]
        indicators -= np.average(indicators, axis=0, weights=weight)
        self._remainder = build_remainder(self.remainder, x, indicators, weight)
        cols = kappa.shape[1:] if kappa.shape[1] > 1 else ()
        with closed_form():
            half = np.sqrt(weight)[:, None]
            self._bases = mode_bases(half * x, self.covariate_shape_)
            model, families = coefficient_model(self, self._bases, cols, len(x))
            rows = in_network(x, self.covariate_shape_, self._bases, model.network)
            basis = self._remainder.vectors * np.sqrt(self._remainder.spectrum) / half
            basis = basis if self._remainder.kind else np.zeros((len(x), 1))
            turned = kappa.reshape(-1, *model.network.shape[len(model.network.rows) :])
            arrays: Any = filled(rows), filled(turned), filled(basis, (0, 1)), families
            data = Labelled(*arrays)
            trace, counted, r_hat = self._run(model, data)
        self.network_ = model.network
        cores = {name: np.asarray(core) for name, core in trace.coefficient.cores.items()}
        self.draws_ = Draws({"cores": cores, "bias": trace.bias, "z": trace.z, "ratio": trace.ratio})
        self._summarise(trace, cols, counted, r_hat)
        self.diagnostics_["seconds"] = time.perf_counter() - began
        return self

    def _checked_labels(self, x: np.ndarray, y: Any) -> np.ndarray:
        from sklearn.utils.multiclass import check_classification_targets
        from sklearn.utils.validation import _check_y

        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        check_consistent_length(x, y)
        y = _check_y(y)
        check_classification_targets(y)
        return y

    def _order_labels(self, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The place of each label among the sticks."""
        self.classes_, index = np.unique(y, return_inverse=True)
        counts = np.bincount(index, weights=weight)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_[0]}; at least two classes are needed")
        self._order = np.argsort(-counts, kind="stable") if len(counts) > 2 else np.array([1, 0])
        self.sticks_ = self.classes_[self._order]
        return np.argsort(self._order)[index]

    def _run(self, model: Coefficient, data: Labelled) -> tuple[LogisticState, Any, dict[str, float]]:
        """(states, which indices count in each, R-hat)."""
        seed, chains = seed_of(self.random_state), self.chains if self.inference == "gibbs" else 1
        k = data.kappa.size // len(data.kappa)
        rest: Any = np.zeros((chains, k)), np.zeros((chains, data.basis.shape[1], k)), np.ones((chains, k))
        none: Any = np.zeros_like(data.basis)
        alone = replace(data, basis=none)
        first = LogisticState(starts(model, chains, seed), *rest)
        first, _ = warmed_up(self, partial(sweeps, model), seed, first, alone)
        first = first._replace(z=rest[1], ratio=rest[2])
        run = partial(run_chains, self, partial(sweeps, model), seed)

        def describe(trace):
            flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (trace.coefficient.cores, *trace[1:]))
            counted, fitted = _summary(model.network, flat, data)
            return counted, {"predictions": np.asarray(fitted).reshape(*trace.bias.shape[:2], *fitted.shape[1:])}

        trace = run(first, data, self.burn_in, self.num_draws)
        return agreed(self, lambda last, draws, at: run(last, data, 0, draws, first=at), trace, describe)

    def _summarise(self, trace: LogisticState, cols: tuple[int, ...], counted: Any, r_hat: Any) -> None:
        cores = self.draws_.flat()["cores"]
        weight = mean_coefficient(self.network_, cores).reshape(*[b.shape[1] for b in self._bases], *cols)
        self.coef_ = expand(weight, self._bases) / self._x_units.scale
        self.rank_posterior_ = rank_shares(counted)
        self.rank_ = most_frequent_rank(self.rank_posterior_)
        self.diagnostics_: dict[str, Any] = {
            "r_hat": r_hat,
            "remainder": (self._remainder.kind, self._remainder.length),
            "correlations": {k: float(CORRELATIONS[v].mean()) for k, v in trace.coefficient.member.items()},
        }

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each of `classes_` (n, classes): the mean over draws."""
        check_is_fitted(self)
        x, _ = read_covariates(self, X, self.covariate_shape_)
        x, flat = self._x_units.into(x), self.draws_.flat()
        size = max(1, _BLOCK // flat["bias"].size)
        probabilities = []
        for at in range(0, len(x), size):
            block = x[at : at + size]
            kernel, own = self._remainder.at(block)
            kernel = kernel if self._remainder.kind else np.zeros((len(block), 1))
            spectrum = self._remainder.spectrum if self._remainder.kind else np.zeros(1)
            rows = in_network(block, self.covariate_shape_, self._bases, self.network_)
            with jax.enable_x64(True):
                args = filled(rows), filled(kernel, (0, 1)), filled(own), filled(spectrum)
                eta = np.asarray(_log_odds(self.network_, flat, *args))[:, : len(block)]
            probabilities.append(stick_probabilities(eta).mean(axis=0))
        found = np.concatenate(probabilities)[:, np.argsort(self._order)]
        return found / found.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class."""
        probabilities = self.predict_proba(X)  # first: it says so where nothing is fitted
        return self.classes_[np.argmax(probabilities, axis=1)]

    def log_score(self, X: Any, y: Any) -> float:
        """Mean predictive log probability of the labels."""
        probabilities = self.predict_proba(X)
        place = np.searchsorted(self.classes_, y)
        known = place < len(self.classes_)
        if not known.all() or (self.classes_[place] != np.asarray(y)).any():
            raise ValueError(f"y holds labels that the fit has not seen; it had {self.classes_.tolist()}")
        return float(np.log(probabilities[np.arange(len(place)), place]).mean())


def _kappa(place: np.ndarray, classes: int) -> np.ndarray:
    """(n, sticks): 1/2 where the class is this one, -1/2 where it is a later one, 0 where it is an earlier one."""
    stick = np.arange(classes - 1)[None]
    return np.where(place[:, None] == stick, 0.5, -0.5) * (place[:, None] >= stick)


@partial(quick_jit, static_argnames="network")
def _summary(network: Network, draws: Any, data: Labelled):
    """Of each draw which indices count, and the probabilities of the sticks that were in question, else 0."""

    def one(draw):
        cores, bias, z, ratio = draw
        rest = bias[None] + data.basis @ (z * jnp.sqrt(ratio)[None])
        active = data.kappa != 0
        eta = responses(network, cores, data.x) + rest.reshape(data.kappa.shape)
        weight = 2 * jnp.abs(data.kappa) * polya_gamma_mean(eta)
        return standing_out(network, cores, data.x, weight), jnp.where(active, jax.nn.sigmoid(eta), 0.0)

    return jax.lax.map(one, draws)


@partial(quick_jit, static_argnames="network")
def _log_odds(network: Network, draws: Any, x, kernel, own, spectrum):
    """Log odds of the sticks in each draw [draw, n, stick], shrunk for what the remainder does not know at x.

    `E sigmoid(N(m, v)) ~ sigmoid(m / sqrt(1 + pi v / 8))` (MacKay, Neural Computation 4, 1992).
    """
    alive = spectrum > 0
    inverse = jnp.where(alive, 1 / jnp.where(alive, spectrum, 1.0), 0.0)
    weights = kernel * jnp.sqrt(inverse)[None]
    unknown = jnp.maximum(own - (kernel**2 * inverse[None]).sum(1), 0)

    def one(draw):
        ratio, k = draw["ratio"], draw["bias"].size
        mean = responses(network, draw["cores"], x).reshape(-1, k) + draw["bias"][None]
        mean = mean + weights @ (draw["z"] * jnp.sqrt(ratio)[None])
        return mean / jnp.sqrt(1 + jnp.pi / 8 * ratio[None] * unknown[:, None])

    return jax.lax.map(one, draws)
