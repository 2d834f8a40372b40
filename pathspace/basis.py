"""Basis-path values, the inverse chain rule and weight allocation (path space for ReLU RNNs, section 4 and B.1).

Each unit v has an in-skeleton edge I(v) and an out-skeleton edge O(v); a(v) and b(v) are the products of weight over
reference value along the skeleton from ground to v and from v to ground. The basis paths are the edges e outside O,

    q_e = w_e m_e,    m_e = a(s(e)) b(t(e)),  times N(v) over the reference value of w_e where e is I(v),

so that an all-skeleton path, e = I(v), has the value N(v) a(v) b(v), which is N(v) at the reference point (see
`Skeleton`). The out-skeleton weights never change, nor does b.
A unit with a skeleton weight of 0 has no coordinates there and is treated as ground: its weights are their own values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from .finiteness import nan_where_not_finite, saturated
from .graph import Leaf
from .rescaling import Units, add_units
from .sharding import in_auto_mode
from .skeleton import Edges, Skeleton, edge_mask, in_mask, out_mask
from .trees import as_arrays, check_alike, named_leaves, replace_leaves
from .units import UnitMap

# Measured by 4-fold cross-validation on the digits benchmark without its test data, among 1.1, 1.2, 1.3, 1.5 and 2: at
# the best learning rate the errors do not differ; at twice that rate only 1.1 keeps all runs from diverging.
DEFAULT_MAX_RATIO = 1.1

Flags = dict[str, Bool[Array, " _"]]


class _Chart(NamedTuple):
    """What the coordinates need, read from one point: by group, and by leaf."""

    a: Units
    b: Units
    b_special: Units  # b(v) N(v) over the reference value of I(v)
    skeleton_weights: Units  # w_I(v)
    shared: Flags  # whether I(v) is an out-skeleton edge as well
    on_chart: Flags
    special: dict[str, Array]  # the mask of I(v) outside O, whose basis path is the all-skeleton path
    through: dict[str, Array]  # the mask of I(v) inside O
    gauge: dict[str, Array]  # the mask of O

    def measure(self, leaf: Leaf) -> Array:
        """m_e."""
        return self._product(leaf, self.a, self.b, self.b_special)

    def inverse_measure(self, leaf: Leaf) -> Array:
        """1 / m_e, of quotients for each unit: as one for each weight they would take most of an update's time."""
        return self._product(leaf, *map(_inverse, (self.a, self.b, self.b_special)))

    def _product(self, leaf: Leaf, of_source: Units, of_target: Units, of_special: Units) -> Array:
        rank = len(leaf.shape)
        return leaf.source.spread(of_source, rank, 1) * jnp.where(
            self.special[leaf.name], leaf.target.spread(of_special, rank, 1), leaf.target.spread(of_target, rank, 1)
        )


@in_auto_mode(like="params")
def basis_paths(params: PyTree, skeleton: Skeleton) -> PyTree:
    """The basis-path values q_e = w_e m_e, laid out like the parameters.

    Args:
      params: the parameters.
      skeleton: from `choose_skeleton`.

    Returns:
      A tree of the same type, shapes and dtypes: at each entry the value of its basis path; at out-skeleton entries
      (the gauge) and outside the graph the weights themselves.

    Raises:
      ValueError: the tree does not match the skeleton's graph.

    Source: path space for ReLU RNNs, Theorem 3 and the skeleton method of section 4.

    >>> from pathspace import ReductionGraph, choose_skeleton
    >>> params = {"hidden": {"kernel": jnp.array([[2.0], [3.0]])}, "out": {"kernel": jnp.array([[5.0, 7.0]])}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> skeleton = choose_skeleton(graph, params, reference=None)
    >>> paths = basis_paths(params, skeleton)
    >>> paths["hidden"]["kernel"].tolist(), paths["out"]["kernel"].tolist()
    ([[14.0], [21.0]], [[15.0, 7.0]])
    """
    weights = skeleton.graph.weights(params)
    chart = _chart_at(weights, skeleton)
    paths = {}
    for leaf in skeleton.graph.leaves:
        w = weights[leaf.name]
        paths[leaf.name] = jnp.where(chart.gauge[leaf.name], w, w * chart.measure(leaf))
    return _in_tree(params, paths, weights)


@in_auto_mode(like="paths")
def from_basis_paths(paths: PyTree, skeleton: Skeleton) -> PyTree:
    """The weights w_e = q_e / m_e that have the given basis-path values: the inverse of `basis_paths`.

    Args and raised errors as in `basis_paths`, with the values `paths` in the place of weights.

    Returns:
      A tree of the same type, shapes and dtypes.

    Source: path space for ReLU RNNs, section 4, solved for the weights.

    >>> from pathspace import ReductionGraph, choose_skeleton
    >>> params = {"hidden": {"kernel": jnp.array([[2.0], [4.0]])}, "out": {"kernel": jnp.array([[5.0, 7.0]])}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> skeleton = choose_skeleton(graph, params, reference=None)
    >>> from_basis_paths(basis_paths(params, skeleton), skeleton)["hidden"]["kernel"].tolist()
    [[2.0], [4.0]]
    """
    values = skeleton.graph.weights(paths)
    chart = _chart_at(values, skeleton, values_are_paths=True)
    weights = {}
    for leaf in skeleton.graph.leaves:
        q = values[leaf.name]
        weights[leaf.name] = jnp.where(chart.gauge[leaf.name], q, q * chart.inverse_measure(leaf))
    return _in_tree(paths, weights, values)


@in_auto_mode(like="grads")
def inverse_chain_rule(grads: PyTree, params: PyTree, skeleton: Skeleton) -> PyTree:
    """The gradient with respect to basis-path values, from the gradient G with respect to weights.

        e not a skeleton edge:   dL/dq_e = G_e / m_e
        e = I(v), outside O:     dL/dq_e = (w_e G_e - S(v)) / q_e
        e in O (the gauge):      0

    S(v) is the sum of w_f G_f over the edges f outside O that leave v, or leave a unit whose in-skeleton chain runs
    through v along edges of O only.

    Args:
      grads: the gradient, a tree like `params`.
      params: the parameters.
      skeleton: from `choose_skeleton`.

    Returns:
      A tree like `grads`; leaves outside the graph are returned as they are. Inside, finite gradients give finite
      values (what overflows the dtype is saturated), others NaN.

    Raises:
      ValueError: a tree does not match the skeleton's graph.

    Source: path space for ReLU RNNs, Algorithm 2 line 6 and equations 15 and 16 (with the sums over edges outside the
    skeleton that the derivation has; line 6 as printed sums over all).

    >>> from pathspace import ReductionGraph, choose_skeleton
    >>> params = {"hidden": {"kernel": jnp.array([[2.0], [3.0]])}, "out": {"kernel": jnp.array([[5.0, 7.0]])}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> skeleton = choose_skeleton(graph, params, reference=None)
    >>> grads = {"hidden": {"kernel": jnp.array([[7.0], [17.0]])}, "out": {"kernel": jnp.array([[6.0, 0.0]])}}
    >>> path_grads = inverse_chain_rule(grads, params, skeleton)
    >>> path_grads["hidden"]["kernel"].tolist(), path_grads["out"]["kernel"].tolist()
    ([[1.0], [1.0]], [[2.0, 0.0]])
    """
    weights, grad_weights = skeleton.graph.weights(params), skeleton.graph.weights(grads)
    chart = _chart_at(weights, skeleton)
    sums = _sums_through(weights, grad_weights, chart, skeleton)
    # S(v) / w_I(v); products that overflow to both sides have no sum.
    quotients = {name: sums[name] / _nonzero(weight) for name, weight in chart.skeleton_weights.items()}
    shares = {name: jnp.where(jnp.isnan(quotient), 0, quotient) for name, quotient in quotients.items()}
    grad_paths = {}
    for leaf in skeleton.graph.leaves:
        grad = grad_weights[leaf.name]
        share = jnp.where(chart.special[leaf.name], leaf.target.spread(shares, grad.ndim, 0), 0)
        # A factor of 0 and not a selection, so that NaN is handed on there too.
        grad_paths[leaf.name] = (grad - share) * jnp.where(chart.gauge[leaf.name], 0, chart.inverse_measure(leaf))
    return _in_tree(grads, grad_paths, grad_weights)


def weight_allocation(
    params: PyTree, path_updates: PyTree, skeleton: Skeleton, *, max_ratio: float = DEFAULT_MAX_RATIO
) -> PyTree:
    """The weights after a step in path space: those whose basis-path values are q + `path_updates`.

        R(v)  = 1 + dq_I(v) / q_I(v),  or R of the unit before it where I(v) is an out-skeleton edge
        w_e  -> (w_e + dq_e / m_e) / R(s(e))          ordinary edges
        w_e  -> w_e R(v) / R(s(e))                    e = I(v), outside O
        w_e  -> w_e                                   e in O (the gauge)

    Args:
      params: the parameters.
      path_updates: what is added to the basis-path values, a tree like `params`; its out-skeleton entries are ignored.
      skeleton: from `choose_skeleton`.
      max_ratio: R, the update ratio, is limited to [1 / max_ratio, max_ratio]: at 0 the coordinates end.

    Returns:
      The new parameters, a tree like `params`. Finite updates give finite weights: what overflows the dtype is
      saturated. Others give NaN.

    Raises:
      ValueError: a tree does not match the skeleton's graph, or the other tree; `max_ratio` is not above 1.

    Source: path space for ReLU RNNs, Algorithm 2 lines 8 to 10 and equations 8 to 12. The limit is ours.

    >>> from pathspace import ReductionGraph, choose_skeleton
    >>> params = {"hidden": {"kernel": jnp.array([[2.0], [3.0]])}, "out": {"kernel": jnp.array([[5.0, 7.0]])}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> skeleton = choose_skeleton(graph, params, reference=None)
    >>> updates = {"hidden": {"kernel": jnp.ones((2, 1))}, "out": {"kernel": jnp.ones((1, 2))}}
    >>> new = basis_paths(weight_allocation(params, updates, skeleton), skeleton)
    >>> new["hidden"]["kernel"].round().tolist(), new["out"]["kernel"].tolist()
    ([[15.0], [22.0]], [[16.0, 7.0]])
    """
    # Infinite updates are made NaN, which others see; they would be saturated.
    path_updates = as_arrays(path_updates, numbers=True)
    path_updates = jax.tree.map(nan_where_not_finite, path_updates, path_updates)
    updates, _ = allocate(params, path_updates, skeleton, max_ratio)
    return optax.apply_updates(params, updates)


@in_auto_mode(like=("params", None))
def allocate(
    params: PyTree, path_updates: PyTree, skeleton: Skeleton, max_ratio: float
) -> tuple[PyTree, Int[Array, ""]]:
    """What `weight_allocation` adds to the parameters, and the number of units whose update ratio was limited."""
    if not max_ratio > 1:
        raise ValueError(f"max_ratio limits an update ratio around 1 and must be above 1, got {max_ratio}.")
    graph = skeleton.graph
    weights, updates = graph.weights(params), graph.weights(path_updates)
    params, path_updates = as_arrays(params, numbers=True), as_arrays(path_updates, numbers=True)
    check_alike(path_updates, params, "the updates")
    chart = _chart_at(weights, skeleton)
    ratios: Units = {}
    limited = jnp.zeros((), jnp.int32)
    for name, leaf in graph.in_chain.items():
        update = leaf.target.collect(jnp.where(chart.special[leaf.name], updates[leaf.name], 0))[name]
        raw = 1 + update / (chart.a[name] * chart.b[name] * skeleton.path_reference[name])
        ratio = jnp.where(jnp.isnan(raw), 1, jnp.clip(raw, 1 / max_ratio, max_ratio))
        free = chart.on_chart[name] & ~chart.shared[name]
        is_limited = (free & (ratio != raw)).astype(jnp.float32)
        # A product, exact up to 2^24 units: XLA's sum of integers is two loops, beside which it runs others on a second
        # thread. On CPUs that can cost 1.5 % of a short step (100 units, 28 time steps).
        limited += jnp.dot(is_limited, is_limited).astype(jnp.int32)
        before = _at_far_end(ratios, chart.through[leaf.name], leaf.target, leaf.source)[name]
        ratios[name] = jnp.where(chart.shared[name], before, jnp.where(chart.on_chart[name], ratio, 1))
    allocated, inverse_ratios = {}, _inverse(ratios)
    for leaf in graph.leaves:
        w, special, gauge = weights[leaf.name], chart.special[leaf.name], chart.gauge[leaf.name]
        # As in the inverse chain rule, NaN is handed on.
        step = updates[leaf.name] * jnp.where(special | gauge, 0, chart.inverse_measure(leaf))
        along = jnp.where(special, leaf.target.spread(ratios, w.ndim, 1), 1)
        factor = jnp.where(gauge, 1, along * leaf.source.spread(inverse_ratios, w.ndim, 1))
        allocated[leaf.name] = (w + step) * factor
    old = named_leaves(params)
    outside = {name: old[name] + update for name, update in named_leaves(path_updates).items() if name not in allocated}
    differences = {name: _difference(new, old[name]) for name, new in (allocated | outside).items()}
    return replace_leaves(params, differences), limited


def _chart_at(values: dict[str, Array], skeleton: Skeleton, *, values_are_paths: bool = False) -> _Chart:
    graph = skeleton.graph
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
    special, through, gauge = {}, {}, {}
    for leaf in graph.leaves:
        in_skeleton = in_mask(skeleton, leaf, in_edges)
        gauge[leaf.name] = out_mask(skeleton, leaf, out_edges)
        special[leaf.name] = in_skeleton & ~gauge[leaf.name]
        through[leaf.name] = in_skeleton & gauge[leaf.name]

    b: Units = {}
    for name, leaf in graph.out_chain.items():
        after = _at_far_end(b, gauge[leaf.name], leaf.source, leaf.target)[name]
        b[name] = jnp.where(on_chart[name], _bounded(after * out_values[name] / skeleton.out_reference[name]), 1)
    a: Units = {}
    shared: Flags = {}
    for name, leaf in graph.in_chain.items():
        in_skeleton = special[leaf.name] | through[leaf.name]
        before = _at_far_end(a, in_skeleton, leaf.target, leaf.source)[name]
        shared[name] = leaf.target.collect(through[leaf.name], "max")[name]
        along = before * in_values[name] / skeleton.in_reference[name]
        if values_are_paths:
            along = jnp.where(shared[name], along, in_values[name] / (b[name] * skeleton.path_reference[name]))
        a[name] = jnp.where(on_chart[name], _bounded(along), 1)

    b_special = {
        name: _bounded(b[name] * (skeleton.path_reference[name] / reference))
        for name, reference in skeleton.in_reference.items()
    }
    return _Chart(a, b, b_special, in_values, shared, on_chart, special, through, gauge)


def _values_on(values: dict[str, Array], chain: dict[str, Leaf], near: str, edges: Edges) -> Units:
    """The entry at each unit's skeleton edge; 0 for a unit that has none."""
    found = {}
    for name, leaf in chain.items():
        end = getattr(leaf, near)
        mask = edge_mask(leaf, end, {name: edges[name]})
        found[name] = end.collect(jnp.where(mask, values[leaf.name], 0))[name]
    return found


def _at_far_end(values: Units, mask: Array, near: UnitMap, far: UnitMap) -> dict[str, Array]:
    """For each unit at the near end the value of the unit, or the 1 of ground, at the far end of its masked edge."""
    if not any(group.name in values for group in far.groups):
        return {group.name: jnp.ones(group.size) for group in near.groups}
    return near.collect(jnp.where(mask, far.spread(values, mask.ndim, 1), 0))


def _sums_through(weights: dict[str, Array], grads: dict[str, Array], chart: _Chart, skeleton: Skeleton) -> Units:
    """S(v): what leaves v outside O, and what leaves the units that follow v along edges in both I and O."""
    sums: Units = {}
    for leaf in skeleton.graph.leaves:
        flow = jnp.where(chart.gauge[leaf.name], 0, weights[leaf.name] * grads[leaf.name])
        add_units(sums, leaf.source.collect(flow))
    for name, leaf in reversed(skeleton.graph.in_chain.items()):
        following = leaf.target.spread({name: sums[name]}, len(leaf.shape), 0)
        add_units(sums, leaf.source.collect(jnp.where(chart.through[leaf.name], following, 0)))
    return sums


def _inverse(values: Units) -> Units:
    return {name: 1 / value for name, value in values.items()}


def _nonzero(divisor: Array) -> Array:
    return jnp.where(divisor == 0, 1, divisor)


def _bounded(gauge: Array) -> Array:
    """Finite and nonzero, whatever the weights, and so are its inverse and products of two."""
    tiny = jnp.finfo(gauge.dtype).tiny
    size = jnp.clip(jnp.abs(gauge), tiny**0.5, tiny**-0.5)
    return jnp.where(gauge < 0, -size, size)


def _difference(new: Array, old: Array) -> Array:
    """In the old weight's dtype, such that adding it to the old weight does not overflow."""
    if not jnp.issubdtype(old.dtype, jnp.floating):
        return new.astype(old.dtype) - old
    info = jnp.finfo(old.dtype)
    # A few units of rounding inside the range.
    inside = float(info.max) * (1 - 8 * float(info.eps))
    return saturated(jnp.clip(new, -inside, inside) - old, old.dtype).astype(old.dtype)


def _in_tree(tree: PyTree, values: dict[str, Array], inputs: dict[str, Array]) -> PyTree:
    """The values in the tree's dtypes, saturated; NaN where the input was not finite."""
    leaves = named_leaves(tree)
    fitted = {}
    for name, value in values.items():
        dtype = jnp.asarray(leaves[name]).dtype
        fitted[name] = nan_where_not_finite(saturated(value, dtype), inputs[name]).astype(dtype)
    return replace_leaves(tree, fitted)
