import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pathspace.models import ReluRNN

STARTS = ["glorot", "identity", "np_rnn", "uniform"]


def parameters(model_or_state):
    """Parameters by name, as numpy arrays."""
    state = nnx.to_pure_dict(nnx.state(model_or_state, nnx.Param))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}


def with_random_parameters(model, seed=0, scale=0.5):
    """The model with all parameters, biases too, drawn anew: starts have zero biases and diagonal kernels."""
    graphdef, state, rest = nnx.split(model, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [scale * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, drawn), rest)


def outputs_by_loops(parameters, sequence, output):
    """The definition for one sequence of shape (time, in_features)."""
    layers = len({name.split("/")[1] for name in parameters if name.startswith("layers/")})
    states = list(sequence)
    for i in range(layers):
        w_in = parameters[f"layers/{i}/input/kernel"]
        w_rec = parameters[f"layers/{i}/recurrent/kernel"]
        b = parameters.get(f"layers/{i}/input/bias", 0)
        h = np.zeros(w_rec.shape[0])
        inputs, states = states, []
        for x in inputs:
            h = np.maximum(x @ w_in + h @ w_rec + b, 0)
            states.append(h)
    outputs = [h @ parameters["readout/kernel"] + parameters.get("readout/bias", 0) for h in states]
    return outputs[-1] if output == "last" else np.stack(outputs)


def assert_equals_loops(model, inputs):
    expected = [
        outputs_by_loops(parameters(model), sequence, model.output)
        for sequence in np.asarray(inputs).reshape(-1, *inputs.shape[-2:])
    ]
    steps = () if model.output == "last" else inputs.shape[-2:-1]
    outputs = model(inputs)
    assert outputs.dtype == np.float64
    assert_allclose(outputs, np.reshape(expected, (*inputs.shape[:-2], *steps, 3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hidden_features", [[4], [3, 5, 2]], ids=str)
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("output", ["last", "every"])
def test_outputs_equal_loops(x64, hidden_features, use_bias, output):
    model = ReluRNN(2, hidden_features, 3, use_bias=use_bias, output=output, param_dtype=float, rngs=nnx.Rngs(0))
    assert_equals_loops(with_random_parameters(model), jax.random.normal(jax.random.key(1), (3, 6, 2)))


@pytest.mark.parametrize("output", ["last", "every"])
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_any_number_of_batch_axes(x64, batch, output):
    model = ReluRNN(2, [4], 3, output=output, param_dtype=float, rngs=nnx.Rngs(0))
    assert_equals_loops(with_random_parameters(model), jax.random.normal(jax.random.key(1), (*batch, 6, 2)))


def test_unrolling_and_hoisting_change_nothing(x64):
    inputs = jax.random.normal(jax.random.key(1), (5, 7, 2))
    rolled, unrolled = (
        ReluRNN(2, [4, 3], 2, **options, param_dtype=float, rngs=nnx.Rngs(0))(inputs) for options in ({}, {"unroll": 3})
    )
    assert_allclose(rolled, unrolled, rtol=1e-13)


@pytest.mark.parametrize("output", ["last", "every"])
def test_gradients(x64, output):
    model = ReluRNN(2, [4, 3], 2, output=output, param_dtype=float, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(with_random_parameters(model))
    inputs = jax.random.normal(jax.random.key(1), (3, 5, 2))
    check_grads(lambda state: nnx.merge(graphdef, state)(inputs), (state,), order=1, modes=["fwd", "rev"])


@pytest.mark.parametrize("use_bias", [True, False])
def test_parameter_names_and_shapes(use_bias):
    model = ReluRNN(2, [4, 3], 5, use_bias=use_bias, rngs=nnx.Rngs(0))
    kernels = {
        "layers/0/input/kernel": (2, 4),
        "layers/0/recurrent/kernel": (4, 4),
        "layers/1/input/kernel": (4, 3),
        "layers/1/recurrent/kernel": (3, 3),
        "readout/kernel": (3, 5),
    }
    biases = {"layers/0/input/bias": (4,), "layers/1/input/bias": (3,), "readout/bias": (5,)}
    expected = kernels | biases if use_bias else kernels
    assert {name: leaf.shape for name, leaf in parameters(model).items()} == expected


@pytest.mark.parametrize("use_bias", [True, False])
def test_edges(use_bias):
    model = ReluRNN(2, [4, 3], 5, use_bias=use_bias, rngs=nnx.Rngs(0))
    kernels = {
        "layers/0/input/kernel": (None, "layers/0"),
        "layers/0/recurrent/kernel": ("layers/0", "layers/0"),
        "layers/1/input/kernel": ("layers/0", "layers/1"),
        "layers/1/recurrent/kernel": ("layers/1", "layers/1"),
        "readout/kernel": ("layers/1", None),
    }
    biases = {"layers/0/input/bias": (None, "layers/0"), "layers/1/input/bias": (None, "layers/1")}
    assert model.edges() == (kernels | biases if use_bias else kernels)
    assert set(parameters(model)) - set(model.edges()) == ({"readout/bias"} if use_bias else set())


def test_rescaling_along_edges_changes_nothing(x64):
    model = with_random_parameters(ReluRNN(2, [4, 3], 5, output="every", param_dtype=float, rngs=nnx.Rngs(0)))
    inputs = jax.random.normal(jax.random.key(1), (3, 6, 2))
    rng = np.random.default_rng(0)
    scales = {f"layers/{i}": rng.lognormal(size=n) for i, n in enumerate([4, 3])}
    rescaled = parameters(model)
    for name, (source, target) in model.edges().items():
        incoming = 1 if source is None else scales[source][:, None]
        rescaled[name] = rescaled[name] * (1 if target is None else scales[target]) / incoming

    expected = np.asarray(model(inputs))
    outputs = [outputs_by_loops(rescaled, sequence, "every") for sequence in np.asarray(inputs)]
    assert_allclose(outputs, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("start", STARTS)
def test_biases_start_at_zero(start):
    leaves = parameters(ReluRNN(2, [4, 3], 5, start=start, rngs=nnx.Rngs(0)))
    biases = [leaf for name, leaf in leaves.items() if name.endswith("bias")]
    assert len(biases) == 3
    assert not np.any(np.concatenate(biases))


@pytest.mark.parametrize("start", ["identity", "uniform"])
def test_recurrent_kernels_start_as_identity(start):
    leaves = parameters(ReluRNN(2, [4, 3], 5, start=start, rngs=nnx.Rngs(0)))
    assert_allclose(leaves["layers/0/recurrent/kernel"], np.eye(4))
    assert_allclose(leaves["layers/1/recurrent/kernel"], np.eye(3))


def test_identity_start_has_small_gaussian_kernels():
    leaves = parameters(ReluRNN(100, [200], 100, start="identity", rngs=nnx.Rngs(0)))
    for name in ("layers/0/input/kernel", "readout/kernel"):
        assert_allclose(np.std(leaves[name]), 0.001, rtol=0.03)
        assert_allclose(np.mean(leaves[name]), 0, atol=3e-5)


def test_np_rnn_start(x64):
    leaves = parameters(ReluRNN(90, [60, 80], 70, start="np_rnn", param_dtype=float, rngs=nnx.Rngs(0)))
    for i, units in enumerate([60, 80]):
        recurrent = leaves[f"layers/{i}/recurrent/kernel"]
        eigenvalues = np.linalg.eigvalsh(recurrent)
        assert_allclose(recurrent, recurrent.T)
        assert eigenvalues.min() > 0
        assert_allclose(eigenvalues.max(), 1, rtol=1e-12)
        alpha = np.sqrt(2) * np.exp(1.2 / (units - 2.4))
        assert_allclose(np.std(leaves[f"layers/{i}/input/kernel"]), alpha / units, rtol=0.05)
    assert_allclose(np.std(leaves["readout/kernel"]), np.sqrt(2 / (80 + 70)), rtol=0.05)


def test_np_rnn_start_calls_no_eigenvalue_solver():
    """Under vmap on several CPU devices such calls wait for each other forever."""

    def start(key):
        return nnx.state(ReluRNN(3, [4], 2, start="np_rnn", rngs=nnx.Rngs(key)), nnx.Param)

    assert "eigh" not in str(jax.make_jaxpr(start)(jax.random.key(0)))


def assert_fills(array, bound):
    assert bound * 0.98 < np.max(np.abs(array)) <= bound
    assert_allclose(np.mean(array), 0, atol=0.05 * bound)


@pytest.mark.parametrize("recurrent_scale", [None, 0.3])
def test_uniform_start(recurrent_scale):
    model = ReluRNN(
        50,
        [60],
        70,
        start="uniform",
        uniform_scale=0.02,
        recurrent_scale=recurrent_scale,
        rngs=nnx.Rngs(0),
    )
    leaves = parameters(model)
    assert_fills(leaves["layers/0/input/kernel"], 0.02)
    assert_fills(leaves["readout/kernel"], 0.02)
    if recurrent_scale is not None:
        assert_fills(leaves["layers/0/recurrent/kernel"], recurrent_scale)


def test_glorot_start():
    for name, leaf in parameters(ReluRNN(50, [60, 40], 70, rngs=nnx.Rngs(0))).items():
        if name.endswith("kernel"):
            assert_fills(leaf, np.sqrt(6 / sum(leaf.shape)))


@pytest.mark.parametrize("start", STARTS)
def test_vmapped_seeds_equal_single_seeds(start):
    def build(key):
        return ReluRNN(2, [4, 3], 5, start=start, rngs=nnx.Rngs(key))

    inputs = jax.random.normal(jax.random.key(1), (3, 6, 2))
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.vmap(lambda key: nnx.state(build(key)))(keys)
    graphdef = nnx.graphdef(build(keys[0]))
    outputs_together = jax.vmap(lambda state: nnx.merge(graphdef, state)(inputs))(together)

    for i, key in enumerate(keys):
        one = build(key)
        chex.assert_trees_all_close(
            {name: leaves[i] for name, leaves in parameters(together).items()},
            parameters(one),
            rtol=1e-5,
        )
        assert_allclose(outputs_together[i], one(inputs), rtol=1e-4, atol=1e-6)


def test_nnx_vmap_over_seeds():
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jnp.ones((3, 6, 2))
    models = nnx.vmap(lambda key: ReluRNN(2, [4], 5, rngs=nnx.Rngs(key)))(keys)
    outputs = nnx.vmap(lambda model, inputs: model(inputs), in_axes=(0, None))(models, inputs)
    single = ReluRNN(2, [4], 5, rngs=nnx.Rngs(keys[2]))(inputs)
    assert_allclose(outputs[2], single, rtol=1e-4, atol=1e-6)


def test_training_step_is_traced_once():
    graphdef, state = nnx.split(ReluRNN(2, [4, 3], 1, rngs=nnx.Rngs(0)))
    inputs = jnp.ones((3, 6, 2))

    def loss(state):
        return jnp.mean(nnx.merge(graphdef, state)(inputs) ** 2)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state):
        return jax.tree.map(lambda weight, gradient: weight - 0.1 * gradient, state, jax.grad(loss)(state))

    chex.clear_trace_counter()
    losses = [loss(state)]
    for _ in range(3):
        state = step(state)
        losses.append(loss(state))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("start", STARTS)
def test_long_sequences_stay_finite(start):
    graphdef, state = nnx.split(ReluRNN(1, [20], 3, start=start, rngs=nnx.Rngs(0)))
    inputs = jax.random.uniform(jax.random.key(1), (4, 1000, 1))

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradient(state):
        return jnp.mean(nnx.merge(graphdef, state)(inputs) ** 2)

    chex.assert_tree_all_finite(loss_and_gradient(state))


@pytest.mark.parametrize("start", STARTS)
def test_bfloat16_parameters(start):
    model = ReluRNN(2, [8, 4], 3, start=start, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    chex.assert_type(jax.tree.leaves(nnx.state(model)), jnp.bfloat16)
    outputs = model(jnp.ones((3, 6, 2), jnp.bfloat16))
    assert outputs.dtype == jnp.bfloat16
    chex.assert_tree_all_finite(outputs)


def test_computation_dtype():
    model = ReluRNN(2, [4], 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    chex.assert_type(jax.tree.leaves(nnx.state(model)), jnp.float32)
    assert model(jnp.ones((3, 6, 2))).dtype == jnp.bfloat16


def test_unknown_start():
    message = "expected start to be one of ('glorot', 'identity', 'np_rnn', 'uniform'), got 'zeros'"
    with pytest.raises(ValueError, match=re.escape(message)):
        ReluRNN(2, [4], 3, start="zeros", rngs=nnx.Rngs(0))


def test_unknown_output():
    message = "expected output to be one of ('last', 'every'), got 'first'"
    with pytest.raises(ValueError, match=re.escape(message)):
        ReluRNN(2, [4], 3, output="first", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("hidden_features", [[], [4, 0]], ids=str)
def test_bad_hidden_features(hidden_features):
    message = f"at least one width, each of 1 or more, got {tuple(hidden_features)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        ReluRNN(2, hidden_features, 3, rngs=nnx.Rngs(0))


def test_wrong_number_of_features():
    message = "expected inputs of shape (*batch, time, 2), got (3, 6, 5)"
    with pytest.raises(ValueError, match=re.escape(message)):
        ReluRNN(2, [4], 3, rngs=nnx.Rngs(0))(jnp.ones((3, 6, 5)))
