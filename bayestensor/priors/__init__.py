"""Shrinkage priors over the squared scales of a bond."""

from bayestensor.priors.base import ScalePrior, conditional
from bayestensor.priors.gamma import Gamma
from bayestensor.priors.generalised_hyperbolic import GeneralisedHyperbolic
from bayestensor.priors.half_cauchy import HalfCauchy
from bayestensor.priors.inverse_gamma import InverseGamma
from bayestensor.priors.log_uniform import LogUniform

__all__ = [
    "PRIORS",
    "Gamma",
    "GeneralisedHyperbolic",
    "HalfCauchy",
    "InverseGamma",
    "LogUniform",
    "ScalePrior",
    "conditional",
]

PRIORS: dict[str, type] = {
    "log_uniform": LogUniform,
    "half_cauchy": HalfCauchy,
    "inverse_gamma": InverseGamma,
    "gamma": Gamma,
    "generalised_hyperbolic": GeneralisedHyperbolic,
}
