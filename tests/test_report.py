"""The report says what the run folder says, is self-contained, and copes with unfinished runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bayestensor.errors import RunError
from bayestensor.experiment.report import write_report

EPOCHS, CUTS = 24, (6, 12, 18)
NETWORK = {"layers.0": ("b1", "b2", "b3"), "layers.1": ("b1",)}
START = {"layers.0": {"b1": 20, "b2": 20, "b3": 20}, "layers.1": {"b1": 10}}


def _ranks_at(epoch: int) -> dict:
    falls = sum(epoch >= cut for cut in CUTS)
    return {
        layer: {bond: max(2, size - falls * (3 + k)) for k, (bond, size) in enumerate(bonds.items())}
        for layer, bonds in START.items()
    }


def metrics_of(seed: int, best: float, shrinks: bool = True) -> list[dict]:
    rng = np.random.default_rng(seed)
    records = []
    for epoch in range(1, EPOCHS + 1):
        ranks = _ranks_at(epoch if shrinks else 0)
        cut = shrinks and epoch in CUTS
        accuracy = best - 0.25 * math.exp(-epoch / 2.5) - 0.004 * cut + 0.0008 * rng.normal()
        size = 635 + sum(40 * rank**1.4 for bonds in ranks.values() for rank in bonds.values())
        records.append(
            {
                "epoch": epoch,
                "step": 375 * epoch,
                "loss": 0.9 * math.exp(-epoch / 3) + 0.06,
                "train_nll": 0.8 * math.exp(-epoch / 3) + 0.03,
                "validation_accuracy": accuracy - 0.001 if epoch > 2 else None,
                "test_accuracy": accuracy,
                "test_nll": 0.7 * math.exp(-epoch / 2.5) + 0.07,
                "num_parameters": round(size),
                "prior_weight": min(1.0, epoch / 8),
                "ranks": ranks if shrinks else {},
                "scales": {
                    layer: {
                        bond: sorted(
                            (np.exp(-np.arange(rank) * 0.05 * epoch) * rng.uniform(0.7, 1.3, rank)).tolist(),
                            reverse=True,
                        )
                        for bond, rank in bonds.items()
                    }
                    for layer, bonds in (ranks if shrinks else {}).items()
                },
                "seconds": 1.7 * epoch,
                "event": "pruned" if cut else None,
            }
        )
    return records


def summary_of(name: str, seed: int, records: list[dict]) -> dict:
    rng = np.random.default_rng(seed + 100)
    confusion = np.diag(rng.integers(880, 1130, 10)) + rng.integers(0, 9, (10, 10))
    confidence = [None, None, *(np.linspace(0.13, 0.98, 13) + 0.01).round(3).tolist()]
    final = records[-1]["num_parameters"]
    return {
        "name": name,
        "seed": seed,
        "params_dense": 496_885,
        "params_initial": 27_235,
        "params_final": final,
        "compression": 496_885 / final,
        "ranks": records[-1]["ranks"],
        "ranks_initial": START,
        "temperature": 2.0,
        "test_accuracy": records[-1]["test_accuracy"],
        "test_nll": 0.0712,
        "test_ece": 0.0061,
        "test_brier": 0.0299,
        "train_seconds": 71.34,
        "compile_seconds": 3.21,
        "first_step_seconds": 2.87,
        "model_bytes": 11_932,
        "layers": [
            {
                "name": "layers.0",
                "shape": [625, 784],
                "params_dense": 490_625,
                "params_initial": 26_600,
                "params_final": final - 500,
                "flops_dense": 980_000,
                "flops_final": 61_440,
            },
            {
                "name": "layers.1",
                "shape": [10, 625],
                "params_dense": 6_260,
                "params_initial": 635,
                "params_final": 500,
                "flops_dense": 12_500,
                "flops_final": 1_270,
            },
        ],
        "confusion": confusion.tolist(),
        "reliability": {
            "bins": 15,
            "confidence": confidence,
            "accuracy": [c and round(min(1.0, c * 0.96 + 0.02), 3) for c in confidence],
            "counts": [0, 0, *(int(4 * 1.7**k) for k in range(13))],
        },
        "collapsed": [],
        "dense_twin": {
            "test_accuracy": 0.9841,
            "test_nll": 0.0622,
            "test_ece": 0.0088,
            "params": 496_885,
            "train_seconds": 65.02,
        },
    }


def make_run(path: Path, name: str = "mnist_fc_map", seed: int = 0, best: float = 0.983, **changes) -> Path:
    """A synthetic run folder; `changes` replace keys of its summary (`summary=None` leaves it out)."""
    (path / "twin").mkdir(parents=True)
    records = metrics_of(seed, best)
    (path / "config.yaml").write_text(f"name: {json.dumps(name)}\nseed: {seed}\nprior:\n  name: log-uniform\n")
    manifest = {
        "versions": {"python": "3.11.9", "jax": "0.10.2"},
        "commit": "431d029",
        "seed": seed,
        "hardware": {"cpu": "an ordinary one", "cores": 2, "device": "cpu"},
        "started": "2026-11-21T09:00:00+00:00",
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    _write_lines(path / "metrics.jsonl", records)
    _write_lines(path / "twin" / "metrics.jsonl", metrics_of(seed + 7, 0.984, shrinks=False))
    if changes.get("summary", True) is not None:
        (path / "summary.json").write_text(json.dumps(summary_of(name, seed, records) | changes))
    return path


def _write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


class Page(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []  # every address in the page
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: dict[str, list] = {}  # first cell of a table row -> (section, values of the others)
        self.headings: list[str] = []
        self.text = ""
        self._section, self._row, self._cell, self._heading = "", None, None, False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs.items()]
        if "id" in attrs:
            self.ids[attrs["id"]] += 1
        self.references += [attrs[key] for key in ("href", "src", "xlink:href", "action", "data") if attrs.get(key)]
        if tag in ("section", "details"):
            self._section = attrs.get("class") or attrs.get("id") or ""
        if tag == "tr":
            self._row = []
        if tag in ("th", "td") and self._row is not None:
            self._cell = [attrs.get("data-value"), ""]
            self._row.append(self._cell)
        self._heading = tag in ("h1", "h2", "h3")

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self._cell = None
        if tag == "tr" and self._row:
            self.rows[self._section, self._row[0][1]] = self._row[1:]

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell[1] += data
        if self._heading and data.strip():
            self.headings.append(data.strip())
            self._heading = False

    def value(self, section: str, label: str, column: int):
        found = self.rows[section, label][column][0]
        return None if found is None else json.loads(found)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished") / "a", before_pruning={"test_accuracy": 0.9812, "epoch": 6})


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return Page(write_report([finished]))


def self_contained(page: Page) -> bool:
    fetched = [address for address in page.references if not address.startswith("#")]
    styled = [value for _, name, value in page.attributes if name == "style" and "url(" in value.replace("url(#", "")]
    handlers = [name for _, name, _ in page.attributes if name.startswith("on")]
    foreign = {"script", "link", "iframe", "img", "object", "embed", "image", "form", "base"} & set(page.tags)
    return not (fetched or styled or handlers or foreign or "@import" in page.source)


def test_the_page_fetches_nothing_and_runs_nothing(page, tmp_path):
    assert self_contained(page)
    assert "http://" not in page.source
    assert "https://" not in page.source
    for fault in ("<script>1</script>", '<img src="x.png">', '<p onclick="x">', '<link href="x.css">'):
        (tmp_path / "fault.html").write_text(page.source + fault)
        assert not self_contained(Page(tmp_path / "fault.html")), fault


def test_ids_are_unique_and_every_reference_is_met(page):
    assert max(page.ids.values()) == 1
    assert {address[1:] for address in page.references} <= set(page.ids)


def test_every_section_and_figure_is_there(page, finished):
    titles = {
        "accuracy_parameters": "Accuracy against parameters",
        "layers": "Parameters per layer",
        "training": "Training",
        "ranks": "Ranks over time",
        "scales": "Scales of every bond",
        "confusion": "Confusion matrix",
        "reliability": "Reliability",
    }
    sections = ["Size and quality", "Ranks", "Layers", "Figures", "Config", "Versions and hardware"]
    assert page.headings[0] == "mnist_fc_map"
    assert set(page.headings[1:]) == {*sections, *titles.values()}
    assert page.tags["svg"] == page.tags["figure"] == len(titles)
    pictures = {file.stem: file.read_bytes()[:4] for file in (finished / "figures").iterdir()}
    assert pictures == dict.fromkeys(titles, b"\x89PNG")


def test_every_number_is_the_summarys(page, finished):
    summary = json.loads((finished / "summary.json").read_text())
    twin, before = summary["dense_twin"], summary["before_pruning"]
    rows = {
        "parameters": (summary["params_dense"], summary["params_initial"], summary["params_final"]),
        "bytes of the model file": (None, None, summary["model_bytes"]),
        "times smaller than dense": (1, summary["params_dense"] / summary["params_initial"], summary["compression"]),
        "test accuracy": (twin["test_accuracy"], before["test_accuracy"], summary["test_accuracy"]),
        "test NLL (nats)": (twin["test_nll"], None, summary["test_nll"]),
        "test ECE": (twin["test_ece"], None, summary["test_ece"]),
        "test Brier score": (None, None, summary["test_brier"]),
        "training (s)": (twin["train_seconds"], None, summary["train_seconds"]),
        "of that, compilation (s)": (None, None, summary["compile_seconds"]),
        "first step finished after (s)": (None, None, summary["first_step_seconds"]),
    }
    for label, values in rows.items():
        assert tuple(page.value("summary", label, k) for k in range(3)) == values, label
    assert page.value("summary", "bytes at 4 a parameter", 2) == 4 * summary["params_final"]
    for layer in summary["layers"]:
        keys = ("params_dense", "params_initial", "params_final", "flops_dense", "flops_final")
        assert [page.value("layers", layer["name"], k + 1) for k in range(5)] == [layer[key] for key in keys]
    last = page.rows["ranks", "layers.1"]  # one bond, so that its row is the only one of that name
    assert [cell[1] for cell in last] == ["b1", "10", str(summary["ranks"]["layers.1"]["b1"])]
    final = f"{summary['params_final']:,}"
    assert f"27,235 → {final} parameters ({summary['compression']:.1f}× smaller than dense)" in page.text
    assert f"at {summary['test_accuracy']:.2%} test accuracy; dense twin 98.41%." in page.text
    assert "0.10.2" in page.text
    assert "log-uniform" in page.text


def test_the_same_run_gives_the_same_page(finished, page, tmp_path):
    assert write_report([finished], tmp_path / "again.html").read_text(encoding="utf-8") == page.source


def test_hostile_names_stay_text(tmp_path):
    name = "<script>alert(1)</script>\"' & $\\frac{ <img src=x onerror=y>"
    path = make_run(tmp_path / "a", name=name, collapsed=["bond <b>'x'</b>"])
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for key in ("ranks", "scales"):
            record[key] = {f"{layer}</svg><script>$_{{": bonds for layer, bonds in record[key].items()}
    _write_lines(path / "metrics.jsonl", records)
    page = Page(write_report([path]))
    assert self_contained(page)
    assert name[:30] in page.text
    assert "b" not in page.tags


def test_an_unfinished_run_says_so(tmp_path):
    path = make_run(tmp_path / "a", summary=None)
    with (path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 25, "test_accur')  # killed while writing
    page = Page(write_report([path]))
    assert "Unfinished, after epoch 24" in page.text
    assert "there is no summary.json" in page.text
    assert page.value("summary", "parameters", 2) == metrics_of(0, 0.983)[-1]["num_parameters"]
    assert {"Training", "Ranks over time", "Accuracy against parameters"} <= set(page.headings)
    assert "Confusion matrix" not in page.headings


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("name: x\n")
    page = Page(write_report([tmp_path]))
    assert "Nothing has been measured yet." in page.text
    assert "Nothing to draw yet." in page.text
    assert "manifest.json is missing" in page.text


SUMMARY_KEYS = sorted(summary_of("x", 0, metrics_of(0, 0.98)))


@pytest.mark.parametrize("left", [SUMMARY_KEYS[::2], SUMMARY_KEYS[1::2], []])
def test_missing_keys_are_dashes(tmp_path, left):
    path = make_run(tmp_path / "a")
    whole = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({key: whole[key] for key in left}))
    _write_lines(path / "metrics.jsonl", [{"epoch": 1}, {"epoch": 2, "test_nll": None, "ranks": {"l": {}}}])
    page = Page(write_report([path]))
    assert self_contained(page)
    assert ("No dense twin was trained" in page.text) == ("dense_twin" not in left)
    for label, key in (("test accuracy", "test_accuracy"), ("test ECE", "test_ece"), ("training (s)", "train_seconds")):
        if key in left:
            assert page.value("summary", label, 2) == whole[key]
        elif ("summary", label) in page.rows:  # a row of which nothing is known is left out
            assert page.rows["summary", label][2] == [None, "–"]
            assert any(cell[0] is not None for cell in page.rows["summary", label])


def test_collapsed_bonds_are_named(tmp_path):
    page = Page(write_report([make_run(tmp_path / "a", collapsed=["bond 'b1' of layer 'layers.0'"])]))
    assert "Collapsed, and kept at rank 1: bond 'b1' of layer 'layers.0'." in page.text


def test_two_runs_are_compared_first(tmp_path):
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", seed=1, best=0.978),
        make_run(tmp_path / "c", summary=None),
    ]
    out = write_report(runs)
    assert out == tmp_path / "comparison.html"
    page = Page(out)
    assert page.headings[:3] == ["3 runs compared", "Accuracy against parameters", "mnist_fc_map (1)"]
    assert self_contained(page)
    assert max(page.ids.values()) == 1
    assert page.tags["article"] == 3
    first, second = (json.loads((run / "summary.json").read_text()) for run in runs[:2])
    for name, summary in (("mnist_fc_map (1)", first), ("mnist_fc_map (2)", second)):
        keys = ("seed", "params_dense", "params_final", "params_final", "compression", "test_accuracy", "test_nll")
        assert [page.value("comparison", name, k) for k in range(1, 8)] == [summary[key] for key in keys]
    assert ("comparison", "c (unfinished)") in page.rows


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "not a run folder: config.yaml is missing"),
        (lambda run: (run / "summary.json").write_text("{"), "summary.json: damaged"),
        (lambda run: (run / "summary.json").write_text("[]"), "expected a JSON object, not list"),
        (lambda run: (run / "metrics.jsonl").write_text('{"epoch": 1}\n{"ep\n{"epoch": 3}\n'), "line 2 is damaged"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, spoil, message):
    path = make_run(tmp_path / "a")
    spoil(path)
    with pytest.raises(RunError, match=message) as refused:
        write_report([path])
    assert "\n" not in str(refused.value)
    assert not (path / "report.html").exists()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(RunError, match="no run folder given"):
        write_report([])
