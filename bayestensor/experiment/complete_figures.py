"""Figures of a completed tensor: how well held-out entries were predicted, the rank, and the components with bands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bayestensor.estimators.factors import Components, align
from bayestensor.files import writing
from bayestensor.plots import MUTED, PALETTE, line_style, style
from bayestensor.tensor.core_rows import is_joint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bayestensor.estimators import TensorCompletion
    from bayestensor.estimators.inputs import Observed

_MOST_COMPONENTS = 6
_MOST_POINTS = 3000
_MOST_TICKS = 16
_MOST_LETTERS = 24  # side by side


def write_figures(model: TensorCompletion, observed: Observed, held: dict[str, np.ndarray] | None, out: Path) -> None:
    """`rank.png`; with held-out entries `held_out.png`; of CP tensors `weights.png` and `factors.png`."""
    from matplotlib.figure import Figure

    figures: dict[str, Any] = {}
    with style():
        figures["rank"] = Figure(figsize=(4, 3), layout="constrained")
        rank_bars(figures["rank"].subplots(), model.rank_posterior_)
        if held is not None:
            figures["held_out"] = Figure(figsize=(7, 3.2), layout="constrained")
            left, right = figures["held_out"].subplots(1, 2)
            predicted_against_held_out(left, held)
            calibration(right, held["levels"], held["inside"])
        if is_joint(model.network_):
            components = align(model.network_, model.draws_.flat()["cores"])
            shares = next(iter(model.rank_posterior_.values()))
            if components.weights.shape[1]:
                figures["weights"] = Figure(figsize=(4, 3), layout="constrained")
                some = max(1, int(np.flatnonzero(shares).max()))  # the others never count
                weight_boxes(figures["weights"].subplots(), components.weights[:, :some] * model.scale_)
                figures["factors"] = _factor_grid(components, observed, max(1, int(shares.argmax())))
        for name, figure in figures.items():
            with writing(out):
                figure.savefig(out / f"{name}.png", dpi=150)


def rank_bars(axes: Axes, posterior: dict[str, np.ndarray]) -> Axes:
    """P(rank = r) of every bond, side by side."""
    longest = max(int(np.flatnonzero(shares).max()) for shares in posterior.values())
    wide = 0.8 / len(posterior)
    for k, (bond, shares) in enumerate(posterior.items()):
        ranks = np.arange(len(shares))
        axes.bar(
            ranks + (k - 0.5 * (len(posterior) - 1)) * wide, shares, wide, label=bond, color=line_style(k)["color"]
        )
    axes.set(xlim=(-0.6, longest + 1.6), ylim=(0, 1.02), xlabel="rank", ylabel="posterior probability")
    axes.set_xticks(np.arange(0, longest + 2, max(1, (longest + 2) // 8)))
    if len(posterior) > 1:
        axes.legend()
    return axes


def predicted_against_held_out(axes: Axes, held: dict[str, np.ndarray]) -> Axes:
    """Predictions with their 90 % intervals against entries that the fit did not see; on the line they agree."""
    picked = np.random.default_rng(0).permutation(len(held["truth"]))[:_MOST_POINTS]
    truth, mean, low, high = (held[name][picked] for name in ("truth", "mean", "low", "high"))
    axes.vlines(truth, low, high, color=PALETTE[5], alpha=0.3, linewidth=0.8)
    axes.plot(truth, mean, ".", color=PALETTE[0], markersize=3, alpha=0.6)
    ends = [min(truth.min(), mean.min()), max(truth.max(), mean.max())]
    axes.plot(ends, ends, color=MUTED, linewidth=0.8)
    axes.set(xlabel="held-out value", ylabel="prediction", title=f"RRSE {float(held['rrse']):.3g}")
    return axes


def calibration(axes: Axes, levels: np.ndarray, inside: np.ndarray) -> Axes:
    """Share of held-out values inside the interval of each level; on the diagonal intervals are honest."""
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    axes.plot(levels, inside, "o-", color=PALETTE[0], markersize=3)
    axes.set(xlabel="level of the interval", ylabel="share inside", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return axes


def weight_boxes(axes: Axes, weights: np.ndarray) -> Axes:
    """Posterior of each component's weight, [draw, component], in the units of the data: median, half and all of it."""
    from matplotlib.ticker import LogLocator

    shown = weights[:, :20]
    axes.boxplot(shown, whis=(0, 100), widths=0.5, medianprops={"color": PALETTE[1]})
    axes.set(xlabel="component", ylabel="weight", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if shown.max() < 1000 * shown.min() else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    ticks = np.arange(1, shown.shape[1] + 1, 1 + shown.shape[1] // 10)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    return axes


def factor_lines(axes: Axes, columns: np.ndarray, place: np.ndarray) -> Axes:
    """Posterior mean of each component's column with its 90 % band; `columns` is [draw, size, component]."""
    axes.set_axisbelow(True)
    for k in range(columns.shape[2]):
        low, high = np.quantile(columns[:, :, k], [0.05, 0.95], axis=0)
        axes.fill_between(place, low, high, color=line_style(k)["color"], alpha=0.25, linewidth=0)
        axes.plot(place, columns[:, :, k].mean(axis=0), linewidth=1, **line_style(k))
    return axes


def _factor_grid(components: Components, observed: Observed, rank: int) -> Any:
    from matplotlib.figure import Figure

    modes, shown = len(components.columns), min(rank, components.weights.shape[1], _MOST_COMPONENTS)
    figure = Figure(figsize=(3 * modes, 2.8), layout="constrained")
    for k, axes in enumerate(np.atleast_1d(figure.subplots(1, modes))):
        labels = None if observed.labels is None else observed.labels[k]
        numeric = labels is not None and np.issubdtype(np.asarray(labels).dtype, np.number)
        place = np.asarray(labels) if numeric else np.arange(observed.shape[k])
        factor_lines(axes, components.columns[k][:, :, :shown], place)
        if labels is not None and not numeric:
            names, step = [str(label) for label in labels], 1 + len(labels) // _MOST_TICKS
            turned = sum(map(len, names[::step])) > _MOST_LETTERS
            axes.set_xticks(place[::step], names[::step], rotation=90 if turned else 0)
        axes.set_xlabel(f"mode {k}" if observed.names is None else str(observed.names[k]))
    figure.suptitle(f"the {shown} heaviest components, with 90 % bands", fontsize=9)
    return figure
