"""What every task shows while it trains, and what it leaves behind."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as ProgressBar,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks import plots
from benchmarks.checkpoints import Checkpoints
from benchmarks.options import Work
from benchmarks.placement import Placement
from benchmarks.results import (
    Experiment,
    Run,
    grid_tables,
    summary_table,
    values_of,
    write_json_lines,
    write_tensorboard,
)
from benchmarks.sweeps import Progress, sweep
from benchmarks.training import Configuration, Problem


def train_and_show(
    experiment: Experiment,
    problem: Problem,
    configurations: Mapping[str, Configuration],
    epochs: int,
    *,
    folder: Path,
    settings: Mapping[str, Any],
    work: Work,
) -> None:
    """Train all configurations with a progress bar, print the tables, and write pictures and results.

    Ctrl-C ends it; the same command goes on from the last checkpoint.
    """
    console = Console(quiet=jax.process_index() != 0)
    checkpoints = Checkpoints(folder, dataclasses.asdict(experiment) | dict(settings))
    count = sum(int(each.seed.size) for each in configurations.values())
    try:
        with _progress_bar(console, experiment, count, epochs) as report:
            runs, seconds = sweep(
                problem,
                configurations,
                epochs,
                placement=Placement(work.devices_per_run),
                checkpoints=checkpoints,
                checkpoint_every=work.checkpoint_every,
                report=report,
            )
    except KeyboardInterrupt:
        console.print(f"Stopped. The same command goes on from the last checkpoint, in {folder.resolve()}.")
        raise SystemExit(130) from None
    if jax.process_index() == 0:
        show(console, experiment, runs, folder, settings=settings, seconds=seconds)
        if work.tensorboard:
            write_tensorboard(runs, folder / "tensorboard")
            console.print(f"Wrote {(folder / 'tensorboard').resolve()}", soft_wrap=True)
    checkpoints.clear()


@contextmanager
def _progress_bar(
    console: Console, experiment: Experiment, count: int, epochs: int
) -> Iterator[Callable[[Progress], None]]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=console) as progress:
        bar = progress.add_task(f"Compiling {count} networks", total=epochs, state="")

        def report(now: Progress) -> None:
            part = f", part {now.chunk + 1} of {now.chunks}" if now.chunks > 1 else ""
            state = ""
            if now.validation_error is not None:
                speed = progress.tasks[bar].speed
                rate = f"{speed:.2g}/s, " if speed else ""
                state = f"{rate}best {100 * now.validation_error:.3g} {experiment.quantity.unit}"
            progress.update(
                bar,
                completed=now.chunk * epochs + now.epochs,
                total=now.chunks * epochs,
                description=f"Training {count} networks{part}",
                state=state,
            )

        yield report


def show(
    console: Console,
    experiment: Experiment,
    runs: Sequence[Run],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    seconds: float,
) -> None:
    """Print the tables, write the pictures and the runs, and name the files."""
    quantity = experiment.quantity
    for table in (*grid_tables(runs, quantity), summary_table(runs, quantity)):
        console.print(table)
    for note in experiment.notes:
        console.print(f"Note: {note}")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "runs.jsonl", folder / "learning_curves.png"]
    write_json_lines(runs, files[0], experiment=experiment, settings=settings, seconds=seconds)
    plots.learning_curves(runs, quantity, experiment.title, files[1])
    if len(values_of(runs, "learning_rate")) > 1:
        files.append(folder / "learning_rates.png")
        plots.error_by_learning_rate(runs, quantity, experiment.title, files[2])
    for file in files:
        console.print(f"Wrote {file.resolve()}", soft_wrap=True)
