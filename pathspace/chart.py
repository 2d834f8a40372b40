"""The chart: what the coordinates of path space need to know of a point, as numbers for each unit.

a(v) and b(v) are the products of weight over reference value along the skeleton from ground to unit v and from v to
ground (see `basis`). A unit with a skeleton weight of 0 has no coordinates there and is treated as ground.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from .graph import Leaf
from .rescaling import Units
from .sharding import in_auto_mode
from .skeleton import Edges, Flags, Skeleton, edge_mask, edges_in, far_units, in_mask, out_mask
from .units import GROUND, UnitMap

Neighbours = dict[str, Int[Array, " _"]]  # a unit beside each, as the map of the edge's far end counts them, or ground


class Chart(NamedTuple):
    """What is read from one point, by group.

    Masks are computed from it where they are needed: they have the size of the weights.
    """

    skeleton: Skeleton
    a: Units
    b: Units
    b_special: Units  # b(v) N(v) over the reference value of I(v)
    skeleton_weights: Units  # w_I(v)
    shared: Flags  # whether I(v) is an out-skeleton edge as well
    on_chart: Flags
    before: Neighbours  # the unit that I(v) comes from
    following: Neighbours  # the unit that O(v) goes to, where O(v) is an in-skeleton edge as well

    def special(self, leaf: Leaf) -> Bool[Array, "..."]:
        """The mask of I(v) outside O, whose basis path is the all-skeleton path."""
        return in_mask(self.skeleton, leaf, {name: self.on_chart[name] & ~self.shared[name] for name in self.shared})

    def gauge(self, leaf: Leaf) -> Bool[Array, "..."]:
        """The mask of O."""
        return out_mask(self.skeleton, leaf, self.on_chart)

    def measure(self, leaf: Leaf) -> Array:
        """m_e."""
        return self._product(leaf, self.a, self.b, self.b_special)

    def inverse_measure(self, leaf: Leaf) -> Array:
        """1 / m_e, of quotients for each unit: as one for each weight they would take most of an update's time."""
        return self._product(leaf, *map(inverse, (self.a, self.b, self.b_special)))

    def _product(self, leaf: Leaf, of_source: Units, of_target: Units, of_special: Units) -> Array:
        rank = len(leaf.shape)
        return leaf.source.spread(of_source, rank, 1) * jnp.where(
            self.special(leaf), leaf.target.spread(of_special, rank, 1), leaf.target.spread(of_target, rank, 1)
        )


@in_auto_mode(like=None)
def chart_at(point: PyTree, skeleton: Skeleton, *, values_are_paths: bool = False) -> Chart:
    """The chart at a point, of which the weights are given or the basis-path values."""
    graph = skeleton.graph
    values = graph.weights(point)
    ins = _Side(graph.in_chain, skeleton.in_edges, "target", "source")
    outs = _Side(graph.out_chain, skeleton.out_edges, "source", "target")
    in_values, out_values = _values_on(ins, values), _values_on(outs, values)
    # Weights and path values vanish together at these two entries, so both sides of the coordinates agree on this.
    on_chart = {name: (in_values[name] != 0) & (out_values[name] != 0) for name in in_values}
    before, after = _units_beyond(ins), _units_beyond(outs)
    shared, is_shared = _is_in_both(ins, before, outs, on_chart), _is_in_both(outs, after, ins, on_chart)

    b: Units = {}
    for name, leaf in graph.out_chain.items():
        along = leaf.target.take(b, after[name], 1) * out_values[name] / skeleton.out_reference[name]
        b[name] = jnp.where(on_chart[name], _bounded(along), 1)
    a: Units = {}
    for name, leaf in graph.in_chain.items():
        along = leaf.source.take(a, before[name], 1) * in_values[name] / skeleton.in_reference[name]
        if values_are_paths:
            along = jnp.where(shared[name], along, in_values[name] / (b[name] * skeleton.path_reference[name]))
        a[name] = jnp.where(on_chart[name], _bounded(along), 1)

    b_special = {
        name: _bounded(b[name] * (skeleton.path_reference[name] / reference))
        for name, reference in skeleton.in_reference.items()
    }
    return Chart(
        skeleton=skeleton,
        a=a,
        b=b,
        b_special=b_special,
        skeleton_weights=in_values,
        shared=shared,
        on_chart=on_chart,
        before=before,
        following={name: jnp.where(is_shared[name], after[name], GROUND) for name in after},
    )


def inverse(values: Units) -> Units:
    """1 over the value of each unit."""
    return {name: 1 / value for name, value in values.items()}


class _Side(NamedTuple):
    """The in-skeleton or the out-skeleton edges, which lead from units at their near ends on towards ground."""

    chain: dict[str, Leaf]
    edges: Edges
    near: str
    far: str


def _values_on(side: _Side, values: dict[str, Array]) -> Units:
    """The entry at each unit's skeleton edge; 0 for a unit that has none."""
    found = {}
    for name, leaf in side.chain.items():
        units: UnitMap = getattr(leaf, side.near)
        mask = edge_mask(leaf, units, {name: side.edges[name]})
        found[name] = units.collect(jnp.where(mask, values[leaf.name], 0))[name]
    return found


def _units_beyond(side: _Side) -> Neighbours:
    """The unit at the far end of each unit's skeleton edge, or ground."""
    return {name: far_units(leaf, getattr(leaf, side.far), side.edges[name]) for name, leaf in side.chain.items()}


def _is_in_both(side: _Side, beyond: Neighbours, other: _Side, on_chart: Flags) -> Flags:
    """Whether each unit's skeleton edge is that of the unit at its far end as well."""
    found = {}
    for name, leaf in side.chain.items():
        units: UnitMap = getattr(leaf, side.far)
        chosen = edges_in(leaf, other.chain, other.edges)
        edges = units.take(chosen, beyond[name], -1)
        both_on_chart = on_chart[name] & units.take({group: on_chart[group] for group in chosen}, beyond[name], False)
        found[name] = (edges >= 0) & (edges == side.edges[name]) & both_on_chart
    return found


def _bounded(gauge: Array) -> Array:
    """Finite and nonzero, whatever the weights, and so are its inverse and products of two."""
    tiny = jnp.finfo(gauge.dtype).tiny
    size = jnp.clip(jnp.abs(gauge), tiny**0.5, tiny**-0.5)
    return jnp.where(gauge < 0, -size, size)
