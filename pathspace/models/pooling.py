"""Max-pooling with a derivative rule of its own."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..platforms import by_platform


@jax.custom_jvp
def max_pool(
    inputs: Float[Array, "*batch height width maps"],
) -> Float[Array, "*batch pooled_height pooled_width maps"]:
    """The largest value in each window of 3 x 3 pixels, with stride 2 and one pixel of padding.

    On CPUs, XLA looks for the largest value of each window once more in the backward pass, pixel by pixel, and adds its
    gradient there. Here, windows are pooled along one axis after the other, from the pixels with even and with odd
    places, so that gradients are selected by comparisons of whole arrays. Measured on two cores, forward and backward
    pass take .26 of the time for 64 images of 32 x 32 pixels and 96 maps. Where several pixels are the largest, the
    gradient is that of the first one in both ways.
    """
    return _by_windows(inputs)


@max_pool.defjvp
def _max_pool_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    def differentiated(inputs: Array, tangents: Array) -> tuple[Array, Array]:
        return jax.jvp(_by_windows, (inputs,), (tangents,))

    return by_platform(_by_axes, differentiated, *primals, *tangents)


def _by_windows(inputs: Array) -> Array:
    # Flax's own takes no padding with several batch axes.
    batch_axes = inputs.ndim - 3
    window, strides = ((1,) * batch_axes + (size, size, 1) for size in (3, 2))
    padding = [(0, 0)] * batch_axes + [(1, 1), (1, 1), (0, 0)]
    return lax.reduce_window(inputs, -jnp.inf, lax.max, window, strides, padding)


def _by_axes(inputs: Array, tangents: Array) -> tuple[Array, Array]:
    for axis in (inputs.ndim - 2, inputs.ndim - 3):
        inputs, tangents = _along(axis, inputs, tangents)
    return inputs, tangents


def _along(axis: int, inputs: Array, tangents: Array) -> tuple[Array, Array]:
    """Pooled along one axis."""
    largest, *others = _pixels(axis, inputs, -jnp.inf)
    tangent, *other_tangents = _pixels(axis, tangents, 0.0)
    for other, other_tangent in zip(others, other_tangents, strict=True):
        is_larger = (other > largest) | jnp.isnan(other)
        largest = jnp.where(is_larger, other, largest)
        tangent = jnp.where(is_larger, other_tangent, tangent)
    return largest, tangent


def _pixels(axis: int, inputs: Array, outside: float) -> tuple[Array, Array, Array]:
    """The pixels before those with even places, these, and those behind them."""

    def padded(array: Array, before: int, behind: int) -> Array:
        widths = [(0, 0, 0)] * array.ndim
        widths[axis] = (before, behind, 0)
        return lax.pad(array, jnp.asarray(outside, array.dtype), widths)

    inputs = padded(inputs, 0, inputs.shape[axis] % 2)
    shape = (*inputs.shape[:axis], inputs.shape[axis] // 2, 2, *inputs.shape[axis + 1 :])
    pairs = inputs.reshape(shape)
    even, odd = (lax.index_in_dim(pairs, place, axis + 1, keepdims=False) for place in (0, 1))
    return padded(odd, 1, -1), even, odd
