"""MNIST with validation images, for models of sequences and of vectors."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from sklearn.model_selection import train_test_split

from benchmarks.data import Examples, images

PIXELS = 28 * 28
CLASSES = 10


class Mnist(NamedTuple):
    """MNIST, its images rows of 784 pixels, uint8.

    Attributes:
      train: for training, eleven twelfths of the images for it: 55,000.
      validation: for choices, the other twelfth.
      test: for testing.
      notes: see `benchmarks.data.Images`.
    """

    train: Examples
    validation: Examples
    test: Examples
    notes: tuple[str, ...]

    def sequences(self, length: int, *, permuted: bool) -> tuple[Examples, Examples, Examples]:
        """The images as sequences, uint8 of shape (examples, length, 784 / length)."""
        # RandomState alone is promised to draw the same in all versions of NumPy.
        order = np.random.RandomState(0).permutation(PIXELS) if permuted else np.arange(PIXELS)
        train, validation, test = (
            Examples(part.inputs[:, order].reshape(-1, length, PIXELS // length), part.labels) for part in self[:3]
        )
        return train, validation, test

    @property
    def standardize(self) -> Callable[[Array], Array]:
        """Makes float32 of pixels, of mean 0 and standard deviation 1 over all pixels of the training images."""
        mean, deviation = np.float32(self.train.inputs.mean()), np.float32(self.train.inputs.std())
        return lambda pixels: (pixels.astype(jnp.float32) - mean) / deviation


def load_mnist(data_dir: Path | None) -> Mnist:
    """Load MNIST. The split off the training images is fixed and stratified by class. Errors are those of `images`."""
    data = images("mnist", data_dir)
    train, validation, train_labels, validation_labels = train_test_split(
        data.train_images.reshape(-1, PIXELS),
        data.train_labels,
        test_size=len(data.train_labels) // 12,
        stratify=data.train_labels,
        random_state=0,
    )
    return Mnist(
        Examples(train, train_labels),
        Examples(validation, validation_labels),
        Examples(data.test_images.reshape(-1, PIXELS), data.test_labels),
        data.notes,
    )
