"""Pictures of several experiments, a panel for each, as the papers have them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.report.comparison import rows
from benchmarks.report.reading import Sweep
from benchmarks.results import best_learning_rate, mean_and_error, select, values_of

_COLUMNS = 2
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#aaaaaa",
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "savefig.dpi": 130,
}


class Mark(NamedTuple):
    """A paper's figure in a picture, and whether its protocol is that of the runs."""

    value: float
    comparable: bool


def curves(sweeps: Sequence[Sweep], title: str, path: Path) -> None:
    """Test error by epoch at the best learning rates, from initial weights as drawn: mean and standard error."""
    with _panels(sweeps, title, path) as (picture, panels):
        shown = []
        for sweep, axes in zip(sweeps, panels, strict=True):
            for name in values_of(sweep.runs, "optimizer"):
                if not select(sweep.runs, optimizer=name, rescale=0.0):
                    continue
                rate = best_learning_rate(sweep.runs, optimizer=name, rescale=0.0)
                runs = select(sweep.runs, optimizer=name, rescale=0.0, learning_rate=rate)
                mean, error = (100 * part for part in mean_and_error([run.test_error for run in runs]))
                epochs = np.arange(1, sweep.epochs + 1)
                color, style = _color_and_style(name)
                marker = "o" if sweep.epochs == 1 else None
                axes.plot(epochs, mean, color=color, linestyle=style, marker=marker, linewidth=2)
                axes.fill_between(epochs, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
                shown.append(name)
            axes.set_xlabel("epoch")
            _scale(axes)
        lines = {OPTIMIZERS[name].label: _color_and_style(name) for name in shown}
        handles = [Line2D([], [], color=color, linestyle=style, linewidth=2) for color, style in lines.values()]
        picture.legend(handles, lines, loc="outside lower center", ncols=min(len(lines), 5), frameon=False)


def bars(sweeps: Sequence[Sweep], marks: Sequence[Mapping[str, Mark]], title: str, path: Path) -> None:
    """Test error after the last epoch by optimiser, mean and standard error; with marks by optimiser, a panel each."""
    with _panels(sweeps, title, path) as (picture, panels):
        for sweep, printed, axes in zip(sweeps, marks, panels, strict=True):
            here = [row for row in rows(sweep) if row.rescale == 0]
            for position, row in enumerate(here):
                if row.result:
                    color, _ = _color_and_style(row.optimizer)
                    axes.bar(position, row.mean, yerr=row.error, color=color, capsize=4, width=0.65)
                    top = row.mean + row.error
                    axes.annotate(
                        f"{row.mean:.2f}", (position, top), (0, 2), textcoords="offset points", ha="center", fontsize=9
                    )
                else:
                    axes.annotate("diverged", (position, 0), ha="center", fontsize=9)
                if row.optimizer in printed:
                    mark = printed[row.optimizer]
                    axes.plot(position, mark.value, markersize=7, **_mark(mark.comparable))
            axes.set_xticks(range(len(here)), [row.label for row in here], rotation=20)
            axes.grid(visible=False, axis="x")
        kinds = sorted({mark.comparable for printed in marks for mark in printed.values()}, reverse=True)
        if kinds:
            names = {True: "in the paper", False: "in the paper, under another protocol"}
            handles = [Line2D([], [], **_mark(kind)) for kind in kinds]
            picture.legend(handles, [names[kind] for kind in kinds], loc="outside lower center", ncols=2, frameon=False)


@contextmanager
def _panels(sweeps: Sequence[Sweep], title: str, path: Path) -> Iterator[tuple[Picture, list[Axes]]]:
    columns = min(_COLUMNS, len(sweeps))
    shape = math.ceil(len(sweeps) / columns), columns
    with plt.rc_context(_STYLE):
        picture, axes = plt.subplots(
            *shape, figsize=(5 * shape[1], 3.8 * shape[0] + 0.6), squeeze=False, layout="constrained"
        )
        panels = list(axes.flat)
        for sweep, panel in zip(sweeps, panels, strict=False):
            quantity = sweep.experiment.quantity
            panel.set_title("\n".join(filter(None, (sweep.experiment.variant, sweep.experiment.model))))
            panel.set_ylabel(", ".join(filter(None, (quantity.name, quantity.unit))))
        for panel in panels[len(sweeps) :]:
            panel.remove()
        yield picture, panels[: len(sweeps)]
        picture.suptitle(title, fontsize=13, fontweight="bold")
        picture.savefig(path)
        plt.close(picture)


def _color_and_style(optimizer: str) -> tuple[str, Literal["-", "--"]]:
    return OPTIMIZERS[optimizer].color, "-" if OPTIMIZERS[optimizer].respects_rescaling else "--"


def _mark(comparable: bool) -> dict[str, Any]:
    face = "#222222" if comparable else "#ffffff"
    return {"marker": "D", "linestyle": "none", "markeredgecolor": "#222222", "markerfacecolor": face}


def _scale(axes: Axes) -> None:
    """A logarithmic axis where the errors span it."""
    low, high = axes.dataLim.intervaly
    if low > 0 and high > 5 * low and np.isfinite(high):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
