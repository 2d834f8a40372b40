"""Runs, what they amount to, and how they are written and shown."""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike
from rich.table import Table

from benchmarks.optimizers import OPTIMIZERS

_PACKAGES = ("pathspace", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run, with loss and errors for each epoch."""

    optimizer: str
    learning_rate: float
    rescale: float
    seed: int
    train_loss: list[float]
    validation_error: list[float]
    test_error: list[float]

    def outcome(self, quantity: "Quantity") -> str:
        """How it ended: "diverged" (not finite), "at chance" (error 0.9 of guessing's or more) or "trained"."""
        if not math.isfinite(self.train_loss[-1]) or not math.isfinite(self.validation_error[-1]):
            return "diverged"
        return "at chance" if self.validation_error[-1] >= 0.9 * quantity.by_chance else "trained"


class Quantity(NamedTuple):
    """What the errors of runs are.

    Attributes:
      name: of the error on test examples.
      unit: a hundredth of the error, as tables and pictures give it.
      by_chance: the error of guessing.
    """

    name: str
    unit: str
    by_chance: float

    @property
    def title(self) -> str:
        """The name, at the beginning of a line."""
        return self.name[0].upper() + self.name[1:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What runs are runs of.

    Attributes:
      task: its name on the command line.
      variant: which of the task's problems: length, data set, order of the inputs.
      model: the network, and how it starts.
      title: for tables and pictures.
      quantity: what the errors are.
      notes: what a reader of the results has to know: of the data, of departures from the papers.
    """

    task: str
    variant: str = ""
    model: str
    title: str
    quantity: Quantity
    notes: tuple[str, ...] = ()


def select(runs: Iterable[Run], *, optimizer: str, rescale: float, learning_rate: float | None = None) -> list[Run]:
    """The runs with these settings."""
    return [
        run
        for run in runs
        if run.optimizer == optimizer
        and run.rescale == rescale
        and (learning_rate is None or run.learning_rate == learning_rate)
    ]


def best_learning_rate(runs: Sequence[Run], *, optimizer: str, rescale: float) -> float:
    """The learning rate with the least final validation error, averaged over seeds; the test error plays no part."""
    candidates = select(runs, optimizer=optimizer, rescale=rescale)
    rates = sorted({run.learning_rate for run in candidates})

    def error(rate: float) -> float:
        final = np.mean([run.validation_error[-1] for run in candidates if run.learning_rate == rate])
        return float(np.nan_to_num(final, nan=math.inf))

    return min(rates, key=error)


def mean_and_error(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error along the first axis; the error of a single value is 0."""
    samples = np.asarray(values)
    count = len(samples)
    deviation = samples.std(axis=0, ddof=1) if count > 1 else np.zeros(samples.shape[1:])
    return samples.mean(axis=0), deviation / math.sqrt(count)


def summary_table(runs: Sequence[Run], quantity: Quantity) -> Table:
    """Test error of each optimiser at its best learning rate, one column a rescaling."""
    seeds = len({run.seed for run in runs})
    table = Table(
        title=f"{quantity.title} in {quantity.unit}, mean ± standard error over {seeds} seeds,\n"
        "at the learning rate (lr) with the least mean validation error"
    )
    table.add_column("")
    rescales = values_of(runs, "rescale")
    for rescale in rescales:
        table.add_column(_heading(rescale, rescales), justify="right")
        table.add_column("lr", justify="right", style="dim")
    for optimizer in values_of(runs, "optimizer"):
        cells = []
        for rescale in rescales:
            rate = best_learning_rate(runs, optimizer=optimizer, rescale=rescale)
            chosen = select(runs, optimizer=optimizer, rescale=rescale, learning_rate=rate)
            cells += [_cell(chosen, quantity), f"{rate:g}"]
        table.add_row(
            OPTIMIZERS[optimizer].label, *cells, style="bold" if OPTIMIZERS[optimizer].respects_rescaling else ""
        )
    return table


def grid_tables(runs: Sequence[Run], quantity: Quantity) -> list[Table]:
    """Test error at every learning rate, one table for each family of optimisers."""
    tables = []
    names = values_of(runs, "optimizer")
    for family in dict.fromkeys(OPTIMIZERS[name].family for name in names):
        members = [name for name in names if OPTIMIZERS[name].family == family]
        columns = [(name, rescale) for rescale in values_of(runs, "rescale") for name in members]
        table = Table(title=f"{quantity.title} in {quantity.unit} by learning rate")
        table.add_column("lr", justify="right")
        for name, rescale in columns:
            heading = _heading(rescale, values_of(runs, "rescale"))
            table.add_column(f"{OPTIMIZERS[name].label}\n{heading}".strip(), justify="right")
        for rate in sorted({run.learning_rate for run in runs if run.optimizer in members}):
            cells = (
                _cell(select(runs, optimizer=name, rescale=rescale, learning_rate=rate), quantity)
                for name, rescale in columns
            )
            table.add_row(f"{rate:g}", *cells)
        tables.append(table)
    return tables


def write_json_lines(
    runs: Iterable[Run], path: Path, *, experiment: Experiment, settings: Mapping[str, Any], seconds: float
) -> None:
    """One line a run: experiment, configuration, curves, outcome, settings, wall time of the sweep, device, versions.

    The file has its name when all lines are in it.
    """
    described = dataclasses.asdict(experiment) | {"quantity": experiment.quantity._asdict()}
    shared = {"experiment": described, "settings": dict(settings), "sweep_seconds": seconds, **environment()}
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        for run in runs:
            line = dataclasses.asdict(run) | {"outcome": run.outcome(experiment.quantity)} | shared
            for name in ("train_loss", "validation_error", "test_error"):  # JSON knows no NaN
                line[name] = [value if math.isfinite(value) else None for value in line[name]]
            file.write(json.dumps(line, allow_nan=False, default=str) + "\n")
    unfinished.replace(path)


def write_tensorboard(runs: Iterable[Run], folder: Path) -> None:
    """The curves of each run, by epoch, for TensorBoard."""
    from tensorboardX import SummaryWriter

    for run in runs:
        name = f"{run.optimizer} lr={run.learning_rate:g} rescale={run.rescale:g} seed={run.seed}"
        with SummaryWriter(str(folder / name)) as writer:
            for curve in ("train_loss", "validation_error", "test_error"):
                for epoch, value in enumerate(getattr(run, curve), start=1):
                    writer.add_scalar(curve, value, epoch)


def environment() -> dict[str, Any]:
    """The device and the versions that results depend on."""
    devices = jax.devices()
    versions = {
        distribution.name: distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.name in _PACKAGES
    }
    return {
        "device": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()} | versions,
    }


def _heading(rescale: float, rescales: Sequence[float]) -> str:
    return f"rescale {rescale:g}" if len(rescales) > 1 else ""


def _cell(runs: Sequence[Run], quantity: Quantity) -> str:
    outcomes = [run.outcome(quantity) for run in runs]
    failed = [outcome for outcome in outcomes if outcome != "trained"]
    if len(failed) == len(runs):
        return "diverged" if "diverged" in failed else "at chance"
    mean, error = mean_and_error([run.test_error[-1] for run in runs if run.outcome(quantity) != "diverged"])
    counts = "".join(f"\n{failed.count(kind)} {kind}" for kind in ("diverged", "at chance") if kind in failed)
    return f"{100 * mean:.2f} ± {100 * error:.2f}{counts}"


def values_of(runs: Iterable[Run], field: str) -> list[Any]:
    """The distinct values of a field, in the order of the runs."""
    return list(dict.fromkeys(getattr(run, field) for run in runs))
