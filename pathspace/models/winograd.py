"""Convolutions with windows of 3 x 3 by Winograd's minimal filtering, F(4 x 4, 3 x 3).

Results are computed in tiles Y of 4 x 4, from tiles d of 6 x 6 inputs, which overlap, and the kernel g:

    Y = A^T ((G g G^T) * (B^T d B)) A

with the product * of entries, which is at each of the 36 a product of two matrices: that of the channels of all tiles
and that of the kernel. So 36 multiplications give 16 results, each of which takes 9 otherwise. With the points p_1 ...
p_5 and p_6 = infinity, where a polynomial has the value of its leading coefficient,

    (A^T)_ij = p_j^i        G_j = (1, p_j, p_j^2) / prod_k (p_j - p_k)        (B^T)_j = coefficients of prod_k (x - p_k)

over all k other than j. At the points 0, +-1/sqrt(2) and +-sqrt(2) rounding errors are .5 of those at the usual 0, +-1
and +-2: 5.8e-7 in float32, where results are about 1 and XLA's convolution has 1.9e-7 to 2.4e-7 (rms, 96 maps).

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), section 4; for the general points
Barabasz, Anderson, Soodhalter and Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
Neural Networks" (2020), section 3.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ..convolutions import convolution
from ..platforms import bilinear

# The products of numbers at each place of the window, and the channels of inputs and of results, from which on forward
# and backward pass are faster. Measured on two CPU cores in a loop, the time in comparison to `convolution`, for square
# images: 64 of 8 x 8 pixels and 32 maps, 4.2e6 products, .80; 2 of 16 x 16 and 96 maps, 4.7e6, 1.34; 16 of 8 x 8 and
# 96, 9.4e6, .68; 64 of 16 x 16 and 16, 24, 32, 64, 96 and 160 maps 1.10, .71, .70, .56, .60 and .51; 64 of 32 x 32 and
# 16 and 96 maps 1.10 and .70; 64 of 14 x 14, not a multiple of 4, and 32 maps 1.05.
_MANY = 2**23
_WIDE = 24

_LAYOUTS = ("NHWC", "HWIO", "NHWC")

_Padding = Sequence[tuple[int, int]]


def _transforms(*points: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T, G and B^T."""
    size = len(points) + 1
    of_products, of_kernel, of_inputs = np.zeros((size - 2, size)), np.zeros((size, 3)), np.zeros((size, size))
    of_products[-1, -1] = of_kernel[-1, -1] = 1
    of_inputs[-1] = np.poly(points)[::-1]
    for index, point in enumerate(points):
        others = np.delete(points, index)
        of_products[:, index] = point ** np.arange(size - 2)
        of_kernel[index] = point ** np.arange(3) / np.prod(point - others)
        of_inputs[index, :-1] = np.poly(others)[::-1]
    # Points of opposite signs cancel each other, but for rounding.
    of_inputs[abs(of_inputs) < 1e-12] = 0
    return of_products, of_kernel, of_inputs


_OF_PRODUCTS, _OF_KERNEL, _OF_INPUTS = _transforms(0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
_TILE = len(_OF_PRODUCTS)


def winograd_convolution(
    inputs: Array, kernel: Array, window_strides: Any, padding: Any, *, dimension_numbers: Any = None, **options: Any
) -> Array:
    """`convolution`; where large ones with windows of 3 x 3 are differentiated, CPUs take fewer multiplications.

    Errors are relative to the largest inputs of a tile, not to each result: right for training, not for path values.
    Each takes more than a second to compile, forward and backward. Left to `convolution` are those with strides,
    dilations, groups or a chosen precision, those of other layouts than NHWC, HWIO and NHWC, and those of less than 32
    bits.

    May be the `conv_general_dilated` of an `nnx.Conv`.
    """
    given = {"window_strides": window_strides, "padding": padding, "dimension_numbers": dimension_numbers, **options}
    has_options = any(value not in (None, 1, (1, 1)) for value in (tuple(window_strides), *options.values()))
    if has_options or not _is_covered(inputs, kernel, dimension_numbers):
        return convolution(inputs, kernel, **given)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], (3, 3), (1, 1), padding)
    sizes = _sizes(inputs, padding)
    if len(inputs) * math.prod(sizes) * math.prod(kernel.shape[2:]) <= _MANY:
        return convolution(inputs, kernel, **given)

    by_tiles, tangent_by_tiles = (
        functools.partial(function, padding=tuple(padding)) for function in (_by_tiles, _tangent_by_tiles)
    )
    # The terms of the inputs, more than twice as large as they, would be kept for the backward pass.
    in_kernel = jax.checkpoint(by_tiles, prevent_cse=False)
    default = functools.partial(lax.conv_general_dilated, **given)
    return bilinear(default, by_tiles, tangent_by_tiles, in_kernel)(inputs, kernel)


def _is_covered(inputs: Array, kernel: Array, dimension_numbers: Any) -> bool:
    if inputs.ndim != 4 or kernel.shape[:2] != (3, 3) or min(kernel.shape[2:]) < _WIDE:
        return False
    given, covered = (
        lax.conv_dimension_numbers(inputs.shape, kernel.shape, numbers) for numbers in (dimension_numbers, _LAYOUTS)
    )
    return given == covered and inputs.dtype == kernel.dtype and inputs.dtype in (jnp.float32, jnp.float64)


def _sizes(inputs: Array, padding: _Padding) -> list[int]:
    """Of the images of the results."""
    return [size + low + high - 2 for size, (low, high) in zip(inputs.shape[1:3], padding, strict=True)]


@functools.partial(jax.jit, static_argnames="padding")
def _by_tiles(inputs: Array, kernel: Array, padding: _Padding) -> Array:
    height, width = sizes = _sizes(inputs, padding)
    # The last tiles may reach beyond the results.
    widths = [(low, high + (-size) % _TILE, 0) for (low, high), size in zip(padding, sizes, strict=True)]
    padded = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *widths, (0, 0, 0)])
    rows = []
    for input_row, kernel_row in zip(_input_terms(padded, 1), _kernel_terms(kernel), strict=True):
        row = list(map(_product, _input_terms(input_row, 2), _kernel_terms(kernel_row)))
        rows.append(_results(row, axis=2))
    return _results(rows, axis=1)[:, :height, :width]


@functools.partial(jax.jit, static_argnames="padding")
def _tangent_by_tiles(inputs: Array, kernel: Array, padding: _Padding) -> Array:
    """The same, whose transpose, in the inputs, is by tiles too: the convolution with the kernel turned around."""
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    opposite = tuple((2 - low, 2 - high) for low, high in padding)
    results = jax.ShapeDtypeStruct((len(inputs), *_sizes(inputs, padding), kernel.shape[3]), inputs.dtype)
    (tangent,) = jax.linear_transpose(lambda results: _by_tiles(results, turned, opposite), results)(inputs)
    return tangent


def _input_terms(padded: Array, axis: int) -> list[Array]:
    """B^T d along one axis, for all tiles: every fourth window of six is one."""
    reach = padded.shape[axis] - len(_OF_INPUTS) + 1
    windows = [lax.slice_in_dim(padded, place, place + reach, _TILE, axis) for place in range(len(_OF_INPUTS))]
    return _combined(_OF_INPUTS, windows)


def _kernel_terms(kernel: Array) -> list[Array]:
    """G g along the first axis."""
    return _combined(_OF_KERNEL, list(kernel))


def _product(inputs: Array, matrix: Array) -> Array:
    # Of two matrices: the gradient of a product of more axes has another layout, and takes 2.6 times as long.
    return (inputs.reshape(-1, len(matrix)) @ matrix).reshape(*inputs.shape[:-1], -1)


def _results(products: Sequence[Array], axis: int) -> Array:
    """A^T m along one axis, tile after tile."""
    return lax.collapse(jnp.stack(_combined(_OF_PRODUCTS, products), axis + 1), axis, axis + 2)


def _combined(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """The product of a matrix with a vector of arrays."""
    return [
        functools.reduce(jnp.add, (float(factor) * part for factor, part in zip(row, parts, strict=True) if factor))
        for row in matrix
    ]
