"""Handwritten digits, read row by row by a ReLU RNN: path-space against weight-space optimisers."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import tyro
from flax import nnx

from benchmarks.data import digit_rows
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.options import Work, check_distinct, check_positive, settings_of
from benchmarks.reporting import train_and_show
from benchmarks.results import Experiment, Quantity
from benchmarks.sweeps import grid
from benchmarks.training import Classification, Configuration
from pathspace.basis import DEFAULT_MAX_RATIO
from pathspace.models import ReluRNN


@dataclasses.dataclass(frozen=True)
class Digits:
    """Train a ReLU RNN on scikit-learn's handwritten digits with optimisers in weight space and in path space.

    Each 8x8 image is a sequence of its 8 rows; every seed draws its own 60 % of the 1797 images for training, 20 % for
    validation and 20 % for testing. All learning rates, rescalings and seeds train in one compiled program. Errors are
    those after the last epoch; learning rates are chosen by validation error.
    """

    hidden: int = 100
    """Hidden units of the network."""
    epochs: int = 30
    """Passes over the training examples."""
    batch_size: int = 32
    """Training examples in a step."""
    seeds: int = 10
    """Runs of each setting; a seed sets its split, initial weights, their rescaling and the order of batches."""
    optimizers: tuple[Literal["sgd", "g_sgd", "adam", "g_adam"], ...] = ("sgd", "g_sgd", "adam", "g_adam")
    """Optimisers to compare; those with g_ run in path space."""
    sgd_learning_rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    """Learning rates of SGD and G-SGD."""
    adam_learning_rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03)
    """Learning rates of Adam and G-Adam."""
    rescale: tuple[float, ...] = (0.0, 2.0)
    """The initial weights are rescaled by a lognormal(0, RESCALE) factor per unit: the network's function stays."""
    skeleton_method: Literal["largest", "cyclic"] = "cyclic"
    """How each unit's skeleton edges are chosen: largest weights, or the papers' cyclic pattern."""
    skeleton_reference: Literal["balanced", "initial"] | None = "balanced"
    """Where skeleton edges are chosen and path values have their unit: at the balanced or at the initial weights;
    None: at the initial weights, but with raw path values."""
    max_ratio: float = DEFAULT_MAX_RATIO
    """Limit of the factor by which one step in path space changes the scale of a unit."""
    output: Path = Path("results/digits")
    """Folder for the pictures and results."""
    work: tyro.conf.OmitArgPrefixes[Work] = dataclasses.field(default_factory=Work)

    def __post_init__(self) -> None:
        check_positive(self, "hidden", "epochs", "seeds")
        check_distinct(self, "optimizers", "sgd_learning_rates", "adam_learning_rates", "rescale")

    def run(self) -> None:
        """Train, print the tables, and write pictures and results."""
        data = digit_rows()
        problem = Classification(
            make_model=functools.partial(_model, hidden=self.hidden),
            data=data[:3],
            batch_size=self.batch_size,
            skeleton_method=self.skeleton_method,
            skeleton_reference=self.skeleton_reference,
            max_ratio=self.max_ratio,
            redraws=True,
        )
        learning_rates = {"sgd": self.sgd_learning_rates, "adam": self.adam_learning_rates}
        configurations: dict[str, Configuration] = {
            name: grid(learning_rates[OPTIMIZERS[name].family], self.rescale, self.seeds) for name in self.optimizers
        }
        train_and_show(
            Experiment(
                task="digits",
                model=f"ReLU RNN, {self.hidden} units",
                title="One and the same initial network, its weights scaled differently",
                quantity=Quantity("test error", "%", by_chance=1 - 1 / data.classes),
            ),
            problem,
            configurations,
            self.epochs,
            folder=self.output,
            settings=settings_of(self),
            work=self.work,
        )


def _model(rngs: nnx.Rngs, hidden: int) -> ReluRNN:
    # Unrolling the eight steps makes the program a fifth faster.
    return ReluRNN(8, (hidden,), 10, unroll=8, rngs=rngs)
