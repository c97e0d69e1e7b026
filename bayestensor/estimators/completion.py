"""Tensor completion: data with holes in, the completed tensor, intervals and ranks out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from bayestensor.estimators import inputs
from bayestensor.estimators.counting import most_frequent_rank
from bayestensor.estimators.fitting import Plan, closed_form_fit, default_sweeps
from bayestensor.estimators.held_out import conformal_quantile, format_scores, held_out, normalised_residuals, part
from bayestensor.estimators.networks import default_network
from bayestensor.estimators.prediction import Posterior
from bayestensor.estimators.residuals import fitted_degrees
from bayestensor.inference.draws import Draws
from bayestensor.metrics.regression import checked_level, rrse
from bayestensor.models.augment import DEGREES_OF_FREEDOM, DISCRETE, LIKELIHOODS
from bayestensor.models.compiled import closed_form
from bayestensor.priors import ScalePrior, named_prior

_INFERENCE = ("gibbs", "variational", "map")


class TensorCompletion(BaseEstimator):
    """A low-rank tensor behind noisy, incomplete observations; its rank, noise and smoothness are learnt.

    `y = X[x] + effects + noise`, X a tensor network whose bonds carry shrinkage scales. Where the rows of a factor
    resemble their neighbours (time, wavelengths, pixels), that is learnt too, mode by mode (see `models.conjugate`).

    Args:
        format: name of the network, one of `bayestensor.FORMATS`; 'auto' for the one of cp, tucker and tensor_train
            that gives a held-out tenth of the entries the highest density (four fits in all).
        max_rank: largest size of each bond, a number or a mapping bond -> number; 'auto' from the shape and the number
            of observations. Above 1,024 unknowns of a row a core is drawn block by block (see `models.blocks`).
        prior: of the scales, or its name in `bayestensor.PRIORS`; `estimators.fitting.default_prior` when None.
        smooth: modes whose neighbouring indices may resemble each other; 'auto' lets every mode of size 3 or more,
            because a correlation of 0 is among the values that are learnt; () for none.
        likelihood: 'gaussian' (entries weigh alike in the fit; predictions have the residuals' tails, see `noise_df_`);
            'student_t' (4 degrees of freedom: outliers weigh little, where they pull the tensor); 'bernoulli' (values 0
            and 1: the network is the log odds, and predictions are probabilities); 'poisson' (counts: the network is
            the log rate, predictions are rates and intervals those of counts; see `models.augment` for its
            approximation; of counts in the millions take logarithms instead, because the sweeps get there slowly).
        noise_by: mode whose every index has a noise scale of its own, its number (sensors, bands; see `models.noise`),
            for 'gaussian' and 'gibbs'; None for one scale.
        effects: modes whose every index has an offset of its own, shrunk and learnt (users, items, times), around a
            constant; 'auto' for all modes, () for none. Answers and counts have the constant in any case.
        side: mode -> features of its indices, an array (size of the mode, any number): rows of that mode's factor lie
            around a shrunk linear map of them, so that a slice without an observation is predicted from its features
            (see `models.side`); in place of `smooth` for that mode. None for none.
        conformal: share of the observed entries that the fit leaves out, for `conformal_interval`; 0 for none.
        conformal_by: what is left out: 'random' entries, or whole fibres along a mode (its number).
        inference: 'gibbs' (draws, the only one whose intervals hold the whole posterior), 'variational' (mean field:
            quick, its intervals too narrow), 'map' (no uncertainty but the noise).
        num_draws, burn_in: Gibbs sweeps that are kept, of all chains together, and of each before that dropped; 'auto'
            for 100 and 60 (of CP fewer, once the noise's scale has stopped moving), in proportion fewer above a million
            entries in a list (see `fitting.default_sweeps`).
        chains: Gibbs chains, each from a start of its own (fewer where other starts are much worse than the best; all
            from one, found by the spectrum, where the entries are a long list); 'auto' for up to four, where they are
            cheap.
        warm_up: mean-field sweeps that find the basin and the rank.
        random_state: a seed or a `numpy.random.RandomState`.
        verbose: whether to show how far a fit has come, and the time left.

    Attributes:
        rank_: the most frequent rank, an int for one bond, else bond -> int. A rank counts the indices whose part of
            the tensor is above 1e-3 of it and stands out from the noise (see `estimators.counting`).
        rank_posterior_: bond -> share of the draws with rank 0, 1, 2, ...
        factors_: core name -> array, of the first chain's last draw (of the mean, for 'variational' and 'map').
        noise_: posterior mean of the noise's scale (its standard deviation for 'gaussian'), in the units of the data;
            with `noise_by` one an index of that mode.
        noise_df_: degrees of freedom of Student's t, the law of an observation in `predict_interval` and `score`;
            infinite: normal. With 'gaussian' read off the residuals of the fit (see `estimators.residuals`).
        effects_: mode -> posterior mean of its offsets, and 'constant', in the data's units (or log odds, log rates).
        residuals_: with `conformal`, `|y - mean| / sd` of the entries left out, ascending.
        draws_: `Draws` with positions `{"cores": ..., "effects": ...}` in the units of the data divided by `scale_`.
        diagnostics_: seconds, sweeps, ranks on the way, correlations of neighbours, slices without an observation.
    """

    def __init__(
        self,
        format: str = "cp",
        max_rank: Any = "auto",
        prior: ScalePrior | str | None = None,
        smooth: Any = "auto",
        likelihood: str = "gaussian",
        noise_by: int | None = None,
        effects: Any = (),
        side: Any = None,
        conformal: float = 0.0,
        conformal_by: Any = "random",
        inference: str = "gibbs",
        num_draws: Any = "auto",
        burn_in: Any = "auto",
        chains: Any = "auto",
        warm_up: int = 60,
        random_state: Any = None,
        verbose: bool = False,
    ):
        self.format = format
        self.max_rank = max_rank
        self.prior = prior
        self.smooth = smooth
        self.likelihood = likelihood
        self.noise_by = noise_by
        self.effects = effects
        self.side = side
        self.conformal = conformal
        self.conformal_by = conformal_by
        self.inference = inference
        self.num_draws = num_draws
        self.burn_in = burn_in
        self.chains = chains
        self.warm_up = warm_up
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self, X: Any, y: Any = None, shape: Sequence[int] | None = None, sample_weight: Any = None
    ) -> TensorCompletion:
        """Learn from the observed entries.

        Args:
            X: a tensor with holes (see `estimators.inputs.read`), or coordinates (n, modes) with `y`.
            y: values (n,) at the coordinates.
            shape: of the whole tensor, with coordinates.
            sample_weight: of the values: an entry's noise variance is `noise_^2 / weight`. An array of the tensor's
                shape, or one number a row of coordinates or of a table; 'gaussian' only.

        Raises:
            ValueError: see `read`; or a parameter that is none of its values.
        """
        self._check()
        given = inputs.read(X, y, shape)
        by = self.noise_by
        if by is not None and (isinstance(by, bool) or by not in range(len(given.shape))):
            raise ValueError(f"noise_by is {by!r}; None or a mode from 0 to {len(given.shape) - 1} is needed")
        if sample_weight is not None:
            if self.likelihood != "gaussian" or self.conformal:
                raise ValueError("sample_weight goes with likelihood 'gaussian' and without conformal")
            given = inputs.weighted(given, X, sample_weight)
        _check_values(self.likelihood, given.values)
        seed = check_random_state(self.random_state).randint(2**31)
        scores = format_scores(self, given, seed) if self.format == "auto" else {}
        self.format_ = max(scores, key=scores.__getitem__) if scores else self.format
        whole = given
        if self.conformal:
            rows = held_out(whole, self.conformal, self.conformal_by, seed)
            given = part(whole, ~rows)
        discrete = self.likelihood in DISCRETE
        self.scale_ = 1.0 if discrete else _root_mean_square(given.values)
        network = default_network(self.format_, given.shape, len(given.values), self.max_rank)
        draws, burn_in = default_sweeps(given)
        draws = draws if self.num_draws == "auto" else self.num_draws
        burn_in = burn_in if self.burn_in == "auto" else self.burn_in
        as_they_are = {
            name: getattr(self, name)
            for name in ("smooth", "inference", "warm_up", "chains", "likelihood", "effects", "side", "noise_by")
        }
        plan = Plan(
            prior=named_prior(self.prior),
            num_draws=draws,
            burn_in=burn_in,
            early=self.burn_in == "auto",
            verbose=self.verbose,
            **as_they_are,
        )
        with closed_form():
            fit = closed_form_fit(network, given, given.values / self.scale_, plan, np.random.default_rng(seed))
        self._given = given
        self.network_ = fit.network
        self.draws_ = Draws({"cores": fit.cores, "effects": fit.effects}, {"noise": fit.noise})
        self.factors_ = {name: core[0, -1] for name, core in fit.cores.items()}
        self.effects_ = {name: row.mean(axis=(0, 1)) * self.scale_ for name, row in fit.effects.items()}
        noise = np.sqrt(np.mean(fit.noise**2, axis=(0, 1))) * self.scale_
        self.noise_ = math.nan if discrete else noise if noise.ndim else float(noise)
        self.noise_df_ = math.nan if discrete else DEGREES_OF_FREEDOM
        if self.likelihood == "gaussian":
            self.noise_df_ = fitted_degrees(fit, given, given.values / self.scale_, self.noise_by)
        self.rank_posterior_ = fit.rank_posterior
        self.rank_ = most_frequent_rank(fit.rank_posterior)
        self.diagnostics_ = fit.diagnostics | {"empty_slices": given.empty_slices(), "formats": scores}
        if self.conformal:
            self.residuals_ = normalised_residuals(self, part(whole, rows))
        return self

    def predict(self, X: Any = None, return_std: bool = False) -> Any:
        """Posterior mean of the tensor: all of it, or at coordinates (n, modes), or at the rows of a table.

        With `return_std` also the standard deviation of an observation there, its noise included.
        """
        posterior, coords = self._posterior(X)
        mean, variance = posterior.moments(coords)
        if not return_std:
            return self._out(mean, X)
        return self._out(mean, X), self._out(np.sqrt(posterior.observed(mean, variance, coords)), X)

    def predict_interval(self, level: float = 0.9, X: Any = None) -> tuple[Any, Any]:
        """(lower, upper): the quantiles between which an observation lies with probability `level`, entry by entry.

        For 'bernoulli' those between which the probability lies, for 'poisson' counts, both ends included.

        Raises:
            ValueError: a level outside (0, 1).
        """
        checked_level(level)
        posterior, coords = self._posterior(X)
        lower, upper = posterior.quantiles((0.5 - 0.5 * level, 0.5 + 0.5 * level), coords)
        return self._out(lower, X), self._out(upper, X)

    def conformal_interval(self, level: float = 0.9, X: Any = None) -> tuple[Any, Any]:
        """(lower, upper): `mean -+ q sd`, q the level's quantile of `residuals_` (split conformal prediction).

        An observation lies inside with probability `level` or more, whether or not the model is right, as long as it is
        exchangeable with the entries (or fibres, see `conformal_by`) that were left out; on average over entries, not
        for each of them.

        Raises:
            ValueError: fitted without `conformal`, a level outside (0, 1), or too few entries left out for it.
        """
        check_is_fitted(self)
        if not self.conformal:
            raise ValueError("conformal is 0: no entries were left out; fit with conformal=0.1 or so")
        checked_level(level)
        mean, sd = self.predict(X, return_std=True)
        half = conformal_quantile(self.residuals_, level) * sd
        lower = mean - half
        return lower.clip(0) if self.likelihood == "poisson" else lower, mean + half

    def sample(self, n: int = 1, X: Any = None) -> np.ndarray:
        """`n` posterior draws of the tensor (without noise; of probabilities, of rates), along a new first axis."""
        posterior, coords = self._posterior(X)
        total = len(posterior.noise)
        picked = np.arange(n) * total // n if n <= total else np.arange(n) % total
        cores, effects = ({k: v[picked] for k, v in drawn.items()} for drawn in (posterior.cores, posterior.effects))
        chosen = posterior._replace(cores=cores, effects=effects, noise=posterior.noise[picked])
        return chosen.draws(coords) * self.scale_

    def score(self, X: Any, y: Any = None) -> float:
        """Mean predictive log density of observed entries: of a tensor with holes, or at coordinates with values."""
        posterior, held = self._held(X, y)
        density = posterior.log_density(held.values / self.scale_, held.coords)
        return float(np.mean(density) - math.log(self.scale_))

    def rrse(self, X: Any, y: Any = None) -> float:
        """`||prediction - y|| / ||y||` over observed entries of a tensor with holes, or at coordinates with values."""
        posterior, held = self._held(X, y)
        return rrse(posterior.moments(held.coords)[0] * self.scale_, held.values)

    def _posterior(self, X: Any) -> tuple[Posterior, np.ndarray | None]:
        check_is_fitted(self)
        flat, noise = self.draws_.flat(), self.draws_.stats["noise"]
        noise = noise.reshape(-1, *noise.shape[2:])
        by = None if self.noise_by is None else self.network_.modes[self.noise_by]
        law = self.likelihood, by, self.noise_df_ if self.likelihood == "gaussian" else math.inf
        posterior = Posterior(self.network_, flat["cores"], flat["effects"], noise, self._given.shape, *law)
        return posterior, None if X is None else inputs.coordinates(X, self._given)

    def _held(self, X: Any, y: Any) -> tuple[Posterior, inputs.Observed]:
        posterior, _ = self._posterior(None)
        shape = self._given.shape
        if hasattr(X, "columns") and y is None:  # a table: its labels are those of the fit
            X, y = inputs.coordinates(X, self._given), X[X.columns[-1]].to_numpy()
        held = inputs.read(X, y, shape if y is not None else None)
        if held.shape != shape:
            raise ValueError(f"the tensor has shape {held.shape}; the fit had {shape}")
        return posterior, held

    def _out(self, array: np.ndarray, X: Any) -> Any:
        """In the data's units; with the names and labels of the input where the whole tensor is asked for."""
        return inputs.labelled(array * self.scale_, self._given) if X is None else array * self.scale_

    def _check(self) -> None:
        if self.inference not in _INFERENCE:
            raise ValueError(f"inference is {self.inference!r}; one of {', '.join(_INFERENCE)} is needed")
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood is {self.likelihood!r}; one of {', '.join(LIKELIHOODS)} is needed")
        if self.noise_by is not None and (self.likelihood, self.inference) != ("gaussian", "gibbs"):
            raise ValueError("noise_by goes with likelihood 'gaussian' and inference 'gibbs'")
        share = self.conformal
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise ValueError(f"conformal is {share!r}; a share from 0 to below 1 is needed")
        if share and self.likelihood == "bernoulli":
            raise ValueError("conformal is for values and counts; intervals of 'bernoulli' are of probabilities")
        for name, least in (("num_draws", 2), ("burn_in", 0), ("warm_up", 1), ("chains", 1)):
            value = getattr(self, name)
            if name != "warm_up" and isinstance(value, str) and value == "auto":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is needed")


def _check_values(likelihood: str, values: np.ndarray) -> None:
    if likelihood == "bernoulli" and not np.isin(values, (0, 1)).all():
        raise ValueError("likelihood is 'bernoulli'; every observed value must be 0 or 1")
    if likelihood == "poisson" and not ((values >= 0) & (values == np.rint(values))).all():
        raise ValueError("likelihood is 'poisson'; every observed value must be a count, 0, 1, 2 ...")


def _root_mean_square(values: np.ndarray) -> float:
    largest = np.abs(values).max()
    return float(largest * np.sqrt(np.mean((values / largest) ** 2))) if largest > 0 else 1.0
