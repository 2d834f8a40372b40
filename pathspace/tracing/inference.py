"""Scale inference: what the rules of the primitives work with."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .compat import JaxprEqn, is_numeric, place, shape_of
from .interpreter import Interpreter, Rule
from .scales import TRIVIAL, Equations, Scale, Term, Why, combined


class Free:
    """The scale of 0 and of infinity: they stay what they are whatever they are multiplied by."""

    def __repr__(self) -> str:
        return "FREE"


FREE = Free()


@dataclasses.dataclass(frozen=True)
class Fresh:
    """A parameter leaf that no primitive has met yet that would fix how its axes carry units.

    Attributes:
      name: of the leaf.
      dims: for each axis of the array the axis of the leaf that it is, or None for one of length 1 or broadcast.
      flipped: axes of the leaf that are reversed.
    """

    name: str
    dims: tuple[int | None, ...]
    flipped: frozenset[int] = frozenset()


Value = Scale | Free | Fresh


def renamed(value: Value, axis_of: dict[int, int], rank: int) -> Value:
    """Give each axis its place in an array of that rank; axes without one have length 1."""
    if isinstance(value, Free):
        return value
    if isinstance(value, Fresh):
        dims: list[int | None] = [None] * rank
        for axis, place in axis_of.items():
            dims[place] = value.dims[axis]
        return Fresh(value.name, tuple(dims), value.flipped)
    return tuple(term.on([axis_of[axis] for axis in term.axes]) for term in value)


def without_axes(value: Value, axes: Sequence[int], rank: int) -> Value:
    """Remove axes of length 1."""
    kept = [axis for axis in range(rank) if axis not in axes]
    return renamed(value, {axis: place for place, axis in enumerate(kept)}, len(kept))


class ScaleInference(Interpreter[Value]):
    """The equations between unit scales, and the scale of each parameter leaf as far as it is known.

    Attributes:
      equations: between the unknowns in all scales.
      shapes: of the parameter leaves.
      leaf_scales: of the leaves that a primitive has met.
      added: the leaves that were first met by an addition, as biases are.
      grounded: the leaves that became ground as a whole, and why.
    """

    def __init__(self, rules: Mapping[Any, Rule], shapes: dict[str, tuple[int, ...]]):
        super().__init__(rules)
        self.equations = Equations()
        self.shapes = shapes
        self.leaf_scales: dict[str, Scale] = {}
        self.added: set[str] = set()
        self.grounded: dict[str, Why] = {}
        self._merged: dict[str, dict[int, Why]] = collections.defaultdict(dict)
        self._free_entries: dict[tuple[Any, ...], Term] = {}

    def constant(self, value: Any) -> Value:
        # Zeros in an array of JAX may be state, such as the mean of a BatchNorm before training: they can change.
        if is_numeric(value) and not isinstance(value, jax.Array):
            array = np.asarray(value)
            if np.all((array == 0) | np.isinf(array)):
                return FREE
        return TRIVIAL

    def unknown(self, eqn: JaxprEqn, values: Sequence[Value]) -> Sequence[Value]:
        self.all_trivial(eqn, values, Why(f"no scale rule for {eqn.primitive}", place(eqn)))
        return [TRIVIAL] * len(eqn.outvars)

    def all_trivial(self, eqn: JaxprEqn, values: Sequence[Value], why: Why) -> None:
        """No input of the equation changes when units are rescaled."""
        for var, value in zip(eqn.invars, values, strict=True):
            self.trivial(value, shape_of(var), why)

    def read(self, value: Value) -> Value:
        """What is known of a value by now: settled leaves by their scales, in free unknowns, as simple as may be."""
        if isinstance(value, tuple):
            return combined(self.equations.resolve(term).without_constant_axes() for term in value)
        if not isinstance(value, Fresh) or value.name not in self.leaf_scales:
            return value
        axis_of = {axis: i for i, axis in enumerate(value.dims) if axis is not None}
        scale = []
        for term in self.leaf_scales[value.name]:
            # Axes that the array has no more are of length 1 or merged.
            seen = term.first_along([axis for axis in term.axes if axis not in axis_of]).flipped(value.flipped)
            scale.append(seen.on([axis_of[axis] for axis in seen.axes]))
        return self.read(tuple(scale))

    def read_leaf(self, name: str) -> list[Term]:
        """The scale of a settled leaf in free unknowns."""
        return [self.equations.resolve(term) for term in self.leaf_scales[name]]

    def scale(self, value: Value) -> Scale:
        """The scale of a value where a fresh leaf has nothing to adopt: each axis has unknowns of its own."""
        value = self.read(value)
        if isinstance(value, Free):
            return TRIVIAL
        if isinstance(value, Fresh):
            shape = self.shapes[value.name]
            own = [[i] for i, axis in enumerate(value.dims) if axis is not None and shape[axis] != 1]
            return self.settle(value, own or [[]])
        return value

    def settle(self, fresh: Fresh, together: Sequence[Sequence[int]], known: Scale = TRIVIAL) -> Scale:
        """Fix the scale of a fresh leaf: new unknowns for each set of axes that index units together, plus known terms.

        Axes and terms are those of the array; a known term along an axis that the leaf lacks must be gone. An empty
        set gives the leaf as a whole one unknown.
        """
        shape, merged = self.shapes[fresh.name], self._merged[fresh.name]
        terms = [self._on_leaf(fresh, term) for term in known]
        for leaf_axis, why in merged.items():
            terms = list(self.constant_along(tuple(terms), [leaf_axis], shape, why))
        for axes in together:
            own = sorted(axis for i in axes if (axis := fresh.dims[i]) is not None)
            leaf_axes = tuple(axis for axis in own if axis not in merged)
            if leaf_axes or not own:
                terms.append(self.equations.new([shape[axis] for axis in leaf_axes], leaf_axes))
        self.leaf_scales[fresh.name] = tuple(terms)
        scale = self.read(fresh)
        assert not isinstance(scale, Free | Fresh)
        return scale

    def one_of(self, value: Value, axes: Sequence[int], sizes: Sequence[int], why: Why) -> Value:
        """The value at positions along the axes that only running the program tells: all of them have one scale."""
        if isinstance(value, tuple):
            return self.constant_along(value, axes, sizes, why)
        if isinstance(value, Fresh):
            leaf_axes = (value.dims[i] for i in axes)
            self._merged[value.name].update({axis: why for axis in leaf_axes if axis is not None})
        return value

    def free_entries(self, number: int, shape: Sequence[int], axes: tuple[int, ...]) -> Term:
        """Unknowns for entries that take any scale; the same ones when a loop comes to the same equation again."""
        # In a later round of a loop the array may lie along other axes.
        key = (*map(id, self.enclosing), number, axes, tuple(shape))
        if key not in self._free_entries:
            self._free_entries[key] = self.equations.new(shape, axes)
        return self._free_entries[key]

    def adopt(self, fresh: Fresh, scale: Scale, sizes: Sequence[int], why: Why) -> Scale:
        """Give a fresh leaf the scale of what it is added to."""
        broadcast = [i for i, axis in enumerate(fresh.dims) if axis is None]
        self.added.add(fresh.name)
        return self.settle(fresh, [], self.constant_along(scale, broadcast, sizes, why))

    def equal(self, values: Sequence[Value], sizes: Sequence[int], why: Why) -> Value:
        """All values have one scale: it is returned."""
        values = [self.read(value) for value in values]
        known = [value for value in values if not isinstance(value, Free)]
        scales = [value for value in known if not isinstance(value, Fresh)]
        if not known:
            return FREE
        if len(known) == 1:
            return known[0]
        first = scales[0] if scales else self.scale(known[0])
        for value in map(self.read, known):
            if isinstance(value, Fresh):
                self.adopt(value, first, sizes, why)
            elif isinstance(value, tuple) and value is not first:
                self.zero((*first, *(term.times(-1) for term in value)), sizes, why)
        return first

    def trivial(self, value: Value, sizes: Sequence[int], why: Why) -> None:
        """The value does not change when units are rescaled: what it carries becomes ground."""
        value = self.read(value)
        if isinstance(value, Fresh):
            self.leaf_scales[value.name] = TRIVIAL
            self.grounded[value.name] = why
        elif not isinstance(value, Free):
            self.zero(value, sizes, why)

    def zero(self, scale: Scale, sizes: Sequence[int], why: Why) -> None:
        """The terms add up to 0 at each position."""
        scalars: list[Term] = []
        for component in _components(scale):
            axes = sorted({axis for term in component for axis in term.axes})
            over = [term.over({axis: sizes[axis] for axis in axes}) for term in component]
            if axes:
                # Terms on other axes cannot follow, so that all but a constant is 0; the constant is kept apart.
                at_first = [term.first_along(axes) for term in over]
                if len(scale) > len(component) and len(component) == 1:
                    constant = at_first[0].over({axis: sizes[axis] for axis in axes})
                    self.equations.impose_zero([over[0], constant.times(-1)], why)
                    scalars += at_first
                else:
                    self.equations.impose_zero(over, why)
            else:
                scalars += over
        self.equations.impose_zero(scalars, why)

    def constant_along(self, scale: Scale, axes: Sequence[int], sizes: Sequence[int], why: Why) -> Scale:
        """What sums along the axes need: there the scale is the same everywhere. What is left of it, without them.

        Terms that lie along the axes and meet others are taken to cancel them.
        """
        kept: list[Term] = []
        for component in _components(self.scale(scale)):
            along = sorted({axis for term in component for axis in term.axes})
            if not set(along) & set(axes):
                kept += component
            elif len(component) == 1:
                first = component[0].first_along(axes)
                constant = first.over({axis: sizes[axis] for axis in along})
                self.equations.impose_zero([component[0], constant.times(-1)], why)
                kept.append(first)
            else:
                self.equations.impose_zero(
                    [term.over({axis: sizes[axis] for axis in along}) for term in component], why
                )
        return tuple(kept)

    def _on_leaf(self, fresh: Fresh, term: Term) -> Term:
        leaf_axes = [axis for i in term.axes if (axis := fresh.dims[i]) is not None]
        return term.on(leaf_axes).flipped(fresh.flipped)


def _components(scale: Scale) -> list[list[Term]]:
    """Terms that share axes, directly or through others, together."""
    components: list[list[Term]] = []
    for term in scale:
        touching = [c for c in components if any(set(term.axes) & set(other.axes) for other in c)]
        if not term.axes:
            touching = [c for c in components if not any(other.axes for other in c)]
        merged = [term, *itertools.chain(*touching)]
        components = [c for c in components if c not in touching] + [merged]
    return components
