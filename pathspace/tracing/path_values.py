"""What the entries of arrays are in the path network: constants, functions of weights, or sums over paths."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Constant:
    """Numbers that depend neither on inputs nor on parameters."""

    array: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["raw", "path"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Weight:
    """A function of parameters and constants.

    Attributes:
      raw: its value, with its sign.
      path: its weight in the path network, |raw|^p.
    """

    # In tree operations the leaves may be no arrays at all.
    raw: Any
    path: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["path", "shift", "offset", "total"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Signal:
    """What depends on the inputs: exp(shift) * path is the sum over the paths that lead to each entry.

    Attributes:
      path: not negative.
      shift: the logarithm of a factor that all entries have in common, where sums are kept from overflowing; None is 0,
        and costs nothing.
      offset: a constant that was added and awaits others, with which it has a sign in common: the mean that a frozen
        BatchNorm subtracts is merged with its bias before the absolute value is taken.
      total: the sum of all entries of `path`, where factors of a product give it without the entries: of outputs that
        are only added up, nothing else is computed then.
    """

    path: Any
    shift: Any = None
    offset: Any = None
    total: Any = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Data:
    """Indices and truth values that depend on the inputs."""


DATA = Data()
Value = Constant | Weight | Signal | Data


def common_shift(signals: Sequence[Signal]) -> Array | None:
    """The largest shift, for signals of one path network: all have one or none."""
    return None if signals[0].shift is None else functools.reduce(jnp.maximum, [each.shift for each in signals])


def shifted_to(value: Signal, shift: Array | None) -> Array:
    """The sums in units of exp(shift), at least those of the value."""
    return value.path if shift is None else value.path * jnp.exp(value.shift - shift)
