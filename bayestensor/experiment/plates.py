"""The figures of a report, put together from run records: each with its name, title and caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayestensor import plots
from bayestensor.experiment import figures
from bayestensor.experiment.run_record import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HALF, WIDE = 5.0, 10.2  # inches: one of two columns, or both
MOST_PANELS = 12


@dataclass(frozen=True)
class Plate:
    """A figure with its words; `wide` takes the whole width of the page."""

    name: str  # of its file
    title: str
    caption: str
    figure: Figure
    wide: bool = False


def plates(run: RunRecord) -> Iterator[Plate]:
    """Every figure that the run's files allow. Use under `plots.style()`."""
    for make in (_trade, _layers, _training, _ranks, _spectra, _confusion, _reliability):
        plate = make(run)
        if plate is not None:
            yield plate


def comparison(runs: Sequence[RunRecord], names: Sequence[str]) -> Plate | None:
    """Accuracy against parameters, all runs in one picture."""
    paths = {name: _path(run) for name, run in zip(names, runs, strict=True)}
    if not any(paths.values()):
        return None
    twins = {name: _dense_point(run) for name, run in zip(names, runs, strict=True)}
    dense = {name: point for name, point in twins.items() if point is not None}
    figure = make_figure(WIDE, 4.6)
    figures.accuracy_against_parameters(figure.add_subplot(), paths, dense)
    caption = "Up and to the left is better. A disc is where a run ended (or is), its line how it came there."
    return Plate("comparison", "Accuracy against parameters", caption, figure, wide=True)


def make_figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panels(count: int, height: float, columns: int = 3) -> tuple[Figure, list[Any]]:
    """A figure with `count` axes in rows of `columns`."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = make_figure(WIDE if columns > 1 else HALF, height * rows + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _path(run: RunRecord) -> list[tuple[float, float, bool]]:
    points = [(r.get("num_parameters"), r.get("test_accuracy"), r.get("event") == "pruned") for r in run.metrics]
    return [(size, accuracy, cut) for size, accuracy, cut in points if size is not None and accuracy is not None]


def _dense_point(run: RunRecord) -> tuple[float, float] | None:
    size, accuracy = run.twin.get("params"), run.twin.get("test_accuracy")
    return None if size is None or accuracy is None else (size, accuracy)


def _trade(run: RunRecord) -> Plate | None:
    path, dense = _path(run), _dense_point(run)
    if not path:
        return None
    figure = make_figure(HALF, 3.6)
    figures.accuracy_against_parameters(
        figure.add_subplot(), {"this run": path}, {} if dense is None else {"this run": dense}
    )
    caption = "The run's path, epoch by epoch, from right to left; its first climb may leave the frame."
    return Plate("accuracy_parameters", "Accuracy against parameters", caption, figure)


def _layers(run: RunRecord) -> Plate | None:
    layers = [layer for layer in (run.summary or {}).get("layers") or [] if layer.get("params_final")]
    if not layers:
        return None
    shown = most(layers, key=lambda layer: layer.get("params_dense") or 0)
    figure = make_figure(HALF, max(3.6, 0.45 * len(shown) + 1))
    figures.parameters_per_layer(figure.add_subplot(), shown)
    return Plate("layers", "Parameters per layer", "Biases included." + left_out(shown, layers, "layers"), figure)


def _training(run: RunRecord) -> Plate | None:
    if not run.metrics:
        return None
    figure, (left, right) = panels(2, 3.0)
    train = next((key for key in ("train_nll", "train_loss", "loss") if run.last.get(key) is not None), "train_nll")
    label = "training" if train == "train_nll" else "training objective"
    nll = {label: (run, train), "validation": (run, "validation_nll"), "test": (run, "test_nll")}
    accuracy = {"validation": (run, "validation_accuracy"), "test": (run, "test_accuracy")}
    curves = {name: _curve(source.metrics, key) for name, (source, key) in nll.items()}
    figures.curves(left, _seen(curves), run.cuts, "negative log likelihood (nats)")
    if all(value is None or value > 0 for _, values in curves.values() for value in values):
        left.set_yscale("log")
        figures.plain_log_values(left)
    curves = {name: _curve(source.metrics, key, 100) for name, (source, key) in accuracy.items()}
    curves["dense twin, test"] = _curve(run.twin_metrics, "test_accuracy", 100)
    figures.curves(right, _seen(curves), run.cuts, "accuracy (%)")
    return Plate("training", "Training", "Mean per datum, after each evaluated epoch.", figure, wide=True)


def _curve(metrics: Sequence[dict], key: str, factor: float = 1) -> tuple[list[int], list[float | None]]:
    values = [record.get(key) for record in metrics]
    epochs = [record.get("epoch", k + 1) for k, record in enumerate(metrics)]
    return epochs, [None if value is None else factor * value for value in values]


def _seen(curves: dict) -> dict:
    return {name: curve for name, curve in curves.items() if any(value is not None for value in curve[1])}


def _ranks(run: RunRecord) -> Plate | None:
    layers = {layer: bonds for layer, bonds in (run.last.get("ranks") or {}).items() if bonds}
    if not layers:
        return None
    shown = most(list(layers), key=lambda layer: sum(run.first_ranks.get(layer, {}).values()))
    records = [record for record in run.metrics if record.get("ranks")]
    first = run.first_ranks if (run.summary or {}).get("ranks_initial") else {}
    figure, grid = panels(len(shown), 2.6)
    for axes, layer in zip(grid, shown, strict=True):
        epochs = [record.get("epoch", k + 1) for k, record in enumerate(records)]
        sizes = {bond: [record["ranks"].get(layer, {}).get(bond) for record in records] for bond in layers[layer]}
        if first.get(layer):
            epochs = [0, *epochs]
            sizes = {bond: [first[layer].get(bond), *values] for bond, values in sizes.items()}
        figures.ranks_over_time(axes, epochs, sizes)
        axes.set_title(figures.short(layer, 40))
    caption = "Indices left of every bond." + left_out(shown, list(layers), "layers")
    return Plate("ranks", "Ranks over time", caption, figure, wide=len(shown) > 1)


def _spectra(run: RunRecord) -> Plate | None:
    records = [record for record in run.metrics if record.get("scales")]
    if not records:
        return None
    bonds = [(layer, bond) for layer, spectra in records[-1]["scales"].items() for bond in spectra]
    if not bonds:
        return None
    shown = most(bonds, key=lambda bond: len(records[0]["scales"].get(bond[0], {}).get(bond[1], [])))
    picked = [records[k] for k in sorted({round(k) for k in np.linspace(0, len(records) - 1, 6)})]
    figure, grid = panels(len(shown), 2.1, columns=4)
    for axes, (layer, bond) in zip(grid, shown, strict=True):
        lines = [(r.get("epoch", 0), r["scales"].get(layer, {}).get(bond)) for r in picked]
        lines = [(epoch, values) for epoch, values in lines if values]
        figures.scale_spectrum(axes, [epoch for epoch, _ in lines], [values for _, values in lines])
        axes.set_title(f"{figures.short(layer, 16)} · {figures.short(bond, 12)}")
    figure.supxlabel("index of the bond, largest scale first", fontsize=9)
    figure.supylabel("scale v", fontsize=9)
    epochs = ", ".join(str(record.get("epoch", "?")) for record in picked)
    caption = f"Faint to strong: after epoch {epochs}. Shorter lines: indices were cut." + left_out(
        shown, bonds, "bonds"
    )
    return Plate("scales", "Scales of every bond", caption, figure, wide=len(shown) > 1)


def _confusion(run: RunRecord) -> Plate | None:
    counts = (run.summary or {}).get("confusion")
    if not counts:
        return None
    figure = make_figure(HALF, 4.6)
    figures.confusion_matrix(figure.add_subplot(), counts)
    caption = "Test set, counts. Shade: share of the true class, square root, so that rare errors show."
    return Plate("confusion", "Confusion matrix", caption, figure)


def _reliability(run: RunRecord) -> Plate | None:
    bins = (run.summary or {}).get("reliability") or {}
    if not all(bins.get(key) for key in ("confidence", "accuracy", "counts")):
        return None
    figure = make_figure(HALF, 4.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    plots.reliability_diagram(top, bins["confidence"], bins["accuracy"])
    figures.confidence_counts(bottom, bins["counts"])
    caption = "Test set. Below the diagonal the model claims more than it keeps."
    return Plate("reliability", "Reliability", caption, figure)


def most(items: Sequence, key) -> list:
    """The first dozen by `key`, in their given order."""
    top = sorted(range(len(items)), key=lambda k: -key(items[k]))[:MOST_PANELS]
    return [items[k] for k in sorted(top)]


def left_out(shown: Sequence, all_of: Sequence, what: str) -> str:
    """What a caption says where not all are shown."""
    return "" if len(shown) == len(all_of) else f" The {len(shown)} largest of {len(all_of)} {what}."
