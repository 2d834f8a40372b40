import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from pathspace import ReductionGraph, random_scales, reduction_graph
from pathspace.models import ReluLanguageModel
from pathspace.trees import named_leaves, replace_leaves
from tests.compiled import rescaled

RATES = ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_drop")
NO_DROPOUT = dict.fromkeys(RATES, 0.0)
TOKENS = np.random.default_rng(1).integers(0, 6, (3, 7))
SIZES = [([4], True), ([3, 5, 4], True), ([3], False), ([3, 5, 2], False)]

call = nnx.jit(lambda model, tokens, state=None: model(tokens, state))


def build(hidden_features, tie_weights=True, *, vocabulary=6, width=4, **options):
    return ReluLanguageModel(
        vocabulary, width, hidden_features, tie_weights=tie_weights, **({"rngs": nnx.Rngs(0)} | options)
    )


def parameters(model):
    """Parameters by name, as numpy arrays."""
    return jax.tree.map(np.asarray, named_leaves(nnx.state(model, nnx.Param)))


def set_parameters(model, values):
    nnx.update(model, replace_leaves(nnx.state(model, nnx.Param), values))


def random_model(hidden_features, tie_weights=True, **options):
    """In float64, with all parameters, biases too, drawn anew."""
    model = build(hidden_features, tie_weights, param_dtype=float, **options)
    rng = np.random.default_rng(0)
    set_parameters(model, {name: jnp.asarray(0.5 * rng.normal(size=w.shape)) for name, w in parameters(model).items()})
    return model


def random_state(model, batch_size):
    return tuple(
        jax.random.uniform(jax.random.key(i), zeros.shape, zeros.dtype)
        for i, zeros in enumerate(model.initial_state(batch_size))
    )


def outputs_by_loops(parameters, tokens, state):
    """The definition without dropout: logits, and the last state of each layer."""
    all_logits = []
    states = [np.array(layer_state) for layer_state in state]
    readout = parameters.get("readout/kernel", parameters["embedding/embedding"].T)
    for now in tokens.T:
        x = parameters["embedding/embedding"][now]
        for i, h in enumerate(states):
            projected = x @ parameters[f"layers/{i}/input/kernel"] + parameters[f"layers/{i}/input/bias"]
            x = states[i] = np.maximum(projected + h @ parameters[f"layers/{i}/recurrent/kernel"], 0)
        all_logits.append(x @ readout + parameters["readout/bias"])
    return np.stack(all_logits, 1), states


@pytest.mark.parametrize("given", [False, True], ids=["from_zero", "from_a_state"])
@pytest.mark.parametrize(("hidden_features", "tie_weights"), SIZES, ids=str)
def test_outputs_equal_loops(x64, hidden_features, tie_weights, given):
    model = random_model(hidden_features, tie_weights)
    model.eval()
    state = random_state(model, 3) if given else model.initial_state(3)
    outputs = call(model, TOKENS, state if given else None)
    chex.assert_type(jax.tree.leaves(outputs), np.float64)
    chex.assert_trees_all_close(
        jax.tree.leaves(outputs), jax.tree.leaves(outputs_by_loops(parameters(model), TOKENS, state)), rtol=1e-12
    )


def test_segments_with_the_state_carried_over_equal_one_sequence(x64):
    model = random_model([3, 5, 4])
    model.eval()
    logits, state = call(model, TOKENS)
    first, carried = call(model, TOKENS[:, :3])
    second, last = call(model, TOKENS[:, 3:], list(carried))
    assert_allclose(np.concatenate([first, second], 1), logits, rtol=1e-12)
    chex.assert_trees_all_close(last, state, rtol=1e-12)


def test_unrolling_and_hoisting_change_nothing(x64):
    rolled, unrolled = (random_model([3, 5, 4], **options) for options in ({}, {"unroll": 3}))
    rolled.eval()
    unrolled.eval()
    chex.assert_trees_all_close(call(rolled, TOKENS), call(unrolled, TOKENS), rtol=1e-12)


def test_gradients(x64):
    model = random_model([3, 4])
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    state = random_state(model, 3)

    # Merging anew draws the same masks anew. The default step of the differences is so long that it crosses kinks.
    def outputs(params, state):
        return nnx.merge(graphdef, params, rest, copy=True)(jnp.asarray(TOKENS), state)

    check_grads(jax.jit(outputs), (params, state), order=1, modes=["fwd", "rev"], eps=1e-6)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_parameter_names_and_shapes(tie_weights):
    expected = {
        "embedding/embedding": (6, 4),
        "layers/0/input/kernel": (4, 3),
        "layers/0/input/bias": (3,),
        "layers/0/recurrent/kernel": (3, 3),
        "layers/1/input/kernel": (3, 4),
        "layers/1/input/bias": (4,),
        "layers/1/recurrent/kernel": (4, 4),
        "readout/bias": (6,),
    }
    model = build([3, 4], tie_weights)
    assert {name: leaf.shape for name, leaf in parameters(model).items()} == (
        expected if tie_weights else expected | {"readout/kernel": (4, 6)}
    )


def count_parameters(make):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param)))


def test_number_of_parameters_of_the_papers():
    words = count_parameters(lambda: build([1550, 1550, 1550, 400], vocabulary=10_000, width=400))
    first, middle, last = (n * (m + n + 1) for m, n in [(400, 1550), (1550, 1550), (1550, 400)])
    assert words == 10_000 * 400 + first + 2 * middle + last + 10_000 == 17_427_550

    characters = count_parameters(lambda: build([2048], tie_weights=False, vocabulary=50, width=50))
    assert characters == 50 * 50 + 2048 * (50 + 2048 + 1) + (2048 + 1) * 50 == 4_403_702


def assert_fills(array, bound):
    assert bound * 0.97 < np.max(np.abs(array)) <= bound
    assert_allclose(np.mean(array), 0, atol=0.06 * bound)


def test_default_start():
    leaves = parameters(build([50, 60], tie_weights=False, vocabulary=70, width=40))
    assert_fills(leaves["embedding/embedding"], 0.1)
    assert_fills(leaves["readout/kernel"], 0.1)
    for i, units in enumerate([50, 60]):
        assert_fills(leaves[f"layers/{i}/input/kernel"], 1 / np.sqrt(units))
        assert_fills(leaves[f"layers/{i}/recurrent/kernel"], 1 / np.sqrt(units))
    biases = [leaf for name, leaf in leaves.items() if name.endswith("bias")]
    assert len(biases) == 3
    assert not np.any(np.concatenate(biases))


def test_start_of_the_character_models():
    scales = {"uniform_scale": 0.2, "recurrent_scale": 0.01, "embedding_scale": 0.2}
    leaves = parameters(build([60], tie_weights=False, vocabulary=50, width=50, start="uniform", **scales))
    assert_fills(leaves.pop("layers/0/recurrent/kernel"), 0.01)
    for name in ("embedding/embedding", "layers/0/input/kernel", "readout/kernel"):
        assert_fills(leaves[name], 0.2)


def test_start_of_layers_leaves_embedding_and_readout():
    leaves = parameters(build([5, 40], vocabulary=70, width=40, start="identity"))
    assert_array_equal(leaves["layers/0/recurrent/kernel"], np.eye(5))
    assert_fills(leaves["embedding/embedding"], 0.1)


def split(model):
    """The graph definition, the parameters and a function of them that computes logits and state."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return params, lambda params, *inputs: nnx.merge(graphdef, params, rest, copy=True)(*inputs)


def test_edges():
    assert build([3, 5, 4]).edges() == {
        "layers/0/input/kernel": (None, "layers/0"),
        "layers/0/recurrent/kernel": ("layers/0", "layers/0"),
        "layers/0/input/bias": (None, "layers/0"),
        "layers/1/input/kernel": ("layers/0", "layers/1"),
        "layers/1/recurrent/kernel": ("layers/1", "layers/1"),
        "layers/1/input/bias": (None, "layers/1"),
        "layers/2/input/kernel": ("layers/1", None),
    }
    assert build([4]).edges() == {}


def test_edges_hold_the_units_of_all_layers_but_the_last():
    model = build([3, 5, 4])
    graph = ReductionGraph.from_edges(nnx.state(model, nnx.Param), model.edges())
    assert [(group.name, group.size) for group in graph.groups] == [("layers/0", 3), ("layers/1", 5)]
    kernels = {"layers/2/recurrent/kernel", "layers/2/input/bias"}
    assert set(graph.outside) == {"embedding/embedding", "readout/bias", *kernels}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("tie_weights", [True, False])
def test_rescaling_along_edges_changes_nothing(x64, tie_weights, training):
    model = random_model([3, 5, 4], tie_weights)
    if not training:
        model.eval()
    params, outputs = split(model)
    graph = ReductionGraph.from_edges(params, model.edges())
    scales = random_scales(jax.random.key(0), graph)
    outputs = jax.jit(outputs)
    rescaled_params = rescaled(params, graph, scales)
    state = rescaled_state = model.initial_state(3)
    for segment in np.split(TOKENS[:, :6], 2, 1):
        logits, state = outputs(params, segment, state)
        rescaled_logits, rescaled_state = outputs(rescaled_params, segment, rescaled_state)
        assert_allclose(rescaled_logits, logits, rtol=1e-10, atol=1e-10)
        by_unit = [scales["layers/0"], scales["layers/1"], 1]
        chex.assert_trees_all_close(
            rescaled_state, tuple(h * c for h, c in zip(state, by_unit, strict=True)), rtol=1e-10
        )


def evaluated(hidden_features, tie_weights):
    model = build(hidden_features, tie_weights)
    model.eval()
    return model, *split(model)


def units_of_leaves(graph):
    """For each leaf how many units its sources and its targets are."""
    return {leaf.name: (leaf.source.num_units, leaf.target.num_units) for leaf in graph.leaves}


def test_tracing_tied_logits_finds_the_edges():
    model, params, outputs = evaluated([3, 5, 4], tie_weights=True)
    traced = reduction_graph(lambda params, tokens: outputs(params, tokens)[0], params, TOKENS)
    by_hand = ReductionGraph.from_edges(params, model.edges())
    assert units_of_leaves(traced) == units_of_leaves(by_hand)
    assert traced.num_units == by_hand.num_units == 3 + 5
    assert traced.num_basis_paths == by_hand.num_basis_paths


def test_tracing_untied_logits_finds_embedding_and_last_layer_too():
    _, params, outputs = evaluated([3, 5, 2], tie_weights=False)
    traced = reduction_graph(lambda params, tokens: outputs(params, tokens)[0], params, TOKENS)
    assert traced.num_units == 4 + 3 + 5 + 2
    assert units_of_leaves(traced) == {
        "embedding/embedding": (0, 4),
        "layers/0/input/kernel": (4, 3),
        "layers/0/input/bias": (0, 3),
        "layers/0/recurrent/kernel": (3, 3),
        "layers/1/input/kernel": (3, 5),
        "layers/1/input/bias": (0, 5),
        "layers/1/recurrent/kernel": (5, 5),
        "layers/2/input/kernel": (5, 2),
        "layers/2/input/bias": (0, 2),
        "layers/2/recurrent/kernel": (2, 2),
        "readout/kernel": (2, 0),
    }


def test_units_of_given_or_returned_states_are_ground():
    model, params, outputs = evaluated([3, 5, 2], tie_weights=False)
    given = reduction_graph(
        lambda params, tokens, state: outputs(params, tokens, state)[0], params, TOKENS, model.initial_state(3)
    )
    returned = reduction_graph(outputs, params, TOKENS)
    for graph in given, returned:
        assert units_of_leaves(graph) == {"embedding/embedding": (0, 4), "layers/0/input/kernel": (4, 0)}


def loss_of(model, tokens, state):
    logits, state = model(tokens[:, :-1], state)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(), state


def test_long_sequences_stay_finite():
    graphdef, params, rest = nnx.split(build([20, 20, 10], width=10), nnx.Param, ...)
    tokens = jax.random.randint(jax.random.key(1), (4, 1001), 0, 6)

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradient(params):
        return loss_of(nnx.merge(graphdef, params, rest, copy=True), tokens, None)[0]

    chex.assert_tree_all_finite(loss_and_gradient(params))


def test_training_steps_of_several_seeds_are_traced_once():
    def make(key):
        return nnx.split(build([5, 4], rngs=nnx.Rngs(key)), nnx.Param, ...)[1:]

    graphdef, *_ = nnx.split(build([5, 4]), nnx.Param, ...)
    params, rest = jax.vmap(make)(jax.random.split(jax.random.key(0), 4))
    optimizer = optax.chain(optax.clip_by_global_norm(0.25), optax.sgd(1.0))
    state = jax.tree.map(lambda zeros: jnp.stack([zeros] * 4), build([5, 4]).initial_state(3))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None))
    @chex.assert_max_traces(n=1)
    def step(params, rest, opt_state, state, tokens):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            value, last = loss_of(model, tokens, state)
            return value, (nnx.state(model, nnx.Not(nnx.Param)), last)

        (value, (rest, last)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), rest, opt_state, last, value

    chex.clear_trace_counter()
    opt_state = jax.vmap(optimizer.init)(params)
    tokens = jnp.tile(jnp.arange(6), (3, 2))
    losses = []
    for _ in range(60):
        params, rest, opt_state, state, value = step(params, rest, opt_state, state, tokens)
        losses.append(value)
    assert len(set(losses[0].tolist())) == 4
    assert np.all(losses[0] > 1.7)
    assert np.all(np.mean(losses[-10:], 0) < 1.6)


@pytest.mark.parametrize(
    ("tie_weights", "options"),
    [(True, {"param_dtype": jnp.bfloat16}), (False, {"dtype": jnp.bfloat16})],
    ids=["parameters", "computation"],
)
def test_bfloat16(tie_weights, options):
    model = build([4], tie_weights, **options)
    chex.assert_type(jax.tree.leaves(nnx.state(model, nnx.Param)), options.get("param_dtype", jnp.float32))
    logits, state = call(model, TOKENS)
    chex.assert_type([logits, *state, *model.initial_state(3)], jnp.bfloat16)
    chex.assert_trees_all_equal_shapes(call(model, TOKENS, state), (logits, state))


def test_unknown_start():
    message = "expected start to be one of ('awd_lstm', 'glorot', 'identity', 'np_rnn', 'uniform'), got 'zeros'"
    with pytest.raises(ValueError, match=re.escape(message)):
        build([3, 4], start="zeros")


@pytest.mark.parametrize("rate", [-0.1, 1.0])
@pytest.mark.parametrize("name", RATES)
def test_rates_outside_their_range(name, rate):
    with pytest.raises(ValueError, match=re.escape(f"expected {name} to be in [0, 1), got {rate}: it is")):
        build([3, 4], **{name: rate})


def test_tied_weights_of_unequal_widths():
    message = "expected the last of hidden_features to be 4, the width of the embedding, got 5: the tied readout"
    with pytest.raises(ValueError, match=re.escape(message)):
        build([4, 5])


@pytest.mark.parametrize("hidden_features", [[], [0, 4]], ids=str)
def test_bad_hidden_features(hidden_features):
    message = f"at least one width, each of 1 or more, got {tuple(hidden_features)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        build(hidden_features)


@pytest.mark.parametrize(
    ("tokens", "got"),
    [(jnp.ones((3, 7)), "(3, 7) and float32"), (jnp.ones(7, jnp.int32), "(7,) and int32")],
    ids=["floats", "no_batch"],
)
def test_bad_tokens(tokens, got):
    message = f"expected tokens of shape (batch, time) and an integer dtype, got {got}: the last axis"
    with pytest.raises(ValueError, match=re.escape(message)):
        build([3, 4])(tokens)


@pytest.mark.parametrize(
    ("shapes", "got"),
    [([(2, 3), (2, 4)], "[(2, 3), (2, 4)]"), ([(3, 3)], "[(3, 3)]"), ([(3, 4), (3, 3)], "[(3, 4), (3, 3)]")],
    ids=["batch", "layers", "widths"],
)
def test_bad_states(shapes, got):
    message = f"expected a state of shapes [(3, 3), (3, 4)], got {got}: pass the state"
    with pytest.raises(ValueError, match=re.escape(message)):
        build([3, 4])(jnp.asarray(TOKENS), [jnp.zeros(shape) for shape in shapes])
