"""Figures of posteriors: axes in, axes out, no global state. Draw under `style()`, or under your own settings.

Colours are Okabe and Ito's, told apart by colour-blind readers; beyond six the line style changes too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bayestensor.ranks.explore import BondRanks

__all__ = [
    "accuracy_against_rank",
    "joint_rank_heatmap",
    "line_style",
    "rank_posterior_bars",
    "reliability_diagram",
    "ridgelines",
    "slice_norm_ridgelines",
    "slices_alive",
    "style",
]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES = ("-", "--", ":")
INK, MUTED, GRID = "#1d2733", "#66717e", "#dce1e6"  # the report swaps these for its own in the dark
SMALLEST = 1e-8  # norms below are drawn here: float32 knows no smaller share


def style():
    """The context in which figures are made and saved."""
    from matplotlib import rc_context

    settings: Any = {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.5,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "bayestensor",  # the same run gives the same file
        "text.parse_math": False,  # a name may hold a dollar sign
    }
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK)
    settings |= dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), MUTED)
    return rc_context(settings)


def line_style(k: int) -> dict[str, Any]:
    """Colour and dash of the k-th line."""
    return {"color": PALETTE[k % len(PALETTE)], "linestyle": LINES[k // len(PALETTE) % len(LINES)]}


def rank_posterior_bars(axes: Axes, posteriors: Mapping[str, BondRanks]) -> Axes:
    """P(rank = r), the bars of several posteriors (bonds, or engines on one bond) side by side.

    Args:
        axes: to draw on.
        posteriors: label -> posterior of a bond.
    """
    shares = {label: bond.probabilities for label, bond in posteriors.items()}
    seen = np.concatenate([np.flatnonzero(p > 5e-4) for p in shares.values()])
    low, high = max(int(seen.min()) - 1, 0), int(seen.max()) + 1
    width = 0.84 / max(len(shares), 1)
    for k, (label, p) in enumerate(shares.items()):
        at = np.arange(low, min(high, len(p) - 1) + 1)
        places = at + (k - (len(shares) - 1) / 2) * width
        axes.bar(places, p[at], 0.92 * width, label=label, color=PALETTE[k % len(PALETTE)])
    axes.set(xlim=(low - 0.5, high + 0.5), xlabel="rank", ylabel="posterior probability")
    axes.set_ylim(0, min(1.0, 1.12 * max(p.max() for p in shares.values())))
    _whole(axes.xaxis)
    axes.grid(visible=False, axis="x")
    if len(shares) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3)
    return axes


def slices_alive(axes: Axes, posteriors: Mapping[str, BondRanks]) -> Axes:
    """P(the k-th largest slice is alive) against k: steps, one line a posterior."""
    longest = max(bond.size for bond in posteriors.values())
    for k, (label, bond) in enumerate(posteriors.items()):
        axes.plot(
            np.arange(1, bond.size + 1), bond.alive, drawstyle="steps-mid", marker=".", label=label, **line_style(k)
        )
    axes.set(xlim=(0.5, longest + 0.5), ylim=(-0.02, 1.02), xlabel="slice, largest first", ylabel="P(alive)")
    _whole(axes.xaxis)
    axes.legend(loc="lower left")
    return axes


def slice_norm_ridgelines(axes: Axes, bond: BondRanks, most: int = 16) -> Axes:
    """Spread of the k-th largest slice's norm over draws, one ridge a slice; the dashed line is the rank's threshold.

    Args:
        axes: to draw on.
        bond: posterior of a bond.
        most: ridges; the largest slices are shown.
    """
    norms = np.clip(bond.norms, SMALLEST, None)[..., :most]
    ridgelines(axes, norms, colour=PALETTE[0])
    if bond.threshold > 0:
        axes.axvline(bond.threshold, color=PALETTE[1], linestyle="--", linewidth=1, label="threshold")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0))
    axes.set(xlabel="slice norm / ||X|| (log scale)", ylabel="slice, largest first")
    return axes


def ridgelines(axes: Axes, values: ArrayLike, colour: str = PALETTE[0]) -> Axes:
    """Densities on a log axis, one ridge for each index of the last axis of positive `values` (scales, norms), index 1
    on top. Sort scales within draws first: an index means nothing across draws."""
    from scipy.stats import gaussian_kde

    logs = np.log10(np.asarray(values, np.float64)).reshape(-1, np.shape(values)[-1]).T
    low, high = logs.min() - 0.3, logs.max() + 0.3
    grid = np.linspace(low, high, 400)
    for k, row in enumerate(logs, start=1):
        if row.std() > 1e-3 * (high - low):
            density = gaussian_kde(row, lambda kde: 0.4 * kde.scotts_factor())(grid)  # narrow: there are two modes
            height = 0.9 * density / density.max()
            axes.fill_between(10**grid, k, k - height, color=colour, alpha=0.55, linewidth=0, zorder=k)
            axes.plot(10**grid, k - height, color="white", linewidth=1.2, zorder=k)
            axes.plot(10**grid, k - height, color=colour, linewidth=0.9, zorder=k)
        else:  # one draw, or many alike
            axes.plot([10 ** row.mean()] * 2, [k, k - 0.9], color=colour, linewidth=1.5, zorder=k)
    axes.set_xscale("log")
    _powers_of_ten(axes)
    axes.set(xlim=(10**low, 10**high), ylim=(len(logs) + 0.25, -0.15))
    axes.set_yticks(range(1, len(logs) + 1, 1 + len(logs) // 12))
    axes.grid(visible=False, axis="y")
    return axes


def joint_rank_heatmap(axes: Axes, joint: np.ndarray, names: Sequence[str]) -> Axes:
    """P(rank of the first bond, rank of the second), the first across; `joint` as from `RankPosterior.joint`.

    Raises:
        ValueError: `joint` is no table of two bonds.
    """
    from matplotlib.colors import LinearSegmentedColormap

    if joint.ndim != 2 or len(names) != 2:
        raise ValueError(f"joint has {joint.ndim} axes and {len(names)} names; a heat map shows two bonds")
    held = np.nonzero(joint > 5e-4)
    (left, right), (bottom, top) = (
        (max(int(x.min()) - 1, 0), min(int(x.max()) + 1, n - 1)) for x, n in zip(held, joint.shape, strict=True)
    )
    part = joint[left : right + 1, bottom : top + 1]
    rgb = tuple(int(PALETTE[0][k : k + 2], 16) / 255 for k in (1, 3, 5))
    shades = LinearSegmentedColormap.from_list("ink", [(*rgb, 0.0), (*rgb, 1.0)])  # reads on light and dark paper
    edges = np.arange(left, right + 2) - 0.5, np.arange(bottom, top + 2) - 0.5
    axes.pcolormesh(*edges, part.T, cmap=shades, vmin=0, vmax=part.max(), edgecolors="none")
    if part.size <= 120:
        for i, j in np.argwhere(part > 5e-3):
            colour = "#ffffff" if part[i, j] > 0.55 * part.max() else INK
            axes.text(i + left, j + bottom, f"{part[i, j]:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel=f"rank of {names[0]}", ylabel=f"rank of {names[1]}", aspect="equal")
    _whole(axes.xaxis)
    _whole(axes.yaxis)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return axes


def accuracy_against_rank(axes: Axes, draws: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Axes:
    """One dot a draw at (its rank, its accuracy), and the mean accuracy at every rank as a line.

    Args:
        axes: to draw on.
        draws: label -> (ranks, accuracies) of the draws, accuracies as shares; several bonds' ranks may be summed.
    """
    for k, (label, (ranks, accuracies)) in enumerate(draws.items()):
        x, y = np.ravel(ranks), 100 * np.ravel(accuracies)
        colour = PALETTE[k % len(PALETTE)]
        shift = np.linspace(-0.18, 0.18, x.size)[np.random.default_rng(0).permutation(x.size)] if x.size > 1 else 0
        axes.plot(x + shift, y, ".", color=colour, markersize=3, alpha=0.35)
        seen = np.unique(x)
        axes.plot(seen, [y[x == rank].mean() for rank in seen], "o-", color=colour, markersize=4.5, label=label)
    axes.set(xlabel="rank", ylabel="accuracy of one draw (%)")
    _whole(axes.xaxis)
    axes.legend(loc="best")
    return axes


def reliability_diagram(axes: Axes, confidence: Sequence[float | None], accuracy: Sequence[float | None]) -> Axes:
    """Accuracy of the predictions made with about this confidence; on the diagonal they are as right as they claim.

    An empty bin is None or nan.
    """
    x, y = (
        np.array([np.nan if value is None else value for value in values], float) for values in (confidence, accuracy)
    )
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", label="calibrated")
    filled = np.isfinite(x) & np.isfinite(y)
    axes.vlines(x[filled], x[filled], y[filled], color=PALETTE[1], linewidth=3, alpha=0.45, label="gap")
    axes.plot(x[filled], y[filled], "o-", color=PALETTE[0], markersize=4, linewidth=1.2, label="this model")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that was right")
    axes.legend(loc="upper left")
    return axes


def _whole(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))


def _powers_of_ten(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: "10" + str(round(np.log10(value))).translate(raised))
