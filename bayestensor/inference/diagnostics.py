"""Has it converged? Rank-normalised R-hat and effective sample sizes of what the model says, and a plain verdict."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayestensor.inference.draws import Draws


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    converged: whether every check passed.
    advice: one line for each check that failed: what was found and what to do.
    rhat: functional -> largest rank-normalised split R-hat over its entries.
    ess_bulk: functional -> smallest effective sample size for the centre.
    ess_tail: functional -> smallest effective sample size for the 5 % and 95 % quantiles.
    figures: mean kinetic temperature, inflation, ... as far as the engine reports them.
    """

    converged: bool
    advice: tuple[str, ...]
    rhat: dict[str, float]
    ess_bulk: dict[str, float]
    ess_tail: dict[str, float]
    figures: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = ["converged" if self.converged else "not converged"]
        lines += [f"  {line}" for line in self.advice]
        lines += [
            f"  {name}: R-hat {self.rhat[name]:.3f}, ESS bulk {self.ess_bulk[name]:.0f}, tail {self.ess_tail[name]:.0f}"
            for name in self.rhat
        ]
        return "\n".join([*lines, *(f"  {name}: {value:.4g}" for name, value in self.figures.items())])


def diagnose(
    functionals: Mapping[str, Any],
    stats: Mapping[str, np.ndarray] | None = None,
    *,
    temperature: float = 1.0,
    rhat_limit: float = 1.01,
    ess_limit: float = 400,
) -> Verdict:
    """Judges draws by gauge-invariant functionals (Vehtari et al. 2021).

    Factors of a network have sign, scale and order to spare: two chains that agree on every prediction can have cores
    that never meet, and R-hat of raw cores means nothing. So there is no default: give what the model says, such as
    predictions at a few inputs, slice norms in descending order, the noise level, the log density: those that
    `ranks.functionals.functionals` reads off a model's draws. Entries that are one constant throughout are passed over.

    Args:
        functionals: name -> [chain, draw, ...].
        stats: `Draws.stats`.
        temperature: the one the chain was asked for.
        rhat_limit: largest R-hat that passes.
        ess_limit: smallest effective sample size that passes.

    Raises:
        ValueError: no functionals, raw positions, fewer than 2 chains or 4 draws, or values that are not finite.
    """
    _refuse_raw(functionals)
    values = {name: np.asarray(x) for name, x in functionals.items()}
    _check(values)
    values = {name: _moving(x) for name, x in values.items()}
    rhat = {name: _worst("rhat", x, "rank", np.max) for name, x in values.items()}
    bulk = {name: _worst("ess", x, "bulk", np.min) for name, x in values.items()}
    tail = {name: _worst("ess", x, "tail", np.min) for name, x in values.items()}
    advice = [
        f"{name}: R-hat {r:.3f} is above {rhat_limit}: the chains disagree. Run longer, or start nearer the mode."
        for name, r in rhat.items()
        if r > rhat_limit
    ]
    advice += [
        f"{name}: effective size {min(bulk[name], tail[name]):.0f} is under {ess_limit:.0f}. Draw more, or thin less."
        for name in values
        if min(bulk[name], tail[name]) < ess_limit
    ]
    figures, more = _engine_figures(stats or {}, temperature)
    advice += more
    return Verdict(not advice, tuple(advice), rhat, bulk, tail, figures)


def _engine_figures(stats: Mapping[str, np.ndarray], temperature: float) -> tuple[dict[str, float], list[str]]:
    """The engine's own figures (means over draws; undone steps: total), and what is wrong with them."""
    names = ("kinetic_temperature", "inflation", "noise_share", "acceptance", "variance_ratio")
    figures = {name: float(np.mean(stats[name])) for name in names if name in stats and not np.isnan(stats[name]).any()}
    advice = []
    kinetic = figures.get("kinetic_temperature", temperature) / temperature
    if not 0.8 <= kinetic <= 1.2:
        advice.append(
            f"kinetic temperature is {kinetic:.2f} of the one asked for: "
            + ("unmeasured gradient noise; larger batches, more friction" if kinetic > 1 else "step_size is too large")
        )
    if figures.get("inflation", 1.0) > 1.1:
        advice.append(
            f"gradient noise inflates the variance {figures['inflation']:.2f} times: smaller steps, larger batches, "
            "a control variate, or correct_noise"
        )
    if figures.get("acceptance", 1.0) < 0.6:
        advice.append(f"acceptance is {figures['acceptance']:.2f}: a longer burn_in, so that the step size fits")
    if figures.get("variance_ratio", 1.0) < 0.8:
        advice.append(f"particles have collapsed, variance ratio {figures['variance_ratio']:.2f}: noisy=True, or sghmc")
    if figures.get("variance_ratio", 1.0) > 1.25:
        advice.append(
            f"particles are too wide, variance ratio {figures['variance_ratio']:.2f}: longer burn_in, smaller step_size"
        )
    if "nonfinite" in stats:
        figures["undone_steps"] = float(np.asarray(stats["nonfinite"])[:, -1].sum())
        if figures["undone_steps"]:
            advice.append(f"{figures['undone_steps']:.0f} steps were undone as not finite: take a smaller step_size")
    if "diverging" in stats:
        figures["divergences"] = float(np.sum(stats["diverging"]))
        if figures["divergences"]:
            advice.append(
                f"{figures['divergences']:.0f} divergences: raise target_acceptance, or change the parameters"
            )
    if "adapting" in stats and np.any(stats["adapting"]):
        advice.append("some draws come from burn-in: drop them")
    return figures, advice


def _check(values: Mapping[str, np.ndarray]) -> None:
    if not values:
        raise ValueError("no functionals: give gauge-invariant ones, such as predictions or the log density")
    for name, x in values.items():
        if x.ndim < 2 or x.shape[0] < 2 or x.shape[1] < 4:
            raise ValueError(
                f"{name} has shape {x.shape}; [chain, draw, ...] with at least 2 chains and 4 draws is needed"
            )
        if not np.isfinite(x).all():
            raise ValueError(f"{name} holds {np.count_nonzero(~np.isfinite(x))} values that are not finite")


def _refuse_raw(functionals: Any) -> None:
    if isinstance(functionals, Draws) or any(isinstance(x, (Mapping, list, tuple)) for x in functionals.values()):
        raise ValueError(
            "these are raw positions: factors have sign, scale and order to spare, so their R-hat is meaningless. Give "
            "what the model says: bayestensor.ranks.functionals.functionals(model, draws, data)"
        )


def _moving(x: np.ndarray) -> np.ndarray:
    """[chain, draw, entries], those that are not one constant throughout: a rank that never moves has agreed."""
    x = x.reshape(*x.shape[:2], -1)
    return x[..., np.ptp(x, axis=(0, 1)) > 0]


def _worst(function: str, x: np.ndarray, method: str, over: Callable[..., Any]) -> float:
    """The largest R-hat, or the smallest effective size, of the entries; entries stuck in every chain are the worst."""
    import arviz  # takes a second to import

    if not x.shape[2]:
        return 1.0 if function == "rhat" else float(x.shape[0] * x.shape[1])
    if (np.ptp(x, axis=1) == 0).all(axis=0).any():
        return float("inf") if function == "rhat" else 1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains .* than draws")  # as many particles may be
        values = getattr(arviz, function)(arviz.convert_to_dataset({"x": x}), method=method)["x"]
    return float(over(np.asarray(values)))
