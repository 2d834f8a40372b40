"""Optax transformations that run in path space."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int, PyTree
from optax._src.base import NO_PARAMS_MSG  # Optax does not export its own message

from .basis import DEFAULT_MAX_RATIO, allocate, path_gradient, path_values
from .chart import chart_at
from .finiteness import nan_where_not_finite, saturated
from .skeleton import Skeleton
from .trees import as_arrays, check_alike, check_arrays, leaf_names


class PathSpaceState(NamedTuple):
    """State of `in_path_space`.

    Attributes:
      inner_state: the state of the inner transformation.
      limited_units: int32, the number of units whose update ratio was limited in the last update: where these are many
        for long, the learning rate is too high.

    Source: the limit is ours (see `weight_allocation`).

    >>> from pathspace import ReductionGraph, choose_skeleton
    >>> params = {"hidden": {"kernel": jnp.ones((1, 2))}, "out": {"kernel": jnp.ones((2, 1))}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> optimizer = g_sgd(10.0, choose_skeleton(graph, params))
    >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    >>> int(state.limited_units)
    2
    """

    inner_state: optax.OptState
    limited_units: Int[Array, ""]


def in_path_space(
    inner: optax.GradientTransformation, skeleton: Skeleton, *, max_ratio: float = DEFAULT_MAX_RATIO
) -> optax.GradientTransformationExtraArgs:
    """Run an Optax transformation on basis-path values instead of weights.

    Each update applies the papers' three steps: the inverse chain rule turns the gradient with respect to weights into
    the one with respect to basis paths, `inner` makes an update of it (with the basis-path values as its `params`), and
    weight allocation turns that into new weights. Leaves outside the graph get the plain inner transformation, as all
    leaves do where the graph is empty.

    The update is the difference between new and old weights, so this transformation comes **last** in a chain: learning
    rate, momentum, weight decay and clipping belong into `inner`. What comes before it keeps the invariance only if it
    keeps sum_in w g = sum_out w g for each unit (see `conservation_error`) and does not itself depend on the scales of
    units, as the global norm of a gradient does; `invariance_error` measures that.
    `optax.inject_hyperparams` takes the skeleton and `max_ratio` for static arguments:
    `optax.inject_hyperparams(g_sgd, static_args=["skeleton", "max_ratio"])`.

    Args:
      inner: the transformation, with its learning rate.
      skeleton: from `choose_skeleton`, made from the initial parameters.
      max_ratio: limit of the factor by which one step changes the skeleton weight of a unit (see `weight_allocation`).

    Returns:
      A transformation whose update needs `params`; extra arguments are passed to `inner`.

    Raises:
      ValueError: in `init` and `update`, for leaves that are no arrays of numbers; in `update`, where params are
        missing, updates are not like params, a tree does not match the skeleton's graph, or only some of the leaves
        around a group of units are masked.

    Source: path space for ReLU RNNs, Algorithm 2.

    >>> from pathspace import ReductionGraph, choose_skeleton
    >>> params = {"hidden": {"kernel": jnp.ones((1, 2))}, "out": {"kernel": jnp.ones((2, 1))}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> optimizer = in_path_space(optax.rmsprop(1e-2), choose_skeleton(graph, params))
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(params, state, params)
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> PathSpaceState:
        check_arrays(params, numbers=True)
        return PathSpaceState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: PathSpaceState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PathSpaceState]:
        if params is None:
            raise ValueError(NO_PARAMS_MSG)
        updates, params = as_arrays(updates, numbers=True), as_arrays(params, numbers=True)
        check_alike(updates, params, "the updates")
        present = _without_masked_groups(skeleton, params)
        chart = chart_at(params, present)
        path_grads = path_gradient(updates, params, chart)
        path_updates, inner_state = inner.update(
            path_grads, state.inner_state, path_values(params, chart), **extra_args
        )
        path_updates = jax.tree.map(_repaired, path_updates, path_grads)
        updates, limited_units = allocate(params, path_updates, chart, max_ratio)
        return updates, PathSpaceState(inner_state, limited_units)

    return optax.GradientTransformationExtraArgs(init, update)


def g_sgd(
    learning_rate: optax.ScalarOrSchedule,
    skeleton: Skeleton,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    *,
    weight_decay: ArrayLike = 0.0,
    max_ratio: float = DEFAULT_MAX_RATIO,
) -> optax.GradientTransformationExtraArgs:
    """G-SGD: gradient descent on basis-path values, q <- q - learning_rate (dL/dq + weight_decay q).

    Args:
      learning_rate: a number or a schedule.
      skeleton: from `choose_skeleton`, made from the initial parameters.
      momentum: decay of the momentum, as in `optax.sgd`; it accumulates in path space.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: how strongly basis-path values (outside the graph: weights) are drawn to 0, as an L2 penalty.
      max_ratio: see `in_path_space`.

    Returns:
      A transformation that comes last in a chain, and the errors of its updates: see `in_path_space`.

    Source: path space for ReLU RNNs, Algorithm 2.

    >>> from pathspace import ReductionGraph, choose_skeleton
    >>> params = {"hidden": {"kernel": jnp.ones((1, 2))}, "out": {"kernel": jnp.ones((2, 1))}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> optimizer = g_sgd(0.1, choose_skeleton(graph, params), momentum=0.9)
    >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    """
    inner = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )
    return in_path_space(inner, skeleton, max_ratio=max_ratio)


def g_adam(
    learning_rate: optax.ScalarOrSchedule,
    skeleton: Skeleton,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    weight_decay: ArrayLike = 0.0,
    max_ratio: float = DEFAULT_MAX_RATIO,
) -> optax.GradientTransformationExtraArgs:
    """G-Adam: Adam on basis-path values; with `weight_decay`, AdamW on them.

    Args:
      learning_rate: a number or a schedule.
      skeleton: from `choose_skeleton`, made from the initial parameters.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: how strongly basis-path values (outside the graph: weights) are drawn to 0, decoupled.
      max_ratio: see `in_path_space`.

    Returns:
      A transformation that comes last in a chain, and the errors of its updates: see `in_path_space`.

    Source: path space for ReLU RNNs, appendix E.

    >>> from pathspace import ReductionGraph, choose_skeleton
    >>> params = {"hidden": {"kernel": jnp.ones((1, 2))}, "out": {"kernel": jnp.ones((2, 1))}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> optimizer = g_adam(1e-3, choose_skeleton(graph, params))
    >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    """
    inner = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return in_path_space(inner, skeleton, max_ratio=max_ratio)


def _without_masked_groups(skeleton: Skeleton, params: PyTree) -> Skeleton:
    names = leaf_names(params)
    inside = [leaf.name for leaf in skeleton.graph.leaves]
    if all(name in names for name in inside):
        return skeleton
    nodes = jax.tree.leaves(params, is_leaf=_is_masked)
    if not any(name in names for name in inside) and not any(map(_is_masked, nodes)):
        raise ValueError(
            f"the tree has none of the leaves {inside} of the graph; it has {names}: "
            "build the graph from parameters of the model in use."
        )
    return skeleton.restricted_to(names)


def _is_masked(node: Any) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)


def _repaired(update: Array, path_grad: Array) -> Array:
    """Without what overflowed inside; NaN for gradients that are not finite, unless they were made finite inside."""
    if not jnp.issubdtype(update.dtype, jnp.floating):
        return update
    # Not by nan_to_num: its selections cost .24 % of a short step on CPUs (100 units, 28 time steps).
    repaired = saturated(jnp.where(jnp.isnan(update), 0, update), update.dtype)
    return jnp.where(jnp.isfinite(update), update, nan_where_not_finite(repaired, path_grad))
