"""One self-contained HTML page about a run, or about several side by side: no script, nothing fetched."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayestensor import plots
from bayestensor.errors import RunError
from bayestensor.experiment import figures
from bayestensor.experiment.cells import NOTHING, Cell, count, decimal, percent, plain, seconds, times
from bayestensor.experiment.plates import Plate, comparison, plates
from bayestensor.experiment.posterior_page import members, posterior, posterior_plates
from bayestensor.experiment.run_record import RunRecord, read_run
from bayestensor.files import write_atomically, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or a comparison of several; also figures/*.png in every run folder.

    Args:
        run_dirs: run folders, finished or not.
        out: the page; by default report.html in the only run, or comparison.html beside the first of several.

    Returns:
        Where the page is.

    Raises:
        RunError: a folder that is no run, a damaged file, or a place that cannot be written.
    """
    if not run_dirs:
        raise RunError("no run folder given; name at least one")
    runs = [read_run(Path(path)) for path in run_dirs]
    if out is None:
        out = runs[0].path / "report.html" if len(runs) == 1 else runs[0].path.parent / "comparison.html"
    names = _distinct([run.name for run in runs])
    with plots.style():
        pages = [_page(run, name, f"r{k}") for k, (run, name) in enumerate(zip(runs, names, strict=True))]
        together = comparison(runs, names) if len(runs) > 1 else None
        shared = None if together is None else _drawn(together, "all")
    page = _template().render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs compared",
        pages=pages,
        comparison=None if len(runs) == 1 else {"header": _COMPARED, "rows": _compared(runs, names), "plate": shared},
    )
    write_atomically(Path(out), page.encode())
    return Path(out)


def _template():
    from jinja2 import Environment, StrictUndefined

    text = resources.files("bayestensor.experiment").joinpath("report.html.j2").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        text
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Short names, numbered where they repeat."""
    names = [figures.short(name, 60) for name in names]
    return [f"{name} ({k})" if names.count(name) > 1 else name for k, name in enumerate(names, 1)]


def _page(run: RunRecord, name: str, prefix: str) -> dict[str, Any]:
    """What the template shows of one run; writes its figures."""
    drawn = []
    for plate in [*posterior_plates(run), *plates(run)]:
        _save_png(plate, run.path / "figures")
        drawn.append(_drawn(plate, prefix))
    return {
        "name": name,
        "verdict": verdict(run),
        "finished": run.summary is not None,
        "notes": list(_notes(run)),
        "table": _size_and_quality(run),
        "ranks": list(_ranks(run)),
        "layers": _layers(run),
        "posterior": posterior(run),
        "plates": drawn,
        "config": run.config,
        "manifest": list(_flat(run.manifest)),
        "path": run.path.name,
    }


# --- words and numbers ---------------------------------------------------------------------------------------------


def verdict(run: RunRecord) -> str:
    """The run in one sentence."""
    final, accuracy = run.latest("params_final"), run.latest("test_accuracy")
    if final is None:
        return "Nothing has been measured yet."
    initial, factor = run.latest("params_initial"), run.latest("compression")
    size = f"{final:,} parameters" if initial is None else f"{initial:,} → {final:,} parameters"
    sampling = (run.summary or {}).get("sampling")
    said = size + (" a draw" if sampling else "") + ("" if factor is None else f" ({factor:.1f}× smaller than dense)")
    if sampling:
        stored = count(run.latest("params_stored")).text
        each = f" of {sampling['draws']} draws" if sampling["draws"] > 1 else ""
        said += f"; the mixture of {members(sampling)}{each} by {sampling['engine'].upper()}, "
        said += f"{stored} parameters in all, has {percent(accuracy).text} test accuracy"
    elif accuracy is not None:
        said += f" at {percent(accuracy).text} test accuracy"
    if run.twin.get("test_accuracy") is not None:
        said += f"; dense twin {percent(run.twin['test_accuracy']).text}"
    if run.summary is None:
        said = f"Unfinished, after epoch {run.last.get('epoch', '?')}: {said}"
    return said + "."


def _notes(run: RunRecord) -> Iterator[str]:
    """What a reader must know before trusting the numbers."""
    if run.summary is None:
        yield "This run is not finished: there is no summary.json. Numbers are those of its last measured epoch."
    elif not run.twin:
        yield "No dense twin was trained, so that there is no accuracy of the dense network to compare with."
    if not run.metrics:
        yield "No metrics were recorded, so that curves over epochs are missing."
    if not run.manifest:
        yield "manifest.json is missing: versions and hardware are unknown."
    if collapsed := (run.summary or {}).get("collapsed"):
        yield f"Collapsed, and kept at rank 1: {', '.join(map(str, collapsed))}."


def _size_and_quality(run: RunRecord) -> list[tuple[str, Cell, Cell, Cell]]:
    """Rows (what, dense, initial, final) of which something is known."""
    summary, twin = run.summary or {}, run.twin
    before = summary.get("before_pruning") or {}
    dense, initial, final = summary.get("params_dense"), summary.get("params_initial"), run.latest("params_final")
    dense = twin.get("params") if dense is None else dense

    def quality(label: str, key: str, form) -> tuple[str, Cell, Cell, Cell]:
        return label, form(twin.get(key)), form(before.get(key)), form(run.latest(key))

    rows = [
        ("parameters", count(dense), count(initial), count(final)),
        ("bytes at 4 a parameter", *(count(None if n is None else 4 * n) for n in (dense, initial, final))),
        ("bytes of the model file", NOTHING, NOTHING, count(summary.get("model_bytes"))),
        (
            "times smaller than dense",
            *(_factor(dense, n) for n in (dense, initial)),
            times(summary.get("compression")),
        ),
        quality("test accuracy", "test_accuracy", percent),
        quality("test NLL (nats)", "test_nll", decimal),
        quality("test ECE", "test_ece", decimal),
        quality("test Brier score", "test_brier", decimal),
        ("training (s)", seconds(twin.get("train_seconds")), NOTHING, seconds(summary.get("train_seconds"))),
        ("of that, compilation (s)", NOTHING, NOTHING, seconds(summary.get("compile_seconds"))),
        ("first step finished after (s)", NOTHING, NOTHING, seconds(summary.get("first_step_seconds"))),
    ]
    return [row for row in rows if any(cell != NOTHING for cell in row[1:])]


def _ranks(run: RunRecord) -> Iterator[tuple[str, str, Cell, Cell]]:
    """Rows (layer, bond, start, now)."""
    for layer, bonds in (run.latest("ranks") or {}).items():
        for bond, rank in bonds.items():
            yield layer, bond, count(run.first_ranks.get(layer, {}).get(bond)), count(rank)


def _layers(run: RunRecord) -> list[tuple[str, str, list[Cell]]]:
    keys = ("params_dense", "params_initial", "params_final", "flops_dense", "flops_final")
    return [
        (
            str(layer.get("name", k)),
            " × ".join(map(str, layer.get("shape") or [])),
            [count(layer.get(key)) for key in keys],
        )
        for k, layer in enumerate((run.summary or {}).get("layers") or [])
    ]


_COMPARED = (
    *("run", "engine", "seed", "dense parameters", "parameters", "stored in all", "times smaller"),
    *("test accuracy", "test NLL", "test ECE", "OOD AUROC", "dense twin", "training (s)"),
)


def _compared(runs: Sequence[RunRecord], names: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    rows = []
    for run, name in zip(runs, names, strict=True):
        seed, sampling = run.latest("seed"), (run.summary or {}).get("sampling") or {}
        cells = [
            plain(sampling.get("engine") or ("map" if run.summary else None)),
            plain(run.manifest.get("seed") if seed is None else seed),
            count(run.latest("params_dense")),
            count(run.latest("params_final")),
            count(run.latest("params_stored") or run.latest("params_final")),
            times(run.latest("compression")),
            percent(run.latest("test_accuracy")),
            decimal(run.latest("test_nll")),
            decimal(run.latest("test_ece")),
            decimal(run.latest("ood_auroc")),
            percent(run.twin.get("test_accuracy")),
            seconds(run.latest("train_seconds")),
        ]
        rows.append((name if run.summary is not None else f"{name} (unfinished)", cells))
    return rows


def _factor(dense: float | None, size: float | None) -> Cell:
    return NOTHING if dense is None or not size else times(dense / size)


def _flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif value is not None:
            yield f"{above}{key}", " ".join(map(str, value)) if isinstance(value, list) else str(value)


# --- figures -------------------------------------------------------------------------------------------------------


def _drawn(plate: Plate, prefix: str) -> dict[str, Any]:
    from markupsafe import Markup

    width = round(96 * plate.figure.get_figwidth())
    svg = Markup(inline_svg(plate.figure, f"{prefix}-{plate.name}-"))  # matplotlib escaped its text
    return {"title": plate.title, "caption": plate.caption, "svg": svg, "width": width, "wide": plate.wide}


def _save_png(plate: Plate, folder: Path) -> None:
    with writing(folder):
        folder.mkdir(exist_ok=True)
        plate.figure.savefig(folder / f"{plate.name}.png", dpi=160, facecolor="white")
    plate.figure.set_layout_engine("none")  # laid out once; the page's copy keeps it


def inline_svg(figure: Figure, prefix: str) -> str:
    """The figure as an <svg> element whose ids no other can clash with, in the page's own inks."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")  # HTML knows what an svg is
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))

    def renamed(found: re.Match) -> str:
        return f' id="{prefix}{found[1]}"' if found[1] in used else ""

    svg = re.sub(r' id="([^"]*)"', renamed, svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{prefix}", svg)
    inks = {plots.INK: "ink", plots.MUTED: "muted", plots.GRID: "grid"}
    for colour, name in inks.items() | {colour: f"c{k}" for k, colour in enumerate(plots.PALETTE)}.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
