"""Masks, seen through networks of identities."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from pathspace.trees import named_leaves

from .test_language_model import (
    NO_DROPOUT,
    TOKENS,
    build,
    call,
    parameters,
    random_model,
    random_state,
    set_parameters,
)


def mask_model(layers, **rates):
    """Without dropout every logit is 1, whatever the tokens; with dropout the logits are products of masks."""
    model = build([30] * layers, tie_weights=False, vocabulary=30, width=30, **(NO_DROPOUT | rates))
    identity = {name: jnp.eye(30) for name in parameters(model) if name.endswith("kernel")}
    zero = {name: jnp.zeros((30, 30)) for name in identity if "recurrent" in name}
    set_parameters(model, identity | zero | {"embedding/embedding": jnp.ones((30, 30))})
    return model


MASK_TOKENS = np.random.default_rng(2).integers(0, 30, (8, 20))


def assert_is_mask(values, rate):
    """Zeros, as often as the rate says, and 1 / (1 - rate)."""
    kept = np.asarray(values) != 0
    assert_allclose(values, kept / (1 - rate), rtol=1e-6)
    assert_allclose(np.mean(~kept), rate, atol=3.5 * np.sqrt(rate * (1 - rate) / kept.size))


def test_embedding_dropout_drops_tokens_wherever_they_occur():
    logits = np.asarray(call(mask_model(1, embedding_dropout=0.3), MASK_TOKENS)[0])
    by_token = np.array([logits[token == MASK_TOKENS][0, 0] for token in range(30)])
    assert_array_equal(logits, np.broadcast_to(by_token[MASK_TOKENS][..., None], logits.shape))
    assert_is_mask(by_token, 0.3)
    assert len(set(by_token.tolist())) == 2


@pytest.mark.parametrize("name", ["input_dropout", "hidden_dropout", "output_dropout"])
def test_locked_dropout_is_the_same_at_all_steps(name):
    logits, _ = call(mask_model(2, **{name: 0.3}), MASK_TOKENS)
    assert_array_equal(logits, np.broadcast_to(logits[:, :1], logits.shape))
    assert_is_mask(logits[:, 0], 0.3)
    assert len(np.unique(logits[:, 0], axis=0)) == 8


def test_hidden_dropout_is_between_layers():
    one, _ = call(mask_model(1, hidden_dropout=0.3), MASK_TOKENS)
    assert_array_equal(one, np.ones_like(one))
    # Two independent masks, each of which lets 0.7 through.
    three, _ = call(mask_model(3, hidden_dropout=0.3), MASK_TOKENS)
    assert_allclose(np.unique(three), [0, 1 / 0.7**2], rtol=1e-6)
    assert_allclose(np.mean(three[:, 0] != 0), 0.7**2, atol=0.1)


@pytest.mark.parametrize(("name", "untouched"), [("hidden_dropout", 1), ("output_dropout", 2)])
def test_states_are_returned_before_dropout(name, untouched):
    _, state = call(mask_model(2, **{name: 0.3}), MASK_TOKENS)
    for layer_state in state[:untouched]:
        assert_array_equal(layer_state, np.ones((8, 30)))


def test_weight_drop_drops_recurrent_weights_alike_at_all_steps():
    # Token 30 has no embedding, so that after any other the logits are rows of powers of the dropped kernel.
    model = build([30, 30], tie_weights=False, vocabulary=31, width=30, **(NO_DROPOUT | {"weight_drop": 0.3}))
    identity = {f"layers/{i}/input/kernel": jnp.eye(30) for i in range(2)}
    ends = {"embedding/embedding": jnp.eye(31, 30), "readout/kernel": jnp.eye(30, 31)}
    kernel = jax.random.uniform(jax.random.key(0), (30, 30), minval=0.1)
    recurrent = {"layers/0/recurrent/kernel": jnp.zeros((30, 30)), "layers/1/recurrent/kernel": kernel}
    set_parameters(model, identity | ends | recurrent)

    logits, _ = call(model, np.stack([np.arange(30), *[np.full(30, 30)] * 3], 1))
    dropped = logits[:, 1, :30]
    assert_is_mask(dropped / kernel, 0.3)
    for step in range(4):
        assert_allclose(logits[:, step, :30], np.linalg.matrix_power(dropped, step), rtol=1e-4)


def test_weight_drop_draws_a_mask_for_each_layer(x64):
    model = random_model([4, 4], **(NO_DROPOUT | {"weight_drop": 0.5}))
    inputs = {f"layers/{i}/input/kernel": jnp.zeros((4, 4)) for i in range(2)}
    biases = {f"layers/{i}/input/bias": jnp.zeros(4) for i in range(2)}
    recurrent = {f"layers/{i}/recurrent/kernel": jnp.ones((4, 4)) for i in range(2)}
    set_parameters(model, inputs | biases | recurrent)
    _, states = call(model, np.zeros((4, 1), int), [jnp.eye(4)] * 2)
    assert {0.0, 2.0} == set(np.unique(states[0])) == set(np.unique(states[1]))
    assert np.any(states[0] != states[1])


def test_training_draws_new_masks_and_evaluation_none():
    model = build([3, 5, 4])
    without = build([3, 5, 4], **NO_DROPOUT)
    set_parameters(model, named_leaves(nnx.state(without, nnx.Param)))
    state = random_state(model, 3)
    expected = call(without, TOKENS, state)
    first, second = call(model, TOKENS, state)[0], call(model, TOKENS, state)[0]
    assert np.any(first != expected[0])
    assert np.any(first != second)
    model.eval()
    chex.assert_trees_all_equal(call(model, TOKENS, state), expected)
    without.eval()
    chex.assert_trees_all_equal(call(without, TOKENS, state), expected)
    model.train()
    assert np.any(call(model, TOKENS, state)[0] != expected[0])
