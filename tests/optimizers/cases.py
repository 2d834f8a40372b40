"""The optimisers that the tests run, and what they have in common."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from numpy.testing import assert_allclose

from pathspace import g_adam, g_sgd

OPTIMIZERS = {
    "g_sgd": g_sgd,
    "g_sgd, momentum": functools.partial(g_sgd, momentum=0.9),
    "g_adam": g_adam,
    "g_adam, weight decay": functools.partial(g_adam, weight_decay=0.1),
}
optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
x64 = pytest.mark.usefixtures("x64")


def float32(params):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def assert_trees_close(actual, expected, rtol):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_allclose(a, b, rtol=rtol, atol=rtol)


def steps(optimizer, params, number=3):
    """The updates of a few steps whose gradients are the parameters' cosines."""
    update = jax.jit(optimizer.update)
    state, found = optimizer.init(params), []
    for _ in range(number):
        updates, state = update(jax.tree.map(jnp.cos, params), state, params)
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found
