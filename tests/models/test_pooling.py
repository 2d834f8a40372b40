"""Max-pooling with a derivative rule of its own, against that of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from pathspace.models.pooling import max_pool


def by_windows(inputs):
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(inputs, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def gradient(pool, inputs):
    def weighted_sum(inputs):
        pooled = pool(inputs)
        return jnp.sum(pooled * jnp.cos(jnp.arange(pooled.size)).reshape(pooled.shape))

    return jax.jit(jax.grad(weighted_sum))(inputs)


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (1, 4), (2, 1), (1, 1)])
def test_value_and_gradient_are_those_of_windows(x64, size):
    inputs = jax.random.normal(jax.random.key(0), (2, *size, 3), float)
    assert_array_equal(max_pool(inputs), by_windows(inputs))
    assert_array_equal(jax.jvp(max_pool, (inputs,), (inputs,))[0], by_windows(inputs))
    assert_allclose(gradient(max_pool, inputs), gradient(by_windows, inputs), rtol=1e-12)


def test_of_equal_pixels_the_first_one_gets_the_gradient(x64):
    inputs = jax.random.randint(jax.random.key(0), (3, 9, 8, 2), 0, 3).astype(float)
    assert_allclose(gradient(max_pool, inputs), gradient(by_windows, inputs), rtol=1e-12)


def test_derivatives_of_higher_order(x64):
    inputs = jax.random.normal(jax.random.key(0), (1, 5, 4, 1), float)
    check_grads(jax.jit(lambda inputs: max_pool(inputs) ** 3), (inputs,), order=2, modes=["fwd", "rev"])


def test_what_is_no_number_stays_visible():
    inputs = jnp.zeros((1, 8, 8, 1)).at[0, 3, 4].set(jnp.nan)
    value, _ = jax.jvp(max_pool, (inputs,), (inputs,))
    assert_array_equal(np.isnan(value), np.isnan(max_pool(inputs)))
    assert np.isnan(value).any()


def test_axes_of_batches(x64):
    inputs = jax.random.normal(jax.random.key(0), (2, 3, 6, 5, 2), float)
    one = jnp.stack([gradient(max_pool, each) for each in inputs])
    assert_allclose(jax.vmap(lambda inputs: gradient(max_pool, inputs))(inputs), one, rtol=1e-12)
    assert max_pool(inputs[0, 0]).shape == (3, 3, 2)
    assert_array_equal(max_pool(inputs), jnp.stack([max_pool(each) for each in inputs]))


def test_no_backward_pass_looks_for_the_largest_again():
    text = jax.jit(lambda inputs: gradient(max_pool, inputs)).lower(jnp.ones((1, 8, 8, 1))).compile().as_text()
    assert "reduce-window" not in text
