"""What Optax asks of optimisers, of every one here and inside each of Optax's wrappers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from pathspace import ReductionGraph, choose_skeleton, g_adam, g_sgd, path_adam, path_sgd
from tests.compiled import choose, rescaled
from tests.examples import random_scales_by_numpy
from tests.optimizers.cases import assert_trees_close, float32, steps, x64
from tests.optimizers.subjects import BARE, NETWORK, OPTIMIZERS, SUBJECTS, WRAPPERS, Subject, kappa_of_network, one_step

subjects = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
bare = pytest.mark.parametrize("subject", BARE, ids=str)


def loss_at(inputs):
    return lambda params: NETWORK.loss(params, inputs)


@subjects
def test_updates_and_state_keep_their_types(subject):
    """Extra arguments are accepted, a branch may skip the update, and nothing compiles a second time."""
    params = float32(NETWORK.parameters(0))
    params["dense0"] = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params["dense0"])
    optimizer = subject.make(0.1, choose(NETWORK.graph, params))
    step = one_step(subject, optimizer, loss_at(jnp.ones((4, 3), jnp.bfloat16)))
    start = WRAPPERS[subject.wrapper].start(params)
    before = jax.eval_shape(lambda: (start, optimizer.init(start)))
    after = jax.eval_shape(lambda *carry: jax.lax.cond(True, step, lambda *same: same, *carry), *before)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert (new.shape, new.dtype, new.weak_type) == (old.shape, old.dtype, old.weak_type)


@subjects
def test_map_params(subject):
    """Momenta and the like are found: as many leaves as have the parameters' shapes, whole trees of them."""
    params = float32(NETWORK.parameters(0))
    start = WRAPPERS[subject.wrapper].start(params)
    optimizer = subject.make(0.1, choose(NETWORK.graph, params))
    state = optimizer.init(start)
    marked = optax.tree.map_params(optimizer, lambda _: "of a parameter", state, transform_non_params=lambda _: "else")
    of_parameters = [
        leaf.shape
        for leaf, mark in zip(jax.tree.leaves(state), jax.tree.leaves(marked), strict=True)
        if mark == "of a parameter"
    ]
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(params))
    number = len(of_parameters) // len(shapes)
    assert sorted(of_parameters) == sorted(shapes * number)
    others = [
        leaf for leaf, mark in zip(jax.tree.leaves(state), jax.tree.leaves(marked), strict=True) if mark == "else"
    ]
    assert all(leaf.ndim == 0 for leaf in others)


@bare
def test_init_does_not_look_into_params(subject):
    params = float32(NETWORK.parameters(0))
    optimizer = subject.make(0.1, choose(NETWORK.graph, params))
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    concrete = optimizer.init(params)
    chex.assert_trees_all_equal(optimizer.init(structs), concrete)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(optimizer.init, structs), concrete)


@bare
def test_params_and_state_can_be_donated(subject):
    """Nothing of the donated arrays is needed afterwards; counters that no update reads are not given away."""
    params = float32(NETWORK.parameters(0))
    optimizer = subject.make(0.1, choose(NETWORK.graph, params))
    step = jax.jit(one_step(subject, optimizer, loss_at(jnp.ones((4, 3), jnp.float32))))
    expected = step(*step(params, optimizer.init(params)))
    donating = jax.jit(step, donate_argnums=(0, 1))
    first = (jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, optimizer.init(params)))
    second = donating(*first)
    third = donating(*second)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((first, second)) if leaf.ndim)
    chex.assert_trees_all_close(third, expected, rtol=1e-6)


INJECTABLE = {
    "g_sgd": (g_sgd, {"momentum": 0.5}, ["skeleton", "max_ratio"]),
    "g_adam": (g_adam, {"weight_decay": 0.1}, ["skeleton", "max_ratio"]),
    "path_sgd": (path_sgd, {"momentum": 0.5, "max_norm": 0.5}, ["kappa_fn", "every", "ratio"]),
    "path_adam": (path_adam, {"b1": 0.8}, ["kappa_fn", "every", "ratio"]),
}


@pytest.mark.parametrize(("make", "options", "static"), INJECTABLE.values(), ids=INJECTABLE)
def test_schedules_and_injected_hyperparameters(make, options, static):
    """Steps at scheduled learning rates equal steps of `inject_hyperparams` whose learning rate is set before each."""
    params = float32(NETWORK.parameters(0))
    structure = {"skeleton": choose(NETWORK.graph, params)} if "skeleton" in static else {"kappa_fn": kappa_of_network}
    rates = jnp.array([0.1, 0.01, 0.05])
    scheduled = steps(make(lambda count: rates[count], **structure, **options), params)
    injected = optax.inject_hyperparams(make, static_args=static)(learning_rate=0.0, **structure, **options)
    state, update = injected.init(params), jax.jit(injected.update)
    for rate, expected in zip(rates, scheduled, strict=True):
        state.hyperparams["learning_rate"] = rate
        updates, state = update(jax.tree.map(jnp.cos, params), state, params)
        params = optax.apply_updates(params, updates)
        assert_trees_close(updates, expected, 1e-5)


# Adam divides each entry by its own size, which takes away what kappa gave.
DEPENDENT_ON_SCALES = {"path_adam"}


@functools.partial(jax.jit, static_argnums=0)
def course(subject, params, inputs):
    """The outputs before each of 30 steps; skeleton, reference and optimiser built from the parameters given."""
    wrapper = WRAPPERS[subject.wrapper]
    optimizer = subject.make(1e-3, choose_skeleton(NETWORK.graph, params))
    step = one_step(subject, optimizer, loss_at(inputs))
    start = wrapper.start(params)

    def scanned(carry, _):
        return step(*carry), NETWORK.outputs(wrapper.weights(carry[0]), inputs)

    return jax.lax.scan(scanned, (start, optimizer.init(start)), length=30)[1]


@x64
@subjects
def test_equivalent_parameters_are_trained_alike(subject):
    params = jax.tree.map(jnp.asarray, NETWORK.parameters(1))
    equivalent = rescaled(params, NETWORK.graph, random_scales_by_numpy(NETWORK.graph, 2))
    inputs = NETWORK.inputs(1)
    outputs, others = course(subject, params, inputs), course(subject, equivalent, inputs)
    assert np.max(np.abs(outputs[-1] - outputs[0])) > 1e-3
    if subject.optimizer in DEPENDENT_ON_SCALES:
        assert not np.allclose(others, outputs, rtol=1e-2, atol=1e-2)
    else:
        assert_allclose(others, outputs, rtol=1e-6, atol=1e-6)


def abs_sq(x):
    return jnp.sum(jnp.square(x))


# Optax's four targets, with the starts and the solutions.
TARGETS = {
    "parabola": (lambda w: abs_sq(w - jnp.array([1.0, -1.0, 1.0])), [-1.0, 10.0, 1.0], [1.0, -1.0, 1.0]),
    "rosenbrock": (lambda w: abs_sq(1 - w[0]) + 100 * abs_sq(w[1] - w[0] ** 2), [0.0, 0.0], [1.0, 1.0]),
    "matrix": (
        lambda w: abs_sq(w - jnp.array([[3.0, -2.0], [1.0, 4.0]])),
        [[0.0, 0.0], [0.0, 0.0]],
        [[3.0, -2.0], [1.0, 4.0]],
    ),
    "mixed": (
        lambda w: abs_sq(w["a"] - jnp.array([1.0, -1.0, 2.0])) + abs_sq(w["b"] - jnp.array([[1.0, 0.0], [-1.0, 1.0]])),
        {"a": [0.0, 0.0, 0.0], "b": [[0.0, 0.0], [0.0, 0.0]]},
        {"a": [1.0, -1.0, 2.0], "b": [[1.0, 0.0], [-1.0, 1.0]]},
    ),
}


# Steps of Adam are as long as the rate: eleven thousand of 0.001 to the parabola's solution, and the averages of
# schedule_free remember them all.
LEARNING_RATES = {Subject(name, "schedule_free"): 1e-2 for name in ("g_adam", "in_path_space")}

# Thirty thousand steps: inside the wrappers in slow runs only.
CONVERGING = [
    pytest.param(*each.values, marks=() if each.values[0].wrapper == "bare" else pytest.mark.slow) for each in SUBJECTS
]


def is_list(node):
    return isinstance(node, list)


def arrays(tree):
    return jax.tree.map(jnp.array, tree, is_leaf=is_list)


@functools.partial(jax.jit, static_argnums=(0, 1))
def trained(subject, all_targets, params, skeleton, teacher, inputs):
    """The parameters after 30,000 steps."""
    wrapper = WRAPPERS[subject.wrapper]

    def loss(params):
        error = jnp.mean(jnp.square(NETWORK.outputs(params["network"], inputs) - NETWORK.outputs(teacher, inputs)))
        return error + sum(TARGETS[name][0](params[name]) for name in TARGETS if all_targets)

    optimizer = subject.make(LEARNING_RATES.get(subject, 1e-3), skeleton)
    step = one_step(subject, optimizer, loss)
    start = wrapper.start(params)
    carry = jax.lax.scan(lambda carry, _: (step(*carry), None), (start, optimizer.init(start)), length=30_000)[0]
    return wrapper.evaluated(carry[1], carry[0])


@pytest.mark.parametrize("subject", CONVERGING, ids=str)
def test_converges(subject):
    """On Optax's targets outside the graph, and within it on the outputs of a two-layer ReLU network."""
    all_targets = OPTIMIZERS[subject.optimizer].trains_all
    teacher, inputs = float32(NETWORK.parameters(2)), jnp.asarray(NETWORK.inputs(3, batch=32), jnp.float32)
    network = jax.tree.map(lambda a, b: a + 0.1 * b, teacher, float32(NETWORK.parameters(4)))
    params = {"network": network} | {name: arrays(start) for name, (_, start, _) in TARGETS.items() if all_targets}
    edges = {f"network/{name}": ends for name, ends in NETWORK.edges.items()}
    skeleton = choose(ReductionGraph.from_edges(params, edges), params)
    found = trained(subject, all_targets, params, skeleton, teacher, inputs)
    expected = NETWORK.outputs(teacher, inputs)
    start_error, error = (
        np.mean(np.square(NETWORK.outputs(each, inputs) - expected)) for each in (network, found["network"])
    )
    assert error < 1e-2 * start_error
    for name in TARGETS:
        if all_targets:
            chex.assert_trees_all_close(found[name], arrays(TARGETS[name][2]), rtol=3e-2, atol=3e-2)
