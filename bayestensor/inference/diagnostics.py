"""Has it converged? Rank-normalised R-hat and effective sample sizes of what the model says, and a plain verdict."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bayestensor.inference.draws import Draws

CLIMBING = ("log density", "log likelihood")  # ends of the names of functionals that rise as a chain comes in


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
    Those named `... log density` or `... log likelihood`, one number a draw, also say which chains came in late or not
    at all (`stragglers`).

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
    advice = [line for name, x in values.items() if name.endswith(CLIMBING) and x.ndim == 2 for line in _apart(name, x)]
    values = {name: _moving(x) for name, x in values.items()}
    rhat = {name: _worst("rhat", x, "rank", np.max) for name, x in values.items()}
    bulk = {name: _worst("ess", x, "bulk", np.min) for name, x in values.items()}
    tail = {name: _worst("ess", x, "tail", np.min) for name, x in values.items()}
    advice += [_disagreement(name, r, rhat_limit, values[name]) for name, r in rhat.items() if r > rhat_limit]
    advice += [
        f"{name}: effective size {min(bulk[name], tail[name]):.0f} is under {ess_limit:.0f}. Draw more, or thin less."
        for name in values
        if min(bulk[name], tail[name]) < ess_limit
    ]
    figures, more = _engine_figures(stats or {}, temperature)
    advice += more
    return Verdict(not advice, tuple(advice), rhat, bulk, tail, figures)


class Stragglers(NamedTuple):
    """Attributes:
    late: chain -> its first draw that lies `inside`, or how many it has.
    away: chains that are far from it at their end.
    inside: least and largest value of the chains that agree.
    """

    late: dict[int, int]
    away: list[int]
    inside: tuple[float, float]


def stragglers(x: np.ndarray) -> Stragglers:
    """Which chains came in late, or not at all, by one number a draw that climbs as they do, such as the log density.

    `inside` is the range of the last halves of the chains that agree: the half of them whose medians lie nearest the
    upper median. Far is outside by more than its width, some 10 sd from its centre. A chain is late if its first draw
    is far, and away if half of its last quarter is. This catches what R-hat and effective sizes, which go by ranks, let
    pass: 1 % of the draws, however far off, though they move every mean. Nearer troubles are R-hat's; where effective
    sizes are a few dozen in all, chains that only mix slowly may be named too.

    Args:
        x: [chain, draw]; no chain is named where none moves, or of fewer than 10 draws each.
    """
    count, draws = x.shape
    halves = x[:, draws // 2 :]
    medians = np.median(halves, axis=1)
    centre = np.sort(medians)[count // 2]
    agreeing = halves[np.argsort(np.abs(medians - centre), kind="stable")[: (count + 1) // 2]]
    low, high = float(agreeing.min()), float(agreeing.max())
    if draws < 10 or not np.ptp(x, axis=1).any():
        return Stragglers({}, [], (low, high))
    width = high - low
    far = (x < low - width) | (x > high + width)
    away = far[:, -max(5, draws // 4) :].mean(1) >= 0.5
    inside = (x >= low) & (x <= high)
    first = np.where(inside.any(1), inside.argmax(1), draws)
    late = {int(c): int(first[c]) for c in np.flatnonzero(far[:, 0] & ~away)}
    return Stragglers(late, np.flatnonzero(away).tolist(), (low, high))


def _apart(name: str, x: np.ndarray) -> list[str]:
    """What to say of `stragglers`."""
    late, away, (low, high) = stragglers(x)
    theirs, lines = f"the others' lie in {low:.4g} to {high:.4g}", []
    if late:
        begun = [f"{x[c, 0]:.4g}" for c in late]
        lines.append(
            f"{name}: {_chains(list(late))} came in late, from {_some(begun)}; {theirs}. Give the engine a longer "
            f"burn_in, or drop draws 1 to {max(late.values())} of every chain: until then the figures below say little."
        )
    if away:
        medians = [f"{np.median(x[c, x.shape[1] // 2 :]):.4g}" for c in away]
        lines.append(
            f"{name}: {_chains(away)} stayed away from the others to the end (medians {_some(medians)}; {theirs}). Run "
            "longer or start nearer the mode; where that does not help, there are several modes: take more chains."
        )
    return lines


def _disagreement(name: str, rhat: float, limit: float, x: np.ndarray) -> str:
    """What to say of an R-hat above its limit, and which chain it is without which the worst entry's is not."""
    if np.isinf(rhat):
        return (
            f"{name}: R-hat inf: every chain stands still, at a place of its own. MAP solutions and ensembles are "
            "points, no draws; a sampler needs larger steps, or moves between its modes."
        )
    said = f"{name}: R-hat {rhat:.3f} is above {limit}: the chains disagree"
    if len(x) > 2:
        entry = x[..., int(np.argmax(_arviz("rhat", x, "rank")))]
        others = np.stack([np.delete(entry, c, axis=0) for c in range(len(x))], axis=-1)
        without = _arviz("rhat", others, "rank")
        if np.nanmin(without) <= limit:
            said += f", but for chain {int(np.nanargmin(without))}, without which it is {np.nanmin(without):.3f}"
    return f"{said}. Run longer, or start nearer the mode."


def _chains(which: list[int]) -> str:
    return f"chain{'s' * (len(which) > 1)} {_some([str(c) for c in which])}"


def _some(words: list[str]) -> str:
    """The first five of them."""
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


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
        advice.append(
            f"particles have collapsed, variance ratio {figures['variance_ratio']:.2f}, so intervals are too narrow: "
            "noisy=True with a longer burn_in, kernels on small blocks, or sghmc"
        )
    if figures.get("variance_ratio", 1.0) > 1.25:
        advice.append(
            f"particles are too wide, variance ratio {figures['variance_ratio']:.2f}: longer burn_in, smaller step_size"
        )
    if "nonfinite" in stats:
        undone = np.asarray(stats["nonfinite"])[:, -1]
        stack = int(np.max(stats.get("particles", 1)))  # `unstack` repeats what was one number a stack
        figures["undone_steps"] = float(undone[:: stack if len(undone) % stack == 0 else 1].sum())
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
                f"{name} has shape {x.shape}; [chain, draw, ...] with at least 2 chains and 4 draws is needed: start "
                "several chains, from different places (bt.unstack makes chains of SVGD's particles)"
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
    if not x.shape[2]:
        return 1.0 if function == "rhat" else float(x.shape[0] * x.shape[1])
    if (np.ptp(x, axis=1) == 0).all(axis=0).any():
        return float("inf") if function == "rhat" else 1.0
    return float(over(_arviz(function, x, method)))


def _arviz(function: str, x: np.ndarray, method: str) -> np.ndarray:
    """R-hat or effective size of every entry of [chain, draw, entries]."""
    import arviz  # takes a second to import

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains .* than draws")  # as many particles may be
        return np.asarray(getattr(arviz, function)(arviz.convert_to_dataset({"x": x}), method=method)["x"])
