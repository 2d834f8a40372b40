"""Node-wise rescaling: apply it, draw it, balance by it, and check that a gradient respects it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, UInt32

from .graph import Leaf, ReductionGraph
from .sharding import in_auto_mode
from .trees import as_arrays, named_leaves, replace_leaves

Units = dict[str, Float[Array, " _"]]


@in_auto_mode(like="params")
def rescale(params: PyTree, graph: ReductionGraph, scales: Mapping[str, Float[ArrayLike, " _"]]) -> PyTree:
    """Multiply what flows into each unit by its scale and divide what flows out of it: w_e c_t(e) / c_s(e).

    A positively homogeneous network computes the same function afterwards.

    Args:
      params: the parameters; leaves outside the graph are returned as they are.
      graph: the reduction graph.
      scales: positive numbers, `{group: (units,)}`; units of groups not named keep their scale. Numbers that `jax.jit`
        traces cannot be checked.

    Returns:
      A tree of the same type, shapes and dtypes.

    Raises:
      ValueError: an unknown group; not one scale for each of its units; scales that are not positive and finite; a tree
        that does not match the graph.

    Source: path space for ReLU RNNs, section 3.1.

    >>> from pathspace import ReductionGraph
    >>> params = {"hidden": {"kernel": jnp.ones((1, 2))}, "out": {"kernel": jnp.ones((2, 1))}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> rescale(params, graph, {"h": jnp.array([2.0, 4.0])})["out"]["kernel"].tolist()
    [[0.5], [0.25]]
    """
    sizes = {group.name: group.size for group in graph.groups}
    for name, scale in scales.items():
        if name not in sizes:
            raise ValueError(
                f"scales name the group {name!r}, but the graph has only {list(sizes)}: name groups as they are there."
            )
        if np.shape(scale) != (sizes[name],):
            raise ValueError(
                f"the scales of group {name!r} have shape {np.shape(scale)}, expected ({sizes[name]},): one a unit."
            )
    factors = {name: jnp.asarray(scale) for name, scale in as_arrays(dict(scales), numbers=True).items()}
    for name in factors:
        _check_scales(name, factors[name])
    return _rescaled(params, graph, factors)


def random_scales(key: Key[Array, ""] | UInt32[Array, "2"], graph: ReductionGraph, sigma: ArrayLike = 1.0) -> Units:
    """Draw exp(sigma * normal) for each unit: `{group: (units,)}` in the default float dtype.

    Source: ours.

    >>> from pathspace import ReductionGraph
    >>> params = {"hidden": {"kernel": jnp.ones((1, 2))}, "out": {"kernel": jnp.ones((2, 1))}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> random_scales(jax.random.key(0), graph, sigma=2.0)["h"].shape
    (2,)
    """
    keys = jax.random.split(key, len(graph.groups))
    return {
        group.name: jnp.exp(sigma * jax.random.normal(key, (group.size,)))
        for group, key in zip(graph.groups, keys, strict=True)
    }


@in_auto_mode(like="params")
def balance(params: PyTree, graph: ReductionGraph, *, max_sweeps: int = 1000) -> PyTree:
    """The equivalent parameters with the least sum of squares.

    There the squared norms of the incoming and outgoing weights of each unit agree, a weight from a unit to itself
    aside. They are unique, so equivalent parameters have the same balanced representative. The sum of squares is
    convex in the logarithms of the scales; each sweep moves one group after the other to its minimum, until
    incoming and outgoing norms agree to a few units of rounding. Gradients (reverse mode) are those of the minimum, by
    the implicit function theorem, not of the sweeps. A unit with nothing but zeros on one side keeps its scale.

    Args:
      params: the parameters; leaves outside the graph are returned as they are.
      graph: the reduction graph.
      max_sweeps: how many sweeps at the most.

    Returns:
      A tree of the same type, shapes and dtypes.

    Raises:
      ValueError: the tree does not match the graph.

    Source: Stock et al., "Equi-normalization of Neural Networks" (2019), for multilayer and convolutional networks;
    for reduction graphs, to convergence and with gradients, ours.

    >>> from pathspace import ReductionGraph
    >>> params = {"hidden": {"kernel": jnp.full((1, 1), 8.0)}, "out": {"kernel": jnp.full((1, 1), 2.0)}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> balance(params, graph)["hidden"]["kernel"].round(4).tolist()
    [[4.0]]
    """
    if not graph.groups:
        return params
    weights = graph.weights(params)
    squares = {leaf.name: _squares_between_units(leaf, weights[leaf.name]) for leaf in graph.leaves}
    log_scales = _log_balancing_scales(graph, max_sweeps, squares)
    return _rescaled(params, graph, {name: jnp.exp(value) for name, value in log_scales.items()})


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _log_balancing_scales(graph: ReductionGraph, max_sweeps: int, squares: dict[str, Array]) -> Units:
    # Units of one group that feed each other must not all take the whole step at once: two of them would overshoot.
    coupled = {group.name for leaf in graph.leaves for group in leaf.source.groups if group in leaf.target.groups}
    start = _no_scales(graph, squares)
    dtype = jnp.result_type(*squares.values())
    live = _live(graph, squares)

    def sweep(state: tuple[Units, Array, Array]) -> tuple[Units, Array, Array]:
        log_scales, _, count = state
        largest = jnp.zeros((), dtype)
        for group in graph.groups:
            flow_in, flow_out = _flows(graph, squares, log_scales, [group.name])
            ratio = jnp.where(live[group.name], flow_out[group.name] / flow_in[group.name], 1)
            move = jnp.log(ratio) / (8 if group.name in coupled else 4)
            # Squares that leave the range of the dtype say nothing about where to go.
            move = jnp.where(jnp.isfinite(move), move, 0)
            log_scales = log_scales | {group.name: log_scales[group.name] + move}
            largest = jnp.maximum(largest, jnp.max(jnp.abs(move), initial=0))
        return log_scales, largest, count + 1

    tolerance = 16 * jnp.finfo(dtype).eps
    before = (start, jnp.array(jnp.inf, dtype), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(lambda state: (state[1] > tolerance) & (state[2] < max_sweeps), sweep, before)[0]


def _balanced(graph: ReductionGraph, max_sweeps: int, squares: dict[str, Array]) -> tuple[Units, Any]:
    log_scales = _log_balancing_scales(graph, max_sweeps, squares)
    return log_scales, (squares, log_scales)


def _balanced_backward(
    graph: ReductionGraph, max_sweeps: int, at_minimum: tuple[dict[str, Array], Units], cotangent: Units
) -> tuple[dict[str, Array]]:
    """Implicit function theorem: at the minimum the imbalance, half the gradient of the sum of squares, stays 0."""
    squares, log_scales = at_minimum
    live = _live(graph, squares)

    def imbalance(squares: dict[str, Array], log_scales: Units) -> Units:
        flow_in, flow_out = _flows(graph, squares, log_scales, list(log_scales))
        return {name: jnp.where(live[name], flow_in[name] - flow_out[name], 0) for name in log_scales}

    def hessian_product(vector: Units) -> Units:
        vector = {name: jnp.where(live[name], value, 0) for name, value in vector.items()}
        product = jax.jvp(functools.partial(imbalance, squares), (log_scales,), (vector,))[1]
        return {name: jnp.where(live[name], product[name], vector[name]) for name in vector}

    target = {name: jnp.where(live[name], value, 0) for name, value in cotangent.items()}
    solved, _ = jax.scipy.sparse.linalg.cg(
        hessian_product, target, tol=jnp.finfo(jnp.result_type(*target.values())).eps
    )
    pull = jax.vjp(lambda squares: imbalance(squares, log_scales), squares)[1]
    return (jax.tree.map(jnp.negative, pull(solved)[0]),)


_log_balancing_scales.defvjp(_balanced, _balanced_backward)


def _no_scales(graph: ReductionGraph, squares: dict[str, Array]) -> Units:
    return {group.name: jnp.zeros(group.size, jnp.result_type(*squares.values())) for group in graph.groups}


def _live(graph: ReductionGraph, squares: dict[str, Array]) -> dict[str, Array]:
    """The units with something but zeros on both sides."""
    start = _no_scales(graph, squares)
    flow_in, flow_out = _flows(graph, squares, start, list(start))
    return {name: (flow_in[name] > 0) & (flow_out[name] > 0) for name in start}


def _flows(
    graph: ReductionGraph, squares: dict[str, Array], log_scales: Units, names: Sequence[str]
) -> tuple[Units, Units]:
    """The squared norms of the incoming and outgoing weights of the named groups, rescaled."""
    scales = {name: jnp.exp(2 * value) for name, value in log_scales.items()}
    flow_in = {name: jnp.zeros_like(log_scales[name]) for name in names}
    flow_out = dict(flow_in)
    for leaf in graph.leaves:
        ends = {group.name for group in (*leaf.source.groups, *leaf.target.groups)}
        if ends.intersection(names):
            flow = squares[leaf.name] * _factor(leaf, scales)
            add_units(flow_in, leaf.target.collect(flow))
            add_units(flow_out, leaf.source.collect(flow))
    return flow_in, flow_out


@in_auto_mode(like=None)
def conservation_error(grads: PyTree, params: PyTree, graph: ReductionGraph) -> dict[str, Float[Array, ""]]:
    """How far a gradient is from conserving sum_in w g = sum_out w g, for each group.

    The gradient of a function that node-wise rescaling leaves unchanged conserves exactly. A transformation that
    comes before the path-space optimiser keeps the invariance only if its output still does, which clipping by value
    does not. That is necessary, not sufficient: clipping by the global norm conserves, but the norm depends on the
    scales (see `invariance_error`).

    Returns:
      `{group: |in - out| / (|in| + |out|)}` with Euclidean norms over the units, between 0 and 1; 0 for zero gradients,
      and NaN for gradients that are not finite.

    Raises:
      ValueError: a tree does not match the graph.

    Source: Du, Hu and Lee, "Algorithmic Regularization in Learning Deep Homogeneous Models: Layers are Automatically
    Balanced" (2018), section 2, for gradient flow in feed-forward networks. For the units of reduction graphs it
    follows from w_e dL/dw_e being the change of L with the logarithm of |w_e|.

    >>> from pathspace import ReductionGraph
    >>> params = {"hidden": {"kernel": jnp.ones((1, 2))}, "out": {"kernel": jnp.ones((2, 1))}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> grads = {"hidden": {"kernel": jnp.ones((1, 2))}, "out": {"kernel": jnp.zeros((2, 1))}}
    >>> float(conservation_error(grads, params, graph)["h"])
    1.0
    """
    weights, grad_weights = graph.weights(params), graph.weights(grads)
    flow_in: Units = {}
    flow_out: Units = {}
    for leaf in graph.leaves:
        flow = weights[leaf.name] * grad_weights[leaf.name]
        add_units(flow_in, leaf.target.collect(flow))
        add_units(flow_out, leaf.source.collect(flow))
    errors = {}
    for group in graph.groups:
        a, b = flow_in[group.name], flow_out[group.name]
        total = jnp.linalg.norm(a) + jnp.linalg.norm(b)
        errors[group.name] = jnp.where(total == 0, 0, jnp.linalg.norm(a - b) / jnp.where(total == 0, 1, total))
    return errors


def _factor(leaf: Leaf, scales: Mapping[str, Array]) -> Array:
    rank = len(leaf.shape)
    return leaf.target.spread(scales, rank, 1) / leaf.source.spread(scales, rank, 1)


def _squares_between_units(leaf: Leaf, weights: Array) -> Array:
    """w^2, without the weights from a unit to itself: rescaling does not change them."""
    rank = len(leaf.shape)
    offsets = leaf.source.offsets
    units = {
        group.name: offsets[group.name] + jnp.arange(group.size)
        for group in leaf.source.groups
        if group in leaf.target.groups
    }
    if not units:
        return weights**2
    from_itself = leaf.source.spread(units, rank, -1) == leaf.target.spread(units, rank, -2)
    return jnp.where(from_itself, 0, weights**2)


def _check_scales(name: str, scales: Array) -> None:
    if isinstance(scales, jax.core.Tracer) or not scales.is_fully_addressable:
        return
    # XLA takes subnormal numbers for 0.
    least = jnp.finfo(scales.dtype).tiny if jnp.issubdtype(scales.dtype, jnp.floating) else 1
    values = np.asarray(scales)
    is_scale = (values >= least) & np.isfinite(values) & np.isreal(values)
    if not np.all(is_scale):
        raise ValueError(
            f"the scales of group {name!r} hold {values[~is_scale][0]}, expected positive and finite numbers: "
            "rescaling by others changes what the network computes."
        )


def add_units(sums: Units, terms: Units) -> None:
    for name, term in terms.items():
        sums[name] = sums[name] + term if name in sums else term


def _rescaled(params: PyTree, graph: ReductionGraph, factors: Mapping[str, Array]) -> PyTree:
    leaves, weights = named_leaves(params), graph.weights(params)
    rescaled = {leaf.name: weights[leaf.name] * _factor(leaf, factors) for leaf in graph.leaves}
    return replace_leaves(
        params, {name: value.astype(jnp.asarray(leaves[name]).dtype) for name, value in rescaled.items()}
    )
