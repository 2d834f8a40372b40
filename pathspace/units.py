"""Units, groups of units, and the maps from positions in a parameter leaf to units."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

GROUND = -1
AnyArray = TypeVar("AnyArray", np.ndarray, Array)
_REDUCTIONS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "sum": (jnp.sum, jax.ops.segment_sum),
    "max": (jnp.max, jax.ops.segment_max),
    "min": (jnp.min, jax.ops.segment_min),
}


@dataclasses.dataclass(frozen=True)
class Group:
    """The units of one layer: a name and how many they are."""

    name: str
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class UnitMap:
    """Which unit each position along some axes of a leaf belongs to.

    Attributes:
      axes: the axes of the leaf that index units jointly, ascending; empty where the whole leaf belongs to ground.
      index: integers of the shape that the leaf has along `axes`: an index into the units of `groups`, counted
        through from the first group to the last, or -1 for ground.
      groups: the groups that `index` counts through.
    """

    axes: tuple[int, ...]
    index: np.ndarray
    groups: tuple[Group, ...] = ()

    @classmethod
    def along(cls, axis: int, group: Group) -> "UnitMap":
        """Position i along the axis is unit i of the group."""
        return cls((axis,), np.arange(group.size), (group,))

    @classmethod
    def ground(cls, shape: tuple[int, ...] = (), axes: tuple[int, ...] = ()) -> "UnitMap":
        """All positions along the axes belong to ground."""
        return cls(axes, np.full(shape, GROUND))

    @functools.cached_property
    def _key(self) -> tuple[object, ...]:
        return (self.axes, self.groups, self.index.shape, self.index.astype(np.int64).tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnitMap) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @functools.cached_property
    def num_units(self) -> int:
        """How many units the groups have together."""
        return sum(group.size for group in self.groups)

    @functools.cached_property
    def offsets(self) -> dict[str, int]:
        """The first index of each group."""
        sizes = [group.size for group in self.groups]
        return dict(zip((group.name for group in self.groups), np.cumsum([0, *sizes[:-1]]).tolist(), strict=False))

    @functools.cached_property
    def is_in_order(self) -> bool:
        """Whether the positions are the units, one for one."""
        return np.array_equal(self.index.ravel(), np.arange(self.num_units))

    def lies_in(self, names: Collection[str]) -> np.ndarray:
        """Which positions belong to one of the named groups."""
        inside = np.zeros(self.num_units + 1, bool)
        for group in self.groups:
            start = self.offsets[group.name]
            inside[start : start + group.size] = group.name in names
        return np.asarray(inside[self.index])

    def along_axes(self, values: AnyArray, rank: int) -> AnyArray:
        """`values`, of the shape of `index`, in a shape that broadcasts against a leaf of that rank."""
        return values.reshape([values.shape[self.axes.index(i)] if i in self.axes else 1 for i in range(rank)])

    def spread(self, values: Mapping[str, Array], rank: int, fill: float | int) -> Array:
        """One number per unit, laid along the axes of a leaf of that rank; `fill` on ground and groups not given."""
        if not any(group.name in values for group in self.groups):
            return jnp.asarray(fill)
        if self.is_in_order:
            return self.along_axes(self._joined(values, fill).reshape(self.index.shape), rank)
        return self.along_axes(self.take(values, self.index, fill), rank)

    def take(self, values: Mapping[str, Array], index: Array | np.ndarray, fill: float | int) -> Array:
        """The numbers of the units that an array like the map's own `index` names; `fill` as in `spread`."""
        if not any(group.name in values for group in self.groups):
            return jnp.full(index.shape, fill)
        units = self._joined(values, fill)
        return jnp.append(units, jnp.asarray(fill, units.dtype))[index]

    def _joined(self, values: Mapping[str, Array], fill: float | int) -> Array:
        dtype = next(values[group.name].dtype for group in self.groups if group.name in values)
        parts = [values.get(group.name, jnp.full(group.size, fill, dtype)) for group in self.groups]
        return jnp.concatenate(parts) if len(parts) > 1 else parts[0]

    def collect(self, leaf: Array, reduction: Literal["sum", "max", "min"] = "sum") -> dict[str, Array]:
        """Reduce an array of the leaf's shape to one number per unit, by group: the transpose of `spread`."""
        if not self.groups:
            return {}
        reduce, reduce_segments = _REDUCTIONS[reduction]
        units = reduce(leaf, axis=tuple(i for i in range(leaf.ndim) if i not in self.axes)).ravel()
        if not self.is_in_order:
            segments = np.where(self.index == GROUND, self.num_units, self.index).ravel()
            units = reduce_segments(units, segments, num_segments=self.num_units + 1)[:-1]
        return {
            group.name: units[self.offsets[group.name] : self.offsets[group.name] + group.size] for group in self.groups
        }
