"""What a training step in path space, or of Path-SGD, costs, measured against the same step in weight space."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pathspace
from benchmarks.optimizers import OPTIMIZERS, Optimizer, Setting
from benchmarks.reporting import check_distinct, check_positive
from pathspace.models import ReluRNN

_EVERY = 10

_OPTIMIZERS = {
    **OPTIMIZERS,
    "path_sgd": Optimizer(
        "Path-SGD",
        "sgd",
        True,
        "",
        lambda learning_rate, setting: pathspace.path_sgd(learning_rate, setting.kappa),
    ),
    "path_sgd_10": Optimizer(
        f"Path-SGD every {_EVERY}",
        "sgd",
        True,
        "",
        lambda learning_rate, setting: pathspace.path_sgd(learning_rate, setting.kappa, every=_EVERY),
    ),
}


class _Shape(NamedTuple):
    time_steps: int
    features: int
    batch_size: int
    hidden: int


_SHAPES = {
    "8x8": _Shape(8, 8, 32, 100),
    "28x28": _Shape(28, 28, 64, 100),
    "98x8": _Shape(98, 8, 64, 100),
    "784x1": _Shape(784, 1, 64, 100),
    "wide": _Shape(50, 28, 128, 1024),
}


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Time one jitted training step of a ReLU RNN with an optimiser and with its counterpart in weight space.

    Forward and backward pass, update and new weights are one program. The two programs take turns, so that whatever
    else the machine does befalls both; the ratio is taken turn by turn. Path-SGD computes the first term of kappa in
    each step, or in every tenth.
    """

    shapes: tuple[Literal["8x8", "28x28", "98x8", "784x1", "wide"], ...] = ("8x8", "28x28", "98x8", "784x1", "wide")
    """Sequences, as time steps x features, that a network of 100 units reads in batches of 64 (8x8: 32); wide: 50x28, a
    network of 1024 units, batches of 128."""
    optimizers: tuple[Literal["g_sgd", "g_adam", "path_sgd", "path_sgd_10"], ...] = (
        "g_sgd",
        "g_adam",
        "path_sgd",
        "path_sgd_10",
    )
    """Optimisers to compare with SGD or Adam; path_sgd_10 computes kappa in every tenth step only."""
    hidden: int | None = None
    """Hidden units of the network; None for those of the shape."""
    turns: int = 200
    """How often the two programs take turns at most."""
    seconds: float = 8.0
    """A measurement begins no more turns after so many seconds; two at least."""
    steps: int = 10
    """Training steps in a turn."""

    def __post_init__(self) -> None:
        if self.hidden is not None:
            check_positive(self, "hidden")
        check_positive(self, "turns", "steps")
        check_distinct(self, "shapes", "optimizers")
        if "path_sgd_10" in self.optimizers and self.steps % _EVERY:
            raise ValueError(f"expected steps to be a multiple of {_EVERY} for path_sgd_10, got {self.steps}")

    def run(self) -> None:
        """Measure, and print a table."""
        table = Table(title="Time of a training step in ms, median over turns; ratio: median (quartiles)")
        for column in ("shape", "optimisers"):
            table.add_column(column, no_wrap=True)
        for column in ("weight space", "candidate", "ratio"):
            table.add_column(column, justify="right")
        cases = [(shape, candidate) for shape in self.shapes for candidate in self.optimizers]
        for shape, candidate in track(cases, description="Measuring"):
            baseline = _OPTIMIZERS[candidate].family
            times = time_in_turns(
                [_training(name, _SHAPES[shape], self.hidden) for name in (baseline, candidate)],
                turns=self.turns,
                calls=self.steps,
                seconds=self.seconds,
            )
            first, second = 1000 * np.median(times, axis=0)
            lower, middle, upper = np.quantile(times[:, 1] / times[:, 0], (0.25, 0.5, 0.75))
            table.add_row(
                shape,
                f"{_OPTIMIZERS[candidate].label} / {_OPTIMIZERS[baseline].label}",
                f"{first:.3f}",
                f"{second:.3f}",
                f"{middle:.3f} ({lower:.3f} to {upper:.3f})",
            )
        Console().print(table)


def time_in_turns(
    programs: Sequence[Callable[[], Any]], *, turns: int, calls: int = 1, seconds: float = float("inf")
) -> np.ndarray:
    """Seconds a call, of shape (turns, programs): at most `turns`; after `seconds` none but the second begins."""
    for program in programs:
        jax.block_until_ready(program())
    times = np.empty((turns, len(programs)))
    start = time.perf_counter()
    for turn in range(turns):
        if turn >= 2 and time.perf_counter() - start > seconds:
            return times[:turn]
        # Whoever comes later finds the others' data in the caches: they take turns at that too.
        for index in range(len(programs))[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            for _ in range(calls):
                result = programs[index]()
            jax.block_until_ready(result)
            times[turn, index] = (time.perf_counter() - begin) / calls
    return times


def _training(name: str, shape: _Shape, hidden: int | None) -> Callable[[], Any]:
    """A compiled training step, each call of which goes on from where the last one ended."""
    model = ReluRNN(shape.features, (hidden or shape.hidden,), 10, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    graph = pathspace.ReductionGraph.from_edges(params, model.edges())
    inputs_key, labels_key = jax.random.split(jax.random.key(0))
    inputs = jax.random.normal(inputs_key, (shape.batch_size, shape.time_steps, shape.features))
    labels = jax.random.randint(labels_key, (shape.batch_size,), 0, 10)

    def apply(params: Any, inputs: Array) -> Array:
        return nnx.merge(graphdef, params)(inputs)

    def kappa(params: Any) -> Any:
        return pathspace.path_kappa(apply, params, jnp.ones((1, shape.time_steps, shape.features)))

    def loss(params: Any) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, inputs), labels).mean()

    optimizer = _OPTIMIZERS[name].make(1e-3, Setting(pathspace.choose_skeleton(graph, params), kappa))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    latest = (params, optimizer.init(params))

    def advance() -> tuple[Any, Any]:
        nonlocal latest
        latest = step(*latest)
        return latest

    return advance
