"""Formulas that are equal, of which one kind of device computes one faster than the other."""

from collections.abc import Callable

import jax
from jax import lax
from jaxtyping import Array


def by_platform(cpu: Callable[..., Array], default: Callable[..., Array], inputs: Array, kernel: Array) -> Array:
    """The one function on CPUs, but not where axes of the inputs are spread explicitly, and the other elsewhere."""
    if any(jax.typeof(inputs).sharding.spec):
        return default(inputs, kernel)
    return lax.platform_dependent(inputs, kernel, cpu=cpu, default=default)
