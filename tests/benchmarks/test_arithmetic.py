"""Counting the operations of programs."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.arithmetic import product_operations, product_rate

PRODUCT = 2 * 3 * 5 * 7


def multiply(a, b):
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())))


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (multiply, PRODUCT),
        (jax.jit(multiply), PRODUCT),
        (jax.checkpoint(multiply), PRODUCT),
        (lambda a, b: jnp.einsum("ij,jk->ik", a, b) + a.sum(), PRODUCT),
        (lambda a, b: jax.lax.scan(lambda s, _: (s + multiply(a, b), None), jnp.zeros((3, 7)), length=6), 6 * PRODUCT),
        (lambda a, b: jax.lax.cond(a[0, 0] > 0, multiply, lambda a, b: multiply(a, b) + a @ b, a, b), 2 * PRODUCT),
        (lambda a, b: jax.lax.platform_dependent(a, b, cpu=multiply, default=lambda a, b: a @ b @ b.T @ b), PRODUCT),
        (lambda a, b: jax.lax.platform_dependent(a, b, cuda=lambda a, b: a @ b @ b.T @ b, default=multiply), PRODUCT),
        (jax.grad(lambda a, b: multiply(a, b).sum(), argnums=(0, 1)), 2 * PRODUCT),  # the forward pass is dead code
        (lambda a, b: a.sum() * b, 0),
        (lambda a, b: jax.lax.while_loop(lambda a: a.sum() < 0, lambda a: a + 1, a), 0),
    ],
)
def test_products_are_counted(function, operations):
    assert product_operations(function, jnp.ones((3, 5)), jnp.ones((5, 7))) == operations


def test_mapped_products_are_counted():
    assert (
        product_operations(jax.vmap(multiply, in_axes=(None, 0)), jnp.ones((3, 5)), jnp.ones((4, 5, 7))) == 4 * PRODUCT
    )


def test_convolutions_are_counted():
    images, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 3, 4))

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )

    assert product_operations(convolve, images, kernel) == 2 * (2 * 8 * 8 * 4) * (3 * 3 * 3)


def test_loops_of_unknown_length_are_named():
    def function(a):
        return jax.lax.while_loop(lambda a: a.sum() < 9, lambda a: a @ a, a)

    with pytest.raises(ValueError, match="expected loops of known length around products, got a while loop"):
        product_operations(function, jnp.ones((2, 2)))


def test_machine_multiplies():
    assert product_rate() > 1e8
