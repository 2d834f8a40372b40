"""Convolutions and their derivatives, to be compared."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose

# The layout of inputs, kernels and results for which XLA has fast convolutions on CPUs.
FAST = ("NHWC", "HWIO", "NHWC")


def pair_of(convolution, options):
    """A convolution of ours and XLA's, of two arguments."""
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return tuple(partial(convolve, **options) for convolve in (convolution, lax.conv_general_dilated))


def arguments(inputs_shape, kernel_shape, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], inputs_shape), jax.random.normal(keys[1], kernel_shape)


def loss_of(convolve):
    return lambda inputs, kernel: jnp.sum(jnp.sin(convolve(inputs, kernel)) ** 2)


@partial(jax.jit, static_argnums=0)
def derivatives(convolve, args, directions):
    """Of a loss: its value and gradient, forward, forward over backward, backward over backward."""
    loss = loss_of(convolve)
    gradient = jax.grad(loss, argnums=(0, 1))
    backward_over_backward = jax.grad(lambda *args: sum(map(jnp.vdot, gradient(*args), directions)), (0, 1))(*args)
    return (
        jax.value_and_grad(loss, argnums=(0, 1))(*args),
        jax.jvp(loss, args, directions),
        jax.jvp(gradient, args, directions)[1],
        backward_over_backward,
    )


def assert_same(got, expected):
    for ours, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(ours, other, rtol=1e-12, atol=1e-12)


def assert_gradients_of_spread_batches(convolve):
    """Those of a batch that is spread explicitly over all devices are spread, and the same."""
    mesh = jax.make_mesh((jax.device_count(),), ("examples",), axis_types=(AxisType.Explicit,))
    inputs, kernel = arguments((2 * jax.device_count(), 5, 6, 3), (3, 3, 3, 2))
    gradient = jax.jit(jax.grad(loss_of(convolve), (0, 1)))
    expected = gradient(inputs, kernel)
    with jax.set_mesh(mesh):
        spread = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("examples")))
        got = gradient(spread, jax.device_put(kernel, NamedSharding(mesh, PartitionSpec())))
    assert got[0].sharding.spec[0] == "examples"
    assert_same(got, expected)
