"""What tensor regression and classification share: the network of W, its prior, starts, chains and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator

from bayestensor.estimators.covariates import autoregressions
from bayestensor.estimators.fitting import default_prior
from bayestensor.models.coefficient import Coefficient, Family
from bayestensor.models.compiled import quick_jit
from bayestensor.priors import ScalePrior, named_prior
from bayestensor.ranks.select import RANK_THRESHOLD
from bayestensor.tensor.contract import contract, norm, slice_norms
from bayestensor.tensor.design import slice_responses, system_shape, unknowns
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.initialise import core_variance
from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array, Bool, Float

INFERENCE = ("gibbs", "map")
_WIDEST = {"cp": 8}  # largest default rank; of the other formats 5
_DRAW = "draw"
_LARGEST_BLOCK = 150  # most bond indices of a core that 'auto' asks for
_LARGEST_SYSTEM = 1500  # most unknowns or rows, whichever are fewer, of a core's equations that 'auto' asks for


class CoefficientEstimator(BaseEstimator):
    """The parameters that `TensorRegressor` and `TensorClassifier` share."""

    def __init__(
        self,
        format: str = "cp",
        shape: Any = None,
        max_rank: Any = "auto",
        prior: ScalePrior | str | None = None,
        smooth: Any = "auto",
        remainder: str | None = "auto",
        inference: str = "gibbs",
        num_draws: int = 200,
        burn_in: int = 200,
        chains: int = 2,
        random_state: Any = None,
    ):
        self.format = format
        self.shape = shape
        self.max_rank = max_rank
        self.prior = prior
        self.smooth = smooth
        self.remainder = remainder
        self.inference = inference
        self.num_draws = num_draws
        self.burn_in = burn_in
        self.chains = chains
        self.random_state = random_state


def check_plan(estimator: Any) -> None:
    """Refuse parameters that are none of their values.

    Raises:
        ValueError: see above.
    """
    if estimator.inference not in INFERENCE:
        raise ValueError(f"inference is {estimator.inference!r}; one of {', '.join(INFERENCE)} is needed")
    for name, least in (("num_draws", 2), ("burn_in", 0), ("chains", 1)):
        value = getattr(estimator, name)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is needed")


def coefficient_network(
    format: str, covariates: tuple[int, ...], response: tuple[int, ...], count: int, max_rank: Any
) -> Network:
    """The network of W over the covariates' modes (rows) and the response's (columns).

    'auto' is the largest rank, at most 8 for CP and 5 for the others, that no bond exceeds that any tensor of this
    shape needs and that keeps a core's equations small.

    Raises:
        ValueError: no such format, or a rank that is none.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; one of {', '.join(FORMATS)} is needed")
    rows, cols = covariates, response
    if format == "tt_matrix":  # pairs modes: fill up with 1
        longest = max(len(rows), len(cols))
        rows, cols = ((*s, *(1,) * (longest - len(s))) for s in (rows, cols))
    build = FORMATS[format]
    if max_rank != "auto":
        return build(rows, cols, rank=max_rank)
    full = build(rows, cols, rank="full").ranks
    best = None
    for rank in range(1, _WIDEST.get(format, 5) + 1):
        tried = build(rows, cols, rank={bond: max(1, min(rank, size)) for bond, size in full.items()})
        shapes = [system_shape(tried, core.name) for core in tried.cores]
        small = all(min(q * p, count) <= _LARGEST_SYSTEM and p <= _LARGEST_BLOCK for _, q, p in shapes)
        if best is not None and not small:
            break
        best = tried
    assert best is not None
    return best


def coefficient_model(
    estimator: Any, bases: Sequence[np.ndarray], response: tuple[int, ...], count: int
) -> tuple[Coefficient, dict[str, Family]]:
    """The prior of W over the bases that an estimator's parameters ask for, and the families of its smooth cores.

    `<X, W>` has variance 1 where every v is 1.
    """
    covariates = tuple(basis.shape[1] for basis in bases)
    network = coefficient_network(estimator.format, covariates, response, count, estimator.max_rank)
    smooth = smooth_cores(network, estimator.smooth, [len(basis) for basis in bases])
    members: dict[str, Any] = {name: autoregressions(bases[mode]) for name, mode in smooth.items()}
    prior = named_prior(estimator.prior) or default_prior(network)
    return Coefficient(network, prior, core_variance(network, 1.0), tuple(smooth)), {
        name: Family(*parts) for name, parts in members.items()
    }


def smooth_cores(network: Network, smooth: Any, covariates: Sequence[int]) -> dict[str, int]:
    """Core -> mode, of cores whose rows are an autoregression: those with a covariate mode as their one mode leg.

    Raises:
        ValueError: a mode that is none of the covariates', or that shares its core with another one.
    """
    lone = {}
    for core in network.cores:
        split, own, _ = unknowns(network, core.name)
        if len(own) == 1 and not split:
            lone[network.rows.index(own[0])] = core.name
    if isinstance(smooth, str):
        if smooth != "auto":
            raise ValueError(f"smooth is {smooth!r}; 'auto' or a tuple of covariate modes (0, 1, ...) is needed")
        return {name: mode for mode, name in lone.items() if mode < len(covariates) and covariates[mode] > 2}
    wrong = [mode for mode in smooth if mode not in lone]
    if wrong:
        raise ValueError(f"smooth names modes {wrong}; this network can have {sorted(lone)} smooth")
    return {lone[mode]: mode for mode in smooth if covariates[mode] > 1}


def mean_coefficient(network: Network, cores: dict[str, np.ndarray]) -> np.ndarray:
    """Mean of W over draws, its axes the network's modes."""
    with jax.enable_x64(True):
        return np.asarray(_mean_coefficient(network, cores))


def standing_out(
    network: Network,
    cores: Mapping[str, Array],
    x: Float[Array, "n *rows"],
    weight: Float[Array, "n *cols"],
) -> dict[str, Bool[Array, "r"]]:
    """Bond -> whether each index counts: for its part of W, and for what it says of the responses.

        ||W restricted to r|| > 1e-3 ||W||,   sum over data of w <X, W restricted to r>^2 > (sum_cores sqrt(e))^2

    w is the precision of a response and e the number of a core's entries tied to r: on the right is what the slice that
    fits pure noise best explains of it (Tomioka and Suzuki, arXiv 1407.1870). `TensorCompletion` counts alike.
    """
    tensor, counted = Factored(network, dict(cores)), {}
    total = norm(tensor)
    for bond in network.bonds:
        parts = slice_responses(network, cores, x, bond)
        explained = (weight[..., None] * parts**2).reshape(-1, network.size[bond]).sum(0)
        entries = [math.prod(network.size[x] for x in c.legs if x != bond) for c in network.cores if bond in c.legs]
        noise = sum(map(math.sqrt, entries)) ** 2
        counted[bond] = (slice_norms(tensor, bond) > RANK_THRESHOLD * total) & (explained > noise)
    return counted


def rank_shares(counted: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Bond -> share of the draws with rank 0, 1, 2, ..., from which indices count [draw, r]."""
    every = {bond: np.asarray(which) for bond, which in counted.items()}
    return {bond: np.bincount(w.sum(axis=1), minlength=w.shape[1] + 1) / len(w) for bond, w in every.items()}


def _mean_coefficient(network, cores):
    terms = [(cores[core.name], (_DRAW, *core.legs)) for core in network.cores]  # one product for all draws
    return contract(terms, network.modes) / len(terms[0][0])


_mean_coefficient = quick_jit(_mean_coefficient, static_argnums=0)
