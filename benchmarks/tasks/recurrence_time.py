"""What a training step of a recurrent network costs in our loop, measured against Flax's."""

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.options import check_distinct, check_positive
from benchmarks.timing import time_in_turns
from pathspace.models import (
    PassthroughGRUCell,
    PassthroughLSTMCell,
    Recurrence,
    ReluCell,
    ResetAfterGRUCell,
    UnitaryCell,
)

_Cell = Literal[
    "relu",
    "relu_fused",
    "gru",
    "gru_low_rank",
    "gru_weight_norm",
    "gru_reset_after",
    "lstm",
    "lstm_low_rank",
    "unitary",
]

_CELLS: dict[_Cell, Callable[..., nnx.RNNCellBase]] = {
    "relu": ReluCell,
    "relu_fused": functools.partial(ReluCell, fused=True),
    "gru": PassthroughGRUCell,
    "gru_low_rank": functools.partial(PassthroughGRUCell, rank=24, diagonal=True),
    "gru_weight_norm": functools.partial(PassthroughGRUCell, rank=24, diagonal=True, weight_norm=True),
    "gru_reset_after": functools.partial(ResetAfterGRUCell, rank=24, diagonal=True, tied_projections=True),
    "lstm": PassthroughLSTMCell,
    "lstm_low_rank": functools.partial(PassthroughLSTMCell, rank=24, diagonal=True),
    "unitary": UnitaryCell,
}


@dataclasses.dataclass(frozen=True)
class RecurrenceTime:
    """Time one jitted SGD step of a recurrent network whose cell runs in `Recurrence`, and in `nnx.RNN`.

    The programs take turns, so that whatever else the machine does befalls all; ratios are taken turn by turn.
    """

    cells: tuple[_Cell, ...] = typing.get_args(_Cell)
    """Cells; the low-rank ones have 24 inner components and a diagonal."""
    unrolls: tuple[int, ...] = (1, 4)
    """Time steps in one iteration of the loop of `Recurrence`; `nnx.RNN` has one."""
    time_steps: int = 100
    """Length of the sequences."""
    in_features: int = 28
    """Size of the inputs."""
    hidden_features: int = 128
    """Size of the state."""
    batch_size: int = 20
    """Sequences in a step."""
    turns: int = 100
    """How often the programs take turns at most."""
    seconds: float = 8.0
    """A measurement begins no more turns after so many seconds; two at least."""

    def __post_init__(self) -> None:
        check_positive(self, "time_steps", "in_features", "hidden_features", "batch_size", "turns")
        check_distinct(self, "cells", "unrolls")

    def run(self) -> None:
        """Measure, and print a table."""
        table = Table(title="Time of a training step: nnx.RNN in ms, Recurrence as a ratio to it, median (quartiles)")
        table.add_column("cell", no_wrap=True)
        table.add_column("nnx.RNN", justify="right")
        variants = [(hoisted, unroll) for hoisted in (True, False) for unroll in self.unrolls]
        for hoisted, unroll in variants:
            place = "before" if hoisted else "in"
            table.add_column(f"inputs {place} the loop, unroll {unroll}", justify="right")
        for name in track(self.cells, description="Measuring"):
            make = functools.partial(_CELLS[name], self.in_features, self.hidden_features)
            loops: list[Callable[[nnx.RNNCellBase], nnx.Module]] = [
                nnx.RNN,
                *(
                    functools.partial(Recurrence, output="every", hoist_inputs=hoisted, unroll=unroll)
                    for hoisted, unroll in variants
                ),
            ]
            programs = [self._training(make, loop) for loop in loops]
            times = time_in_turns(programs, turns=self.turns, seconds=self.seconds)
            ratios = np.quantile(times[:, 1:] / times[:, :1], (0.25, 0.5, 0.75), axis=0).T
            cells = [f"{middle:.2f} ({lower:.2f} to {upper:.2f})" for lower, middle, upper in ratios.tolist()]
            table.add_row(name, f"{1000 * np.median(times[:, 0]):.2f}", *cells)
        Console().print(table)

    def _training(
        self, make: Callable[..., nnx.RNNCellBase], loop: Callable[[nnx.RNNCellBase], nnx.Module]
    ) -> Callable[[], Any]:
        """A compiled training step, each call of which goes on from where the last one ended."""
        parts: tuple[Any, ...] = nnx.split(loop(make(rngs=nnx.Rngs(0))), nnx.Param, ...)
        graphdef, params, rest = parts
        inputs = jax.random.normal(jax.random.key(0), (self.batch_size, self.time_steps, self.in_features))

        @functools.partial(jax.jit, donate_argnums=0)
        def step(params: Any) -> Any:
            def loss(params: Any) -> jax.Array:
                outputs = nnx.merge(graphdef, params, rest, copy=True)(inputs)
                return jnp.mean(outputs[:, -1] ** 2)

            return optax.apply_updates(params, jax.tree.map(lambda grad: -1e-3 * grad, jax.grad(loss)(params)))

        latest = params

        def advance() -> Any:
            nonlocal latest
            latest = step(latest)
            return latest

        return advance
