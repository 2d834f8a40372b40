"""A jitted training step, vmapped over seeds, that must compile once."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def train_two_steps(make: Callable[[nnx.Rngs], nnx.Module], inputs: jax.Array, seeds: int = 4) -> None:
    """Two steps of gradient descent on the mean square of the outputs, for models made with each seed."""

    def init(seed):
        return nnx.split(make(nnx.Rngs(jax.random.key(seed))), nnx.Param, ...)

    graphdef = init(0)[0]
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def train_step(params, rest):
        def one(params, rest):
            def loss(params):
                model = nnx.merge(graphdef, params, rest, copy=True)
                return jnp.mean(model(inputs) ** 2), nnx.state(model, nnx.Not(nnx.Param))

            (value, new_rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
            return jax.tree.map(lambda w, g: w - 0.1 * g, params, grads), new_rest, value

        return jax.vmap(one)(params, rest)

    params, rest = jax.vmap(lambda seed: init(seed)[1:])(jnp.arange(seeds))
    first_params, rest, first = train_step(params, rest)
    second_params, _, second = train_step(first_params, rest)
    assert len(np.unique(first)) == seeds
    chex.assert_tree_all_finite((second_params, first, second))
    moved = [bool(jnp.any(old != new)) for old, new in zip(*map(jax.tree.leaves, (params, second_params)), strict=True)]
    assert all(moved)
