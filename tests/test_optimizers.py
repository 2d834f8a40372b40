import functools
import re

import chex
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import example, given, settings, strategies as st
from numpy.testing import assert_allclose

from pathspace import (
    ReductionGraph,
    Skeleton,
    basis_paths,
    choose_skeleton,
    g_adam,
    g_sgd,
    in_path_space,
    inverse_chain_rule,
    weight_allocation,
    with_unit_skeleton,
)
from pathspace.trees import named_leaves
from tests.architectures import (
    CNN,
    MLP,
    RNN,
    DenseNet,
    FlattenedCNN,
    Mixture,
    choose,
    loss_gradient,
    random_scales_by_numpy,
    rescaled,
    seeds,
)

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


# --- the papers' algorithm ---


def algorithm_2(w_i, w_r, w_o, gradients, learning_rate, steps):
    """Algorithm 2 of the paper for skeleton weights of 1 in Wo, matrices of shape (outputs, inputs).

    Errata: line 6 sums only the entries of Wo outside the skeleton; the mask of Wo is Mo[j % n_out][j].
    """
    n = len(w_r)
    m_i, m_o = np.zeros_like(w_i), np.zeros_like(w_o)
    for j in range(n):
        m_i[j][j % w_i.shape[1]] = 1
        m_o[j % w_o.shape[0]][j] = 1
    trajectory = []
    for _ in range(steps):
        g_i, g_r, g_o = gradients(w_i, w_r, w_o)
        special = (w_i * m_i).sum(1)
        g_skeleton = (g_i * m_i).sum(1) - ((w_r * g_r).sum(0) + (w_o * g_o * (1 - m_o)).sum(0)) / special
        g_path_o, g_path_r = g_o / special, g_r / special
        ratio = 1 - learning_rate * g_skeleton / special
        w_i = w_i * m_i * ratio[:, None] + (w_i - learning_rate * g_i) * (1 - m_i)
        w_o = w_o * m_o + (w_o - learning_rate * g_path_o / special) / ratio * (1 - m_o)
        w_r = (w_r - learning_rate * g_path_r / special) / ratio
        trajectory.append((w_i, w_r, w_o))
    return trajectory


@x64
@given(seed=seeds)
@settings(max_examples=10)
def test_g_sgd_is_algorithm_2(seed):
    network = RNN((3, 3, 3))
    start = network.parameters(seed)
    skeleton = choose(network.graph, start, method="cyclic", reference=None)
    params = with_unit_skeleton(start, skeleton)
    inputs, learning_rate = network.inputs(seed), 1e-3
    gradient = functools.partial(loss_gradient, network)

    def gradients(w_i, w_r, w_o):
        weights = {name: {"kernel": w.T} for name, w in (("input0", w_i), ("recurrent0", w_r), ("readout", w_o))}
        grads = gradient(weights, inputs)
        return tuple(np.asarray(grads[name]["kernel"]).T for name in ("input0", "recurrent0", "readout"))

    matrices = (np.asarray(params[name]["kernel"]).T for name in ("input0", "recurrent0", "readout"))
    optimizer = g_sgd(learning_rate, skeleton)
    state = optimizer.init(params)
    for w_i, w_r, w_o in algorithm_2(*matrices, gradients, learning_rate, steps=5):
        updates, state = optimizer.update(gradient(params, inputs), state, params)
        params = optax.apply_updates(params, updates)
        assert state.limited_units == 0
        assert_allclose(params["input0"]["kernel"], w_i.T, rtol=1e-10, atol=1e-12)
        assert_allclose(params["recurrent0"]["kernel"], w_r.T, rtol=1e-10, atol=1e-12)
        assert_allclose(params["readout"]["kernel"], w_o.T, rtol=1e-10, atol=1e-12)


# --- the function's trajectory does not depend on the parameters' scales ---


@functools.partial(jax.jit, static_argnums=(0, 1))
def trajectory(network, optimizer_of, params, inputs, learning_rate):
    """The outputs before each of 50 steps; skeleton, reference and optimiser built from the parameters given."""
    optimizer = optimizer_of(learning_rate, choose_skeleton(network.graph, params))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(network.loss)(params, inputs), state, params)
        return (optax.apply_updates(params, updates), state), network.outputs(params, inputs)

    return jax.lax.scan(step, (params, optimizer.init(params)), length=50)[1]


def plain_sgd(learning_rate, skeleton: Skeleton):
    return optax.sgd(learning_rate)


INVARIANT = {
    "g_sgd": (OPTIMIZERS["g_sgd"], 1e-3),
    "g_sgd, momentum": (OPTIMIZERS["g_sgd, momentum"], 1e-4),
    "g_adam": (OPTIMIZERS["g_adam"], 1e-2),
    "g_adam, weight decay": (OPTIMIZERS["g_adam, weight decay"], 1e-2),
}


TRAINED = {
    RNN((2, 3, 2, 2), bias=True): list(INVARIANT),
    Mixture(): ["g_sgd", "g_adam"],
    FlattenedCNN(): ["g_sgd, momentum", "g_adam, weight decay"],
}
EVERY = [
    pytest.param(network, name, marks=() if name in TRAINED.get(network, ()) else pytest.mark.slow)
    for network in (*TRAINED, MLP((3, 4, 4, 2)), CNN((2, 3, 2)), DenseNet(), RNN((2, 5, 4, 3, 2)))
    for name in INVARIANT
]


def equivalent_starts(network):
    params = jax.tree.map(jnp.asarray, network.parameters(1))
    return params, rescaled(params, network.graph, random_scales_by_numpy(network.graph, 2))


@x64
@pytest.mark.parametrize(("network", "name"), EVERY, ids=str)
def test_equivalent_parameters_are_trained_alike(network, name):
    make, learning_rate = INVARIANT[name]
    params, equivalent = equivalent_starts(network)
    inputs = network.inputs(1)
    outputs = trajectory(network, make, params, inputs, learning_rate)
    assert np.max(np.abs(outputs[-1] - outputs[0])) > 1e-3
    others = trajectory(network, make, equivalent, inputs, learning_rate)
    assert_allclose(others, outputs, rtol=1e-6, atol=1e-6)


@x64
@pytest.mark.parametrize("network", [MLP((3, 4, 4, 2)), RNN((2, 3, 2, 2), bias=True)], ids=str)
def test_plain_sgd_depends_on_the_scales(network):
    params, equivalent = equivalent_starts(network)
    inputs = network.inputs(1)
    outputs = trajectory(network, plain_sgd, params, inputs, 1e-3)
    others = trajectory(network, plain_sgd, equivalent, inputs, 1e-3)
    assert_allclose(others[0], outputs[0], rtol=1e-9, atol=1e-9)
    assert not np.allclose(others, outputs, rtol=1e-2, atol=1e-2)


# --- nothing becomes infinite ---

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


@pytest.mark.parametrize("learning_rate", [1e-1, 1e3])
@optimizers
def test_training_is_finite_as_long_as_gradients_are(make, learning_rate):
    network = RNN((2, 3, 2), bias=True)
    params = float32(network.parameters(0))
    for leaf in ("input0", "recurrent0", "readout"):
        params[leaf]["kernel"] = params[leaf]["kernel"].at[0, 0].set(0.0)
    inputs = jnp.asarray(network.inputs(0), jnp.float32)
    optimizer = make(learning_rate, choose(network.graph, params, method="cyclic"))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for count in range(10):
        grads = loss_gradient(network, params, inputs)
        if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads)):
            assert count > 1
            break
        updates, state = update(grads, state, params)
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
    _, state = optimizer.update(grads, state, params)
    assert (state.limited_units.dtype, state.limited_units) == (jnp.int32, limited)


# --- leaves outside, masks, trees ---

WITH_INNER = {
    "g_sgd": (g_sgd, optax.sgd(0.1)),
    "g_sgd, momentum": (functools.partial(g_sgd, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
    "g_sgd, Nesterov": (
        functools.partial(g_sgd, momentum=0.9, nesterov=True),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
    ),
    "g_sgd, weight decay": (
        functools.partial(g_sgd, weight_decay=0.1),
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    ),
    "g_adam": (functools.partial(g_adam, b1=0.8, b2=0.9, eps=1e-3), optax.adam(0.1, 0.8, 0.9, 1e-3)),
    "g_adam, weight decay": (functools.partial(g_adam, weight_decay=0.1), optax.adamw(0.1, weight_decay=0.1)),
}
with_inner = pytest.mark.parametrize(("make", "inner"), WITH_INNER.values(), ids=WITH_INNER)


def steps(optimizer, params, number=3):
    """The updates of a few steps whose gradients are the parameters' cosines."""
    update = jax.jit(optimizer.update)
    state, found = optimizer.init(params), []
    for _ in range(number):
        updates, state = update(jax.tree.map(jnp.cos, params), state, params)
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found


@with_inner
def test_with_an_empty_graph_all_leaves_get_the_plain_transformation(make, inner):
    """Updates are differences of new and old parameters, so compare those."""
    params = float32(Mixture().parameters(0))
    graph = ReductionGraph.from_edges(params, {})
    for ours, plain in zip(steps(make(0.1, choose_skeleton(graph, params)), params), steps(inner, params), strict=True):
        assert_trees_close(ours, plain, 1e-6)


@with_inner
def test_leaves_outside_get_the_plain_transformation(make, inner):
    network = Mixture()
    params = float32(network.parameters(0))
    pairs = zip(steps(make(0.1, choose(network.graph, params)), params), steps(inner, params), strict=True)
    for ours, plain in pairs:
        ours, plain = named_leaves(ours), named_leaves(plain)
        for name in network.graph.outside:
            assert_allclose(ours[name], plain[name], rtol=1e-5, atol=1e-6)
        assert any(not np.allclose(ours[leaf.name], plain[leaf.name]) for leaf in network.graph.leaves)


@optimizers
def test_missing_params(make):
    network = MLP((2, 3, 2))
    params = float32(network.parameters(0))
    optimizer = make(0.1, choose(network.graph, params))
    with pytest.raises(
        ValueError, match="You are using a transformation that requires the current value of parameters"
    ):
        optimizer.update(params, optimizer.init(params))


@optimizers
def test_init_does_not_look_into_params(make):
    network = MLP((2, 3, 2))
    optimizer = make(0.1, choose(network.graph, network.parameters(0)))
    concrete = optimizer.init(float32(network.parameters(0)))
    abstract = jax.eval_shape(
        optimizer.init, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), network.structs)
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(concrete, abstract)


def test_the_three_steps_make_the_update():
    network = RNN((2, 3, 2))
    params = float32(network.parameters(0))
    skeleton = choose(network.graph, params)
    grads = jax.tree.map(jnp.cos, params)
    inner = optax.adamw(1e-2)
    optimizer = in_path_space(inner, skeleton)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)

    @jax.jit
    def by_steps(params, grads):
        path_grads, paths = inverse_chain_rule(grads, params, skeleton), basis_paths(params, skeleton)
        path_updates, _ = inner.update(path_grads, inner.init(params), paths)
        return weight_allocation(params, path_updates, skeleton)

    assert_trees_close(updates, jax.tree.map(jnp.subtract, by_steps(params, grads), params), 1e-6)


def test_extra_arguments_reach_the_inner_transformation():
    network = MLP((2, 3, 2))
    params = float32(network.parameters(0))

    def scale_by_value():
        return optax.GradientTransformationExtraArgs(
            lambda params: optax.EmptyState(),
            lambda updates, state, params=None, *, value: (jax.tree.map(lambda u: -value * u, updates), state),
        )

    skeleton = choose(network.graph, params)
    ours = in_path_space(scale_by_value(), skeleton)
    updates, _ = ours.update(params, ours.init(params), params, value=0.01)
    plain = g_sgd(0.01, skeleton)
    assert_trees_close(updates, plain.update(params, plain.init(params), params)[0], 1e-6)


TWO_BRANCHES = {"a": (None, "h"), "b": ("h", None), "c": (None, "g"), "d": ("g", None)}


def two_branches():
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=(2, 2)), jnp.float32) for name in TWO_BRANCHES}
    return params, choose_skeleton(ReductionGraph.from_edges(params, TWO_BRANCHES), params)


@optimizers
def test_whole_groups_can_be_masked(make):
    params, skeleton = two_branches()
    masked = optax.masked(make(0.1, skeleton), {"a": True, "b": True, "c": False, "d": False})
    for ours, whole in zip(steps(masked, params), steps(make(0.1, skeleton), params), strict=True):
        for name in ("a", "b"):
            assert_allclose(ours[name], whole[name], rtol=1e-6)
        for name in ("c", "d"):  # optax.masked passes on the gradients of what it masks
            assert not np.allclose(ours[name], whole[name])


@pytest.mark.parametrize("left_out", TWO_BRANCHES)
def test_half_a_group_cannot_be_masked(left_out):
    params, skeleton = two_branches()
    optimizer = optax.masked(g_sgd(0.1, skeleton), {name: name != left_out for name in params})
    state = optimizer.init(params)
    group = "h" if left_out in "ab" else "g"
    with pytest.raises(ValueError, match=re.escape(f"group '{group}' has the leaves") + f".*'{left_out}'.* masked"):
        optimizer.update(params, state, params)


class Model(nnx.Module):
    def __init__(self):
        self.hidden = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(3, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.out(jax.nn.relu(self.hidden(x)))


MODEL_EDGES = {"hidden/kernel": (None, "h"), "hidden/bias": (None, "h"), "out/kernel": ("h", None)}


@pytest.mark.parametrize("make", [OPTIMIZERS["g_sgd, momentum"], OPTIMIZERS["g_adam, weight decay"]])
def test_trees_of_all_kinds_get_the_same_updates(make):
    state = nnx.state(Model(), nnx.Param)
    plain = nnx.to_pure_dict(state)
    graph = ReductionGraph.from_edges(plain, MODEL_EDGES)
    expected = [named_leaves(updates) for updates in steps(make(0.1, choose(graph, plain)), plain)]
    for tree in (state, flax.core.freeze(plain), jax.tree.map(nnx.Param, plain)):
        for updates, same in zip(steps(make(0.1, choose(graph, tree)), tree), expected, strict=True):
            assert jax.tree.structure(updates) == jax.tree.structure(tree)
            for name, leaf in named_leaves(updates).items():
                assert_allclose(leaf, same[name], rtol=1e-5, atol=1e-7)


@optimizers
def test_nnx_optimizer(make):
    model, x = Model(), jnp.array([[1.0, -2.0], [0.5, 3.0]])
    params = nnx.state(model, nnx.Param)
    graph = ReductionGraph.from_edges(params, MODEL_EDGES)
    optimizer = nnx.Optimizer(model, make(1e-2, choose(graph, params)), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(train(model, optimizer)) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert np.all(np.isfinite(losses))


# --- transformations of JAX ---


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


@optimizers
def test_schedules(make):
    """Steps at scheduled learning rates equal steps of `inject_hyperparams` whose learning rate is set before each."""
    network = MLP((2, 3, 2))
    params = float32(network.parameters(0))
    skeleton = choose(network.graph, params)
    rates = jnp.array([0.1, 0.01, 0.05])
    scheduled = steps(make(lambda count: rates[count], skeleton), params)
    injectable = optax.inject_hyperparams(make, static_args=["skeleton", "max_ratio"])
    injected = injectable(learning_rate=0.0, skeleton=skeleton)
    state = injected.init(params)
    for rate, expected in zip(rates, scheduled, strict=True):
        state.hyperparams["learning_rate"] = rate
        updates, state = injected.update(jax.tree.map(jnp.cos, params), state, params)
        params = optax.apply_updates(params, updates)
        assert_trees_close(updates, expected, 1e-5)


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


def primitives(jaxpr):
    """All equations, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


INDEXING = ("gather", "scatter", "dynamic_slice", "dynamic_update_slice", "sort", "argmax", "take")


def indexing_of_weights(network, make):
    """Names of indexing primitives that touch an array as large as the smallest kernel."""
    params = float32(network.parameters(0))
    optimizer = make(0.1, choose(network.graph, params))
    jaxpr = jax.make_jaxpr(jax.jit(optimizer.update))(params, optimizer.init(params), params)
    kernel = min(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    return [
        eqn.primitive.name
        for eqn in primitives(jaxpr.jaxpr)
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
