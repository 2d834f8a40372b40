"""Path-norms of traced networks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

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
        return sum((out.path.sum() for out in _outputs(fn, p, False, params, roots, inputs)), start=jnp.zeros(()))

    return total


def path_norm(
    fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    p: float | int = 2,
    log: bool = False,
) -> Array:
    """The l_p path-norm: (sum over all paths of |product of the weights along the path|^p)^(1/p).

    Node-wise rescaling does not change it.

    Args:
      fn: see `path_network`.
      params: the parameters.
      *inputs: of one example, or shapes like it; see `path_network`.
      p: the power.
      log: return the logarithm, computed without overflow however deep the network is.

    Returns:
      A scalar.

    Raises:
      ValueError: see `path_network`.

    >>> params = {"first": jnp.array([[2.0, -1.0]]), "second": jnp.array([[3.0], [-4.0]])}
    >>> def network(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> round(path_norm(network, params, jnp.zeros((1, 1))).item(), 4)  # sqrt(6^2 + 4^2)
    7.2111
    """
    powers = jax.tree.map(lambda leaf: jnp.abs(leaf) ** p if _is_weight(leaf) else leaf, params)
    outs = _outputs(fn, p, True, powers, params, inputs)
    shift = functools.reduce(jnp.maximum, [out.shift for out in outs])
    total = sum(jnp.sum(out.path) * jnp.exp(out.shift - shift) for out in outs)
    logarithm = (jnp.log(total) + shift) / p
    return logarithm if log else jnp.exp(logarithm)


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
) -> list[Signal]:
    jaxpr, _ = trace(fn, params, *inputs)
    network = PathNetwork(p, rescales)
    values: list[Value] = [
        Weight(raw, power) if _is_weight(raw) else Constant(raw)
        for raw, power in zip(jax.tree.leaves(params), jax.tree.leaves(powers), strict=True)
    ]
    values += [
        signal(jnp.ones(leaf.shape, leaf.dtype)) if _is_weight(leaf) else DATA for leaf in jax.tree.leaves(inputs)
    ]
    return [network.signal(out) for out in network.walk(jaxpr, values)]


def _is_weight(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
