"""A limit on the norms of the rows of weight matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree
from optax._src.base import NO_PARAMS_MSG  # Optax does not export its own message


def max_row_norm(max_norm: float = 10.0) -> optax.GradientTransformationExtraArgs:
    """Keep the incoming weights of each target at a Euclidean norm of at most `max_norm`.

    Projects the updated weights of every leaf with two axes or more, and returns the step to the projection, so it
    comes last in a chain:

        w <- w min(1, max_norm / |w|),    |w| over all axes but the last

    which for matrices that are written with their targets first is the norm of a row. Leaves with fewer axes, and
    those that `optax.masked` keeps from it, may take any value.

    Args:
        max_norm: the limit.

    Returns:
        A transformation without state, whose update needs `params`.

    Raises:
        ValueError: a limit of 0 or below; in `update`, missing params.

    Source: Miceli Barone, "Low-rank passthrough neural networks" (2016), appendix A.2.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from pathspace.models import max_row_norm
        >>> optimizer = optax.chain(optax.rmsprop(1e-3), max_row_norm(10.0))
        >>> params = {"kernel": jnp.full((4, 2), 100.0)}
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"][0].tolist()
        [5.0, 5.0]
    """
    if max_norm <= 0:
        raise ValueError(f"expected a max_norm above 0, got {max_norm}")

    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, optax.EmptyState]:
        del extra_args
        if params is None:
            raise ValueError(NO_PARAMS_MSG)
        return jax.tree.map(step, updates, params), state

    def step(update: Array, weights: Array) -> Array:
        if jnp.ndim(weights) < 2:
            return update
        updated = weights.astype(wide := jnp.promote_types(weights.dtype, jnp.float32)) + update.astype(wide)
        return (jax.vmap(project, -1, -1)(updated) - weights.astype(wide)).astype(update.dtype)

    def project(weights: Float[Array, "*sources"]) -> Float[Array, "*sources"]:
        return optax.projections.projection_l2_ball(weights, max_norm)

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
