"""Nothing becomes infinite."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings, strategies as st

from pathspace import choose_skeleton, g_sgd, in_path_space, inverse_chain_rule, weight_allocation
from pathspace.trees import named_leaves
from tests.architectures import MLP, RNN
from tests.compiled import choose, loss_gradient
from tests.examples import seeds
from tests.optimizers.cases import OPTIMIZERS, float32, optimizers

HOSTILE = MLP((2, 2, 3, 2))


@functools.partial(jax.jit, static_argnums=(0, 1))
def hostile_steps(make, choice, params, chosen_at, gradients, learning_rate):
    """Updates and parameters of a few steps with given gradients, without the leaves outside the graph."""
    method, reference = choice
    optimizer = make(learning_rate, choose_skeleton(HOSTILE.graph, chosen_at, method=method, reference=reference))

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (updates, params)

    updates, after = jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1]
    inside = {leaf.name for leaf in HOSTILE.graph.leaves}
    return [{name: leaf for name, leaf in named_leaves(tree).items() if name in inside} for tree in (updates, after)]


def hostile_tree(rng, dtype, largest, zeros, steps=()):
    """Entries of both signs from the dtype's smallest numbers to `largest`, some of them 0."""
    smallest = float(jnp.finfo(dtype).smallest_subnormal)

    def draw(shape):
        sizes = np.exp(rng.uniform(np.log(smallest), np.log(largest), (*steps, *shape)))
        sizes = np.where(rng.random(sizes.shape) < 0.2, largest, sizes)
        sizes = np.where(rng.random(sizes.shape) < zeros, 0, sizes)
        return jnp.clip(jnp.asarray(rng.choice([-1.0, 1.0], sizes.shape) * sizes, dtype), -largest, largest)

    return jax.tree.map(lambda struct: draw(struct.shape), HOSTILE.structs)


@pytest.mark.parametrize(
    ("make", "dtype", "choice"),
    [
        *((make, jnp.float16, ("largest", "balanced")) for make in OPTIMIZERS.values()),
        (OPTIMIZERS["g_sgd, momentum"], jnp.bfloat16, ("cyclic", None)),
        (OPTIMIZERS["g_adam, weight decay"], jnp.bfloat16, ("largest", "initial")),
        (OPTIMIZERS["g_sgd"], jnp.float32, ("cyclic", "balanced")),
        (OPTIMIZERS["g_adam"], jnp.float32, ("cyclic", None)),
    ],
)
@settings(max_examples=20)
@given(
    seed=seeds,
    learning_rate=st.sampled_from([1e-3, 1.0, 1e3]),
    largest_weight=st.sampled_from([1.0, 100.0]),
    gradient=st.sampled_from([1.0, 1e3, "max"]),
    zeros=st.sampled_from([0.0, 0.3, 1.0]),
    zero_later=st.booleans(),
)
@example(seed=0, learning_rate=1e3, largest_weight=1.0, gradient="max", zeros=0.0, zero_later=False)
@example(seed=0, learning_rate=1e3, largest_weight=1.0, gradient="max", zeros=0.3, zero_later=True)
@example(seed=157, learning_rate=1e-3, largest_weight=100.0, gradient=1.0, zeros=0.3, zero_later=False)
@example(seed=719, learning_rate=1e-3, largest_weight=1.0, gradient="max", zeros=1.0, zero_later=True)
def test_finite_gradients_give_finite_updates(
    make, dtype, choice, seed, learning_rate, largest_weight, gradient, zeros, zero_later
):
    rng = np.random.default_rng(seed)
    params = hostile_tree(rng, dtype, largest_weight, zeros)
    chosen_at = hostile_tree(rng, dtype, largest_weight, 0.0) if zero_later else params
    largest = float(jnp.finfo(dtype).max) if gradient == "max" else gradient
    gradients = hostile_tree(rng, dtype, largest, 0.2, steps=(4,))
    updates, after = hostile_steps(make, choice, params, chosen_at, gradients, learning_rate)
    for name, leaf in updates.items():
        assert leaf.dtype == dtype
        assert np.all(np.isfinite(leaf.astype(np.float32))), f"updates of {name}"
    for name, leaf in after.items():
        assert np.all(np.isfinite(leaf.astype(np.float32))), f"parameters {name}"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("leaf", ["dense0/kernel", "dense0/bias", "dense1/kernel"])
def test_what_is_made_finite_inside_stays_so(leaf, bad):
    network = MLP((2, 3, 2))
    params = float32(network.parameters(0))
    skeleton = choose(network.graph, params)
    layer, name = leaf.split("/")
    grads = jax.tree.map(jnp.array, params)
    grads[layer][name] = grads[layer][name].at[(-1,) * grads[layer][name].ndim].set(bad)

    path_updates = jax.tree.map(lambda q: -0.1 * jnp.nan_to_num(q), inverse_chain_rule(grads, params, skeleton))
    optimizer = in_path_space(optax.chain(optax.zero_nans(), optax.sgd(0.1)), skeleton)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    chex.assert_tree_all_finite(updates)
    expected = weight_allocation(params, path_updates, skeleton)
    chex.assert_trees_all_close(optax.apply_updates(params, updates), expected, rtol=1e-6)

    optimizer = in_path_space(optax.apply_if_finite(optax.sgd(0.1), 3), skeleton)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    chex.assert_trees_all_close(updates, jax.tree.map(jnp.zeros_like, params), atol=1e-7)


@functools.partial(jax.jit, static_argnums=0)
def updates_of(make, learning_rate, skeleton, grads, state, params):
    return make(learning_rate, skeleton).update(grads, state, params)


@pytest.mark.parametrize("learning_rate", [1e-1, 1e3])
@optimizers
def test_training_is_finite_as_long_as_gradients_are(make, learning_rate):
    network = RNN((2, 3, 2), bias=True)
    params = float32(network.parameters(0))
    for leaf in ("input0", "recurrent0", "readout"):
        params[leaf]["kernel"] = params[leaf]["kernel"].at[0, 0].set(0.0)
    inputs = jnp.asarray(network.inputs(0), jnp.float32)
    skeleton = choose(network.graph, params, method="cyclic")
    state = make(learning_rate, skeleton).init(params)
    for count in range(10):
        grads = loss_gradient(network, params, inputs)
        if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads)):
            assert count > 1
            break
        updates, state = updates_of(make, learning_rate, skeleton, grads, state, params)
        chex.assert_tree_all_finite(updates)
        params = optax.apply_updates(params, updates)
        chex.assert_tree_all_finite(params)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32], ids=lambda dtype: dtype.__name__)
@optimizers
def test_updates_have_the_dtype_of_the_parameters(make, dtype):
    network = MLP((2, 3, 2))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), network.parameters(0))
    optimizer = make(1e-2, choose(network.graph, params))
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@pytest.mark.parametrize(("learning_rate", "limited"), [(1e-6, 0), (1e6, 3)])
def test_limited_units_are_counted(learning_rate, limited):
    network = MLP((2, 3, 2), bias=False)
    params = float32(network.parameters(0))
    optimizer = g_sgd(learning_rate, choose(network.graph, params))
    state = optimizer.init(params)
    assert (state.limited_units.dtype, state.limited_units) == (jnp.int32, 0)
    grads = jax.tree.map(lambda leaf: jnp.arange(1.0, 1 + leaf.size).reshape(leaf.shape), params)
    _, state = jax.jit(optimizer.update)(grads, state, params)
    assert (state.limited_units.dtype, state.limited_units) == (jnp.int32, limited)
