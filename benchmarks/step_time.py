"""What a training step in path space costs, measured against the same step in weight space."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pathspace
from benchmarks.optimizers import OPTIMIZERS
from pathspace.basis import DEFAULT_MAX_RATIO
from pathspace.models import ReluRNN

_PAIRS = (("sgd", "g_sgd"), ("adam", "g_adam"))


class _Shape(NamedTuple):
    name: str
    time_steps: int
    features: int
    batch_size: int


_SHAPES = (_Shape("28x28 rows", 28, 28, 64), _Shape("8x8 rows", 8, 8, 32))


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Time one jitted training step of a ReLU RNN with each path-space optimiser and with its weight-space counterpart.

    Forward and backward pass, update and new weights are one program. The two programs take turns, so that whatever
    else the machine does befalls both; the ratio is taken turn by turn.
    """

    hidden: int = 100
    """Hidden units of the network."""
    turns: int = 200
    """How often the two programs take turns."""
    steps: int = 10
    """Training steps in a turn."""

    def run(self) -> None:
        """Measure, and print a table."""
        table = Table(title="Time of a training step in ms, median over turns; ratio: median (quartiles)")
        for column in ("shape", "optimisers", "weight space", "path space", "ratio"):
            table.add_column(column, justify="left" if column in ("shape", "optimisers") else "right")
        cases = [(shape, pair) for shape in _SHAPES for pair in _PAIRS]
        for shape, (baseline, candidate) in track(cases, description="Measuring"):
            times = self._measure([_training(name, shape, self.hidden) for name in (baseline, candidate)])
            first, second = 1000 * np.median(times, axis=0)
            lower, middle, upper = np.quantile(times[:, 1] / times[:, 0], (0.25, 0.5, 0.75))
            table.add_row(
                shape.name,
                f"{OPTIMIZERS[candidate].label} / {OPTIMIZERS[baseline].label}",
                f"{first:.3f}",
                f"{second:.3f}",
                f"{middle:.3f} ({lower:.3f} to {upper:.3f})",
            )
        Console().print(table)

    def _measure(self, trainings: list[tuple[Callable[..., Any], Any]]) -> np.ndarray:
        """Seconds a step, of shape (turns, trainings)."""
        steps = [step for step, _ in trainings]
        states = [step(*state) for step, state in trainings]
        times = np.empty((self.turns, len(trainings)))
        for turn in range(self.turns):
            # Whoever comes second finds the other's data in the caches: they take turns at that too.
            for index in (0, 1) if turn % 2 else (1, 0):
                begin = time.perf_counter()
                for _ in range(self.steps):
                    states[index] = steps[index](*states[index])
                jax.block_until_ready(states[index])
                times[turn, index] = (time.perf_counter() - begin) / self.steps
        return times


def _training(name: str, shape: _Shape, hidden: int) -> tuple[Callable[..., Any], Any]:
    """A compiled training step, and what it is first called with."""
    model = ReluRNN(shape.features, (hidden,), 10, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    graph = pathspace.ReductionGraph.from_edges(params, model.edges())
    optimizer = OPTIMIZERS[name].make(1e-3, pathspace.choose_skeleton(graph, params), DEFAULT_MAX_RATIO)
    inputs_key, labels_key = jax.random.split(jax.random.key(0))
    inputs = jax.random.normal(inputs_key, (shape.batch_size, shape.time_steps, shape.features))
    labels = jax.random.randint(labels_key, (shape.batch_size,), 0, 10)

    def loss(params: Any) -> Array:
        logits = nnx.merge(graphdef, params)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step, (params, optimizer.init(params))
