"""The optimisers that the benchmarks compare."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import optax
from jaxtyping import PyTree

import pathspace


class Geometry(NamedTuple):
    """What optimisers that respect rescaling know of a network besides its gradient.

    Attributes:
      skeleton: of its initial weights.
      max_ratio: see `pathspace.in_path_space`.
      kappa: see `pathspace.path_sgd`.
    """

    skeleton: pathspace.Skeleton
    max_ratio: float
    kappa: Callable[[PyTree], PyTree]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A weight-space optimiser, or one that respects rescaling.

    Attributes:
      label: the name in tables and pictures.
      family: optimisers of one family share a learning-rate grid.
      respects_rescaling: whether the steps are those of basis-path values, or measured with the path-norm.
      make: the transformation.
    """

    label: str
    family: str
    respects_rescaling: bool
    make: Callable[[optax.ScalarOrSchedule, Geometry], optax.GradientTransformation]


OPTIMIZERS = {
    "sgd": Optimizer("SGD", "sgd", False, lambda learning_rate, geometry: optax.sgd(learning_rate)),
    "g_sgd": Optimizer(
        "G-SGD",
        "sgd",
        True,
        lambda learning_rate, geometry: pathspace.g_sgd(learning_rate, geometry.skeleton, max_ratio=geometry.max_ratio),
    ),
    "adam": Optimizer("Adam", "adam", False, lambda learning_rate, geometry: optax.adam(learning_rate)),
    "g_adam": Optimizer(
        "G-Adam",
        "adam",
        True,
        lambda learning_rate, geometry: pathspace.g_adam(
            learning_rate, geometry.skeleton, max_ratio=geometry.max_ratio
        ),
    ),
    "clipped_sgd": Optimizer(
        "SGD, clipped",
        "sgd",
        False,
        lambda learning_rate, geometry: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate)),
    ),
    "bounded_path_sgd": Optimizer(
        "Path-SGD, bounded",
        "path_sgd",
        True,
        lambda learning_rate, geometry: pathspace.path_sgd(
            learning_rate, geometry.kappa, max_norm=30.0, ratio="weights"
        ),
    ),
}
