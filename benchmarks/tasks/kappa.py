"""How much the second term of kappa adds to the first, and what both cost."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, PyTree
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.options import check_distinct, check_positive
from benchmarks.timing import time_in_turns
from pathspace import path_kappa
from pathspace.models import ReluRNN

_Apply = Callable[[PyTree, Array], Array]


@dataclasses.dataclass(frozen=True)
class Kappa:
    """Compare the two terms of kappa in word-level language models, as the Path-SGD paper does, and time them.

    The first table is that of Neyshabur et al. (2016), figure 2, left: |kappa2| / |kappa1|, the ratio of the norms
    over all weights of a one-layer ReLU RNN. Words go in one-hot, outputs come at each step; all initial weights
    are uniform in +-0.1. The second table compares the time of the first term and of both with that of an SGD step. By
    the paper the cost relative to this is O(1/B) for the first term and O((T + H)/B) for the second, in batches of B.
    """

    lengths: tuple[int, ...] = (10, 20, 40)
    """Time steps T of the sequences: the rows of the table."""
    widths: tuple[int, ...] = (100, 400)
    """Hidden units H of the network: the columns of the table."""
    vocabulary: int = 10000
    """Words that the network reads and predicts; 10000 as in the Penn Treebank."""
    batch_size: int = 32
    """Sequences in the SGD step that the terms are compared with."""
    seeds: int = 3
    """Initial weights to compute the ratio for; the table shows mean and standard error."""
    turns: int = 5
    """How often the three programs that are timed take turns."""
    output: Path = Path("results/kappa")
    """Folder for the results, which the report reads."""

    def __post_init__(self) -> None:
        check_positive(self, "vocabulary", "batch_size", "seeds", "turns")
        check_distinct(self, "lengths", "widths")
        for name in ("lengths", "widths"):
            if min(values := getattr(self, name)) < 1:
                raise ValueError(f"expected {name} to be 1 or more, got {values}")

    def run(self) -> None:
        """Compute the ratios, measure, print the tables, and write the ratios for the report."""
        console = Console()
        ratios = Table(title="|kappa2| / |kappa1|: mean ± standard error")
        ratios.add_column("", no_wrap=True)
        for width in self.widths:
            ratios.add_column(f"H = {width}", justify="right")
        times = Table(title=f"Time in ms, median over turns; in brackets: relative to an SGD step of {self.batch_size}")
        for column in ("T", "H", "SGD step", "kappa1", "kappa1 + kappa2"):
            times.add_column(column, justify="right")
        lines, cells = [], []
        cases = list(itertools.product(self.lengths, self.widths))
        for length, width in track(cases, description="Computing", console=console):
            values = term_ratios(length, width, self.vocabulary, self.seeds)
            lines.append({"length": length, "width": width, "ratios": values.tolist()})
            cells.append(_mean_and_error(values))
            times.add_row(f"{length}", f"{width}", *self._measure(length, width))
        for row, length in enumerate(self.lengths):
            ratios.add_row(f"T = {length}", *cells[row * len(self.widths) :][: len(self.widths)])
        console.print(ratios, times)
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / "ratios.json"
        path.write_text(json.dumps(lines, indent=1))
        console.print(f"Wrote {path.resolve()}", soft_wrap=True)

    def _measure(self, length: int, width: int) -> list[str]:
        """The time of an SGD step, and of the first term and both in comparison."""
        apply, params = _network(width, self.vocabulary, 0, jnp.float32)
        inputs = jnp.zeros((1, length, self.vocabulary))
        words = jax.random.randint(jax.random.key(0), (self.batch_size, length + 1), 0, self.vocabulary)
        first = jax.jit(functools.partial(path_kappa, apply))
        both = jax.jit(functools.partial(path_kappa, apply, second_term=True))
        step = jax.jit(functools.partial(_sgd_step, apply, self.vocabulary))
        programs = [lambda: step(params, words), lambda: first(params, inputs), lambda: both(params, inputs)]
        seconds = time_in_turns(programs, turns=self.turns)
        medians = 1000 * np.median(seconds, axis=0)
        relative = np.median(seconds / seconds[:, :1], axis=0)
        return [f"{medians[0]:.1f}", *(f"{medians[i]:.1f} ({relative[i]:.3f})" for i in (1, 2))]


def term_ratios(length: int, width: int, vocabulary: int, seeds: int) -> Float[np.ndarray, " seeds"]:
    """|kappa2| / |kappa1| of the network with the initial weights of each seed."""
    # In float64 for its range: the terms grow by a constant factor with each time step, and norms square them.
    with jax.enable_x64(True):
        apply, _ = _network(width, vocabulary, 0, jnp.float64)
        inputs = jnp.zeros((1, length, vocabulary), jnp.float64)

        @jax.jit
        def ratio(params: PyTree) -> Float[Array, ""]:
            first = path_kappa(apply, params, inputs)
            second = jax.tree.map(jnp.subtract, path_kappa(apply, params, inputs, second_term=True), first)
            return optax.tree.norm(second) / optax.tree.norm(first)

        return np.array([ratio(_network(width, vocabulary, seed, jnp.float64)[1]) for seed in range(seeds)])


def _mean_and_error(values: Float[np.ndarray, " seeds"]) -> str:
    if values.size == 1:
        return f"{values.item():.5f}"
    return f"{values.mean():.5f} ± {values.std(ddof=1) / np.sqrt(values.size):.5f}"


def _network(width: int, vocabulary: int, seed: int, dtype: DTypeLike) -> tuple[_Apply, PyTree]:
    model = ReluRNN(
        vocabulary,
        (width,),
        vocabulary,
        start="uniform",
        uniform_scale=0.1,
        recurrent_scale=0.1,
        output="every",
        param_dtype=dtype,
        rngs=nnx.Rngs(seed),
    )
    graphdef, params = nnx.split(model, nnx.Param)
    return lambda params, inputs: nnx.merge(graphdef, params)(inputs), params


def _sgd_step(apply: _Apply, vocabulary: int, params: PyTree, words: Array) -> PyTree:
    """New weights after a step that learns to predict the next word."""

    def loss(params: PyTree) -> Array:
        inputs = jax.nn.one_hot(words[:, :-1], vocabulary)
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, inputs), words[:, 1:]).mean()

    return jax.tree.map(lambda leaf, grad: leaf - 1e-3 * grad, params, jax.grad(loss)(params))
