"""The optimisers that the benchmarks compare."""

import dataclasses
from collections.abc import Callable

import optax
from jaxtyping import ArrayLike

import pathspace


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A weight-space optimiser or its path-space counterpart.

    Attributes:
      label: the name in tables and pictures.
      family: optimisers of one family share a learning-rate grid.
      in_path_space: whether the steps are those of basis-path values.
      make: the transformation, from learning rate, skeleton and the limit of the update ratio.
    """

    label: str
    family: str
    in_path_space: bool
    make: Callable[[ArrayLike, pathspace.Skeleton, float], optax.GradientTransformation]


OPTIMIZERS = {
    "sgd": Optimizer("SGD", "sgd", False, lambda learning_rate, skeleton, max_ratio: optax.sgd(learning_rate)),
    "g_sgd": Optimizer(
        "G-SGD",
        "sgd",
        True,
        lambda learning_rate, skeleton, max_ratio: pathspace.g_sgd(learning_rate, skeleton, max_ratio=max_ratio),
    ),
    "adam": Optimizer("Adam", "adam", False, lambda learning_rate, skeleton, max_ratio: optax.adam(learning_rate)),
    "g_adam": Optimizer(
        "G-Adam",
        "adam",
        True,
        lambda learning_rate, skeleton, max_ratio: pathspace.g_adam(learning_rate, skeleton, max_ratio=max_ratio),
    ),
}
