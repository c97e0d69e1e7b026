"""Live progress of a run on a terminal; plain lines where output is no terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class Console:
    """Shows epochs, time left, accuracy, parameters and ranks as they come."""

    def __init__(self, console: RichConsole | None = None):
        self.console = console or RichConsole()
        self._bar: Progress | None = None
        self._task: Any = None
        self._epochs = self._steps = 0
        self._name = ""

    def started(self, facts: dict[str, Any]) -> None:
        """Name the run and open the bar."""
        self._name, self._epochs, self._steps = facts["name"], facts["epochs"], facts["steps_per_epoch"]
        resumed = f", from epoch {facts['first_epoch']}" if facts["first_epoch"] else ""
        self.console.print(
            f"[bold]{self._name}[/]: {facts['parameters']:,} parameters, {self._epochs} epochs{resumed}",
            highlight=False,
        )
        self._close()
        if self.console.is_terminal:
            columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TimeElapsedColumn())
            left = (TimeRemainingColumn(), TextColumn("left"))
            self._bar = Progress(*columns, *left, console=self.console, transient=True)
            self._bar.start()
            done = facts["first_epoch"] * self._steps
            label = f"{facts['first_epoch']}/{self._epochs}"
            self._task = self._bar.add_task("", total=self._epochs * self._steps, completed=done, epoch=label)

    def stepped(self, epoch: int, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=epoch * self._steps + step, epoch=f"{epoch}/{self._epochs}")

    def evaluated(self, record: dict[str, Any]) -> None:
        """One line an evaluated epoch."""
        accuracy = f"test {record['test_accuracy']:.2%}"
        if record["validation_accuracy"] is not None:
            accuracy = f"validation {record['validation_accuracy']:.2%}"
        cut = "  [yellow]cut[/]" if record["event"] == "pruned" else ""
        ranks = "  ".join(",".join(map(str, bonds.values())) for bonds in record["ranks"].values() if bonds)
        shown = f"  ranks {ranks}" if ranks else ""
        self.console.print(
            f"  epoch {record['epoch']:>4}  {accuracy}  {record['num_parameters']:>9,} parameters{shown}{cut}",
            highlight=False,
            soft_wrap=True,
        )

    def sampling(self, facts: dict[str, Any]) -> None:
        """Name the sampler and open its bar."""
        members = "particles" if facts["engine"] == "svgd" else "chains"
        self.console.print(
            f"[bold]{self._name}[/]: {facts['engine']}, {facts['members']} {members}, {facts['steps']:,} steps, "
            f"{facts['draws']} draws kept of each",
            highlight=False,
        )
        self._close()
        if self.console.is_terminal:
            columns = (TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TimeElapsedColumn())
            left = (TimeRemainingColumn(), TextColumn("left"))
            self._bar = Progress(*columns, *left, console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=facts["steps"], completed=facts["done"])

    def sampled(self, steps: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=steps)

    def drawn(self, record: dict[str, Any]) -> None:
        """One line a chunk of draws: the mixture so far."""
        which = "validation" if "validation_nll" in record else "test"
        shown = f"NLL {record[f'{which}_nll']:.4f} (members {record[f'{which}_nll_members']:.4f})"
        heat = record.get("kinetic_temperature")
        heat = "" if heat is None else f"  kinetic temperature {heat:.2f}"
        ranks = "  ".join(",".join(f"{r:.1f}" for r in bonds.values()) for bonds in record["ranks"].values() if bonds)
        self.console.print(
            f"  draw {record['draw']:>4}  {which} {record[f'{which}_accuracy']:.2%}  {shown}{heat}"
            + (f"  ranks {ranks}" if ranks else ""),
            highlight=False,
            soft_wrap=True,
        )

    def said(self, line: str) -> None:
        """One line."""
        self.console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)

    def finished(self, summary: dict[str, Any]) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def summary_table(summary: dict[str, Any]) -> Table:
    """Dense, before and after, and of a sampled run its start and its mixture: parameters, accuracy, NLL."""
    table = Table(title=None, header_style="bold")
    sampled = summary.get("sampling")
    columns = ["network", "parameters", "smaller", "test accuracy", *(["test NLL"] if sampled else [])]
    for column in columns:
        table.add_column(column, justify="left" if column == "network" else "right")
    dense, twin = summary["params_dense"], summary.get("dense_twin")

    def row(name: str, parameters: int, scores: dict[str, Any] | None) -> None:
        accuracy, nll = (None if scores is None else scores.get(f"test_{what}") for what in ("accuracy", "nll"))
        smaller = (
            f"{dense / parameters:.1f}x" if parameters <= dense else ""
        )  # a mixture may hold more than a dense net
        cells = [f"{parameters:,}", smaller, "" if accuracy is None else f"{accuracy:.2%}"]
        table.add_row(name, *cells, *(["" if nll is None else f"{nll:.4f}"] if sampled else []))

    row("dense twin" if twin else "dense (not trained)", dense, twin)
    before = summary.get("before_pruning")
    if before:
        row(f"before the first cut (epoch {before['epoch']})", summary["params_initial"], before)
    last = "after the last cut" if before else "trained"
    if sampled is None:
        row(last, summary["params_final"], summary)
        return table
    if sampled["start"]:
        row(f"{last}: MAP", sampled["start"]["params"], sampled["start"])
    row(f"{sampled['engine']}, {sampled['members']} x {sampled['draws']} draws: one", summary["params_final"], None)
    row("their mixture, stored in all", summary["params_stored"], summary)
    return table


def verdict_line(summary: dict[str, Any]) -> str | None:
    """Whether a sampled run has converged, and the first thing to do about it; None of a run without draws."""
    verdict = (summary.get("sampling") or {}).get("verdict")
    if verdict is None:
        return None
    advice = list(verdict["advice"])
    more = f" ({len(advice) - 1} more in the report)" if len(advice) > 1 else ""
    judged = {True: "converged", False: "not converged: ", None: "convergence not judged: "}[verdict["converged"]]
    return judged + "".join(advice[:1]) + more


def completion_table(summary: dict[str, Any]) -> Table:
    """What `complete` found, and how well it predicted the entries that its first fit did not see."""
    table = Table(box=box.SIMPLE, show_header=False, padding=(0, 1))
    table.add_column(style="bold")
    table.add_column()
    rank = summary["rank"]
    shown = rank if isinstance(rank, int) else ", ".join(f"{bond} {size}" for bond, size in rank.items())
    table.add_row("tensor", f"{' x '.join(map(str, summary['shape']))}, {summary['observed']:,} entries observed")
    table.add_row("rank", f"{shown} ({summary['format']})")
    if summary["noise"] is not None:
        noise = summary["noise"]
        several = isinstance(noise, list)
        law = "normal" if summary["noise_df"] is None else f"t, {summary['noise_df']:g} degrees of freedom"
        table.add_row("noise", (f"{min(noise):.4g} to {max(noise):.4g}" if several else f"{noise:.4g}") + f" ({law})")
    table.add_row("time", f"{summary['seconds']:.1f} s")
    held = summary.get("held_out")
    if held:
        table.add_section()
        table.add_row("held out", f"{held['entries']:,} entries")
        table.add_row("relative error", f"{held['rrse']:.4g}")
        table.add_row("log density", f"{held['log_density']:.4g}")
        for name, title in (("", "90 % intervals"), ("conformal_", "conformal 90 % intervals")):
            if f"{name}coverage_90" in held:
                ends = held[f"{name}coverage_90"], held[f"{name}width_90"]
                table.add_row(title, f"cover {ends[0]:.1%}, mean width {ends[1]:.4g}")
    table.add_section()
    for name, value in summary["parameters"].items():
        if value is not None:
            table.add_row(name, str(value), style="dim")
    return table
