"""The chart: what the coordinates of path space need to know of a point, as numbers for each unit.

a(v) and b(v) are the products of weight over reference value along the skeleton from ground to unit v and from v to
ground (see `basis`). A unit with a skeleton weight of 0 has no coordinates there and is treated as ground.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .graph import Leaf
from .rescaling import Units
from .sharding import in_auto_mode
from .skeleton import Edges, Skeleton, edge_mask, far_units, in_mask, out_mask
from .units import GROUND, UnitMap

Flags = dict[str, Bool[Array, " _"]]


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
    before: Edges  # the unit that I(v) comes from
    following: Edges  # the unit that O(v) goes to where O(v) is an in-skeleton edge as well
    special_edges: Edges  # I(v) outside O, whose basis path is the all-skeleton path
    gauge_edges: Edges  # O(v)

    def special(self, leaf: Leaf) -> Bool[Array, "..."]:
        """The mask of I(v) outside O."""
        return in_mask(self.skeleton, leaf, self.special_edges)

    def gauge(self, leaf: Leaf) -> Bool[Array, "..."]:
        """The mask of O."""
        return out_mask(self.skeleton, leaf, self.gauge_edges)

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
    on_chart = {}
    in_values = _values_on(values, graph.in_chain, "target", skeleton.in_edges)
    out_values = _values_on(values, graph.out_chain, "source", skeleton.out_edges)
    for group in graph.groups:
        # Weights and path values vanish together at these two entries, so both sides of the coordinates agree on this.
        on_chart[group.name] = (in_values[group.name] != 0) & (out_values[group.name] != 0)
    in_edges, out_edges = (
        {name: jnp.where(on_chart[name], edge, -1) for name, edge in edges.items()}
        for edges in (skeleton.in_edges, skeleton.out_edges)
    )
    before = {name: far_units(leaf, leaf.source, in_edges[name]) for name, leaf in graph.in_chain.items()}
    after = {name: far_units(leaf, leaf.target, out_edges[name]) for name, leaf in graph.out_chain.items()}
    shared = {
        name: _chosen_at_far_end(leaf, leaf.source, in_edges[name], before[name], graph.out_chain, out_edges)
        for name, leaf in graph.in_chain.items()
    }
    following = {}
    for name, leaf in graph.out_chain.items():
        goes_on = _chosen_at_far_end(leaf, leaf.target, out_edges[name], after[name], graph.in_chain, in_edges)
        following[name] = jnp.where(goes_on, after[name], GROUND)

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
        following=following,
        special_edges={name: jnp.where(shared[name], -1, edge) for name, edge in in_edges.items()},
        gauge_edges=out_edges,
    )


def inverse(values: Units) -> Units:
    """1 over the value of each unit."""
    return {name: 1 / value for name, value in values.items()}


def _values_on(values: dict[str, Array], chain: dict[str, Leaf], near: str, edges: Edges) -> Units:
    """The entry at each unit's skeleton edge; 0 for a unit that has none."""
    found = {}
    for name, leaf in chain.items():
        end = getattr(leaf, near)
        mask = edge_mask(leaf, end, {name: edges[name]})
        found[name] = end.collect(jnp.where(mask, values[leaf.name], 0))[name]
    return found


def _chosen_at_far_end(
    leaf: Leaf, far: UnitMap, edges: Array, units: Array, chain: dict[str, Leaf], chosen: Edges
) -> Array:
    """Whether the units at the far ends of edges have chosen the same edges."""
    others = far.take({name: chosen[name] for name in chosen if chain[name] is leaf}, units, -1)
    return (others >= 0) & (others == edges)


def _bounded(gauge: Array) -> Array:
    """Finite and nonzero, whatever the weights, and so are its inverse and products of two."""
    tiny = jnp.finfo(gauge.dtype).tiny
    size = jnp.clip(jnp.abs(gauge), tiny**0.5, tiny**-0.5)
    return jnp.where(gauge < 0, -size, size)
