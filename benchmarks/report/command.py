"""The report's command."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks import plots
from benchmarks.papers import REDRAWN
from benchmarks.report import figures
from benchmarks.report.comparison import differences, published
from benchmarks.report.document import PaperPicture, Picture, markdown
from benchmarks.report.page import page
from benchmarks.report.reading import Sweep, read_measurements, read_sweeps
from benchmarks.results import values_of


@dataclasses.dataclass(frozen=True)
class Report:
    """Write what all runs in a folder of results amount to, beside what the papers report.

    Reads each `runs.jsonl` below the folder, and what kappa, overhead and sweep-time have left there.
    Writes `report.md`, the same as `report.html` with its pictures inside, and the pictures.
    """

    results: Path = Path("results")
    """Folder below which the tasks have left their results."""
    output: Path = Path("results/report")
    """Folder for the report and its pictures."""

    def run(self) -> None:
        """Read the results, draw the pictures, write the report and name its files."""
        sweeps = read_sweeps(self.results)
        measurements = read_measurements(self.results)
        self.output.mkdir(parents=True, exist_ok=True)
        pictures = {sweep.folder: self._pictures(sweep) for sweep in track(sweeps, description="Drawing")}
        text = markdown(sweeps, pictures, self._redrawn(sweeps), measurements)
        files = {self.output / "report.md": text, self.output / "report.html": page(text, self.output)}
        for file, content in files.items():
            file.write_text(content, encoding="utf-8")
            Console().print(f"Wrote {file.resolve()}", soft_wrap=True)

    def _pictures(self, sweep: Sweep) -> list[Picture]:
        experiment = sweep.experiment
        name = "-".join(sweep.folder.parts) or experiment.task
        quantity = experiment.quantity
        drawn = [
            Picture(
                self.output / f"{name}-learning-curves.png",
                f"{experiment.title}: {quantity.name} by epoch at the best learning rate of each optimiser",
            )
        ]
        plots.learning_curves(sweep.runs, quantity, experiment.title, drawn[0].path)
        if len(values_of(sweep.runs, "learning_rate")) > 1:
            drawn.append(
                Picture(
                    self.output / f"{name}-learning-rates.png",
                    f"{experiment.title}: {quantity.name} after training by learning rate",
                )
            )
            plots.error_by_learning_rate(sweep.runs, quantity, experiment.title, drawn[1].path)
        return drawn

    def _redrawn(self, sweeps: Sequence[Sweep]) -> list[PaperPicture]:
        drawn = []
        for task, kind, paper, place in REDRAWN:
            chosen = [sweep for sweep in sweeps if sweep.experiment.task == task]
            if not chosen:
                continue
            title = f"{place}: {task}"
            path = self.output / f"{task}-{kind}.png"
            if kind == "curves":
                shows = "test error by epoch"
                figures.curves(chosen, title, path)
            else:
                shows = "test error after the last epoch by optimiser"
                figures.bars(chosen, [_marks(sweep) for sweep in chosen], title, path)
            drawn.append(PaperPicture(f"{title}, {shows}", paper, Picture(path, f"{title}, {shows}")))
        return drawn


def _marks(sweep: Sweep) -> dict[str, figures.Mark]:
    reported = published(sweep)
    return {
        name: figures.Mark(figure.value, not differences(sweep, each))
        for each in reported
        for name, figure in each.figures.items()
    }
