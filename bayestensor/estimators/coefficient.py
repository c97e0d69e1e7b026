"""What tensor regression and classification share: the network of W, its prior, starts, chains and ranks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from bayestensor.estimators.covariates import autoregressions
from bayestensor.estimators.fitting import default_prior
from bayestensor.models.coefficient import PORTION, Coefficient, CoefficientState, Family
from bayestensor.models.compiled import quick_jit
from bayestensor.priors import ScalePrior, named_prior
from bayestensor.ranks.select import RANK_THRESHOLD
from bayestensor.tensor.contract import dense, norm, slice_norms
from bayestensor.tensor.design import slice_responses, system_shape, unknowns
from bayestensor.tensor.formats import FORMATS
from bayestensor.tensor.initialise import core_variance
from bayestensor.tensor.network import Factored, Network
from bayestensor.typing import Array, Bool, Float

INFERENCE = ("gibbs", "map")
_WIDEST = {"cp": 8}  # largest default rank; of the other formats 5
_WARM = 2**31  # portions of the warm-up are numbered from here: their keys are their own
_R_HAT = 1.05  # above this chains have not come together
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
    families = {name: Family(*map(jnp.asarray, autoregressions(bases[mode]))) for name, mode in smooth.items()}
    prior = named_prior(estimator.prior) or default_prior(network)
    return Coefficient(network, prior, core_variance(network, 1.0), tuple(smooth)), families


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


def starts(model: Coefficient, chains: int, seed: int) -> CoefficientState:
    """A state for each chain [chain, ...]: cores drawn from the prior, every scale at 1."""
    rng, network = np.random.default_rng(seed), model.network
    shapes = {core.name: (chains, *network.core_shape(core.name)) for core in network.cores}
    cores = {name: jnp.asarray(rng.normal(scale=model.variance**0.5, size=shape)) for name, shape in shapes.items()}
    scales = {bond: jnp.asarray(np.ones((chains, size))) for bond, size in network.ranks.items()}
    return CoefficientState(cores, scales, {name: jnp.asarray(np.zeros(chains, int)) for name in model.smooth})


def warmed_up(estimator: Any, sweeps: Any, seed: int, states: Any, alone: Any) -> Any:
    """States after half as many sweeps as the burn-in has on data `alone`, without a remainder.

    Else the remainder takes what there is in the first sweeps, and the low rank finds nothing left to grow on.
    """
    draw = 1.0 if estimator.inference == "gibbs" else 0.0
    for part in range(-(-estimator.burn_in // (2 * PORTION))):
        states, _ = sweeps(np.uint32(seed), np.uint32(_WARM + part), states, alone, draw)
    return states


def run_chains(
    estimator: Any, sweeps: Any, seed: int, states: Any, data: Any, burn_in: int, draws: int, first: int = 0
) -> Any:
    """Burn in and draw, a portion of sweeps a call: the kept states [chain, draw, ...] as NumPy arrays.

    Portions are numbered from `first`, for keys of their own. Of a mode the last state alone is kept.

    Raises:
        FloatingPointError: a state that is not finite.
    """
    gibbs = estimator.inference == "gibbs"
    kept = draws if gibbs else 1
    portions = -(-(burn_in + kept) // PORTION)
    traces = []
    for part in range(portions):
        own = np.uint32(first + part)
        states, trace = sweeps(np.uint32(seed), own, states, data, 1.0 if gibbs else 0.0)
        if (portions - part - 1) * PORTION < kept:
            traces.append(jax.tree.map(np.asarray, trace))
    trace = jax.tree.map(lambda *a: np.concatenate(a, axis=1)[:, -kept:], *traces)
    if not all(np.isfinite(a).all() for a in jax.tree.leaves(trace)):
        raise FloatingPointError("the fit is not finite: look for extreme covariates, or choose a smaller max_rank")
    return trace


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


def split_r_hat(values: np.ndarray) -> float:
    """`sqrt((h - 1) / h + B / W)` of chains cut into halves of h draws, the variances summed over entries.

    B is the variance of the halves' means, W the mean of their variances (Gelman et al., Bayesian Data Analysis, 2013,
    section 11.4). Summed, it is about all predictions at once: the largest of hundreds would cry wolf.

    Args:
        values: [chain, draw, ...].
    """
    h = values.shape[1] // 2
    halves = values[:, values.shape[1] - 2 * h :].reshape(2 * len(values), h, -1)
    within, between = halves.var(axis=1, ddof=1).mean(axis=0).sum(), halves.mean(axis=1).var(axis=0, ddof=1).sum()
    return float(np.sqrt((h - 1) / h + between / within)) if within > 0 else 1.0


def check_mixing(estimator: Any, functionals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """R-hat of each [chain, draw, ...]; {} for one chain or no draws. Warns where the chains disagree."""
    if estimator.inference != "gibbs" or estimator.chains < 2 or estimator.num_draws < 4:
        return {}
    found = {name: split_r_hat(np.asarray(values)) for name, values in functionals.items()}
    high = ", ".join(f"{name} {r:.2f}" for name, r in found.items() if r > _R_HAT)
    if high:
        advice = "the chains disagree about what they say; raise burn_in and num_draws"
        warnings.warn(f"R-hat is above {_R_HAT} ({high}): {advice}", ConvergenceWarning, stacklevel=3)
    return found


def _mean_coefficient(network, cores):
    def add(total, one):
        return total + dense(Factored(network, one)), None

    count = len(next(iter(cores.values())))
    total, _ = jax.lax.scan(add, jnp.zeros(network.shape, jnp.result_type(*cores.values())), cores)
    return total / count


_mean_coefficient = quick_jit(_mean_coefficient, static_argnums=0)
