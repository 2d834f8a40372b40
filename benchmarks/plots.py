"""Pictures of a sweep: one panel for each rescaling of the initial weights, side by side."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import ArrayLike

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.results import Quantity, Run, best_learning_rate, mean_and_error, select, values_of

_GREY = "#777777"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#aaaaaa",
    "axes.titlesize": 11,
    "axes.grid": True,
    "grid.color": "#ececec",
    "savefig.dpi": 160,
}


class _Label(NamedTuple):
    """The name of a curve, beside the point where the curve ends."""

    optimizer: str
    x: float
    y: float
    side: str


def error_by_learning_rate(runs: Sequence[Run], quantity: Quantity, title: str, path: Path) -> None:
    """Final test error against learning rate, mean and standard error over seeds; nothing where a run diverged."""
    with _panels(runs, quantity, f"{title}: {quantity.name} after training", "learning rate", path) as panels:
        families = list(dict.fromkeys(OPTIMIZERS[name].family for name in values_of(runs, "optimizer")))
        for rescale, axes in panels:
            axes.set_xscale("log")
            _show_guessing(axes, quantity)
            labels = []
            for name in values_of(runs, "optimizer"):
                chosen = select(runs, optimizer=name, rescale=rescale)
                rates = sorted({run.learning_rate for run in chosen})
                final = [[run.test_error[-1] for run in chosen if run.learning_rate == rate] for rate in rates]
                mean, error = (100 * np.array(part) for part in zip(*map(mean_and_error, final), strict=True))
                axes.errorbar(rates, mean, yerr=error, marker="o", markersize=5, capsize=2.5, **_line(name))
                # Families stand side by side on the axis: the names of the first go to its left.
                first = len(families) > 1 and OPTIMIZERS[name].family == "adam"
                labels += _labels(name, rates, mean, "left" if first else "right")
            axes.margins(x=0.26)
            _write(labels, axes)


def learning_curves(runs: Sequence[Run], quantity: Quantity, title: str, path: Path) -> None:
    """Test error by epoch at the best learning rates, mean and standard error over seeds, until a run diverges."""
    with _panels(runs, quantity, f"{title}: {quantity.name} at the best learning rate", "epoch", path) as panels:
        for rescale, axes in panels:
            _show_guessing(axes, quantity)
            labels = []
            for name in values_of(runs, "optimizer"):
                rate = best_learning_rate(runs, optimizer=name, rescale=rescale)
                at_best = select(runs, optimizer=name, rescale=rescale, learning_rate=rate)
                mean, error = (100 * part for part in mean_and_error([run.test_error for run in at_best]))
                epochs = np.arange(1, len(mean) + 1)
                axes.plot(epochs, mean, **_line(name))
                axes.fill_between(
                    epochs, mean - error, mean + error, color=OPTIMIZERS[name].color, alpha=0.15, linewidth=0
                )
                labels += _labels(name, epochs, mean, "right")
            axes.set_xlim(0, 1.17 * len(mean))
            _write(labels, axes)


def _show_guessing(axes: Axes, quantity: Quantity) -> None:
    axes.axhline(100 * quantity.by_chance, color=_GREY, linewidth=0.8, linestyle=":")
    above_line = axes.get_yaxis_transform()
    axes.text(0.01, 104 * quantity.by_chance, "guessing", transform=above_line, fontsize=9, color=_GREY)


@contextmanager
def _panels(
    runs: Sequence[Run], quantity: Quantity, title: str, x_label: str, path: Path
) -> Iterator[list[tuple[float, Axes]]]:
    rescales = values_of(runs, "rescale")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(rescales), figsize=(5.4 * len(rescales), 4.8), sharey=True, squeeze=False, layout="constrained"
        )
        panels = list(zip(rescales, axes[0], strict=True))
        for rescale, panel in panels:
            panel.set_yscale("log")
            panel.set_xlabel(x_label)
            scaling = f"rescaled by lognormal(0, {rescale:g}) per unit" if rescale else "as drawn"
            panel.set_title(f"initial weights {scaling}")
        axes[0, 0].set_ylabel(", ".join(filter(None, (quantity.name, quantity.unit))))
        yield panels
        # Values below a tenth of a percent, and 0, are beyond what the test examples resolve.
        low, high = axes[0, 0].get_ylim()
        axes[0, 0].set_ylim(max(low, 0.1), max(high, 130 * quantity.by_chance))
        ticks = [step * 10.0**power for power in range(-1, 5) for step in (1, 2, 5)]
        axes[0, 0].yaxis.set_major_locator(FixedLocator(ticks))
        axes[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0, 0].yaxis.set_minor_formatter(NullFormatter())
        figure.suptitle(textwrap.fill(title, 48 * len(rescales)), fontsize=13, fontweight="bold")
        figure.savefig(path)
        plt.close(figure)


def _line(optimizer: str) -> dict[str, Any]:
    strong = OPTIMIZERS[optimizer].respects_rescaling
    return {
        "color": OPTIMIZERS[optimizer].color,
        "linestyle": "-" if strong else "--",
        "linewidth": 2.4 if strong else 1.8,
        "zorder": 3 if strong else 2,
    }


def _labels(optimizer: str, xs: ArrayLike, ys: ArrayLike, side: str) -> list[_Label]:
    """One at the outermost point on a side; none for a curve without points, all of whose runs have diverged."""
    points = [(x, y) for x, y in zip(np.asarray(xs).tolist(), np.asarray(ys).tolist(), strict=True) if math.isfinite(y)]
    return [_Label(optimizer, *points[0 if side == "left" else -1], side)] if points else []


def _write(labels: Iterable[_Label], axes: Axes) -> None:
    """Write the labels beside the ends of their curves, moved apart where they would overlap."""
    lowest = {"left": -math.inf, "right": -math.inf}
    # A line of text is about a fifteenth of the panel, which spans two decades.
    apart = 0.13
    for label in sorted(labels, key=lambda label: label.y):
        height = max(math.log10(max(label.y, 0.1)), lowest[label.side] + apart)
        lowest[label.side] = height
        axes.annotate(
            OPTIMIZERS[label.optimizer].label,
            (label.x, 10**height),
            xytext=(8 if label.side == "right" else -8, 0),
            textcoords="offset points",
            ha="left" if label.side == "right" else "right",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            color=OPTIMIZERS[label.optimizer].color,
            fontweight="bold" if OPTIMIZERS[label.optimizer].respects_rescaling else "normal",
        )
