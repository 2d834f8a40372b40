"""Path-norms of traced networks."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .basis import basis_paths
from .skeleton import Skeleton, in_mask, out_mask
from .tracing.path_evaluation import TracedPaths, is_weight
from .trees import as_arrays, check_alike


def path_network(
    fn: Callable[..., Any], *, p: float | int = 1, at: PyTree | None = None, frozen: Sequence[str] = ()
) -> Callable[..., Array]:
    """Transform a network into its path network: the sum over all paths from inputs to outputs of their weights.

    `path_network(fn)(params, *inputs)` is the sum of the outputs of `fn` when all inputs are ones, every ReLU is the
    identity and every maximum a sum: a polynomial in the parameters, which must not be negative. Differentiate it, jit
    it and vmap it as you like.

    Args:
      fn: called as `fn(params, *inputs)`; anything that JAX can trace and that is positively homogeneous: products
        with weights, convolutions, ReLU and leaky ReLU, biases (fed by ones), residual sums, concatenations, maximum
        and average pooling, embeddings (all rows are met), frozen BatchNorm, `lax.scan`. Close over what is no input,
        as statistics of a BatchNorm.
      p: the power that constants are raised to: pass |theta|^p for the parameters to have the p-th power of the
        path-norm. An average over k entries weighs each of them (1 / k)^p.
      at: the parameters theta themselves, where their signs matter: constants that are added to parameters (the mean
        and the bias of a frozen BatchNorm) merge with them before the absolute value is taken. Without, none is
        negative.
      frozen: names of scopes whose computations are normalisations (LayerNorm, RMSNorm, GroupNorm, BatchNorm in
        training mode): what they compute from activations is a constant there, at its value for `at` and the inputs, so
        that they are affine maps. Flax linen modules give their names to scopes; elsewhere use `jax.named_scope`.

    Returns:
      A function of the same arguments. Of the inputs only shapes and dtypes matter, and their values where something is
      frozen: give a batch of one.

    Raises:
      ValueError: `p` is not positive and finite; a parameter is complex or no array; `at` is not like the parameters;
        the function returns nothing; it computes something that is not positively homogeneous: the message names it
        and where; a frozen scope does not exist or lies in a loop, or there is one and an input has no values.

    Source: Neyshabur et al., "Path-Normalized Optimization of Recurrent Neural Networks with ReLU Activations" (2016),
    section 3.

    >>> params = {"first": jnp.array([[2.0, 1.0]]), "second": jnp.array([[3.0], [4.0]])}
    >>> def network(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> path_network(network)(params, jnp.zeros((1, 1))).item()
    10.0
    """

    _check_power(p)

    def total(params: PyTree, *inputs: Any) -> Array:
        params = as_arrays(params)
        if at is None:
            signed = jax.tree.map(lambda leaf: leaf ** (1 / p) if is_weight(leaf) else leaf, params)
        else:
            signed = as_arrays(at)
            check_alike(signed, params, "the parameters `at`")
        traced = TracedPaths(fn, jax.lax.stop_gradient(signed), inputs, p, frozen)
        powers = {place: leaf for place, leaf in enumerate(jax.tree.leaves(params)) if is_weight(leaf)}
        return traced.total(traced.network(), traced.arguments(powers))

    return total


def path_norm(
    fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    p: float | int = 2,
    log: bool = False,
    per_output: bool = False,
    frozen: Sequence[str] = (),
) -> PyTree:
    """The l_p path-norm: (sum over all paths of |product of the weights along the path|^p)^(1/p).

    Node-wise rescaling does not change it.

    Args:
      fn: see `path_network`.
      params: the parameters.
      *inputs: of one example, or shapes like it; see `path_network`.
      p: the power.
      log: return the logarithm, computed without overflow however deep the network is.
      per_output: return a norm for each output, of the paths that end there, in a tree like the outputs.
      frozen: see `path_network`.

    Returns:
      A scalar, or a tree like the outputs.

    Raises:
      ValueError: see `path_network`.

    Source: Neyshabur et al., "Path-Normalized Optimization of Recurrent Neural Networks with ReLU Activations" (2016),
    section 3, with p = 2.

    >>> params = {"first": jnp.array([[2.0, -1.0]]), "second": jnp.array([[3.0], [-4.0]])}
    >>> def network(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> round(path_norm(network, params, jnp.zeros((1, 1))).item(), 4)  # sqrt(6^2 + 4^2)
    7.2111
    """
    _check_power(p)
    traced = TracedPaths(fn, as_arrays(params), inputs, p, frozen)
    outs = traced.outputs(
        traced.network(of_powers=False, rescales=True), traced.arguments(traced.powers(traced.leaves))
    )
    if per_output:
        logarithms = [(jnp.log(out.path) + out.shift) / p for out in outs]
        return jax.tree.unflatten(traced.out_structure, logarithms if log else map(jnp.exp, logarithms))
    shift = functools.reduce(jnp.maximum, [out.shift for out in outs])
    total = sum(jnp.sum(out.path) * jnp.exp(out.shift - shift) for out in outs)
    logarithm = (jnp.log(total) + shift) / p
    return logarithm if log else jnp.exp(logarithm)


def basis_path_norm(params: PyTree, skeleton: Skeleton) -> Float[Array, ""]:
    """The basis-path norm: the largest of all |log|q_e / N|| of all-skeleton paths and |q_e| of other basis paths.

    All-skeleton paths, e = I(v), with the reference value N(v) (see `Skeleton`), stand in the denominators of other
    paths and should be neither large nor small; the others should not be large. Node-wise rescaling does not change the
    norm. It is a regulariser: it can be differentiated.

    Args:
      params: the parameters.
      skeleton: from `choose_skeleton`; with `reference=None` for path values as in the source, otherwise they are
        relative to the reference point.

    Returns:
      A scalar; infinite where an all-skeleton path is 0.

    Raises:
      ValueError: the tree does not match the skeleton's graph.

    Source: Zheng et al., "Capacity Control of ReLU Neural Networks by Basis-path Norm" (2019).

    >>> from pathspace import ReductionGraph, choose_skeleton
    >>> params = {"hidden": {"kernel": jnp.array([[2.0], [3.0]])}, "out": {"kernel": jnp.array([[5.0, 7.0]])}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> basis_path_norm(params, choose_skeleton(graph, params, reference=None)).item()
    15.0
    """
    values = skeleton.graph.weights(basis_paths(params, skeleton))
    largest = [jnp.zeros(())]
    for leaf in skeleton.graph.leaves:
        gauge = out_mask(skeleton, leaf)
        is_edge = ~gauge & ~(leaf.grounded(leaf.source) & leaf.grounded(leaf.target))
        all_skeleton = in_mask(skeleton, leaf) & ~gauge
        size = jnp.abs(values[leaf.name])
        relative = size / leaf.target.spread(skeleton.path_reference, size.ndim, 1)
        size = jnp.where(all_skeleton, jnp.abs(jnp.log(jnp.where(all_skeleton, relative, 1))), size)
        largest.append(jnp.max(jnp.where(is_edge, size, 0), initial=0))
    return functools.reduce(jnp.maximum, largest)


def _check_power(p: float | int) -> None:
    if not 0 < p < math.inf:
        raise ValueError(f"p is the power of an l_p norm and must be above 0 and finite, got {p}.")
