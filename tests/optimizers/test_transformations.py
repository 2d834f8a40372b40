"""The optimisers under JAX's transformations, and what they compile to."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from pathspace import choose_skeleton, g_adam, g_sgd
from tests.architectures import CNN, MLP, RNN
from tests.compiled import choose
from tests.jaxprs import equations
from tests.optimizers.cases import OPTIMIZERS, float32, optimizers, steps


@optimizers
def test_compiles_once(make):
    network = RNN((2, 3, 2))
    params = float32(network.parameters(0))
    optimizer = make(optax.cosine_decay_schedule(0.1, 10), choose(network.graph, params))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.cos, params), state, params)
        return optax.apply_updates(params, updates), state

    chex.clear_trace_counter()
    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state)


@pytest.mark.parametrize("make", [OPTIMIZERS["g_sgd, momentum"], OPTIMIZERS["g_adam, weight decay"]])
def test_sweeps_over_learning_rates_and_seeds(make):
    network = RNN((2, 3, 2))
    many = [float32(network.parameters(seed)) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    rates = jnp.array([0.01, 0.1, 1.0])

    def last(params, learning_rate):
        return steps(make(learning_rate, choose_skeleton(network.graph, params)), params, number=2)[-1]

    grid = jax.jit(jax.vmap(jax.vmap(last, (None, 0)), (0, None)))(stacked, rates)
    single = jax.jit(last)
    for i, params in enumerate(many):
        for j, rate in enumerate(rates):
            alone = single(params, rate)
            for a, b in zip(jax.tree.leaves(grid), jax.tree.leaves(alone), strict=True):
                assert_allclose(a[i, j], b, rtol=2e-4, atol=1e-5)


INDEXING = ("gather", "scatter", "dynamic_slice", "dynamic_update_slice", "sort", "argmax", "take")


def indexing_of_weights(network, make):
    """Names of indexing primitives that touch an array as large as the smallest kernel."""
    params = float32(network.parameters(0))
    optimizer = make(0.1, choose(network.graph, params))
    jaxpr = jax.make_jaxpr(jax.jit(optimizer.update))(params, optimizer.init(params), params)
    kernel = min(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    return [
        eqn.primitive.name
        for eqn in equations(jaxpr.jaxpr)
        if eqn.primitive.name.startswith(INDEXING)
        and max(np.prod(var.aval.shape, dtype=int) for var in (*eqn.invars, *eqn.outvars)) >= kernel
    ]


@pytest.mark.parametrize("network", [MLP((20, 30, 30, 10)), RNN((20, 30, 25, 10)), CNN((12, 16, 20))], ids=str)
@pytest.mark.parametrize("make", [g_sgd, g_adam])
def test_no_indexing_of_weights(network, make):
    assert indexing_of_weights(network, make) == []


def test_indexing_of_weights_would_be_seen():
    def gathers(learning_rate, skeleton):
        return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u[jnp.array([0, 0])], updates))

    assert "gather" in indexing_of_weights(MLP((20, 30, 10)), gathers)
