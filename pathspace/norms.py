"""Path-norms of traced networks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .basis import basis_paths
from .skeleton import Skeleton, in_mask, out_mask
from .tracing.compat import trace
from .tracing.path_rules import PathNetwork
from .tracing.path_values import DATA, Constant, Signal, Value, Weight, signal


def path_network(fn: Callable[..., Any], *, p: float | int = 1) -> Callable[..., Array]:
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

    Returns:
      A function of the same arguments. Of the inputs only shapes and dtypes matter: give a batch of one.

    Raises:
      ValueError: the function computes something that is not positively homogeneous: the message names it and where.

    Source: Neyshabur et al., "Path-Normalized Optimization of Recurrent Neural Networks with ReLU Activations" (2016),
    section 3.

    >>> params = {"first": jnp.array([[2.0, 1.0]]), "second": jnp.array([[3.0], [4.0]])}
    >>> def network(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> path_network(network)(params, jnp.zeros((1, 1))).item()
    10.0
    """

    def total(params: PyTree, *inputs: Any) -> Array:
        roots = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf ** (1 / p)) if _is_weight(leaf) else leaf, params)
        return sum((out.path.sum() for out in _outputs(fn, p, False, params, roots, inputs)[0]), start=jnp.zeros(()))

    return total


def path_norm(
    fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    p: float | int = 2,
    log: bool = False,
    per_output: bool = False,
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
    powers = jax.tree.map(lambda leaf: jnp.abs(leaf) ** p if _is_weight(leaf) else leaf, params)
    outs, treedef = _outputs(fn, p, True, powers, params, inputs)
    if per_output:
        logarithms = [(jnp.log(out.path) + out.shift) / p for out in outs]
        return jax.tree.unflatten(treedef, logarithms if log else map(jnp.exp, logarithms))
    shift = functools.reduce(jnp.maximum, [out.shift for out in outs])
    total = sum(jnp.sum(out.path) * jnp.exp(out.shift - shift) for out in outs)
    logarithm = (jnp.log(total) + shift) / p
    return logarithm if log else jnp.exp(logarithm)


def basis_path_norm(params: PyTree, skeleton: Skeleton) -> Float[Array, ""]:
    """The basis-path norm: the largest of all |log|q_e|| of all-skeleton paths and all |q_e| of the other basis paths.

    All-skeleton paths, e = I(v), stand in the denominators of other paths and should be neither large nor small; the
    others should not be large. Node-wise rescaling does not change the norm. It is a regulariser: it can be
    differentiated.

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
        gauge = out_mask(skeleton, leaf, skeleton.out_edges)
        is_edge = ~gauge & ~(leaf.grounded(leaf.source) & leaf.grounded(leaf.target))
        all_skeleton = in_mask(skeleton, leaf, skeleton.in_edges) & ~gauge
        size = jnp.abs(values[leaf.name])
        size = jnp.where(all_skeleton, jnp.abs(jnp.log(jnp.where(all_skeleton, size, 1))), size)
        largest.append(jnp.max(jnp.where(is_edge, size, 0), initial=0))
    return functools.reduce(jnp.maximum, largest)


def path_kappa(fn: Callable[..., Any], params: PyTree, *inputs: Any, second_term: bool = False) -> PyTree:
    """The curvature of the path-regulariser gamma^2 (the squared l_2 path-norm) along each weight.

        kappa_i = 1/2 d^2 gamma^2 / d theta_i^2 = g_i + 2 theta_i^2 g_ii

    with the derivatives of g, the path network, at the squares of the parameters. The first term costs about one
    training step on a batch of one. The second is 0 unless a path passes a weight twice, as in recurrent networks;
    here it is exact, by one forward-mode pass for each weight: for small networks.

    Args:
      fn: see `path_network`.
      params: the parameters.
      *inputs: of one example, or arrays like it; see `path_network`.
      second_term: whether to add the second term. Path-SGD works with the first alone.

    Returns:
      A tree like `params`, in float32 or wider; 0 for weights that no path passes, and for leaves that are not floating
      point.

    Raises:
      ValueError: see `path_network`.

    Source: Neyshabur et al., "Path-Normalized Optimization of Recurrent Neural Networks with ReLU Activations" (2016),
    equation 8 and Lemma 1 (the second term as printed there is half of its definition).

    >>> params = {"first": jnp.array([[2.0, -1.0]]), "second": jnp.array([[3.0], [-4.0]])}
    >>> def network(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> path_kappa(network, params, jnp.zeros((1, 1)))["first"].tolist()
    [[9.0, 16.0]]
    """
    leaves, treedef = jax.tree.flatten(params)
    wide = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if _is_weight(leaf) else leaf for leaf in leaves]
    weights = [jnp.square(leaf) for leaf in wide if _is_weight(leaf)]

    def gradients(weights: list[Array]) -> list[Array]:
        def network(weights: list[Array]) -> Array:
            remaining = iter(weights)
            tree = [next(remaining) if _is_weight(leaf) else leaf for leaf in wide]
            return path_network(fn, p=2)(jax.tree.unflatten(treedef, tree), *inputs)

        return jax.grad(network)(weights)

    kappas = gradients(weights)
    if second_term:
        kappas = [
            first + 2 * square * _hessian_diagonal(gradients, weights, place)
            for place, (first, square) in enumerate(zip(kappas, weights, strict=True))
        ]
    remaining = iter(kappas)
    tree = [next(remaining) if _is_weight(leaf) else jnp.zeros(jnp.shape(leaf), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(treedef, tree)


def _hessian_diagonal(gradients: Callable[[list[Array]], list[Array]], at: list[Array], place: int) -> Array:
    """The diagonal block of one of the arrays."""

    def entry(index: Array) -> Array:
        direction = [jnp.zeros_like(array) for array in at]
        direction[place] = direction[place].ravel().at[index].set(1).reshape(at[place].shape)
        return jax.jvp(gradients, (at,), (direction,))[1][place].ravel()[index]

    return jax.lax.map(entry, jnp.arange(at[place].size), batch_size=64).reshape(at[place].shape)


def _outputs(
    fn: Callable[..., Any], p: float | int, rescales: bool, powers: PyTree, params: PyTree, inputs: tuple[Any, ...]
) -> tuple[list[Signal], Any]:
    jaxpr, out_shapes = trace(fn, params, *inputs)
    network = PathNetwork(p, rescales)
    values: list[Value] = [
        Weight(raw, power) if _is_weight(raw) else Constant(raw)
        for raw, power in zip(jax.tree.leaves(params), jax.tree.leaves(powers), strict=True)
    ]
    values += [
        signal(jnp.ones(leaf.shape, leaf.dtype)) if _is_weight(leaf) else DATA for leaf in jax.tree.leaves(inputs)
    ]
    return [network.signal(out) for out in network.walk(jaxpr, values)], jax.tree.structure(out_shapes)


def _is_weight(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
