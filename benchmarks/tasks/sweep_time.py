"""What a grid of runs costs in one program, measured against one run after the other."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import training
from benchmarks.data import Examples, digit_rows
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.options import check_distinct, check_positive
from benchmarks.placement import Placement
from benchmarks.sweeps import grid
from benchmarks.timing import time_in_turns
from benchmarks.training import Classification
from pathspace.models import ReluRNN

_Problem = Literal["digits", "smnist-28"]


@dataclasses.dataclass(frozen=True)
class SweepTime:
    """Time an epoch of a grid of runs in one program, and of as many single runs of another.

    A grid is spread over all devices, as in a task, and on processors computed a few runs at a time; a single run has
    one of the devices. Networks are ReLU RNNs of 100 units; smnist-28 has 20 batches of 64 random images.
    """

    problems: tuple[_Problem, ...] = ("digits", "smnist-28")
    """What is trained."""
    optimizers: tuple[Literal["sgd", "g_sgd", "adam", "g_adam"], ...] = ("sgd", "g_sgd")
    """Optimisers, each with a grid of its own."""
    learning_rates: int = 4
    """Learning rates of the grid."""
    seeds: int = 6
    """Seeds of the grid, whose runs all devices share evenly."""
    turns: int = 5
    """How often the grid and the single runs take turns."""
    output: Path = Path("results/sweep-time")
    """Folder for the results, as a table and as JSON."""

    def __post_init__(self) -> None:
        check_positive(self, "learning_rates", "seeds", "turns")
        check_distinct(self, "problems", "optimizers")
        if self.learning_rates * self.seeds % jax.device_count():
            raise ValueError(
                f"expected a grid of runs that {jax.device_count()} devices share evenly, "
                f"got {self.learning_rates} learning rates and {self.seeds} seeds"
            )

    def run(self) -> None:
        """Measure, print a table, and write it."""
        console = Console()
        count = self.learning_rates * self.seeds
        table = Table(title=f"An epoch of {count} runs in s, median over turns; ratio: median (quartiles)")
        for column in ("problem", "optimiser", "one by one", "together", "ratio"):
            table.add_column(column, justify="right" if column not in ("problem", "optimiser") else "left")
        lines = []
        cases = [(problem, optimizer) for problem in self.problems for optimizer in self.optimizers]
        for problem, optimizer in track(cases, description="Measuring", console=console):
            times = time_in_turns(self._programs(_PROBLEMS[problem](), optimizer), turns=self.turns)
            single, mapped = np.median(times, axis=0).tolist()
            lower, middle, upper = np.quantile(times[:, 1] / times[:, 0], (0.25, 0.5, 0.75)).tolist()
            ratio = f"{middle:.2f} ({lower:.2f} to {upper:.2f})"
            table.add_row(problem, OPTIMIZERS[optimizer].label, f"{single:.2f}", f"{mapped:.2f}", ratio)
            line = {"problem": problem, "optimizer": optimizer, "runs": count, "ratio": middle}
            lines.append(line | {"quartiles": [lower, upper]})
        console.print(table)
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / "ratios.json"
        path.write_text(json.dumps(lines, indent=1))
        console.print(f"Wrote {path.resolve()}", soft_wrap=True)

    def _programs(self, problem: Classification, optimizer: str) -> list[Callable[[], Any]]:
        configurations = grid(np.geomspace(1e-3, 1e-2, self.learning_rates).tolist(), (0.0,), self.seeds)
        initial = functools.partial(training.initial_model, problem, problem.graph)
        start = functools.partial(training.start, problem, OPTIMIZERS[optimizer])
        train = functools.partial(training.train, problem, OPTIMIZERS[optimizer], lambda batches: batches)
        states = jax.jit(jax.vmap(lambda each: start(each, *initial(each))))(configurations)
        one = jax.jit(train)
        count, epoch = len(configurations.seed), np.arange(1)
        data = jax.device_put(problem.data)
        runs = [jax.tree.map(lambda leaf, i=i: leaf[i], (configurations, states)) for i in range(count)]
        placement = Placement()
        many = jax.jit(placement.over_runs(train))
        (spread,) = placement.chunks(configurations, 1)
        spread_states = jax.device_put(states, placement.runs)
        data_everywhere = jax.device_put(problem.data, placement.everywhere)
        return [
            lambda: [one(*run, data, epoch) for run in runs],
            lambda: many((spread, spread_states), data_everywhere, epoch),
        ]


def _digits() -> Classification:
    return Classification(make_model=_model(8, unroll=8), data=digit_rows()[:3], batch_size=32)


def _sequential_images() -> Classification:
    rng = np.random.default_rng(0)

    def examples(count: int) -> Examples:
        return Examples(rng.normal(size=(count, 28, 28)).astype(np.float32), rng.integers(0, 10, count, np.int32))

    return Classification(make_model=_model(28), data=(examples(20 * 64), examples(64), examples(64)), batch_size=64)


def _model(features: int, unroll: int = 1) -> Callable[[nnx.Rngs], ReluRNN]:
    return lambda rngs: ReluRNN(features, (100,), 10, unroll=unroll, rngs=rngs)


_PROBLEMS: dict[_Problem, Callable[[], Classification]] = {"digits": _digits, "smnist-28": _sequential_images}
