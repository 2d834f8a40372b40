"""The recurrence with a derivative rule of its own, against the plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pathspace.models import relu_recurrence
from pathspace.models.relu_recurrence import relu_states
from pathspace.tracing.compat import scan_sizes
from tests.jaxprs import equations


def plain_states(projected, kernel, first, unroll):
    def step(state, projected):
        state = jax.nn.relu(projected + state @ kernel)
        return state, state

    return jax.lax.scan(step, first, projected, unroll=unroll)


def arguments(time, batch, units, dtype=float):
    keys = jax.random.split(jax.random.key(time + units), 3)
    return (
        jax.random.normal(keys[0], (time, *batch, units), dtype),
        jax.random.normal(keys[1], (units, units), dtype) / 2,
        jax.nn.relu(jax.random.normal(keys[2], (*batch, units), dtype)),
    )


def weighted_sum(states_of, unroll):
    def function(*args):
        last, states = states_of(*args, unroll)
        return jnp.sum(last**3) + jnp.sum(states**2 * jnp.cos(jnp.arange(states.size)).reshape(states.shape))

    return function


@pytest.mark.parametrize(
    ("time", "batch", "units", "unroll"), [(0, (2,), 3, 1), (1, (), 4, 1), (7, (3,), 4, 3), (4, (2, 3), 1, 1)]
)
def test_derivatives_are_those_of_the_plain_loop(x64, time, batch, units, unroll):
    args = arguments(time, batch, units)
    ours, plain = (weighted_sum(states, unroll) for states in (relu_states, plain_states))
    for got, expected in zip(relu_states(*args, unroll), plain_states(*args, unroll), strict=True):
        assert_array_equal(got, expected)
    directions = arguments(time, batch, units + 1)
    directions = tuple(each[tuple(map(slice, arg.shape))] for each, arg in zip(directions, args, strict=True))

    def derivatives(function):
        gradient = jax.grad(function, argnums=(0, 1, 2))
        backward = gradient(*args)
        forward = jax.jvp(function, args, directions)[1]
        forward_over_backward = jax.jvp(gradient, args, directions)[1]
        backward_over_backward = jax.grad(lambda *args: sum(map(jnp.vdot, gradient(*args), directions)), 1)(*args)
        return backward, forward, forward_over_backward, backward_over_backward

    for got, expected in zip(*map(jax.tree.leaves, (derivatives(ours), derivatives(plain))), strict=True):
        assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_wide_kernels_are_transposed_before_the_loop(x64, monkeypatch):
    args = arguments(4, (2,), 3)
    expected = jax.value_and_grad(weighted_sum(relu_states, 1), argnums=(0, 1, 2))(*args)
    monkeypatch.setattr(relu_recurrence, "_WIDE", 3)
    got = jax.value_and_grad(weighted_sum(relu_states, 1), argnums=(0, 1, 2))(*args)
    for ours, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(ours, other, rtol=1e-12)


def test_gradients_of_a_batch_of_networks(x64):
    args = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arguments(4, (2,), units=3) for _ in range(2)))
    gradient = jax.vmap(jax.grad(weighted_sum(relu_states, 1), argnums=1))(*args)
    expected = jax.vmap(jax.grad(weighted_sum(plain_states, 1), argnums=1))(*args)
    assert_allclose(gradient, expected, rtol=1e-12)


def named(jaxpr, name):
    return [eqn for eqn in equations(jaxpr) if eqn.primitive.name == name]


def loops_of_gradient(states):
    gradient = jax.grad(weighted_sum(states, 1), argnums=(0, 1))
    return named(jax.make_jaxpr(gradient)(*arguments(4, (2,), 3)).jaxpr, "scan")


def test_gradient_of_the_kernel_is_one_product_behind_the_loop():
    def products(states):
        return sum(len(named(loop.params["jaxpr"].jaxpr, "dot_general")) for loop in loops_of_gradient(states))

    assert products(relu_states) == 2  # forward, backward
    assert products(plain_states) == 3


def test_loops_store_one_array_each():
    loops = loops_of_gradient(relu_states)
    assert [len(loop.outvars) - scan_sizes(loop)[1] for loop in loops] == [1, 1]


def test_where_the_last_state_alone_is_read_no_gradients_are_added_to_the_others():
    def last(projected, kernel, first):
        return relu_states(projected, kernel, first, 1)[0].sum()

    def padded(projected, kernel, first):
        return relu_states(projected, kernel, first, 1)[1][-1].sum()

    def pads(function):
        return len(named(jax.make_jaxpr(jax.grad(function, 1))(*arguments(4, (2,), 3)).jaxpr, "pad"))

    assert (pads(last), pads(padded)) == (0, 1)


def test_gradients_of_narrow_states_add_up_in_the_dtype_of_the_kernel():
    projected, kernel, first = arguments(400, (8,), 4, jnp.float32)
    kernel = kernel / 4
    narrow = jnp.bfloat16

    def total(kernel, dtype):
        return relu_states(projected.astype(dtype), kernel, first.astype(dtype), 1)[1].astype(jnp.float32).sum()

    gradient = jax.grad(total)(kernel, narrow)
    assert gradient.dtype == kernel.dtype
    exact = np.asarray(jax.grad(total)(kernel, jnp.float32))
    # Sums of 3,200 products in bfloat16 would be off by more than a tenth.
    assert_allclose(gradient, exact, rtol=0.02, atol=0.01 * abs(exact).max())
