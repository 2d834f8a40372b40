"""Numbers that leave the range of their dtype, and numbers that are not finite."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def saturated(value: Array, dtype: Any) -> Array:
    """The value within the range of a dtype that is not wider than its own."""
    largest = jnp.finfo(dtype).max.astype(value.dtype)
    return jnp.clip(value, -largest, largest)


def nan_where_not_finite(value: Array, inputs: Array) -> Array:
    """The value, but NaN where the inputs are not finite, for others to see.

    In a loop over all weights these are fewer operations than a selection by `isfinite`.
    """
    return value + 0 * inputs
