"""Convolutions with a derivative rule of their own, against XLA's."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax
from numpy.testing import assert_array_equal

from pathspace import convolutions
from pathspace.convolutions import convolution
from tests.convolving import (
    FAST,
    arguments,
    assert_gradients_of_spread_batches,
    assert_same,
    derivatives,
    loss_of,
    pair_of,
)
from tests.jaxprs import equations

# Shapes of inputs and kernel, and options of `jax.lax.conv_general_dilated`.
CASES = {
    "same": ((4, 5, 6, 3), (3, 3, 3, 2), {"dimension_numbers": FAST}),
    "strides": ((2, 7, 6, 2), (3, 2, 2, 3), {"dimension_numbers": FAST, "window_strides": (2, 3)}),
    "padding": ((2, 5, 4, 1), (2, 3, 1, 2), {"dimension_numbers": FAST, "padding": ((0, 2), (1, -1))}),
    "dilation": ((2, 6, 7, 2), (2, 3, 2, 3), {"dimension_numbers": FAST, "rhs_dilation": (2, 1), "padding": "VALID"}),
    "dilated_inputs": (
        (2, 4, 3, 2),
        (3, 3, 2, 1),
        {"dimension_numbers": FAST, "lhs_dilation": (1, 2), "padding": ((1, 1),) * 2},
    ),
    "default_layout": ((2, 3, 5, 4), (2, 3, 3, 3), {}),
    "mixed_layout": (
        (3, 5, 2, 4),
        (2, 3, 3, 3),
        {"dimension_numbers": ("CHNW", "OWHI", "WCNH"), "window_strides": (1, 2)},
    ),
    "one_dimension": ((2, 6, 3), (3, 3, 2), {"dimension_numbers": ("NWC", "WIO", "NWC"), "window_strides": (1,)}),
    "three_dimensions": (
        (2, 3, 4, 3, 2),
        (2, 3, 2, 2, 1),
        {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC"), "window_strides": (1, 2, 1)},
    ),
    "groups": ((2, 5, 4, 4), (3, 3, 2, 6), {"dimension_numbers": FAST, "feature_group_count": 2}),
    "groups_of_the_batch": ((4, 5, 4, 2), (3, 3, 2, 6), {"dimension_numbers": FAST, "batch_group_count": 2}),
}


pair = partial(pair_of, convolution)


@pytest.mark.parametrize("many", [0, 2**22])
@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_xlas_convolution(x64, monkeypatch, case, many):
    monkeypatch.setattr(convolutions, "_MANY", many)
    *shapes, options = CASES[case]
    args, directions = arguments(*shapes), arguments(*shapes, seed=1)
    ours, plain = pair(options)
    assert_array_equal(ours(*args), plain(*args))

    assert_same(derivatives(ours, args, directions), derivatives(plain, args, directions))


def test_gradients_of_a_batch_of_networks(x64):
    *shapes, options = CASES["same"]
    args = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arguments(*shapes, seed) for seed in range(3)))
    ours, plain = (jax.vmap(jax.grad(loss_of(convolve), (0, 1)))(*args) for convolve in pair(options))
    assert_same(ours, plain)


def test_as_the_convolution_of_a_flax_module(x64):
    def gradients(**options):
        make = partial(nnx.Conv, 3, 4, (3, 3), strides=2, dtype=float, param_dtype=float, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(make(**options))
        images, _ = arguments((2, 2, 5, 6, 3), ())
        return jax.grad(lambda params: jnp.sum(nnx.merge(graphdef, params)(images) ** 2))(params)

    assert_same(gradients(conv_general_dilated=convolution), gradients())


def layouts(jaxpr):
    """Of all convolutions."""
    for eqn in equations(jaxpr):
        if eqn.primitive.name == "conv_general_dilated":
            yield eqn.params["dimension_numbers"]


@pytest.mark.parametrize("case", ["same", "strides", "dilation"])
def test_convolutions_of_the_gradients_have_the_fast_layout(lowered_for_cpus, case):
    *shapes, options = CASES[case]

    def of_gradient(convolve):
        return set(layouts(jax.make_jaxpr(jax.grad(loss_of(convolve), (0, 1)))(*arguments(*shapes)).jaxpr))

    ours, plain = map(of_gradient, pair(options))
    assert ours == {lax.conv_dimension_numbers((1,) * 4, (1,) * 4, FAST)}
    assert len(plain) == 3


def test_gradients_of_the_kernels_of_large_convolutions_are_products(monkeypatch, lowered_for_cpus):
    monkeypatch.setattr(convolutions, "_MANY", 4 * 5 * 6 * 3 * 2 - 1)
    *shapes, options = CASES["same"]
    ours, _ = pair(options)
    of_kernel = str(jax.make_jaxpr(jax.grad(loss_of(ours), 1))(*arguments(*shapes)))
    assert " length=9\n" in of_kernel
    assert of_kernel.count("= dot_general[") == of_kernel.count("= conv_general_dilated[") == 1


def test_batches_that_are_spread_explicitly(x64):
    assert_gradients_of_spread_batches(pair(CASES["same"][-1])[0])
