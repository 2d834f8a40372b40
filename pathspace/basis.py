"""Basis-path values, the inverse chain rule and weight allocation (path space for ReLU RNNs, section 4 and B.1).

Each unit v has an in-skeleton edge I(v) and an out-skeleton edge O(v); a(v) and b(v) are the products of weight over
reference value along the skeleton from ground to v and from v to ground. The basis paths are the edges e outside O,

    q_e = w_e m_e,    m_e = a(s(e)) b(t(e)),  times N(v) over the reference value of w_e where e is I(v),

so that an all-skeleton path, e = I(v), has the value N(v) a(v) b(v), which is N(v) at the reference point (see
`Skeleton`). The out-skeleton weights never change, nor does b.
A unit with a skeleton weight of 0 has no coordinates there and is treated as ground: its weights are their own values.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .chart import Chart, chart_at, inverse
from .finiteness import nan_where_not_finite, saturated
from .rescaling import Units, add_units
from .sharding import in_auto_mode
from .skeleton import Skeleton
from .trees import as_arrays, check_alike, named_leaves, replace_leaves

# Measured by 4-fold cross-validation on the digits benchmark without its test data, among 1.1, 1.2, 1.3, 1.5 and 2: at
# the best learning rate the errors do not differ; at twice that rate only 1.1 keeps all runs from diverging.
DEFAULT_MAX_RATIO = 1.1


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
    return path_values(params, chart_at(params, skeleton))


@in_auto_mode(like="params")
def path_values(params: PyTree, chart: Chart) -> PyTree:
    """What `basis_paths` returns."""
    weights = chart.skeleton.graph.weights(params)
    paths = {}
    for leaf in chart.skeleton.graph.leaves:
        w = weights[leaf.name]
        paths[leaf.name] = jnp.where(chart.gauge(leaf), w, w * chart.measure(leaf))
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
    chart = chart_at(paths, skeleton, values_are_paths=True)
    weights = {}
    for leaf in skeleton.graph.leaves:
        q = values[leaf.name]
        weights[leaf.name] = jnp.where(chart.gauge(leaf), q, q * chart.inverse_measure(leaf))
    return _in_tree(paths, weights, values)


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
    return path_gradient(grads, params, chart_at(params, skeleton))


@in_auto_mode(like="grads")
def path_gradient(grads: PyTree, params: PyTree, chart: Chart) -> PyTree:
    """What `inverse_chain_rule` returns."""
    graph = chart.skeleton.graph
    weights, grad_weights = graph.weights(params), graph.weights(grads)
    sums = _sums_through(weights, grad_weights, chart)
    # S(v) / w_I(v); products that overflow to both sides have no sum.
    quotients = {name: sums[name] / _nonzero(weight) for name, weight in chart.skeleton_weights.items()}
    shares = {name: jnp.where(jnp.isnan(quotient), 0, quotient) for name, quotient in quotients.items()}
    grad_paths = {}
    for leaf in graph.leaves:
        grad = grad_weights[leaf.name]
        share = jnp.where(chart.special(leaf), leaf.target.spread(shares, grad.ndim, 0), 0)
        # A factor of 0 and not a selection, so that NaN is handed on there too.
        grad_paths[leaf.name] = (grad - share) * jnp.where(chart.gauge(leaf), 0, chart.inverse_measure(leaf))
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
    updates, _ = allocate(params, path_updates, chart_at(params, skeleton), max_ratio)
    return optax.apply_updates(params, updates)


@in_auto_mode(like=("params", None))
def allocate(params: PyTree, path_updates: PyTree, chart: Chart, max_ratio: float) -> tuple[PyTree, Int[Array, ""]]:
    """What `weight_allocation` adds to the parameters, and the number of units whose update ratio was limited."""
    if not max_ratio > 1:
        raise ValueError(f"max_ratio limits an update ratio around 1 and must be above 1, got {max_ratio}.")
    graph = chart.skeleton.graph
    weights, updates = graph.weights(params), graph.weights(path_updates)
    params, path_updates = as_arrays(params, numbers=True), as_arrays(path_updates, numbers=True)
    check_alike(path_updates, params, "the updates")
    ratios: Units = {}
    limited = jnp.zeros((), jnp.int32)
    for name, leaf in graph.in_chain.items():
        update = leaf.target.collect(jnp.where(chart.special(leaf), updates[leaf.name], 0))[name]
        raw = 1 + update / (chart.a[name] * chart.b[name] * chart.skeleton.path_reference[name])
        ratio = jnp.where(jnp.isnan(raw), 1, jnp.clip(raw, 1 / max_ratio, max_ratio))
        free = chart.on_chart[name] & ~chart.shared[name]
        is_limited = (free & (ratio != raw)).astype(jnp.float32)
        # A product, exact up to 2^24 units: XLA's sum of integers is two loops, beside which it runs others on a second
        # thread. On CPUs that can cost 1.5 % of a short step (100 units, 28 time steps).
        limited += jnp.dot(is_limited, is_limited).astype(jnp.int32)
        before = leaf.source.take(ratios, chart.before[name], 1)
        ratios[name] = jnp.where(chart.shared[name], before, jnp.where(chart.on_chart[name], ratio, 1))
    allocated, inverse_ratios = {}, inverse(ratios)
    for leaf in graph.leaves:
        w, special, gauge = weights[leaf.name], chart.special(leaf), chart.gauge(leaf)
        # As in the inverse chain rule, NaN is handed on.
        step = updates[leaf.name] * jnp.where(special | gauge, 0, chart.inverse_measure(leaf))
        along = jnp.where(special, leaf.target.spread(ratios, w.ndim, 1), 1)
        factor = jnp.where(gauge, 1, along * leaf.source.spread(inverse_ratios, w.ndim, 1))
        allocated[leaf.name] = (w + step) * factor
    old = named_leaves(params)
    outside = {name: old[name] + update for name, update in named_leaves(path_updates).items() if name not in allocated}
    differences = {name: _difference(new, old[name]) for name, new in (allocated | outside).items()}
    return replace_leaves(params, differences), limited


def _sums_through(weights: dict[str, Array], grads: dict[str, Array], chart: Chart) -> Units:
    """S(v): what leaves v outside O, and what leaves the units that follow v along edges in both I and O."""
    graph = chart.skeleton.graph
    sums: Units = {}
    for leaf in graph.leaves:
        flow = jnp.where(chart.gauge(leaf), 0, weights[leaf.name] * grads[leaf.name])
        add_units(sums, leaf.source.collect(flow))
    for name in reversed(graph.in_chain):
        sums[name] += graph.out_chain[name].target.take(sums, chart.following[name], 0)
    return sums


def _nonzero(divisor: Array) -> Array:
    return jnp.where(divisor == 0, 1, divisor)


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
