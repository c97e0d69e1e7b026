"""Figures of a run, beside those of `bayestensor.plots`: axes in, axes out, made under `plots.style()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bayestensor.plots import GRID, INK, MUTED, PALETTE, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve: TypeAlias = Sequence[float | None]  # None where nothing was measured


def ranks_over_time(axes: Axes, epochs: Sequence[int], ranks: Mapping[str, Curve], legend: bool = True) -> Axes:
    """Size of each bond after every epoch, as steps."""
    from matplotlib.ticker import MaxNLocator

    for k, (bond, sizes) in enumerate(ranks.items()):
        axes.plot(epochs, _numbers(sizes), drawstyle="steps-post", label=bond, **line_style(k))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", ylabel="rank (indices of the bond)")
    _whole_epochs(axes)
    if legend and ranks:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), title="bond")
    return axes


def scale_spectrum(axes: Axes, epochs: Sequence[int], spectra: Sequence[Sequence[float]]) -> Axes:
    """Scales v of one bond, largest first, one line an epoch: faint is early, strong is late."""
    from matplotlib.ticker import MaxNLocator

    shades = np.linspace(0.25, 1.0, len(spectra))
    for shade, epoch, values in zip(shades, epochs, spectra, strict=True):
        last = epoch == epochs[-1]
        axes.plot(
            np.arange(1, len(values) + 1),
            _numbers(values),
            marker="o",
            markersize=3.2 if last else 0,
            linewidth=1.6 if last else 1.0,
            color=PALETTE[0],
            alpha=shade,
            label=f"epoch {epoch}",
        )
    axes.set_yscale("log")
    _powers_of_ten(axes)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    longest = max((len(values) for values in spectra), default=1)
    axes.set_xlim(0.5, longest + 0.5)
    return axes


def accuracy_against_parameters(
    axes: Axes, runs: Mapping[str, Sequence[tuple[float, float, bool]]], dense: Mapping[str, tuple[float, float]]
) -> Axes:
    """Path of every run through (parameters, test accuracy).

    Args:
        axes: to draw on.
        runs: name -> (parameters, accuracy, cut just now) after every epoch.
        dense: name of a run -> (parameters, accuracy) of its dense twin.
    """
    shown: list[float] = []
    labels = {"v": "slices cut", "s": "dense twin"}  # each named once
    for k, (name, path) in enumerate(runs.items()):
        colour = PALETTE[k % len(PALETTE)]
        if path:
            size, accuracy = np.array([point[:2] for point in path], float).T * [[1], [100]]
            cut = np.array([point[2] for point in path], bool)
            axes.plot(size, accuracy, color=colour, linewidth=1, alpha=0.6)
            axes.plot(size[-1:], accuracy[-1:], "o", color=colour, markersize=8, label=name, linestyle="")
            if cut.any():
                label = labels.pop("v", None)
                axes.plot(size[cut], accuracy[cut], "v", color=colour, markersize=6, label=label, linestyle="")
            shown += list(accuracy[len(accuracy) // 4 :])  # the first epochs climb out of the picture
        if name in dense:
            size, accuracy = dense[name]
            alone = len(set(dense.values())) == 1
            square: dict[str, Any] = {
                "color": INK if alone else colour,
                "markersize": 7,
                "fillstyle": "none",
                "linestyle": "",
            }
            axes.plot([size], [100 * accuracy], "s", label=labels.pop("s", None), **square)
            shown.append(100 * accuracy)
    axes.set_xscale("log")
    _plain_counts(axes)
    if shown:
        margin = max(0.12 * (max(shown) - min(shown)), 0.05)
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set(xlabel="parameters of the model (log scale)", ylabel="test accuracy (%)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2 if len(runs) > 1 else 3)
    return axes


def curves(axes: Axes, lines: Mapping[str, tuple[Sequence[int], Curve]], cuts: Sequence[int], ylabel: str) -> Axes:
    """Named curves over epochs; thin uprights where slices were cut."""
    for k, (name, (epochs, values)) in enumerate(lines.items()):
        axes.plot(epochs, _numbers(values), label=name, **line_style(k))
    for k, epoch in enumerate(cuts):
        axes.axvline(epoch, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), label="slices cut" if k == 0 else None)
    axes.set(xlabel="epoch", ylabel=ylabel)
    _whole_epochs(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    return axes


def confusion_matrix(axes: Axes, counts: Sequence[Sequence[int]]) -> Axes:
    """Counts, true class down, predicted class across; shade is the share of the true class."""
    from matplotlib.colors import LinearSegmentedColormap

    table = np.asarray(counts, float)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    classes = len(table)
    # from nothing to blue through transparency, so that it reads on light and dark paper; roots lift small errors
    shades = LinearSegmentedColormap.from_list("ink", [(*_rgb(PALETTE[0]), 0.0), (*_rgb(PALETTE[0]), 1.0)])
    edges = np.arange(classes + 1) - 0.5
    axes.pcolormesh(edges, edges, np.sqrt(share), cmap=shades, vmin=0, vmax=1, edgecolors="none")
    if classes <= 12:
        for i, j in np.ndindex(*table.shape):
            if table[i, j]:
                colour = "#ffffff" if share[i, j] > 0.3 else INK
                size = 7 if table.max() < 10_000 else 6
                axes.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", fontsize=size, color=colour)
    ticks = np.arange(classes) if classes <= 20 else np.arange(0, classes, -(-classes // 10))
    axes.set(xticks=ticks, yticks=ticks, xlabel="predicted class", ylabel="true class", aspect="equal")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return axes


def confidence_counts(axes: Axes, count: Sequence[int]) -> Axes:
    """How many predictions fall into each of the equal bins of confidence over [0, 1] (log scale)."""
    bins = len(count)
    centres = (np.arange(bins) + 0.5) / bins
    axes.bar(centres, np.asarray(count, float), width=0.9 / bins, color=PALETTE[0], alpha=0.75)
    axes.set_yscale("symlog", linthresh=1)
    top = max(max(count, default=1), 10)
    ticks = [0, *(10**k for k in range(0, int(np.log10(top)) + 1, 2))]
    axes.set(xlim=(0, 1), ylim=(0, 2 * top), xlabel="confidence of the prediction", ylabel="predictions", yticks=ticks)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: count_label(value))
    return axes


def parameters_per_layer(axes: Axes, layers: Sequence[Mapping[str, Any]]) -> Axes:
    """Bars: dense, at the start, at the end, for every layer, on a log scale with the numbers beside them."""
    kinds = (
        ("params_dense", "dense", GRID),
        ("params_initial", "start", PALETTE[5]),
        ("params_final", "now", PALETTE[0]),
    )
    height = 0.26
    for k, (key, label, colour) in enumerate(kinds):
        values = _numbers([layer.get(key) for layer in layers])
        at = np.arange(len(layers)) + (k - 1) * height
        axes.barh(at, values, height=0.9 * height, color=colour, label=label)
        for y, value in zip(at, values, strict=True):
            if np.isfinite(value):
                axes.annotate(f"{value:,.0f}", (value, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
    names = [short(str(layer.get("name", k))) for k, layer in enumerate(layers)]
    axes.set_yticks(np.arange(len(layers)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(max(low / 2, 1), high * 6)  # room for the numbers
    _plain_counts(axes)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="parameters (log scale)")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3)
    return axes


def short(text: str, most: int = 24) -> str:
    """At most so many characters, the middle left out."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


def count_label(value: float) -> str:
    """1500 -> 1.5k."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _numbers(values: Curve) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))


def _whole_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


def _plain_counts(axes: Axes) -> None:
    """Ticks of a log axis of counts as 1k, 3k, 10k: more within a decade where few decades are shown."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_xlim()
    decades = np.log10(high / low) if low > 0 else 6
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if decades > 3 else (1, 3) if decades > 1.2 else (1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(lambda value, _: count_label(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plain_log_values(axes: Axes) -> None:
    """Ticks of a log y axis as 0.05, 0.1, 0.2."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _powers_of_ten(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_major_formatter(lambda value, _: "10" + str(round(np.log10(value))).translate(raised))
    axes.yaxis.set_minor_formatter(NullFormatter())
