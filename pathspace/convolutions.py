"""Convolutions with a derivative rule of their own."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from .platforms import bilinear

# Products of numbers, at each place of the window, from which on the gradient of a kernel is faster as a matrix product
# for each place. Measured on two CPU cores, the time of that in comparison to the convolution's for windows of 3 x 3:
# 16 images of 14 x 14 pixels and 16 maps, 8e5 products, 2.3; 64 of 8 x 8 and 32 maps, 4.2e6, 1.2; 64 of 16 x 16 and 16,
# 32, 96 and 160 maps .67, .56, .62 and .44; 64 of 32 x 32 and 96 maps .43.
_MANY = 2**22


def convolution(inputs: Array, kernel: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated`, whose gradients are fast in loops on CPUs.

    There XLA has fast convolutions for one layout of inputs, kernels and results alone: NHWC, HWIO and NHWC for images.
    It transposes those of the gradients into it only where they lie outside of all loops. The tangents here are
    convolutions of transposed arrays, whose own transposes have that layout, or, for the kernels of large convolutions,
    products of matrices. Measured on two cores, a training step in a loop takes .10 of the time for 16 images of
    14 x 14 pixels and 16 maps, .01 for 64 images of 16 x 16 pixels and 96 maps. Convolutions in groups have the
    gradients of JAX.

    May be the `conv_general_dilated` of an `nnx.Conv`.
    """
    given = _layouts(lax.conv_dimension_numbers(inputs.shape, kernel.shape, options.pop("dimension_numbers", None)))
    convolve: Callable[..., Array] = functools.partial(
        lax.conv_general_dilated, window_strides=window_strides, padding=padding, dimension_numbers=given, **options
    )
    if options.get("feature_group_count", 1) * options.get("batch_group_count", 1) > 1:
        return convolve(inputs, kernel)

    def by_layouts(*wanted: str) -> Callable[..., Array]:
        def with_transposed(inputs: Array, kernel: Array) -> Array:
            inputs, kernel = map(_transposed, (inputs, kernel), given, wanted[:2])
            return _transposed(convolve(inputs, kernel, dimension_numbers=wanted), wanted[2], given[2])

        return with_transposed

    def by_products(inputs: Array, kernel: Array) -> Array:
        sizes = [size_of[axis] for axis in axes]
        inputs, kernel = _transposed(inputs, given[0], f"N{axes}C"), _transposed(kernel, given[1], f"{axes}IO")
        result = _sum_of_products(inputs, kernel, sizes, window_strides, padding, **options)
        return _transposed(result, f"N{axes}C", given[2])

    axes = "".join(map(str, range(inputs.ndim - 2)))
    size_of = dict(zip(given[2], jax.eval_shape(convolve, inputs, kernel).shape, strict=True))
    products = math.prod(size_of.values()) * kernel.shape[given[1].index("I")]
    linear_in_inputs = by_layouts(f"N{axes}C", f"{axes}OI", f"N{axes}C")
    linear_in_kernel = by_products if products > _MANY else by_layouts(f"C{axes}N", f"I{axes}O", f"{axes}NC")

    return bilinear(convolve, convolve, linear_in_inputs, linear_in_kernel)(inputs, kernel)


def _sum_of_products(
    inputs: Array,
    kernel: Array,
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    **_others: Any,
) -> Array:
    """The convolution of inputs of layout N...C, kernels of ...IO and results of N...C and of `sizes`."""
    (batch, *_, channels), (*window, _, features) = inputs.shape, kernel.shape
    steps = rhs_dilation or [1] * len(sizes)
    if isinstance(padding, str):
        reach = [(size - 1) * step + 1 for size, step in zip(window, steps, strict=True)]
        padding = lax.padtype_to_pads(inputs.shape[1:-1], reach, strides, padding)
    apart = [dilation - 1 for dilation in lhs_dilation or [1] * len(sizes)]
    edges = [(*pair, between) for pair, between in zip(padding, apart, strict=True)]
    padded = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *edges, (0, 0, 0)])

    starts = [
        [0, *(index * step for index, step in zip(place, steps, strict=True)), 0] for place in np.ndindex(*window)
    ]
    seen = [(size - 1) * stride + 1 for size, stride in zip(sizes, strides, strict=True)]

    # What is seen from all places at once would be many times the inputs.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(total: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
        start, matrix = place
        part = lax.dynamic_slice(padded, list(start), (batch, *seen, channels))
        flat = lax.slice(part, [0] * part.ndim, part.shape, (1, *strides, 1)).reshape(-1, channels)
        return total + lax.dot(flat, matrix, precision=precision, preferred_element_type=preferred_element_type), None

    dtype = preferred_element_type or jnp.result_type(inputs)
    total = jnp.zeros((batch * math.prod(sizes), features), dtype)
    matrices = kernel.reshape(-1, channels, features)
    total, _ = lax.scan(add, total, (np.array(starts), matrices))
    return total.reshape(batch, *sizes, features)


def _layouts(numbers: lax.ConvDimensionNumbers) -> tuple[str, str, str]:
    """Of inputs, kernels and results, a letter or the number of a spatial dimension for each axis."""

    def named(spec: Sequence[int], letters: str) -> str:
        names = dict(zip(spec, [*letters, *range(len(spec) - 2)], strict=True))
        return "".join(str(names[axis]) for axis in range(len(spec)))

    return named(numbers.lhs_spec, "NC"), named(numbers.rhs_spec, "OI"), named(numbers.out_spec, "NC")


def _transposed(array: Array, given: str, wanted: str) -> Array:
    return array.transpose([given.index(axis) for axis in wanted])
