"""How time and memory of a training step grow with each size of a recurrent network."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, StrMethodFormatter
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.options import check_distinct, check_positive
from benchmarks.plots import STYLE
from benchmarks.step_programs import STEPS, step_program
from benchmarks.timing import time_in_turns
from benchmarks.workloads import Recurrent

_Optimizer = Literal["sgd", "g_sgd", "path_sgd"]


class _Point(NamedTuple):
    """The cost of a training step.

    Attributes:
      axis: what is varied.
      size: of that.
      optimizer: its name.
      seconds: that the step takes, median over turns.
      bytes: that it takes at most.
    """

    axis: str
    size: int
    optimizer: str
    seconds: float
    bytes: int


@dataclasses.dataclass(frozen=True)
class Growth:
    """Time training steps of ReLU RNNs one size of which is varied, and measure their memory.

    Ten steps are one program. All else stays at 50 time steps, 128 units, batches of 32 sequences, one layer and one
    run. Exponents are the slopes of straight lines through all points, both axes logarithmic: 1 where cost grows with
    size, 2 with its square.
    """

    time_steps: tuple[int, ...] = (50, 100, 200, 400, 800)
    """Lengths of the sequences."""
    units: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Units of a layer."""
    batch: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Sequences in a step."""
    layers: tuple[int, ...] = (1, 2, 4, 8)
    """Recurrent layers."""
    runs: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Networks that train side by side in one program."""
    optimizers: tuple[_Optimizer, ...] = ("sgd", "g_sgd", "path_sgd")
    """Optimisers."""
    turns: int = 20
    """How often the programs of one size take turns at most."""
    seconds: float = 3.0
    """The programs of one size begin no more turns after so many seconds; two at least."""
    output: Path = Path("results/growth")
    """Folder for the picture and the results."""

    def __post_init__(self) -> None:
        check_positive(self, "turns")
        check_distinct(self, "time_steps", "units", "batch", "layers", "runs", "optimizers")
        for axis in _AXES:
            if min(sizes := getattr(self, axis)) < 1:
                raise ValueError(f"expected {axis} to be 1 or more, got {sizes}")

    def run(self) -> None:
        """Measure, print the exponents, and write picture and results."""
        console = Console()
        cases = [(axis, size) for axis in _AXES for size in getattr(self, axis)]
        points: list[_Point] = []
        for axis, size in track(cases, description="Measuring", console=console):
            points += self._measured(axis, size)
        console.print(_table(points))
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / "growth.json"
        path.write_text(json.dumps([point._asdict() for point in points], indent=1))
        picture = self.output / "growth.png"
        _draw(points, picture)
        for written in (path, picture):
            console.print(f"Wrote {written.resolve()}", soft_wrap=True)

    def _measured(self, axis: str, size: int) -> list[_Point]:
        sizes = {**_SIZES, axis: size}
        workload = Recurrent(
            sizes["time_steps"], 28, hidden=(sizes["units"],) * sizes["layers"], batch_size=sizes["batch"]
        )
        programs = [step_program(workload, OPTIMIZERS[name], runs=sizes["runs"]) for name in self.optimizers]
        times = time_in_turns([each.run for each in programs], turns=self.turns, seconds=self.seconds) / STEPS
        medians = np.median(times, axis=0).tolist()
        return [
            _Point(axis, size, name, seconds, program.bytes)
            for name, seconds, program in zip(self.optimizers, medians, programs, strict=True)
        ]


_SIZES = {"time_steps": 50, "units": 128, "batch": 32, "layers": 1, "runs": 1}
_AXES = tuple(_SIZES)
_COSTS = {"seconds": ("time", "ms", 1e-3), "bytes": ("memory", "MB", 1e6)}  # name, unit, and how much that is


def _curves(points: Sequence[_Point], axis: str, cost: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        if point.axis == axis:
            curves.setdefault(point.optimizer, []).append((point.size, getattr(point, cost) / _COSTS[cost][2]))
    return {name: tuple(np.array(sorted(curve)).T) for name, curve in curves.items()}


def _exponent(sizes: np.ndarray, costs: np.ndarray) -> float:
    if len(sizes) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def _table(points: Sequence[_Point]) -> Table:
    table = Table(title="Exponents: cost grows as size to the power of")
    table.add_column("size", no_wrap=True)
    names = list(dict.fromkeys(point.optimizer for point in points))
    for cost, _, _ in _COSTS.values():
        for name in names:
            table.add_column(f"{cost}, {OPTIMIZERS[name].label}", justify="right")
    for axis in _AXES:
        exponents = [_exponent(*_curves(points, axis, cost)[name]) for cost in _COSTS for name in names]
        table.add_row(axis.replace("_", " "), *(f"{each:.2f}" for each in exponents))
    return table


def _draw(points: Sequence[_Point], path: Path) -> None:
    with plt.rc_context(STYLE):
        figure, rows = plt.subplots(len(_COSTS), len(_AXES), figsize=(3 * len(_AXES), 6), sharey="row", sharex="col")
        for (cost, (title, unit, _)), panels in zip(_COSTS.items(), rows, strict=True):
            for axis, panel in zip(_AXES, panels, strict=True):
                for name, (sizes, costs) in _curves(points, axis, cost).items():
                    optimizer = OPTIMIZERS[name]
                    panel.loglog(sizes, costs, marker="o", color=optimizer.color, label=optimizer.label)
                    # Linear growth from the last point: what a curve is to be compared with.
                    panel.loglog(sizes, costs[-1] * sizes / sizes[-1], color="#cccccc", linewidth=0.8, zorder=0)
                panel.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
                panel.minorticks_off()
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            panels[0].set_ylabel(f"{title} of a step, {unit}")
        for axis, panel in zip(_AXES, rows[-1], strict=True):
            panel.set_xlabel(axis.replace("_", " "))
        rows[0][0].legend(frameon=False)
        figure.suptitle("Cost of a training step; grey: linear growth", x=0.01, ha="left")
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)
