"""Sequential MNIST: handwritten digits, read row by row or pixel by pixel by recurrent networks."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optax
import tyro
from flax import nnx
from jaxtyping import ArrayLike

import pathspace
from benchmarks.mnist import CLASSES, PIXELS, load_mnist
from benchmarks.optimizers import OPTIMIZERS, Optimizer
from benchmarks.options import Work, check_distinct, check_positive, resolved, settings_of
from benchmarks.reporting import train_and_show
from benchmarks.results import Experiment, Quantity
from benchmarks.sweeps import grid
from benchmarks.training import Classification, Configuration
from pathspace.models import PassthroughGRUCell, Recurrence, ReluRNN, UnitaryCell

_GRU_CARRY_BIAS = 5.0
_GRU_MAX_GRADIENT_COMPONENT = 1.0

_Name = Literal["sgd", "g_sgd", "path_sgd", "momentum", "g_momentum", "adam", "g_adam", "rmsprop", "g_rmsprop"]


class Kind(NamedTuple):
    """A kind of model.

    Attributes:
      title: its name in reports.
      make: makes it from the features of an input, its units, its rank and random keys.
      low_rank: whether it has a rank.
      rescalable: whether it has units that can be rescaled.
      homogeneous: whether it has a path-norm.
      max_gradient_component: to which each component of gradients is clipped.
    """

    title: str
    make: Callable[[int, int, int | None, nnx.Rngs], Any]
    low_rank: bool = False
    rescalable: bool = False
    homogeneous: bool = False
    max_gradient_component: float | None = None

    def allows(self, optimizer: str) -> bool:
        """Whether an optimiser can train it, and differs there from its counterpart in weight space."""
        if OPTIMIZERS[optimizer].family == "path_sgd":
            return self.homogeneous
        return self.rescalable or not OPTIMIZERS[optimizer].respects_rescaling


def _relu_rnn(title: str, start: str) -> Kind:
    def make(features: int, units: int, rank: int | None, rngs: nnx.Rngs) -> ReluRNN:
        return ReluRNN(features, (units,), CLASSES, start=start, rngs=rngs)

    return Kind(title, make, rescalable=True, homogeneous=True)


def _gru(title: str, *, low_rank: bool, diagonal: bool) -> Kind:
    def make(features: int, units: int, rank: int | None, rngs: nnx.Rngs) -> nnx.Sequential:
        cell = PassthroughGRUCell(features, units, rank=rank, diagonal=diagonal, carry_bias=_GRU_CARRY_BIAS, rngs=rngs)
        return _with_readout(cell, units, rngs)

    return Kind(title, make, low_rank=low_rank, rescalable=low_rank, max_gradient_component=_GRU_MAX_GRADIENT_COMPONENT)


def _lstm(features: int, units: int, rank: int | None, rngs: nnx.Rngs) -> nnx.Sequential:
    return _with_readout(nnx.OptimizedLSTMCell(features, units, rngs=rngs), units, rngs)


def _unitary(features: int, units: int, rank: int | None, rngs: nnx.Rngs) -> nnx.Sequential:
    return _with_readout(UnitaryCell(features, units, rngs=rngs), 2 * units, rngs)


def _with_readout(cell: nnx.RNNCellBase, outputs: int, rngs: nnx.Rngs) -> nnx.Sequential:
    return nnx.Sequential(Recurrence(cell), nnx.Linear(outputs, CLASSES, rngs=rngs))


KINDS = {
    "relu": _relu_rnn("ReLU RNN", "glorot"),
    "irnn": _relu_rnn("IRNN", "identity"),
    "np-rnn": _relu_rnn("np-RNN", "np_rnn"),
    "lstm": Kind("LSTM", _lstm),
    "urnn": Kind("uRNN", _unitary),
    "gru": _gru("GRU", low_rank=False, diagonal=False),
    "low-rank-gru": _gru("Low-rank GRU", low_rank=True, diagonal=False),
    "low-rank-diagonal-gru": _gru("Low-rank plus diagonal GRU", low_rank=True, diagonal=True),
}


class Model(NamedTuple):
    """A model as it is written on the command line.

    Attributes:
      name: of its kind.
      units: of its state.
      rank: of its recurrent matrices; None where they are full.
    """

    name: str
    units: int
    rank: int | None

    @classmethod
    def parse(cls, text: str) -> "Model":
        """Read NAME:UNITS, or NAME:UNITS/RANK for low-rank models; ValueError for anything else."""
        match = re.fullmatch(r"(.+):([1-9]\d*)(?:/([1-9]\d*))?", text)
        if match is None or match[1] not in KINDS or KINDS[match[1]].low_rank != (match[3] is not None):
            known = ", ".join(f"{name}:UNITS{'/RANK' if kind.low_rank else ''}" for name, kind in KINDS.items())
            raise ValueError(f"expected models to be some of {known}, got {text!r}")
        units, rank = int(match[2]), None if match[3] is None else int(match[3])
        if rank is not None and rank > units:
            raise ValueError(f"expected models of a rank up to their {units} units, got {text!r}: take fewer")
        return cls(match[1], units, rank)

    def __str__(self) -> str:
        return f"{self.name}:{self.units}" + ("" if self.rank is None else f"/{self.rank}")

    @property
    def kind(self) -> Kind:
        """What it is one of."""
        return KINDS[self.name]

    @property
    def title(self) -> str:
        """Its name in reports."""
        return f"{self.kind.title}, {self.units} units" + ("" if self.rank is None else f", rank {self.rank}")


@dataclasses.dataclass(frozen=True)
class Preset:
    """What the options of a name set."""

    models: tuple[str, ...]
    lengths: tuple[int, ...]
    orders: tuple[str, ...]
    optimizers: tuple[str, ...]
    epochs: int
    batch_size: int
    seeds: int
    sgd_learning_rates: tuple[float, ...]
    path_sgd_learning_rates: tuple[float, ...]
    momentum_learning_rates: tuple[float, ...]
    adam_learning_rates: tuple[float, ...]
    rmsprop_learning_rates: tuple[float, ...]

    def __post_init__(self) -> None:
        check_positive(self, "epochs", "batch_size", "seeds")
        check_distinct(
            self, "models", "lengths", "orders", "optimizers", "sgd_learning_rates", "path_sgd_learning_rates"
        )
        check_distinct(self, "momentum_learning_rates", "adam_learning_rates", "rmsprop_learning_rates")
        for length in self.lengths:
            if length < 1 or PIXELS % length:
                raise ValueError(f"expected lengths that divide the {PIXELS} pixels of an image, got {length}")
        for model in map(Model.parse, self.models):
            if not any(map(model.kind.allows, self.optimizers)):
                raise ValueError(
                    f"expected optimizers with one that can train a {model.kind.title}, got {self.optimizers}: "
                    "add one in weight space"
                )


_QUICK = Preset(
    models=("relu:100",),
    lengths=(28,),
    orders=("plain",),
    optimizers=("sgd", "g_sgd", "path_sgd", "adam", "g_adam"),
    epochs=5,
    batch_size=64,
    seeds=3,
    sgd_learning_rates=(0.01, 0.03, 0.1),
    path_sgd_learning_rates=(0.1, 0.2, 0.5),
    momentum_learning_rates=(0.002, 0.005, 0.01),
    adam_learning_rates=(0.0003, 0.001, 0.003),
    rmsprop_learning_rates=(0.0002, 0.0005, 0.001),
)
_PAPER_LEARNING_RATES = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001, 0.00001)
PRESETS = {
    "quick": _QUICK,
    "paper": dataclasses.replace(
        _QUICK,
        lengths=(28, 98),
        orders=("plain", "permuted"),
        epochs=400,
        sgd_learning_rates=_PAPER_LEARNING_RATES,
        path_sgd_learning_rates=(0.5, 0.2, *_PAPER_LEARNING_RATES),
        momentum_learning_rates=_PAPER_LEARNING_RATES,
        adam_learning_rates=_PAPER_LEARNING_RATES,
        rmsprop_learning_rates=_PAPER_LEARNING_RATES,
    ),
    "low-rank-paper": dataclasses.replace(
        _QUICK,
        models=(
            "gru:128",
            "low-rank-gru:128/24",
            "low-rank-gru:512/4",
            "low-rank-diagonal-gru:64/24",
            "low-rank-diagonal-gru:128/24",
            "low-rank-diagonal-gru:256/24",
        ),
        lengths=(784,),
        orders=("permuted",),
        optimizers=("rmsprop",),
        # 500,000 steps, as many as the paper's figure shows.
        epochs=182,
        batch_size=20,
        rmsprop_learning_rates=(0.0005,),
    ),
}


@dataclasses.dataclass(frozen=True)
class SequentialMnist:
    """Train recurrent networks on sequential MNIST with optimisers in weight space and in path space.

    At length n, each 28x28 image is a sequence of n rows of 784 / n pixels, standardised by the mean and the standard
    deviation over all pixels of the training images. Where the order is permuted, one fixed random permutation of the
    pixels comes before they are cut into rows. Of the 60,000 training images 5000, stratified by class, are held out
    for validation. Errors are those after the last epoch; learning rates are chosen by validation error.

    The preset paper has the protocol of "Path Space for Recurrent Neural Networks with ReLU Activations" (2020), for
    100 ReLU units; low-rank-paper that of "Low-rank passthrough neural networks" (2016), for permuted pixels read one
    by one: GRUs whose gradients are clipped to 1 in each component. Optimisers that cannot train a model, or would not
    differ there from those in weight space, are left out for it.
    """

    preset: Literal["quick", "paper", "low-rank-paper"] = "quick"
    """Sets what is not set below: a quarter of an hour on two cores, or the protocols of the papers for days."""
    models: tuple[str, ...] | None = None
    """Models, as NAME:UNITS or NAME:UNITS/RANK: relu:100 (ReLU RNN, Glorot start), irnn:100, np-rnn:100, lstm:100,
    urnn:512, gru:128, low-rank-gru:128/24, low-rank-diagonal-gru:128/24."""
    lengths: tuple[int, ...] | None = None
    """Lengths of the sequences; in the papers 28, 98 and 784."""
    orders: tuple[Literal["plain", "permuted"], ...] | None = None
    """Orders of the pixels."""
    optimizers: tuple[_Name, ...] | None = None
    """Optimisers to compare; those with g_ run in path space."""
    epochs: int | None = None
    """Passes over the training images."""
    batch_size: int | None = None
    """Training images in a step."""
    seeds: int | None = None
    """Runs of each setting; a seed sets the initial weights and the order of the batches."""
    sgd_learning_rates: tuple[float, ...] | None = None
    """Learning rates of SGD and G-SGD."""
    path_sgd_learning_rates: tuple[float, ...] | None = None
    """Learning rates of Path-SGD, whose first step is as long as that of SGD."""
    momentum_learning_rates: tuple[float, ...] | None = None
    """Learning rates of SGD with momentum, in both spaces."""
    adam_learning_rates: tuple[float, ...] | None = None
    """Learning rates of Adam and G-Adam."""
    rmsprop_learning_rates: tuple[float, ...] | None = None
    """Learning rates of RMSProp and G-RMSProp."""
    data_dir: Path | None = None
    """Folder with the data files; None for $PATHSPACE_DATA, or what was downloaded before."""
    output: Path = Path("results/smnist")
    """Folder for the pictures and results, with one inside it for each length, order and model."""
    work: tyro.conf.OmitArgPrefixes[Work] = dataclasses.field(default_factory=Work)

    def __post_init__(self) -> None:
        self._settings()

    def run(self) -> None:
        """Train each model at each length and order, print the tables, and write pictures and results."""
        settings = self._settings()
        mnist = load_mnist(self.data_dir)
        for order, length, model in itertools.product(
            settings.orders, settings.lengths, map(Model.parse, settings.models)
        ):
            problem = ImageSequences(
                make_model=functools.partial(model.kind.make, PIXELS // length, model.units, model.rank),
                data=mnist.sequences(length, permuted=order == "permuted"),
                prepare=mnist.standardize,
                batch_size=settings.batch_size,
                rescalable=model.kind.rescalable,
                max_gradient_component=model.kind.max_gradient_component,
            )
            configurations: dict[str, Configuration] = {
                name: grid(getattr(settings, f"{OPTIMIZERS[name].family}_learning_rates"), (0.0,), settings.seeds)
                for name in settings.optimizers
                if model.kind.allows(name)
            }
            train_and_show(
                Experiment(
                    task="smnist",
                    variant=f"length {length}, {order}",
                    model=model.title,
                    title=f"Sequential MNIST, length {length}, {order}: {model.title}",
                    quantity=Quantity("test error", "%", by_chance=1 - 1 / CLASSES),
                    notes=(
                        *mnist.notes,
                        f"{len(mnist.validation.labels):,} training images are held out for validation",
                    ),
                ),
                problem,
                configurations,
                settings.epochs,
                folder=self.output / f"{length}-{order}" / re.sub("[:/]", "-", str(model)),
                settings=settings_of(self)
                | dataclasses.asdict(settings)
                | {"length": length, "order": order, "model": str(model)},
                work=self.work,
            )

    def _settings(self) -> Preset:
        return resolved(self, PRESETS[self.preset])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSequences(Classification):
    """Classification by recurrent networks.

    Attributes:
      max_gradient_component: to which each component of gradients is clipped.
    """

    max_gradient_component: float | None

    def transformation(
        self, optimizer: Optimizer, learning_rate: ArrayLike, skeleton: pathspace.Skeleton
    ) -> optax.GradientTransformation:
        made = super().transformation(optimizer, learning_rate, skeleton)
        if self.max_gradient_component is None:
            return made
        return optax.chain(optax.clip(self.max_gradient_component), made)
