"""The command line: run, resume, check, report, export, predict, complete. Heavy imports wait for their command."""

from __future__ import annotations

import contextlib
import datetime
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bayestensor import __version__
from bayestensor.errors import BayestensorError, ConfigError

INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, treated like Ctrl-C by whoever cleans up."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bayestensor")
def main() -> None:
    """Train networks of tensors that learn their ranks while they train."""


_config = click.argument("config", type=click.Path(path_type=Path))
_overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_run_dir = click.argument("run_dir", type=click.Path(path_type=Path))


@main.command()
@_config
@_overrides
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to make.  [default: runs/<name>-<time>]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data files lie.  [default: the user's cache]")
def run(config: Path, overrides: tuple[str, ...], out: Path | None, data_dir: Path | None) -> None:
    """Train what CONFIG says; KEY=VALUE replaces a dotted key, as in engine.temperature=2."""
    with _one_line_errors():
        from bayestensor.experiment.config import load
        from bayestensor.files import vacant

        settings = load(config, overrides)
        out = vacant(out or _fresh(Path("runs"), settings.name))
        from bayestensor.experiment.check import check as check_config
        from bayestensor.experiment.console import Console
        from bayestensor.experiment.run import run as train

        check_config(settings)
        _keep_compiled()
        with _resumable(out), Console() as progress:
            summary = train(settings, out, data_dir, progress=progress)
        _finished(out, summary)


@main.command()
@_run_dir
def resume(run_dir: Path) -> None:
    """Go on with the run in RUN_DIR from its last good checkpoint."""
    with _one_line_errors():
        from bayestensor.experiment.folder import open_run

        open_run(run_dir)
        from bayestensor.experiment.console import Console
        from bayestensor.experiment.run import resume as go_on

        _keep_compiled()
        with _resumable(run_dir), Console() as progress:
            summary = go_on(run_dir, progress=progress)
        _finished(run_dir, summary)


@main.command()
@_config
@_overrides
def check(config: Path, overrides: tuple[str, ...]) -> None:
    """Check CONFIG and print its layers, training nothing."""
    with _one_line_errors():
        from bayestensor.experiment.config import load

        settings = load(config, overrides)
        from bayestensor.experiment.check import check as check_config
        from bayestensor.experiment.tables import layer_table

        _print(layer_table(settings, check_config(settings)))
        click.echo(f"{config}: good")


@main.command()
@click.argument("run_dirs", nargs=-1, required=True, metavar="RUN_DIR...", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="HTML file to write.")
def report(run_dirs: tuple[Path, ...], out: Path | None) -> None:
    """Write one self-contained HTML page on the runs; for a single one, its own report.html by default."""
    with _one_line_errors():
        from bayestensor.errors import RunError
        from bayestensor.experiment.folder import open_run

        for run_dir in run_dirs:
            open_run(run_dir)
        own = out is None and len(run_dirs) == 1  # derived from the run alone, so it may be made again
        path = run_dirs[0] / "report.html" if own else out or Path("report.html")
        if not own and path.exists():
            raise RunError(f"{path}: already there; nothing is overwritten, choose another name with -o")
        from bayestensor.experiment.report import write_report

        write_report(list(run_dirs), path)
        click.echo(f"report: {path}")


@main.command()
@_run_dir
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
def export(run_dir: Path, out: Path) -> None:
    """Write the compressed model of RUN_DIR as StableHLO, and as arrays with a NumPy-only predictor."""
    with _one_line_errors():
        from bayestensor.experiment.folder import open_run
        from bayestensor.files import vacant

        open_run(run_dir)
        vacant(out)
        from bayestensor.experiment.export import export as export_model

        export_model(run_dir, out)
        click.echo(f"exported: {out}")


@main.command()
@_run_dir
@click.argument("inputs", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help=".npy file for probabilities.  [default: print classes]",
)
def predict(run_dir: Path, inputs: Path, out: Path | None) -> None:
    """Predict with the model of RUN_DIR: INPUTS is an .npy file of raw inputs, one a row."""
    with _one_line_errors():
        from bayestensor.experiment.folder import open_run
        from bayestensor.files import vacant, write_atomically

        open_run(run_dir)
        if out is not None:
            vacant(out)
        from bayestensor.experiment.saved import load_run, read_inputs

        probabilities = load_run(run_dir).predict(read_inputs(inputs))
        if out is None:
            click.echo("\n".join(map(str, probabilities.argmax(axis=1).tolist())))
        else:
            import io

            import numpy as np

            content = io.BytesIO()
            np.save(content, probabilities, allow_pickle=False)
            write_atomically(out, content.getvalue())


@main.command()
@click.argument("tensor", metavar="IN", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--format", default="cp", show_default=True, help="Network of the tensor; auto: by held-out density.")
@click.option("--likelihood", default="gaussian", show_default=True, help="Or student_t, bernoulli, poisson.")
@click.option("--noise-by", type=int, metavar="MODE", help="Mode whose indices are not equally noisy, from 0.")
@click.option(
    "--effects", default="none", show_default=True, help="Modes with offsets: auto (all), none, or as in 0,2."
)
@click.option("--conformal", default=0.0, help="Share of entries left out to correct the intervals by; 0: none.")
@click.option(
    "--conformal-by", default="random", help="What is left out: random entries, or fibres along a mode, as in 2."
)
@click.option("--max-rank", type=int, help="Largest rank.  [default: from shape and number of observations]")
@click.option("--draws", type=int, help="Posterior draws [default: 100, fewer of a list above a million entries].")
@click.option("--hold-out", default=0.1, show_default=True, help="Share of entries a first fit is tested on; 0: none.")
@click.option("--seed", type=int, help="[default: 0, or what a config says]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where a config's data lie.")
@click.pass_context
def complete(
    context: click.Context,
    tensor: Path,
    out: Path,
    max_rank: int | None,
    draws: int | None,
    hold_out: float,
    seed: int | None,
    data_dir: Path | None,
    effects: str,
    conformal_by: str,
    **options: Any,
) -> None:
    """Fill the holes of the tensor in IN (.npy, .npz, .nc, or a .csv or .parquet long table), with intervals.

    IN may also be a config (.yaml): a known tensor, what to hide of it, and the estimator's parameters.

    OUT gets the completed tensor (mean, sd, ends of the 90 % interval) in the kind of file that IN is, summary.json and
    figures.
    """
    with _one_line_errors():
        from rich.console import Console

        from bayestensor.experiment.complete import complete as fill
        from bayestensor.experiment.complete import complete_known, modes
        from bayestensor.experiment.console import completion_table

        _keep_compiled()
        if tensor.suffix in (".yaml", ".yml"):
            _config_says_it(context)
            _, summary = complete_known(tensor, out, seed, data_dir, click.echo)
        else:
            by = int(conformal_by) if conformal_by.isdigit() else conformal_by
            options |= {"max_rank": max_rank or "auto", "num_draws": draws or "auto", "random_state": seed or 0}
            options |= {"effects": modes(effects), "conformal_by": by, "verbose": True}
            _, summary = fill(tensor, out, options, hold_out, click.echo)
        Console().print(completion_table(summary))
        click.echo(f"completed: {out}")


def _config_says_it(context: click.Context) -> None:
    """Refuse options that are a config's own keys."""
    given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    for name in given:
        if name not in ("tensor", "out", "seed", "data_dir"):
            raise ConfigError(f"--{name.replace('_', '-')} does not go with a config; write it there")


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the user can mend: one line on stderr, exit code 2, no traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: click.echo(f"warning: {message}", err=True)
            yield
    except BrokenPipeError:
        raise  # the reader of our output has gone; click leaves quietly
    except (BayestensorError, OSError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


@contextlib.contextmanager
def _resumable(run_dir: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end with exit code 130 or 143 and a line that says how to go on."""

    def terminate(number, frame):
        raise Terminated

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if in_main else None
    try:
        yield
    except KeyboardInterrupt as stop:
        if any((run_dir / "checkpoints").glob("step-*")):
            click.echo(f"stopped; go on with: bayestensor resume {run_dir}", err=True)
        else:
            click.echo(f"stopped before the first checkpoint of {run_dir}; start again in another folder", err=True)
        sys.exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED)
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _keep_compiled() -> None:
    """Keep what XLA compiles in the user's cache, so that the next run's first step comes sooner.

    JAX's own setting (`JAX_COMPILATION_CACHE_DIR`) goes first.
    """
    import jax
    from platformdirs import user_cache_path

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache_path("bayestensor") / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _fresh(parent: Path, name: str) -> Path:
    """`parent/name-time`, counted up where two runs start within a second."""
    first = parent / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    path, count = first, 1
    while path.exists():
        count += 1
        path = first.with_name(f"{first.name}-{count}")
    return path


def _finished(out: Path, summary: dict[str, Any]) -> None:
    from bayestensor.experiment.console import summary_table, verdict_line

    _print(summary_table(summary))
    if verdict := verdict_line(summary):
        click.echo(verdict)
    if (out / "report.html").is_file():
        click.echo(f"report: {out / 'report.html'}")
    click.echo(f"run: {out}")


def _print(table: Any) -> None:
    from rich.console import Console

    width = max(Console(file=sys.stdout).width, 100)  # a terminal too narrow wraps lines, which beats figures cut short
    Console(file=sys.stdout, width=width).print(table)
