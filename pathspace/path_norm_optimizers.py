"""Optax transformations that measure steps with the path-norm."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree
from optax._src.base import NO_PARAMS_MSG  # Optax does not export its own message

from .finiteness import saturated
from .trees import as_arrays, check_alike, check_arrays


class PathKappaState(NamedTuple):
    """State of `scale_by_path_kappa`.

    Attributes:
      num_updates: int32.
      kappa: of the last update that computed it; None where each does.
      ratio: float32, the constant factor of all updates; 1 unless it is set by the first.

    Source: ours.

    >>> from pathspace import path_kappa
    >>> params = {"first": jnp.ones((1, 2)), "second": jnp.ones((2, 1))}
    >>> network = lambda params, x: jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> scale = scale_by_path_kappa(lambda params: path_kappa(network, params, jnp.zeros((1, 1))), every=10)
    >>> _, state = scale.update(params, scale.init(params), params)
    >>> state.num_updates.item(), state.kappa["first"].tolist()
    (1, [[1.0, 1.0]])
    """

    num_updates: Int[Array, ""]
    kappa: PyTree | None
    ratio: Float[Array, ""]


def scale_by_path_kappa(
    kappa_fn: Callable[[PyTree], PyTree],
    *,
    every: int = 1,
    max_norm: ArrayLike | None = None,
    ratio: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divide the gradient by kappa, the curvature of the path-norm along each weight; 0 where kappa is 0.

    Steps along the result commute with node-wise rescaling. So they do with `max_norm` and with the ratio `"weights"`,
    for these work with norms that rescaling does not change:

        |w| = sqrt(sum kappa w^2),    |g| = sqrt(sum g^2 / kappa)

    of weights and gradients. With both, no step of `path_sgd` is longer than learning_rate max_norm |w|.

    Args:
      kappa_fn: from parameters to a tree like them: `lambda params: path_kappa(fn, params, *inputs)`.
      every: compute kappa anew in every so many updates only (under `jax.vmap` it is computed in each, and used as
        seldom).
      max_norm: limit of the gradient's norm |g|, which scales it down before the division.
      ratio: `"initial"` multiplies all updates by the constant that gives the first one the (Euclidean) norm of the
        gradient; `"weights"` multiplies each by |w|, so that learning rates are relative to the weights.

    Returns:
      A transformation whose update needs `params`. Finite gradients give finite updates: what overflows the dtype is
      saturated, and where |w| overflows, no weight moves.

    Raises:
      ValueError: `every` below 1; an unknown `ratio`; in `init` and `update`, leaves that are no arrays of numbers; in
        `update`, missing params, updates or kappas that are not like params.

    Source: Neyshabur et al., "Path-Normalized Optimization of Recurrent Neural Networks with ReLU Activations" (2016),
    equation 7. `max_norm` and the ratio `"weights"` are ours.

    >>> from pathspace import path_kappa
    >>> params = {"first": jnp.ones((1, 2)), "second": jnp.ones((2, 1))}
    >>> network = lambda params, x: jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> scale = scale_by_path_kappa(lambda params: path_kappa(network, params, jnp.zeros((1, 1))))
    >>> updates, state = scale.update(params, scale.init(params), params)
    >>> updates["first"].tolist()
    [[1.0, 1.0]]
    """
    if every < 1:
        raise ValueError(f"expected every to be 1 or more updates, got {every}.")
    if ratio not in ("initial", "weights", None):
        raise ValueError(f"ratio is 'initial', 'weights' or None, got {ratio!r}.")

    def measure(params: PyTree) -> PyTree:
        kappa = as_arrays(kappa_fn(params), numbers=True)
        check_alike(kappa, params, "the kappas of kappa_fn")
        return jax.tree.map(lambda k, w: k.astype(_wide(w)), kappa, params)

    def init(params: PyTree) -> PathKappaState:
        check_arrays(params, numbers=True)
        kappa = None if every == 1 else jax.tree.map(lambda leaf: jnp.zeros_like(leaf, _wide(leaf)), params)
        return PathKappaState(jnp.zeros((), jnp.int32), kappa, jnp.ones((), jnp.float32))

    def update(
        updates: PyTree, state: PathKappaState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PathKappaState]:
        if params is None:
            raise ValueError(NO_PARAMS_MSG)
        updates, params = as_arrays(updates, numbers=True), as_arrays(params, numbers=True)
        check_alike(updates, params, "the updates")
        if every == 1:
            kappa = measure(params)
        else:
            kappa = jax.lax.cond(state.num_updates % every == 0, measure, lambda params: state.kappa, params)
        divided = jax.tree.map(_divided, updates, kappa)
        initial = state.ratio
        if ratio == "initial":
            wide = jax.tree.map(lambda d, g: g.astype(d.dtype), divided, updates)
            first = _quotient(_norm(wide), _norm(divided))
            is_set = (state.num_updates == 0) & jnp.isfinite(first)
            initial = jnp.where(is_set, first, state.ratio).astype(jnp.float32)
        factor = initial
        roots = jax.tree.map(lambda k: jnp.sqrt(jnp.maximum(k, 0)), kappa)
        if ratio == "weights":
            norm = _norm(jax.tree.map(_multiplied, params, roots))
            factor *= jnp.where(jnp.isinf(norm), 0, norm)
        if max_norm is not None:
            factor *= jnp.minimum(1, _quotient(max_norm, _norm(jax.tree.map(_divided, updates, roots))))
        scaled = jax.tree.map(lambda d, g: _update(factor * d, g), divided, updates)
        kept = None if every == 1 else kappa
        return scaled, PathKappaState(optax.safe_increment(state.num_updates), kept, initial)

    return optax.GradientTransformationExtraArgs(init, update)


def path_sgd(
    learning_rate: optax.ScalarOrSchedule,
    kappa_fn: Callable[[PyTree], PyTree],
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    *,
    every: int = 1,
    max_norm: ArrayLike | None = None,
    ratio: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Path-SGD: w <- w - learning_rate (dL/dw) / kappa.

    Args:
      learning_rate: a number or a schedule.
      kappa_fn: see `scale_by_path_kappa`.
      momentum: decay of the momentum, as in `optax.sgd`. The commutation with rescaling is that of plain steps.
      nesterov: whether the momentum is Nesterov's.
      every: see `scale_by_path_kappa`.
      max_norm: see `scale_by_path_kappa`.
      ratio: see `scale_by_path_kappa`.

    Source: Neyshabur et al., "Path-Normalized Optimization of Recurrent Neural Networks with ReLU Activations" (2016),
    equation 7 and Theorem 2.

    >>> from pathspace import path_kappa
    >>> params = {"first": jnp.ones((1, 2)), "second": jnp.ones((2, 1))}
    >>> network = lambda params, x: jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> optimizer = path_sgd(0.5, lambda params: path_kappa(network, params, jnp.zeros((1, 1))))
    >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    >>> updates["first"].tolist()
    [[-0.5, -0.5]]
    """
    return optax.chain(
        scale_by_path_kappa(kappa_fn, every=every, max_norm=max_norm, ratio=ratio),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )


def path_adam(
    learning_rate: optax.ScalarOrSchedule,
    kappa_fn: Callable[[PyTree], PyTree],
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    every: int = 1,
    max_norm: ArrayLike | None = None,
    ratio: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The Path-SGD gradient as Adam's input. Adam's division takes the invariance to rescaling away again.

    Args:
      learning_rate: a number or a schedule.
      kappa_fn: see `scale_by_path_kappa`.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      every: see `scale_by_path_kappa`.
      max_norm: see `scale_by_path_kappa`.
      ratio: see `scale_by_path_kappa`.

    Source: Neyshabur et al., "Path-Normalized Optimization of Recurrent Neural Networks with ReLU Activations" (2016),
    section 5.3.

    >>> from pathspace import path_kappa
    >>> params = {"first": jnp.ones((1, 2)), "second": jnp.ones((2, 1))}
    >>> network = lambda params, x: jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> optimizer = path_adam(1e-3, lambda params: path_kappa(network, params, jnp.zeros((1, 1))))
    >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    """
    return optax.chain(
        scale_by_path_kappa(kappa_fn, every=every, max_norm=max_norm, ratio=ratio),
        optax.adam(learning_rate, b1=b1, b2=b2, eps=eps),
    )


def _divided(grad: Array, kappa: Array) -> Array:
    """Without overflow; 0 where kappa is 0."""
    quotient = grad.astype(kappa.dtype) / jnp.where(kappa > 0, kappa, 1)
    return jnp.where(kappa > 0, saturated(quotient, kappa.dtype), 0)


def _multiplied(weight: Array, root: Array) -> Array:
    """0 where the weight is 0, whatever it is multiplied by."""
    return jnp.where(weight == 0, 0, weight.astype(root.dtype) * root)


def _update(value: Array, grad: Array) -> Array:
    """In the gradient's dtype, without overflow; where the gradient is not finite it stays so, for others to see."""
    if not jnp.issubdtype(grad.dtype, jnp.floating):
        return value.astype(grad.dtype)
    return jnp.where(jnp.isfinite(grad), saturated(value, grad.dtype).astype(grad.dtype), grad)


def _norm(tree: PyTree) -> Array:
    """The Euclidean norm, however large or small its squares are."""
    sizes = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)]
    largest = functools.reduce(jnp.maximum, sizes, jnp.zeros(()))
    # XLA divides by a number of all entries by multiplying with its reciprocal, which should not underflow.
    unit = jnp.where(largest > 0, jnp.minimum(largest, 1 / jnp.finfo(largest.dtype).tiny), 1)
    return unit * optax.tree.norm(jax.tree.map(lambda leaf: leaf / unit, tree))


def _quotient(dividend: ArrayLike, divisor: Array) -> Array:
    """1 where the divisor is 0."""
    return jnp.where(divisor > 0, dividend / jnp.where(divisor > 0, divisor, 1), 1)


def _wide(leaf: Any) -> Any:
    dtype = jnp.result_type(leaf)
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
