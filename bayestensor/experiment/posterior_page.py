"""What a report says of a sampled run: the start beside the mixture, the verdict, and the posterior over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bayestensor import plots
from bayestensor.experiment import figures
from bayestensor.experiment.cells import NOTHING, Cell, count, decimal, percent, plain, seconds, times
from bayestensor.experiment.plates import HALF, Plate, left_out, make_figure, most, panels
from bayestensor.experiment.run_record import RunRecord

MEMBERS = {"svgd": "particles", "ensemble": "members"}  # elsewhere chains


class _Bars(NamedTuple):
    """A posterior over ranks as `plots.rank_posterior_bars` reads it."""

    probabilities: np.ndarray


def posterior(run: RunRecord) -> dict[str, Any] | None:
    """Tables of the sampling stage; None for a run that has none."""
    sampling = (run.summary or {}).get("sampling")
    if not sampling:
        return None
    verdict = sampling.get("verdict") or {}
    return {
        "sentence": _sentence(sampling),
        "converged": verdict.get("converged"),
        "advice": list(verdict.get("advice") or []),
        "quality": list(_quality(run, sampling)),
        "facts": list(_facts(sampling)),
        "ranks": list(_ranks(sampling)),
        "checks": list(_checks(verdict)),
    }


def members(sampling: dict[str, Any]) -> str:
    """ "4 chains"."""
    return f"{sampling['members']} {MEMBERS.get(sampling['engine'], 'chains')}"


def _sentence(sampling: dict[str, Any]) -> str:
    judged = {True: "The chains agree", False: "The chains have not converged", None: "Convergence was not judged"}
    return (
        f"{sampling['engine'].upper()}: {members(sampling)} of {sampling['draws']} draws. "
        f"{judged[(sampling.get('verdict') or {}).get('converged')]}."
    )


def _quality(run: RunRecord, sampling: dict[str, Any]) -> Iterator[tuple[str, Cell, Cell]]:
    """Rows (what, of the MAP start, of the mixture)."""
    summary, start = run.summary or {}, sampling.get("start") or {}
    bins = f" ({summary['ece_bins']} bins)" if summary.get("ece_bins") else ""
    rows = [
        ("parameters, a draw", count(start.get("params")), count(summary.get("params_final"))),
        ("parameters stored in all", count(start.get("params")), count(summary.get("params_stored"))),
        ("times smaller than dense, a draw", _smaller(summary, start.get("params")), times(summary.get("compression"))),
        ("times smaller than dense, stored", NOTHING, _smaller(summary, summary.get("params_stored"))),
    ]
    scores = (
        ("test accuracy", "test_accuracy", percent),
        ("test NLL (nats)", "test_nll", decimal),
        ("mean of the members' test NLL", "test_nll_members", decimal),
        (f"test ECE{bins}", "test_ece", decimal),
        ("test Brier score", "test_brier", decimal),
        ("OOD AUROC", "ood_auroc", decimal),
    )
    rows += [(label, form(start.get(key)), form(summary.get(key))) for label, key, form in scores]
    yield from (row for row in rows if row[1] != NOTHING or row[2] != NOTHING)


def _smaller(summary: dict[str, Any], size: float | None) -> Cell:
    dense = summary.get("params_dense")
    return NOTHING if not dense or not size else Cell(f"{dense / size:.3g}×", dense / size)


def _facts(sampling: dict[str, Any]) -> Iterator[tuple[str, Cell]]:
    """How it was sampled, and the engine's own figures."""
    pruned = sampling.get("pruned") or {}
    lost = max((pruned.get("largest_lost") or {}).values(), default=None)
    rows = [
        ("temperature", plain(sampling.get("temperature"))),
        ("batch size", plain(sampling.get("batch_size"))),
        ("burn-in (steps)", count(sampling.get("burn_in"))),
        ("steps a draw", count(sampling.get("thin"))),
        ("kinetic temperature", decimal(sampling.get("kinetic_temperature"))),
        ("inflation by gradient noise", decimal(sampling.get("inflation"))),
        ("acceptance", decimal(sampling.get("acceptance"))),
        ("variance ratio of the particles", decimal(sampling.get("variance_ratio"))),
        ("sampling (s)", seconds(sampling.get("seconds"))),
        ("dropped: slices alive in less than", percent(pruned.get("share"))),
        ("largest share of a layer's norm lost by that", NOTHING if lost is None else Cell(f"{lost:.2g}", lost)),
    ]
    yield from (row for row in rows if row[1] != NOTHING)


def _ranks(sampling: dict[str, Any]) -> Iterator[tuple[str, str, list[Cell]]]:
    """Rows (layer, bond, [most, mean, mode, interval, P(mode), chains differ by])."""
    for layer, bonds in (sampling.get("rank_posterior") or {}).items():
        for bond, one in bonds.items():
            low, high = one["interval"]
            cells = [count(one["size"]), Cell(f"{one['mean']:.2f}", one["mean"]), count(one["mode"])]
            cells += [Cell(f"{low} to {high}"), percent(one["probabilities"][one["mode"]])]
            yield layer, bond, [*cells, _two(one["disagreement"])]


def _two(value: float | None) -> Cell:
    return NOTHING if value is None else Cell(f"{value:.2f}", value)


def _checks(verdict: dict[str, Any]) -> Iterator[tuple[str, list[Cell]]]:
    """Rows (functional, [R-hat, bulk ESS, tail ESS])."""
    for name, rhat in (verdict.get("rhat") or {}).items():
        sizes = [verdict.get(key, {}).get(name) for key in ("ess_bulk", "ess_tail")]
        cells = [NOTHING if size is None else Cell(f"{size:.0f}", size) for size in sizes]
        yield name, [NOTHING if rhat is None else Cell(f"{rhat:.3f}", rhat), *cells]


def posterior_plates(run: RunRecord) -> Iterator[Plate]:
    """Figures of the sampling stage. Use under `plots.style()`."""
    for make in (_rank_bars, _mixture):
        plate = make(run)
        if plate is not None:
            yield plate


def _rank_bars(run: RunRecord) -> Plate | None:
    found = ((run.summary or {}).get("sampling") or {}).get("rank_posterior") or {}
    bonds = [(layer, bond) for layer, of in found.items() for bond in of]
    if not bonds:
        return None
    shown = most(bonds, key=lambda bond: found[bond[0]][bond[1]]["size"])
    figure, grid = panels(len(shown), 2.2, columns=4)
    for axes, (layer, bond) in zip(grid, shown, strict=True):
        plots.rank_posterior_bars(axes, {bond: _Bars(np.asarray(found[layer][bond]["probabilities"]))})  # type: ignore
        axes.set_title(f"{figures.short(layer, 16)} · {figures.short(bond, 12)}")
        axes.set_ylabel("")
    figure.supylabel("posterior probability", fontsize=9)
    caption = "P(rank = r) over all draws, before any cut: slices whose norm exceeds a thousandth of the layer's." + (
        left_out(shown, bonds, "bonds")
    )
    return Plate("rank_posterior", "Posterior over ranks", caption, figure, wide=len(shown) > 1)


def _mixture(run: RunRecord) -> Plate | None:
    records: Sequence[dict[str, Any]] = [record for record in run.sampling if "draw" in record]
    if not records:
        return None
    which = "validation" if "validation_nll" in records[-1] else "test"
    draws = [record["draw"] for record in records]
    figure = make_figure(HALF, 3.6)
    axes = figure.add_subplot()
    lines = {"nll": "mixture of the draws so far", "nll_members": "mean of the draws' own"}
    for k, (key, label) in enumerate(lines.items()):
        values = np.array([record.get(f"{which}_{key}") for record in records], float)
        axes.plot(draws, values, label=label, **plots.line_style(k))
    start = (((run.summary or {}).get("sampling") or {}).get("start") or {}).get("test_nll")
    if start is not None and which == "test":
        axes.axhline(start, color=plots.MUTED, linewidth=1, linestyle="--", label="MAP start")
    axes.set(xlabel="draws of every chain", ylabel=f"{which} NLL (nats)")
    axes.legend(loc="best")
    caption = "The gap between the lines grows with the draws' disagreement."
    return Plate("mixture", "NLL of the mixture", caption, figure)
