"""Initializers of recurrent layers."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

Initializer = Callable[[PRNGKeyArray, tuple[int, ...], DTypeLike], Array]


class Start(NamedTuple):
    """Initializers of the three kinds of kernel."""

    input: Initializer
    recurrent: Initializer
    readout: Initializer


def starts(uniform_scale: float, recurrent_scale: float | None) -> dict[str, Start]:
    """The starts that `ReluRNN` describes, by name."""
    glorot = nnx.initializers.glorot_uniform()
    small = nnx.initializers.normal(0.001)
    bounded = uniform(uniform_scale)
    return {
        "glorot": Start(glorot, glorot, glorot),
        "identity": Start(small, _identity, small),
        "np_rnn": Start(
            _np_rnn_input,
            _normalized_positive_definite,
            nnx.initializers.variance_scaling(1.0, "fan_avg", "normal"),
        ),
        "uniform": Start(bounded, _identity if recurrent_scale is None else uniform(recurrent_scale), bounded),
    }


def uniform(scale: float) -> Initializer:
    """U(+-scale)."""

    def initializer(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return jax.random.uniform(key, shape, dtype, minval=-scale, maxval=scale)

    return initializer


def _identity(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.eye(shape[0], dtype=dtype)


def _np_rnn_input(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    units = shape[-1]
    alpha = math.sqrt(2) * math.exp(1.2 / (max(units, 6) - 2.4))
    return alpha / units * jax.random.normal(key, shape, dtype)


def _normalized_positive_definite(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    units = shape[-1]
    # Half precision is too coarse for this, and `float` alone would promote as a weak type.
    at_least_single = jnp.promote_types(jax.dtypes.canonicalize_dtype(dtype), jnp.float32)
    random = jax.random.normal(key, shape, at_least_single)
    shifted = random.T @ random / units + jnp.eye(units, dtype=random.dtype)
    return (shifted / _largest_eigenvalue(shifted)).astype(dtype)


def _largest_eigenvalue(matrix: Float[Array, "units units"]) -> Float[Array, ""]:
    """Of a positive definite matrix: the limit of the norm of its 2^k-th power, to the power 1 / 2^k."""
    # Not `eigvalsh`: under `vmap` on several CPU devices at once, XLA's calls of LAPACK wait for each other forever.

    def square(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        power, log_eigenvalue = carry
        norm = jnp.linalg.norm(power)
        return jnp.matmul(power / norm, power / norm, precision="highest"), log_eigenvalue + jnp.log(norm) / 2.0**step

    return jnp.exp(jax.lax.fori_loop(0, 30, square, (matrix, jnp.zeros((), matrix.dtype)))[1])
