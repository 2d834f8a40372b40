"""What every task shows while it trains, and what it leaves behind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import plots
from benchmarks.results import Quantity, Run, grid_tables, summary_table, values_of, write_json_lines
from benchmarks.sweeps import sweep
from benchmarks.training import Configuration, Problem


def sweep_with_progress(
    console: Console, problem: Problem, configurations: Mapping[str, Configuration], epochs: int
) -> tuple[list[Run], float]:
    """`sweep`, with a progress bar."""
    count = sum(int(each.seed.size) for each in configurations.values())
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=epochs)

        def report(done: int) -> None:
            doing = "Training" if done else "Compiling"
            progress.update(bar, completed=done, description=f"{doing} {count} networks, epochs")

        return sweep(problem, configurations, epochs, report)


def show(
    console: Console,
    runs: Sequence[Run],
    quantity: Quantity,
    title: str,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    seconds: float,
) -> None:
    """Print the tables, write the pictures and the runs, and name the files."""
    for table in (*grid_tables(runs, quantity), summary_table(runs, quantity)):
        console.print(table)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "runs.jsonl", folder / "learning_curves.png"]
    write_json_lines(runs, files[0], settings=settings, quantity=quantity, seconds=seconds)
    plots.learning_curves(runs, quantity, title, files[1])
    if len(values_of(runs, "learning_rate")) > 1:
        files.append(folder / "learning_rates.png")
        plots.error_by_learning_rate(runs, quantity, title, files[2])
    for file in files:
        console.print(f"Wrote {file.resolve()}", soft_wrap=True)


def check_distinct(options: Any, *names: str) -> None:
    """Raise ValueError where one of these options of a task holds no value, or one twice."""
    for name in names:
        if len(values := getattr(options, name)) == 0 or len(set(values)) < len(values):
            raise ValueError(f"expected {name} to hold one or several distinct values, got {values}")


def check_positive(options: Any, *names: str) -> None:
    """Raise ValueError where one of these options of a task is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"expected {name} to be 1 or more, got {getattr(options, name)}")
