"""The copying problem: to repeat ten symbols after a long time. Low-rank passthrough networks."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

import pathspace
from benchmarks.optimizers import OPTIMIZERS, Optimizer
from benchmarks.options import Work, check_distinct, check_positive, resolved, settings_of
from benchmarks.reporting import train_and_show
from benchmarks.results import Experiment, Quantity
from benchmarks.sweeps import grid
from benchmarks.training import Configuration, Problem
from pathspace.models import PassthroughGRUCell, Recurrence, max_row_norm

_STEPS_PER_EPOCH = 500
_HELD_OUT = 1000
_HELD_OUT_SEED = 2**31 - 1  # no run's
_DATA_SYMBOLS = 8
_BLANK, _RUN = 8, 9
_SYMBOLS = 10
_DATA_LENGTH = 10
_CARRY_BIAS = 4.0
_MAX_GRADIENT_NORM = 1.0
_MAX_ROW_NORM = 10.0

_Variant = Literal["fixed", "variable-length", "variable-lag"]


class Kind(NamedTuple):
    """A kind of model.

    Attributes:
      title: its name in reports.
      low_rank: whether its matrices are low-rank plus diagonal, or else full.
      normalized: whether they have weight normalisation and limited row norms.
    """

    title: str
    low_rank: bool
    normalized: bool

    @property
    def rescalable(self) -> bool:
        """Whether it has units that can be rescaled: inner components whose weights are not normalised."""
        return self.low_rank and not self.normalized

    def allows(self, optimizer: str) -> bool:
        """Whether an optimiser differs there from its counterpart in weight space, if it has one."""
        return self.rescalable or not OPTIMIZERS[optimizer].respects_rescaling


KINDS = {
    "gru": Kind("GRU", low_rank=False, normalized=False),
    "low-rank-diagonal-gru": Kind("Low-rank plus diagonal GRU", low_rank=True, normalized=False),
    "normalized-low-rank-diagonal-gru": Kind("Weight-normalised low-rank plus diagonal GRU", True, True),
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """What the options of a name set."""

    fixed: tuple[int, ...]
    variable_length: tuple[int, ...]
    variable_lag: tuple[int, ...]
    steps: int
    seeds: int
    learning_rates: tuple[float, ...]
    hidden: int
    rank: int

    def __post_init__(self) -> None:
        check_positive(self, "steps", "seeds", "hidden", "rank")
        check_distinct(self, "learning_rates")
        if self.rank > self.hidden:
            raise ValueError(f"expected rank up to the {self.hidden} hidden units, got {self.rank}")
        lags = [lag for _, lag in self.variants]
        if not lags or min(lags) < 1 or len(set(self.variants)) < len(lags):
            raise ValueError(
                "expected fixed, variable_length and variable_lag to hold one or several distinct lags of 1 or more, "
                f"got {self.fixed}, {self.variable_length} and {self.variable_lag}"
            )

    @property
    def variants(self) -> list[tuple[_Variant, int]]:
        """Variants with their lags."""
        named: dict[_Variant, tuple[int, ...]] = {
            "fixed": self.fixed,
            "variable-length": self.variable_length,
            "variable-lag": self.variable_lag,
        }
        return [(variant, lag) for variant, lags in named.items() for lag in lags]


PRESETS = {
    "quick": Preset(
        fixed=(20,),
        variable_length=(),
        variable_lag=(),
        steps=4000,
        seeds=1,
        learning_rates=(0.01,),
        hidden=64,
        rank=24,
    ),
    "paper": Preset(
        fixed=(500,),
        variable_length=(100,),
        variable_lag=(100,),
        steps=40_000,
        seeds=3,
        learning_rates=(0.001,),
        hidden=128,
        rank=50,
    ),
}


@dataclasses.dataclass(frozen=True)
class Copying:
    """Train gated recurrent units on the copying problem, with full and with low-rank plus diagonal matrices.

    Of ten symbols, eight are data, one is blank and one is the command to run. A sequence has data at its beginning,
    the command N steps after the tenth symbol, and blanks elsewhere. The targets are blanks, and from the step after
    the command on the data; the error is the cross-entropy of a symbol, over all N + 20 steps. In the variant
    variable-length there are 1 to 10 symbols of data, otherwise 10; in variable-lag the command comes 1 to N steps
    after them. New examples are drawn in each step.

    The preset paper has the protocol of "Low-rank passthrough neural networks" (2016): RMSProp, gradients clipped to
    norm 1, a carry bias of 4. Weight-normalised models have norms of the weights into each unit of at most 10.
    Optimisers in path space train the models alone whose inner components can be rescaled; normalisation takes that
    away. Epochs are of 500 steps.
    """

    preset: Literal["quick", "paper"] = "quick"
    """Sets what is not set below: five minutes on two cores, or the sizes of the paper for many hours."""
    fixed: tuple[int, ...] | None = None
    """Lags N of the variant of fixed length and lag."""
    variable_length: tuple[int, ...] | None = None
    """Lags N of the variant of variable length."""
    variable_lag: tuple[int, ...] | None = None
    """Largest lags N of the variant of variable lag."""
    steps: int | None = None
    """Training steps, in multiples of 500."""
    seeds: int | None = None
    """Runs of each setting; a seed sets the initial weights and the training examples."""
    learning_rates: tuple[float, ...] | None = None
    """Learning rates of all optimisers."""
    hidden: int | None = None
    """Size of the state."""
    rank: int | None = None
    """Inner components of the low-rank matrices."""
    models: tuple[Literal["gru", "low-rank-diagonal-gru", "normalized-low-rank-diagonal-gru"], ...] = (
        "gru",
        "low-rank-diagonal-gru",
        "normalized-low-rank-diagonal-gru",
    )
    """Models to compare."""
    optimizers: tuple[Literal["rmsprop", "g_rmsprop", "adam", "g_adam"], ...] = ("rmsprop", "g_rmsprop")
    """Optimisers to compare; those with g_ run in path space."""
    batch_size: int = 20
    """Training examples in a step."""
    output: Path = Path("results/copying")
    """Folder for the pictures and results, with one inside it for each variant, lag and model."""
    work: tyro.conf.OmitArgPrefixes[Work] = dataclasses.field(default_factory=Work)

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        check_distinct(self, "models", "optimizers")
        self._settings()
        for name in self.models:
            if not any(map(KINDS[name].allows, self.optimizers)):
                raise ValueError(
                    f"expected optimizers with one that can train a {KINDS[name].title}, got {self.optimizers}: "
                    "add one in weight space"
                )

    def run(self) -> None:
        """Train each model on each variant, print the tables, and write pictures and results."""
        settings = self._settings()
        for (variant, lag), model in itertools.product(settings.variants, self.models):
            kind = KINDS[model]
            problem = CopyingProblem(
                make_model=functools.partial(
                    _model, hidden=settings.hidden, rank=settings.rank if kind.low_rank else None, kind=kind
                ),
                batch_size=self.batch_size,
                max_gradient_norm=_MAX_GRADIENT_NORM,
                rescalable=kind.rescalable,
                variant=variant,
                lag=lag,
                kind=kind,
            )
            configurations: dict[str, Configuration] = {
                name: grid(settings.learning_rates, (0.0,), settings.seeds)
                for name in self.optimizers
                if kind.allows(name)
            }
            size = f"{settings.hidden} units" + (f", rank {settings.rank}" if kind.low_rank else "")
            train_and_show(
                Experiment(
                    task="copying",
                    variant=f"{variant}, lag {lag}",
                    model=f"{kind.title}, {size}",
                    title=f"Copying problem, {variant}, lag {lag}: {kind.title}",
                    quantity=Quantity("test cross-entropy", "1e-2 nats", by_chance=problem.by_chance),
                    notes=(
                        "training examples are drawn anew in each step, and 1000 each for validation and test; the "
                        "paper has 100,000 and 10,000",
                    ),
                ),
                problem,
                configurations,
                -(-settings.steps // _STEPS_PER_EPOCH),
                folder=self.output / f"{variant}-{lag}" / model,
                settings=settings_of(self)
                | dataclasses.asdict(settings)
                | {"variant": variant, "lag": lag, "model": model},
                work=self.work,
            )

    def _settings(self) -> Preset:
        return resolved(self, PRESETS[self.preset])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyingProblem(Problem):
    """The copying problem for a network of ten inputs and outputs, one for each symbol.

    Attributes:
      variant: see `Copying`.
      lag: N.
      kind: of the model.
    """

    variant: _Variant
    lag: int
    kind: Kind

    @property
    def by_chance(self) -> float:
        """The error of one who knows where data are due, but not which."""
        length = (1 + _DATA_LENGTH) / 2 if self.variant == "variable-length" else _DATA_LENGTH
        return length * math.log(_DATA_SYMBOLS) / (self.lag + 2 * _DATA_LENGTH)

    def transformation(
        self, optimizer: Optimizer, learning_rate: ArrayLike, skeleton: pathspace.Skeleton
    ) -> optax.GradientTransformation:
        made = super().transformation(optimizer, learning_rate, skeleton)
        return optax.chain(made, max_row_norm(_MAX_ROW_NORM)) if self.kind.normalized else made

    def batches(self, key: Array) -> Array:
        return jax.random.split(key, _STEPS_PER_EPOCH)

    def loss(self, model: Any, data: PyTree, batch: Array) -> Float[Array, ""]:
        """Mean cross-entropy on new examples."""
        return self._cross_entropy(model, batch, self.batch_size)

    def errors(self, model: Any, data: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean cross-entropies on 1000 examples each."""
        validation_key, test_key = jax.random.split(jax.random.key(_HELD_OUT_SEED))
        return self._cross_entropy(model, validation_key, _HELD_OUT), self._cross_entropy(model, test_key, _HELD_OUT)

    def one_input(self) -> Array:
        return jnp.ones((1, self.lag + 2 * _DATA_LENGTH, _SYMBOLS))

    def _cross_entropy(self, model: Any, key: Array, count: int) -> Float[Array, ""]:
        inputs, targets = examples(key, count, self.variant, self.lag)
        logits = model(jax.nn.one_hot(inputs, _SYMBOLS))
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def examples(
    key: Array, count: int, variant: _Variant, lag: int
) -> tuple[Int[Array, "count time"], Int[Array, "count time"]]:
    """Sequences of symbols from 0 to 9, and their targets: 8 is the blank, 9 the command, time is lag + 20.

    Source: Miceli Barone, "Low-rank passthrough neural networks" (2016), section 3.0.1. In its variants, what is
    shorter is followed by blanks.
    """
    data_key, length_key, lag_key = jax.random.split(key, 3)
    time = lag + 2 * _DATA_LENGTH
    data = jax.random.randint(data_key, (count, _DATA_LENGTH), 0, _DATA_SYMBOLS)
    if variant == "variable-length":
        lengths = jax.random.randint(length_key, (count, 1), 1, _DATA_LENGTH + 1)
        data = jnp.where(jnp.arange(_DATA_LENGTH) < lengths, data, _BLANK)
    lags = jnp.full((count,), lag)
    if variant == "variable-lag":
        lags = jax.random.randint(lag_key, (count,), 1, lag + 1)
    blanks = jnp.full((count, time - _DATA_LENGTH), _BLANK)
    inputs = jnp.concatenate([data, blanks], axis=1).at[jnp.arange(count), _DATA_LENGTH + lags - 1].set(_RUN)
    targets = jax.vmap(jnp.roll)(jnp.concatenate([data, blanks], axis=1), _DATA_LENGTH + lags)
    return inputs, targets


def _model(rngs: nnx.Rngs, hidden: int, rank: int | None, kind: Kind) -> nnx.Sequential:
    cell = PassthroughGRUCell(
        _SYMBOLS,
        hidden,
        rank=rank,
        diagonal=kind.low_rank,
        weight_norm=kind.normalized,
        carry_bias=_CARRY_BIAS,
        rngs=rngs,
    )
    return nnx.Sequential(Recurrence(cell, output="every"), nnx.Linear(hidden, _SYMBOLS, rngs=rngs))
