"""Scikit-learn's handwritten digits, split into training, validation and test examples."""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Examples(NamedTuple):
    """Inputs of shape (examples, time, features), float32, and labels of shape (examples,), int32."""

    inputs: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """The three parts of a data set for classification."""

    train: Examples
    validation: Examples
    test: Examples
    classes: int


def digit_rows() -> Dataset:
    """Scikit-learn's 1797 handwritten digits of 8x8 pixels, each a sequence of its 8 rows.

    The split is fixed and stratified: 60 % training, 20 % validation, 20 % test. Pixels are standardised by the mean
    and the standard deviation over all pixels of all images, so that any other split may be made of them.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits" (UCI Machine Learning Repository, 1998).
    """
    digits = load_digits()
    train_images, other_images, train_labels, other_labels = train_test_split(
        digits.images, digits.target, test_size=0.4, stratify=digits.target, random_state=0
    )
    validation_images, test_images, validation_labels, test_labels = train_test_split(
        other_images, other_labels, test_size=0.5, stratify=other_labels, random_state=0
    )
    mean, deviation = digits.images.mean(), digits.images.std()

    def examples(images: np.ndarray, labels: np.ndarray) -> Examples:
        return Examples(((images - mean) / deviation).astype(np.float32), labels.astype(np.int32))

    return Dataset(
        train=examples(train_images, train_labels),
        validation=examples(validation_images, validation_labels),
        test=examples(test_images, test_labels),
        classes=len(digits.target_names),
    )
