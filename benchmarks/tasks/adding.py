"""The adding problem: to remember two numbers of a long sequence. Path-SGD against SGD."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, PyTree

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.options import Work, check_distinct, check_positive, resolved, settings_of
from benchmarks.reporting import train_and_show
from benchmarks.results import Experiment, Quantity
from benchmarks.sweeps import grid
from benchmarks.training import Configuration, Problem
from pathspace.models import ReluRNN

_STEPS_PER_EPOCH = 1000
_HELD_OUT = 1000


_HELD_OUT_SEED = 2**31 - 1  # no run's


@dataclasses.dataclass(frozen=True)
class Preset:
    """What the options of a name set."""

    lengths: tuple[int, ...]
    steps: int
    seeds: int
    sgd_learning_rates: tuple[float, ...]
    path_sgd_learning_rates: tuple[float, ...]

    def __post_init__(self) -> None:
        check_positive(self, "steps", "seeds")
        check_distinct(self, "lengths", "sgd_learning_rates", "path_sgd_learning_rates")


PRESETS = {
    "quick": Preset(lengths=(100,), steps=10_000, seeds=2, sgd_learning_rates=(0.1,), path_sgd_learning_rates=(7e-4,)),
    "paper": Preset(
        lengths=(100, 400, 750),
        steps=400_000,
        seeds=3,
        sgd_learning_rates=(0.01, 0.03, 0.1),
        path_sgd_learning_rates=(3e-4, 1e-3),
    ),
}


@dataclasses.dataclass(frozen=True)
class Adding:
    """Train a ReLU RNN on the adding problem with SGD and with Path-SGD.

    Each example is a sequence of numbers from U(0, 1), two of which are marked, one in each half; the target is the sum
    of these two. Always to answer with the mean, 1, has an error of 1/6. New examples are drawn in each step.

    The network is the paper's: one layer of 100 units, recurrent weights the identity, all others uniform in +-0.01.
    How steps are kept from diverging the paper leaves open. Here SGD's gradients are clipped to norm 1. Path-SGD (with
    the first term of kappa) has steps relative to the weights, and gradients clipped to norm 1, both in norms that
    rescaling does not change (`max_norm` and `ratio="weights"` of `pathspace.path_sgd`): no step is longer than the
    learning rate. Learning rates rise linearly in the first tenth of the steps, then fall to 0 as a cosine. Epochs are
    of 1000 steps.
    """

    preset: Literal["quick", "paper"] = "quick"
    """Sets what is not set below: two minutes on two cores, or the lengths of the paper for hours."""
    lengths: tuple[int, ...] | None = None
    """Lengths of the sequences."""
    steps: int | None = None
    """Training steps, in multiples of 1000."""
    seeds: int | None = None
    """Runs of each setting; a seed sets the initial weights and the training examples."""
    sgd_learning_rates: tuple[float, ...] | None = None
    """Learning rates of SGD, at the beginning."""
    path_sgd_learning_rates: tuple[float, ...] | None = None
    """Learning rates of Path-SGD, at the beginning."""
    optimizers: tuple[Literal["clipped_sgd", "bounded_path_sgd"], ...] = ("clipped_sgd", "bounded_path_sgd")
    """Optimisers to compare."""
    hidden: int = 100
    """Hidden units of the network."""
    batch_size: int = 16
    """Training examples in a step."""
    output: Path = Path("results/adding")
    """Folder for the pictures and results, with one inside it for each length."""
    work: tyro.conf.OmitArgPrefixes[Work] = dataclasses.field(default_factory=Work)

    def __post_init__(self) -> None:
        check_positive(self, "hidden", "batch_size")
        check_distinct(self, "optimizers")
        self._settings()

    def run(self) -> None:
        """Train at each length, print the tables, and write pictures and results."""
        settings = self._settings()
        for length in settings.lengths:
            problem = AddingProblem(
                make_model=functools.partial(_model, hidden=self.hidden),
                batch_size=self.batch_size,
                length=length,
                steps=settings.steps,
            )
            learning_rates = {"sgd": settings.sgd_learning_rates, "path_sgd": settings.path_sgd_learning_rates}
            configurations: dict[str, Configuration] = {
                name: grid(learning_rates[OPTIMIZERS[name].family], (0.0,), settings.seeds) for name in self.optimizers
            }
            train_and_show(
                Experiment(
                    task="adding",
                    variant=f"length {length}",
                    model=f"ReLU RNN, {self.hidden} units, identity start",
                    title=f"Adding problem, length {length}",
                    quantity=Quantity("test MSE", "1e-2", by_chance=1 / 6),
                    notes=(
                        "The papers do not say how steps are kept from diverging. Here SGD's gradients are clipped to "
                        "norm 1; Path-SGD's gradients and steps are bounded in the norms of kappa.",
                    ),
                ),
                problem,
                configurations,
                problem.epochs,
                folder=self.output / str(length),
                settings=settings_of(self) | dataclasses.asdict(settings) | {"length": length},
                work=self.work,
            )

    def _settings(self) -> Preset:
        return resolved(self, PRESETS[self.preset])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddingProblem(Problem):
    """The adding problem for a network of two inputs, number and mark, and one output.

    Attributes:
      length: of the sequences.
      steps: of training, for the learning rate's schedule.
    """

    length: int
    steps: int

    @property
    def epochs(self) -> int:
        """Epochs of 1000 steps, for new examples never end."""
        return -(-self.steps // _STEPS_PER_EPOCH)

    def schedule(self, learning_rate: ArrayLike) -> optax.ScalarOrSchedule:
        shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, self.steps // 10, self.steps)
        return lambda step: learning_rate * shape(step)

    def batches(self, key: Array) -> Array:
        return jax.random.split(key, _STEPS_PER_EPOCH)

    def loss(self, model: Any, data: PyTree, batch: Array) -> Float[Array, ""]:
        """Mean squared error on new examples."""
        return self._error(model, batch, self.batch_size)

    def errors(self, model: Any, data: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean squared errors on 1000 examples each."""
        validation_key, test_key = jax.random.split(jax.random.key(_HELD_OUT_SEED))
        return self._error(model, validation_key, _HELD_OUT), self._error(model, test_key, _HELD_OUT)

    def one_input(self) -> Array:
        return jnp.ones((1, self.length, 2))

    def _error(self, model: Any, key: Array, count: int) -> Float[Array, ""]:
        inputs, targets = examples(key, count, self.length)
        return jnp.mean((model(inputs)[:, 0] - targets) ** 2)


def examples(key: Array, count: int, length: int) -> tuple[Float[Array, "count length 2"], Float[Array, " count"]]:
    """Sequences of numbers and marks, and the sums of the marked numbers."""
    numbers_key, first_key, second_key = jax.random.split(key, 3)
    numbers = jax.random.uniform(numbers_key, (count, length))
    first = jax.random.randint(first_key, (count,), 0, length // 2)
    second = jax.random.randint(second_key, (count,), length // 2, length)
    marks = jax.nn.one_hot(first, length) + jax.nn.one_hot(second, length)
    return jnp.stack([numbers, marks], axis=-1), jnp.sum(numbers * marks, axis=1)


def _model(rngs: nnx.Rngs, hidden: int) -> ReluRNN:
    return ReluRNN(2, (hidden,), 1, start="uniform", rngs=rngs)
