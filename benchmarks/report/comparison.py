"""What the runs amount to, and whether that is what the papers report."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.papers import Figure, Published, published_of
from benchmarks.report.reading import Sweep
from benchmarks.results import Quantity, best_learning_rate, mean_and_error, select, values_of

_RELATIVE_TOLERANCE = 0.1


class Row(NamedTuple):
    """One optimiser at the learning rate with the least mean validation error.

    Attributes:
      optimizer: its name.
      rescale: of the initial weights.
      learning_rate: that was chosen.
      mean: test error after the last epoch, in the unit of tables.
      error: its standard error; 0 for one seed.
      seeds: how many runs.
      outcomes: how many runs ended in each way.
    """

    optimizer: str
    rescale: float
    learning_rate: float
    mean: float
    error: float
    seeds: int
    outcomes: Mapping[str, int]

    @property
    def label(self) -> str:
        """The optimiser's name in tables."""
        return OPTIMIZERS[self.optimizer].label

    @property
    def diverged(self) -> str:
        """How many runs diverged; nothing if none did."""
        return f"{self.outcomes['diverged']} of {self.seeds} diverged" if "diverged" in self.outcomes else ""

    @property
    def result(self) -> str:
        """The mean test error with its standard error; nothing if all runs diverged, or if one is not finite."""
        if self.outcomes.get("diverged") == self.seeds or not math.isfinite(self.mean):
            return ""
        return f"{self.mean:.2f} ± {self.error:.2f}" if self.seeds > 1 else f"{self.mean:.2f}"


def rows(sweep: Sweep) -> list[Row]:
    """A row for each optimiser and rescaling."""
    return [
        _row(sweep, optimizer, rescale)
        for rescale in values_of(sweep.runs, "rescale")
        for optimizer in values_of(sweep.runs, "optimizer")
        if select(sweep.runs, optimizer=optimizer, rescale=rescale)
    ]


def best_row(rows: Sequence[Row]) -> Row | None:
    """The row with the least test error, of those from initial weights as drawn of which no run diverged."""
    finite = [row for row in rows if not row.diverged and row.rescale == 0]
    return min(finite, key=lambda row: row.mean, default=None)


def with_unit(text: str, quantity: Quantity) -> str:
    """A number and its unit, in brackets unless it is %."""
    return f"{text} %" if quantity.unit == "%" else f"{text} ({quantity.unit})" if quantity.unit else text


def published(sweep: Sweep) -> list[Published]:
    """What the papers report of the experiment."""
    return published_of(sweep.experiment.task, sweep.settings, values_of(sweep.runs, "optimizer"))


def differences(sweep: Sweep, printed: Published) -> list[str]:
    """How the settings differ from those that a paper's figures belong to."""
    if printed.protocol is None:
        return ["the paper does not say how its figures came about"]
    settings = sweep.settings | {"epochs": sweep.epochs}
    found = ["preset quick"] if settings.get("preset") == "quick" else []
    for name, value in printed.protocol.items():
        if name not in settings:
            found.append(f"{name} not recorded, {_setting(value)} in the paper")
        elif settings[name] != value:
            found.append(f"{name} {_setting(settings[name])} instead of {_setting(value)}")
    return found


def verdicts(rows: Sequence[Row], printed: Published, quantity: Quantity) -> list[str]:
    """Sentences on each of a paper's figures, and on the order that it reports."""
    ours = {row.optimizer: row for row in rows if row.rescale == 0}
    sentences = [_on_figure(ours[name], figure, quantity) for name, figure in printed.figures.items() if name in ours]
    if printed.order:
        first, *others = printed.order
        sentences += [_on_order(ours[first], ours[other], quantity) for other in others if {first, other} <= set(ours)]
    return sentences


def _row(sweep: Sweep, optimizer: str, rescale: float) -> Row:
    rate = best_learning_rate(sweep.runs, optimizer=optimizer, rescale=rescale)
    chosen = select(sweep.runs, optimizer=optimizer, rescale=rescale, learning_rate=rate)
    mean, error = mean_and_error([run.test_error[-1] for run in chosen])
    outcomes = Counter(run.outcome(sweep.experiment.quantity) for run in chosen)
    return Row(optimizer, rescale, rate, 100 * float(mean), 100 * float(error), len(chosen), outcomes)


def _setting(value: Any) -> str:
    return "no limit" if value is None else f"{value}"


def _on_figure(row: Row, figure: Figure, quantity: Quantity) -> str:
    if row.diverged:
        return f"{row.label} is not compared with the paper's {figure.text}: {row.diverged}."
    if row.seeds == 1:
        return f"{row.label} is not compared with the paper's {figure.text}: one seed does not show the noise."
    noise = 2 * math.hypot(row.error, figure.error)
    if figure.is_bound:
        if row.mean <= figure.value + noise:
            return f"{row.label} agrees with the paper's {figure.text}."
        return f"**{row.label} disagrees** with the paper's {figure.text}: {with_unit(row.result, quantity)}."
    difference = row.mean - figure.value
    distance = abs(difference) - figure.resolution
    if distance <= noise or distance <= _RELATIVE_TOLERANCE * figure.value:
        return f"{row.label} agrees with the paper's {figure.text}."
    relative = f", {abs(difference) / figure.value:.0%} of it" if figure.value else ""
    direction = "more" if difference > 0 else "less"
    return (
        f"**{row.label} disagrees** with the paper's {figure.text}: {with_unit(row.result, quantity)}, "
        f"{with_unit(f'{abs(difference):.2f}', quantity)} {direction}{relative}."
    )


def _on_order(first: Row, other: Row, quantity: Quantity) -> str:
    claim = f"The paper has {first.label} before {other.label}"
    diverged = [f"{row.diverged} with {row.label}" for row in (first, other) if row.diverged]
    if diverged:
        return f"{claim}; not compared here: {', '.join(diverged)}."
    if min(first.seeds, other.seeds) == 1:
        return f"{claim}; not compared here: one seed does not show the noise."
    gain, error = other.mean - first.mean, math.hypot(first.error, other.error)
    measured = with_unit(f"{abs(gain):.2f} ± {error:.2f}", quantity)
    if abs(gain) <= 2 * error:
        return f"{claim}; **here they differ by no more than the noise**: by {measured}."
    if gain < 0:
        return f"{claim}; **here it is the other way round**, by {measured}."
    return f"{claim}, and so it is here, by {measured}."


def mean_ratio(ratios: Sequence[float]) -> str:
    """Mean and standard error of kappa's ratios."""
    mean, error = mean_and_error(np.asarray(ratios))
    return f"{mean:.3g} ± {error:.1g}" if len(ratios) > 1 else f"{mean:.3g}"
