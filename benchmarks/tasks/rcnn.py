"""Recurrent convolutional networks on images: momentum in weight space and in path space."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jaxtyping import Array, ArrayLike
from sklearn.model_selection import train_test_split

import pathspace
from benchmarks.data import Examples, images
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.options import Work, check_distinct, check_positive, resolved, settings_of
from benchmarks.reporting import train_and_show
from benchmarks.results import Experiment, Quantity
from benchmarks.sweeps import grid
from benchmarks.training import Classification, Configuration
from pathspace.models import RCNN

_DECAYS_AT = (1 / 2, 3 / 4, 7 / 8)
_MAPS = {
    "mnist": (32, 64, 96),
    "fashion_mnist": (32, 64, 96),
    "cifar-10": (96, 128, 160),
    "cifar-100": (96, 128, 160),
    "cifar10_jpeg": (96, 128, 160),
}

_Dataset = Literal["mnist", "fashion_mnist", "cifar-10", "cifar-100", "cifar10_jpeg"]
_Name = Literal["sgd", "g_sgd", "momentum", "g_momentum", "adam", "g_adam"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """What the options of a name set; `maps` and `train_examples` may be None, as there."""

    datasets: tuple[str, ...]
    maps: tuple[int, ...] | None
    train_examples: int | None
    epochs: int
    batch_size: int
    dropout: float
    seeds: int
    optimizers: tuple[str, ...]
    sgd_learning_rates: tuple[float, ...]
    momentum_learning_rates: tuple[float, ...]
    adam_learning_rates: tuple[float, ...]

    def __post_init__(self) -> None:
        check_positive(self, "epochs", "batch_size", "seeds")
        families = (f"{family}_learning_rates" for family in ("sgd", "momentum", "adam"))
        check_distinct(self, "datasets", "optimizers", *families)
        if self.maps is not None:
            check_distinct(self, "maps")
        if self.train_examples is not None:
            check_positive(self, "train_examples")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"expected dropout from 0 to below 1, got {self.dropout}: 0 switches it off")


_PAPER_LEARNING_RATES = (0.5, 0.2, 0.1, 0.07, 0.05, 0.01)
PRESETS = {
    "quick": Preset(
        datasets=("mnist",),
        maps=(16,),
        train_examples=12_000,
        epochs=1,
        batch_size=16,
        # So few maps do not learn in one epoch when half of them are dropped.
        dropout=0.0,
        seeds=1,
        optimizers=("momentum", "g_momentum"),
        sgd_learning_rates=(0.1, 0.2),
        momentum_learning_rates=(0.005, 0.015),
        adam_learning_rates=(0.001, 0.003),
    ),
    "paper": Preset(
        datasets=("mnist", "cifar-10", "cifar-100"),
        maps=None,
        train_examples=None,
        epochs=200,
        batch_size=64,
        dropout=0.5,
        seeds=1,
        optimizers=("momentum", "g_momentum"),
        sgd_learning_rates=_PAPER_LEARNING_RATES,
        momentum_learning_rates=_PAPER_LEARNING_RATES,
        adam_learning_rates=(0.003, 0.001, 0.0003, 0.0001),
    ),
}


@dataclasses.dataclass(frozen=True)
class Rcnn:
    """Train recurrent convolutional networks on images with optimisers in weight space and in path space.

    A convolution and four recurrent convolutional layers of three iterations, with BatchNorm, and dropout in
    front of the readout. Images are standardised by means and standard deviations of each channel over the training
    images, and are not augmented. A twelfth of the training images, stratified by class, is held out for validation.
    Learning rates fall to a tenth at 1/2, 3/4 and 7/8 of the training. Errors are those of the running averages after
    the last epoch; learning rates are chosen by validation error.

    The preset paper has the protocol of "Path Space for Recurrent Neural Networks with ReLU Activations" (2020),
    appendix A.3; its learning rates of Adam are ours.
    """

    preset: Literal["quick", "paper"] = "quick"
    """Sets what is not set below: some minutes on two cores, or the protocol of the paper, for accelerators."""
    datasets: tuple[_Dataset, ...] | None = None
    """Data sets to train on."""
    maps: tuple[int, ...] | None = None
    """Feature maps of each layer, one network for each number; in the preset paper those of the paper."""
    train_examples: int | None = None
    """Training images, taken at random from each class in proportion; in the preset paper all."""
    epochs: int | None = None
    """Passes over the training images."""
    batch_size: int | None = None
    """Training images in a step."""
    dropout: float | None = None
    """Rate of the dropout in front of the readout."""
    seeds: int | None = None
    """Runs of each setting; a seed sets the initial weights, dropout and the order of the batches."""
    optimizers: tuple[_Name, ...] | None = None
    """Optimisers to compare; those with g_ run in path space."""
    sgd_learning_rates: tuple[float, ...] | None = None
    """Learning rates of SGD and G-SGD, at the beginning."""
    momentum_learning_rates: tuple[float, ...] | None = None
    """Learning rates of momentum 0.9, in both spaces, at the beginning."""
    adam_learning_rates: tuple[float, ...] | None = None
    """Learning rates of Adam and G-Adam, at the beginning."""
    variant: Literal["cited", "canonical"] = "cited"
    """The network of the code that the paper cites, or of the paper that code implements; see pathspace.models.RCNN."""
    graph: Literal["exact", "paper"] = "exact"
    """The reduction graph: the traced one, or the paper's chain of convolutions, which leaves BatchNorm out."""
    weight_decay: float = 1e-4
    """L2 penalty, of weights or of the values of basis paths."""
    data_dir: Path | None = None
    """Folder with the data files; None for $PATHSPACE_DATA, or what was downloaded before."""
    output: Path = Path("results/rcnn")
    """Folder for the pictures and results, with one inside it for each data set and number of maps."""
    work: tyro.conf.OmitArgPrefixes[Work] = dataclasses.field(default_factory=Work)

    def __post_init__(self) -> None:
        if self.weight_decay < 0:
            raise ValueError(f"expected weight_decay of 0 or more, got {self.weight_decay}")
        self._settings()

    def run(self) -> None:
        """Train on each data set, print the tables, and write pictures and results."""
        settings = self._settings()
        for name in settings.datasets:
            data = load(name, self.data_dir, settings.train_examples)
            for maps in settings.maps or _MAPS[name]:
                self._train(name, data, maps, settings)

    def _train(self, name: str, data: "Standardizable", maps: int, settings: Preset) -> None:
        channels = data.train.inputs.shape[-1]
        problem = ImageClassification(
            make_model=lambda rngs: RCNN(
                channels, maps, data.classes, variant=self.variant, dropout=settings.dropout, rngs=rngs
            ),
            data=data[:3],
            prepare=data.standardize,
            batch_size=settings.batch_size,
            weight_decay=self.weight_decay,
            epochs=settings.epochs,
            edges=_chain(maps) if self.graph == "paper" else None,
            # On two cores, convolutions of two or four networks at once take 1.8 to 2.5 times as long.
            one_by_one=True,
        )
        configurations: dict[str, Configuration] = {
            optimizer: grid(getattr(settings, f"{OPTIMIZERS[optimizer].family}_learning_rates"), (0.0,), settings.seeds)
            for optimizer in settings.optimizers
        }
        held = f"trained on {len(data.train.labels):,} images; {len(data.validation.labels):,} are held out to validate"
        train_and_show(
            Experiment(
                task="rcnn",
                variant=name,
                model=f"RCNN, {maps} maps, {self.variant}",
                title=f"{name}: RCNN, {maps} maps",
                quantity=Quantity("test error", "%", by_chance=1 - 1 / data.classes),
                notes=(*data.notes, held, "no augmentation: the paper names none"),
            ),
            problem,
            configurations,
            settings.epochs,
            folder=self.output / name / str(maps),
            settings=settings_of(self) | dataclasses.asdict(settings) | {"dataset": name, "maps": maps},
            work=self.work,
        )

    def _settings(self) -> Preset:
        return resolved(self, PRESETS[self.preset])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageClassification(Classification):
    """Classification of images, with the paper's decay of learning rates.

    Attributes:
      epochs: of training, for the learning rate's schedule.
      edges: of the reduction graph, see `pathspace.ReductionGraph.from_edges`; None for the traced graph.
    """

    epochs: int
    edges: dict[str, tuple[str | None, str | None]] | None

    @functools.cached_property
    def graph(self) -> pathspace.ReductionGraph:
        if self.edges is None:
            return super().graph
        return pathspace.ReductionGraph.from_edges(self._first[1], self.edges)

    def schedule(self, learning_rate: ArrayLike) -> optax.ScalarOrSchedule:
        steps = self.epochs * (len(self.data[0].labels) // self.batch_size)
        decay = optax.piecewise_constant_schedule(1.0, {int(steps * part): 0.1 for part in _DECAYS_AT})
        return lambda step: learning_rate * decay(step)


class Standardizable(NamedTuple):
    """A data set of images, uint8 of shape (examples, height, width, channels).

    Attributes:
      train: for training.
      validation: for choices.
      test: for testing.
      classes: how many there are.
      notes: see `benchmarks.data.Images`.
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: int
    notes: tuple[str, ...]

    @property
    def standardize(self) -> Callable[[Array], Array]:
        """Makes float32 of pixels, of mean 0 and standard deviation 1 over the training images in each channel."""
        pixels = self.train.inputs
        mean, deviation = (
            np.array([of(pixels[..., channel]) for channel in range(pixels.shape[-1])], np.float32)
            for of in (np.mean, np.std)
        )
        return lambda pixels: (pixels.astype(jnp.float32) - mean) / deviation


def load(dataset: str, data_dir: Path | None, train_examples: int | None) -> Standardizable:
    """Load images; a twelfth of those for training is for validation, stratified by class, and always the same.

    Args:
      dataset: its name, see `benchmarks.data.images`.
      data_dir: see there.
      train_examples: how many of the others are for training, drawn from the classes in proportion; None for all.

    Raises:
      ValueError: `train_examples` of more than there are.
      Other errors are those of `benchmarks.data.images`.
    """
    data = images(dataset, data_dir)
    everything = np.arange(len(data.train_labels))
    train, validation = train_test_split(
        everything, test_size=len(everything) // 12, stratify=data.train_labels, random_state=0
    )
    if train_examples is not None and train_examples > len(train):
        raise ValueError(
            f"expected train_examples up to the {len(train)} images of {dataset} that are left to train on, "
            f"got {train_examples}: take fewer"
        )
    if train_examples is not None and train_examples < len(train):
        train, _ = train_test_split(train, train_size=train_examples, stratify=data.train_labels[train], random_state=0)
    train_images, test_images = (each.reshape(*each.shape[:3], -1) for each in (data.train_images, data.test_images))
    return Standardizable(
        Examples(train_images[train], data.train_labels[train]),
        Examples(train_images[validation], data.train_labels[validation]),
        Examples(test_images, data.test_labels),
        data.classes,
        data.notes,
    )


def _chain(maps: int) -> dict[str, tuple[str | None, str | None]]:
    return nnx.eval_shape(lambda: RCNN(1, maps, 1, variant="canonical", rngs=nnx.Rngs(0))).edges()
