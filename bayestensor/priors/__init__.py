"""Shrinkage priors over the squared scales of a bond."""

from bayestensor.priors.base import ScalePrior, conditional
from bayestensor.priors.cumulative_shrinkage import CumulativeShrinkage
from bayestensor.priors.gamma import Gamma
from bayestensor.priors.generalised_hyperbolic import GeneralisedHyperbolic
from bayestensor.priors.half_cauchy import HalfCauchy
from bayestensor.priors.inverse_gamma import InverseGamma
from bayestensor.priors.log_uniform import LogUniform
from bayestensor.priors.svd_penalty import SvdPenalty

__all__ = [
    "PRIORS",
    "CumulativeShrinkage",
    "Gamma",
    "GeneralisedHyperbolic",
    "HalfCauchy",
    "InverseGamma",
    "LogUniform",
    "ScalePrior",
    "SvdPenalty",
    "conditional",
    "named_prior",
]

# what may be named where scales are learnt: `SvdPenalty` has none
PRIORS: dict[str, type] = {
    "log_uniform": LogUniform,
    "half_cauchy": HalfCauchy,
    "inverse_gamma": InverseGamma,
    "gamma": Gamma,
    "generalised_hyperbolic": GeneralisedHyperbolic,
    "cumulative_shrinkage": CumulativeShrinkage,
}


def named_prior(prior: ScalePrior | str | None) -> ScalePrior | None:
    """A prior as it is, or the one of that name in `PRIORS` at its defaults.

    Raises:
        ValueError: no such name.
    """
    if not isinstance(prior, str):
        return prior
    if prior not in PRIORS:
        raise ValueError(f"prior is {prior!r}; a prior, or one of {', '.join(PRIORS)}, is needed")
    return PRIORS[prior]()
