"""Stochastic-gradient Langevin dynamics: SGHMC whose momentum is redrawn at every step."""

from __future__ import annotations

import math

from bayestensor.inference.base import Engine, Posterior
from bayestensor.inference.gradient import Centre
from bayestensor.inference.sghmc import Info, State, sghmc

__all__ = ["Info", "State", "sgld"]


def sgld(
    posterior: Posterior,
    *,
    step_size: float = 0.005,
    temperature: float = 1.0,
    burn_in: int = 1000,
    cycle: int | None = None,
    precondition: bool = True,
    correct_noise: bool = True,
    noise_share: float = 0.1,
    measure_every: int = 10,
    centre: Centre | None = None,
    conditional_every: int | None = None,
) -> Engine:
    """SGLD (Welling and Teh 2011) with averaged noise (Leimkuhler and Matthews 2013).

    At a constant scale and with the exact gradient, e = `step_size`:

        x' = x + e scale^2 g(x) + sqrt(e T / 2) scale (xi + xi')            xi' ~ N(0, 1) is the next step's xi

    This is SGHMC with infinite friction and h = sqrt(2 e): unlike Euler's it has the right variance on any Gaussian.
    A cycle applies to h. State, Info, the other arguments and the errors are SGHMC's.
    """
    if not step_size > 0:
        raise ValueError(f"step_size = {step_size}; a positive number is needed")
    return sghmc(
        posterior,
        step_size=math.sqrt(2 * step_size),
        friction=math.inf,
        temperature=temperature,
        burn_in=burn_in,
        cycle=cycle,
        precondition=precondition,
        correct_noise=correct_noise,
        noise_share=noise_share,
        measure_every=measure_every,
        centre=centre,
        conditional_every=conditional_every,
    )
