"""Highway networks on permutation-invariant MNIST: full, low-rank and low-rank plus diagonal matrices."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from benchmarks.mnist import CLASSES, PIXELS, load_mnist
from benchmarks.options import Work, check_distinct, check_positive, resolved, settings_of
from benchmarks.reporting import train_and_show
from benchmarks.results import Experiment, Quantity
from benchmarks.sweeps import grid
from benchmarks.training import Classification, Configuration
from pathspace.models import HighwayNetwork

_READOUT_PENALTY = 1e-3
_MATRICES = {"full": "full", "low-rank": "low-rank", "low-rank-diagonal": "low-rank plus diagonal"}


@dataclasses.dataclass(frozen=True)
class Preset:
    """What the options of a name set."""

    matrices: tuple[str, ...]
    optimizers: tuple[str, ...]
    hidden: int
    rank: int
    epochs: int
    halving_epochs: int
    seeds: int
    learning_rates: tuple[float, ...]
    input_dropout: float
    hidden_dropout: float

    def __post_init__(self) -> None:
        check_positive(self, "hidden", "rank", "epochs", "halving_epochs", "seeds")
        check_distinct(self, "matrices", "optimizers", "learning_rates")
        if self.rank > self.hidden:
            raise ValueError(f"expected rank up to the {self.hidden} hidden units, got {self.rank}")
        for name in ("input_dropout", "hidden_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"expected {name} from 0 to below 1, got {getattr(self, name)}")


PRESETS = {
    "quick": Preset(
        matrices=("full", "low-rank-diagonal"),
        optimizers=("adam", "g_adam"),
        hidden=128,
        rank=32,
        epochs=3,
        halving_epochs=1,
        seeds=2,
        learning_rates=(0.003,),
        input_dropout=0.1,
        hidden_dropout=0.1,
    ),
    "paper": Preset(
        matrices=("full", "low-rank", "low-rank-diagonal"),
        optimizers=("adam", "g_adam"),
        hidden=1024,
        rank=256,
        epochs=100,
        halving_epochs=10,
        seeds=3,
        learning_rates=(0.003,),
        input_dropout=0.2,
        hidden_dropout=0.2,
    ),
}


@dataclasses.dataclass(frozen=True)
class Highway:
    """Train Highway networks of five layers on MNIST's images as vectors of 784 pixels.

    The model, and the preset paper, are those of appendix A.1 of "Low-rank passthrough neural networks" (2016): batch
    normalisation, dropout, the squared hinge loss summed over classes plus 0.001 times the squared norm of the
    readout's weights, and Adam. The paper leaves open the dropout's rates, the number of epochs, and how pixels are
    scaled; here they are standardised. Its learning rate is halved when three epochs bring no gain in validation;
    here after a fixed number of epochs. Of the 60,000 training images 5000, stratified by class, are held out for
    validation. Errors are those after the last epoch; learning rates are chosen by validation error.

    Units of the reduction graph are those of the state, one and the same in all layers. The inner components have no
    scale, for they are normalised.
    """

    preset: Literal["quick", "paper"] = "quick"
    """Sets what is not set below: five minutes on two cores, or the sizes of the paper."""
    matrices: tuple[Literal["full", "low-rank", "low-rank-diagonal"], ...] | None = None
    """Which matrices of the layers to compare."""
    optimizers: tuple[Literal["adam", "g_adam"], ...] | None = None
    """Optimisers to compare; those with g_ run in path space."""
    hidden: int | None = None
    """Units of the state."""
    rank: int | None = None
    """Inner components of the low-rank matrices."""
    epochs: int | None = None
    """Passes over the training images."""
    halving_epochs: int | None = None
    """Epochs after which the learning rate is halved, again and again."""
    seeds: int | None = None
    """Runs of each setting; a seed sets the initial weights, the dropout and the order of the batches."""
    learning_rates: tuple[float, ...] | None = None
    """Learning rates of all optimisers, at the beginning."""
    input_dropout: float | None = None
    """Rate at which pixels are dropped."""
    hidden_dropout: float | None = None
    """Rate at which units of the states and inner components are dropped where matrices read them."""
    batch_size: int = 100
    """Training images in a step."""
    data_dir: Path | None = None
    """Folder with the data files; None for $PATHSPACE_DATA, or what was downloaded before."""
    output: Path = Path("results/highway")
    """Folder for the pictures and results, with one inside it for each kind of matrices."""
    work: tyro.conf.OmitArgPrefixes[Work] = dataclasses.field(default_factory=Work)

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        self._settings()

    def run(self) -> None:
        """Train with each kind of matrices, print the tables, and write pictures and results."""
        settings = self._settings()
        mnist = load_mnist(self.data_dir)
        for matrices in settings.matrices:
            rank = None if matrices == "full" else settings.rank
            problem = HighwayProblem(
                make_model=functools.partial(
                    _model, settings=settings, rank=rank, diagonal=matrices == "low-rank-diagonal"
                ),
                data=mnist[:3],
                prepare=mnist.standardize,
                batch_size=self.batch_size,
                steps_per_halving=settings.halving_epochs * (len(mnist.train.labels) // self.batch_size),
            )
            configurations: dict[str, Configuration] = {
                name: grid(settings.learning_rates, (0.0,), settings.seeds) for name in settings.optimizers
            }
            size = f"{settings.hidden} units" + ("" if rank is None else f", rank {rank}")
            train_and_show(
                Experiment(
                    task="highway",
                    variant=f"{_MATRICES[matrices]} matrices",
                    model=f"Highway network, 5 layers, {size}",
                    title=f"MNIST, Highway network, {_MATRICES[matrices]} matrices",
                    quantity=Quantity("test error", "%", by_chance=1 - 1 / CLASSES),
                    notes=(
                        *mnist.notes,
                        f"{len(mnist.validation.labels):,} training images are held out for validation",
                        "learning rates are halved after a fixed number of epochs; in the paper, after three epochs "
                        "without a gain in validation",
                    ),
                ),
                problem,
                configurations,
                settings.epochs,
                folder=self.output / matrices,
                settings=settings_of(self) | dataclasses.asdict(settings) | {"matrices": matrices},
                work=self.work,
            )

    def _settings(self) -> Preset:
        return resolved(self, PRESETS[self.preset])


@dataclasses.dataclass(frozen=True, kw_only=True)
class HighwayProblem(Classification):
    """Classification by a Highway network with the squared hinge loss.

    Attributes:
      steps_per_halving: training steps after which the learning rate is halved.
    """

    steps_per_halving: int

    def schedule(self, learning_rate: ArrayLike) -> optax.ScalarOrSchedule:
        decay = optax.exponential_decay(1.0, self.steps_per_halving, 0.5, staircase=True)
        return lambda step: learning_rate * decay(step)

    def loss(self, model: Any, data: PyTree, batch: Int[Array, " batch"]) -> Float[Array, ""]:
        """Squared hinge losses, summed over classes and averaged over examples, plus the readout's penalty.

        Source: Tang, "Deep Learning using Linear Support Vector Machines" (2013), equation 10.
        """
        signs = 2 * jax.nn.one_hot(data[0].labels[batch], CLASSES) - 1
        outputs = model(self.prepare(data[0].inputs[batch]))
        hinges = jnp.sum(optax.hinge_loss(outputs, signs) ** 2, axis=-1)
        return hinges.mean() + _READOUT_PENALTY * jnp.sum(model.readout.kernel[...] ** 2)


def _model(rngs: nnx.Rngs, settings: Preset, rank: int | None, diagonal: bool) -> HighwayNetwork:
    return HighwayNetwork(
        PIXELS,
        settings.hidden,
        CLASSES,
        rank=rank,
        diagonal=diagonal,
        use_batch_norm=True,
        input_dropout=settings.input_dropout,
        hidden_dropout=settings.hidden_dropout,
        readout_dropout=settings.hidden_dropout,
        rngs=rngs,
    )
