"""What a training step in path space, or of Path-SGD, costs, measured against the same step in weight space."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
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
from benchmarks.options import check_distinct, check_positive
from benchmarks.timing import time_in_turns
from benchmarks.training import split
from pathspace.models import RCNN, ReluLanguageModel, ReluRNN

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


class _Row(NamedTuple):
    """A network, the shape of its inputs, and the number of classes or words that it tells apart."""

    make_model: Callable[[nnx.Rngs], nnx.Module]
    inputs: tuple[int, ...]
    classes: int
    words: bool = False


def _recurrent(time_steps: int, features: int, batch_size: int = 64, hidden: int = 100) -> _Row:
    return _Row(lambda rngs: ReluRNN(features, (hidden,), 10, rngs=rngs), (batch_size, time_steps, features), 10)


def _convolutional(maps: int, size: int, channels: int) -> _Row:
    return _Row(lambda rngs: RCNN(channels, maps, 10, variant="cited", rngs=rngs), (64, size, size, channels), 10)


def _language(vocabulary_size: int) -> _Row:
    return _Row(
        lambda rngs: ReluLanguageModel(vocabulary_size, 400, (1550, 1550, 1550, 400), rngs=rngs),
        (40, 70),
        vocabulary_size,
        words=True,
    )


_Name = Literal["digits", "smnist-28", "smnist-98", "smnist-784", "wide", "rcnn-mnist", "rcnn-cifar", "lm-ptb"]

_ROWS: dict[_Name, _Row] = {
    "digits": _recurrent(8, 8, batch_size=32),
    "smnist-28": _recurrent(28, 28),
    "smnist-98": _recurrent(98, 8),
    "smnist-784": _recurrent(784, 1),
    "wide": _recurrent(50, 28, batch_size=128, hidden=1024),
    "rcnn-mnist": _convolutional(32, 28, 1),
    "rcnn-cifar": _convolutional(96, 32, 3),
    "lm-ptb": _language(10_000),
}


@dataclasses.dataclass(frozen=True)
class Overhead:
    """Time training steps of a network with an optimiser and with its counterpart in weight space.

    The steps of a turn (forward and backward pass, update and new weights) are one program, as in an epoch of the other
    tasks. The two programs take turns, so that whatever else the machine does befalls both; the ratio is taken turn by
    turn. Path-SGD computes the first term of kappa in each step, or in every tenth.
    """

    rows: tuple[_Name, ...] = ("digits", "smnist-28", "smnist-98", "smnist-784", "wide")
    """Networks. The ReLU RNNs of digits and smnist have 100 units and read batches of 64 (digits: 32); wide: 1024
    units, 50 time steps, batches of 128; rcnn: 32 maps for MNIST, 96 for CIFAR, batches of 64; lm-ptb: four layers of
    1550, 1550, 1550 and 400 units, 40 sequences of 70 words out of 10,000. Steps of the last two take seconds on a
    CPU."""
    optimizers: tuple[Literal["g_sgd", "g_adam", "path_sgd", "path_sgd_10"], ...] = (
        "g_sgd",
        "g_adam",
        "path_sgd",
        "path_sgd_10",
    )
    """Optimisers to compare with SGD or Adam; path_sgd_10 computes kappa in every tenth step only."""
    turns: int = 200
    """How often the two programs take turns at most."""
    seconds: float = 6.0
    """A measurement begins no more turns after so many seconds; two at least."""
    steps: int = 10
    """Training steps in a turn, which are one program: with 1 the time to call it counts as well."""
    output: Path = Path("results/overhead")
    """Folder for the results, which the report reads."""

    def __post_init__(self) -> None:
        check_positive(self, "turns", "steps")
        check_distinct(self, "rows", "optimizers")
        if "path_sgd_10" in self.optimizers and self.steps % _EVERY:
            raise ValueError(f"expected steps to be a multiple of {_EVERY} for path_sgd_10, got {self.steps}")

    def run(self) -> None:
        """Measure, print a table, and write it for the report."""
        console = Console()
        table = Table(title="Time of a training step in ms, median over turns; ratio: median (quartiles)")
        for column in ("network", "optimisers"):
            table.add_column(column, no_wrap=True)
        for column in ("weight space", "candidate", "ratio"):
            table.add_column(column, justify="right")
        cases = [(row, candidate) for row in self.rows for candidate in self.optimizers]
        lines = []
        for row, candidate in track(cases, description="Measuring", console=console):
            baseline = _OPTIMIZERS[candidate].family
            times = time_in_turns(
                [_training(name, _ROWS[row], self.steps) for name in (baseline, candidate)],
                turns=self.turns,
                seconds=self.seconds,
            )
            times /= self.steps
            first, second = np.median(times, axis=0).tolist()
            lower, middle, upper = np.quantile(times[:, 1] / times[:, 0], (0.25, 0.5, 0.75)).tolist()
            table.add_row(
                row,
                f"{_OPTIMIZERS[candidate].label} / {_OPTIMIZERS[baseline].label}",
                f"{1000 * first:.3f}",
                f"{1000 * second:.3f}",
                f"{middle:.3f} ({lower:.3f} to {upper:.3f})",
            )
            line = {"row": row, "optimizer": candidate, "seconds": second, "ratio": middle, "quartiles": [lower, upper]}
            lines.append(line)
        console.print(table)
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / "times.json"
        path.write_text(json.dumps(lines, indent=1))
        console.print(f"Wrote {path.resolve()}", soft_wrap=True)


def _training(name: str, row: _Row, steps: int) -> Callable[[], Any]:
    """A compiled loop of training steps, each call of which goes on from where the last one ended."""
    inputs_key, labels_key = jax.random.split(jax.random.key(0))
    if row.words:
        inputs = jax.random.randint(inputs_key, row.inputs, 0, row.classes)
        labels = jnp.roll(inputs, -1, axis=1)
    else:
        inputs = jax.random.normal(inputs_key, row.inputs)
        labels = jax.random.randint(labels_key, row.inputs[:1], 0, row.classes)
    graphdef, params, variables = split(row.make_model(nnx.Rngs(0)))

    def logits(model: Any, inputs: Array) -> Array:
        return model(inputs)[0] if row.words else model(inputs)

    def evaluated(params: Any, inputs: Array) -> Array:
        model = nnx.merge(graphdef, params, variables, copy=True)
        model.eval()
        return logits(model, inputs)

    def loss(params: Any, variables: Any) -> tuple[Array, Any]:
        model = nnx.merge(graphdef, params, variables, copy=True)
        model.train()
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(model, inputs), labels)
        return losses.mean(), split(model)[2]

    graph = pathspace.reduction_graph(evaluated, params, inputs[:1])
    kappa = functools.partial(pathspace.path_kappa, evaluated)
    setting = Setting(
        jax.jit(pathspace.choose_skeleton, static_argnums=0)(graph, params), lambda params: kappa(params, inputs[:1])
    )
    optimizer = _OPTIMIZERS[name].make(1e-3, setting)

    def step(latest: Any, _: None) -> tuple[Any, None]:
        params, variables, state = latest
        grads, variables = jax.grad(loss, has_aux=True)(params, variables)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), variables, state), None

    @functools.partial(jax.jit, donate_argnums=0)
    def train(latest: Any) -> Any:
        return jax.lax.scan(step, latest, length=steps)[0]

    # The graph and kappa go on reading the first variables, which a donated copy would take away.
    latest = (params, jax.tree.map(jnp.copy, variables), optimizer.init(params))

    def advance() -> Any:
        nonlocal latest
        latest = train(latest)
        return latest

    return advance
