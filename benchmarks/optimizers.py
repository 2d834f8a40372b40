"""The optimisers that the benchmarks compare."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import optax
from jaxtyping import PyTree

import pathspace
from pathspace.basis import DEFAULT_MAX_RATIO


class Setting(NamedTuple):
    """What optimisers know of a network and its task besides the gradient.

    Attributes:
      skeleton: of the initial weights.
      kappa: see `pathspace.path_sgd`.
      max_ratio: see `pathspace.in_path_space`.
      weight_decay: as an L2 penalty, of weights or of the values of basis paths.
    """

    skeleton: pathspace.Skeleton
    kappa: Callable[[PyTree], PyTree]
    max_ratio: float = DEFAULT_MAX_RATIO
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A weight-space optimiser, or one that respects rescaling.

    Attributes:
      label: the name in tables and pictures.
      family: optimisers of one family share a learning-rate grid.
      respects_rescaling: whether the steps are those of basis-path values, or measured with the path-norm.
      color: in pictures; one hue a family, strong for what respects rescaling and pale for weight space.
      make: the transformation.
    """

    label: str
    family: str
    respects_rescaling: bool
    color: str
    make: Callable[[optax.ScalarOrSchedule, Setting], optax.GradientTransformation]


_Base = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]


def _in_weight_space(label: str, family: str, color: str, base: _Base) -> Optimizer:
    def make(learning_rate: optax.ScalarOrSchedule, setting: Setting) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(setting.weight_decay), base(learning_rate))

    return Optimizer(label, family, False, color, make)


def _in_path_space(label: str, family: str, color: str, base: _Base) -> Optimizer:
    def make(learning_rate: optax.ScalarOrSchedule, setting: Setting) -> optax.GradientTransformation:
        inner = optax.chain(optax.add_decayed_weights(setting.weight_decay), base(learning_rate))
        return pathspace.in_path_space(inner, setting.skeleton, max_ratio=setting.max_ratio)

    return Optimizer(label, family, True, color, make)


def _clipped(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate))


def _with_momentum(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=0.9)


OPTIMIZERS = {
    "sgd": _in_weight_space("SGD", "sgd", "#8a9fb5", optax.sgd),
    "g_sgd": _in_path_space("G-SGD", "sgd", "#0a5cad", optax.sgd),
    "clipped_sgd": _in_weight_space("SGD, clipped", "sgd", "#8a9fb5", _clipped),
    "momentum": _in_weight_space("Momentum", "momentum", "#b5a3c9", _with_momentum),
    "g_momentum": _in_path_space("G-Momentum", "momentum", "#6a2fa0", _with_momentum),
    "adam": _in_weight_space("Adam", "adam", "#cfa184", optax.adam),
    "g_adam": _in_path_space("G-Adam", "adam", "#cf4407", optax.adam),
    "rmsprop": _in_weight_space("RMSProp", "rmsprop", "#c9a0b4", optax.rmsprop),
    "g_rmsprop": _in_path_space("G-RMSProp", "rmsprop", "#a80f5a", optax.rmsprop),
    "path_sgd": Optimizer(
        "Path-SGD",
        "path_sgd",
        True,
        "#1b7f4b",
        lambda learning_rate, setting: pathspace.path_sgd(learning_rate, setting.kappa, ratio="initial"),
    ),
    "path_adam": Optimizer(
        "Path-Adam",
        "adam",
        True,
        "#7a8f00",
        lambda learning_rate, setting: pathspace.path_adam(learning_rate, setting.kappa),
    ),
    "bounded_path_sgd": Optimizer(
        "Path-SGD, bounded",
        "path_sgd",
        True,
        "#1b7f4b",
        lambda learning_rate, setting: pathspace.path_sgd(learning_rate, setting.kappa, max_norm=1.0, ratio="weights"),
    ),
}
