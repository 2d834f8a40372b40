import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from pathspace.models import (
    PassthroughGRUCell,
    PassthroughLSTMCell,
    Recurrence,
    RecurrentCell,
    ReluCell,
    ResetAfterGRUCell,
    UnitaryCell,
)

CELLS = {
    "ReluCell": lambda **options: ReluCell(2, 4, **options),
    "PassthroughGRUCell": lambda **options: PassthroughGRUCell(2, 4, rank=2, diagonal=True, **options),
    "ResetAfterGRUCell": lambda **options: ResetAfterGRUCell(2, 4, rank=2, tied_projections=True, **options),
    "PassthroughLSTMCell": lambda **options: PassthroughLSTMCell(2, 4, **options),
    "UnitaryCell": lambda **options: UnitaryCell(2, 4, **options),
    "GRUCell": lambda **options: nnx.GRUCell(2, 4, **options),
    "OptimizedLSTMCell": lambda **options: nnx.OptimizedLSTMCell(2, 4, **options),
    "SimpleCell": lambda **options: nnx.SimpleCell(2, 4, **options),
}
INPUTS = jax.random.normal(jax.random.key(1), (3, 7, 2))


@pytest.mark.parametrize("name", CELLS)
def test_equals_the_loop_of_flax(x64, name):
    cell = CELLS[name](dtype=float, param_dtype=float, rngs=nnx.Rngs(0))
    expected = nnx.RNN(cell)(INPUTS)
    for options in ({}, {"unroll": 3}, {"hoist_inputs": True}, {"hoist_inputs": False}):
        if options.get("hoist_inputs") and not isinstance(cell, RecurrentCell):
            continue
        outputs = Recurrence(cell, output="every", **options)(INPUTS)
        assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12, err_msg=str(options))
    assert_allclose(Recurrence(cell)(INPUTS), expected[:, -1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_any_number_of_batch_axes(batch):
    cell = CELLS["PassthroughLSTMCell"](rngs=nnx.Rngs(0))
    outputs = Recurrence(cell)(jnp.broadcast_to(INPUTS[0], (*batch, 7, 2)))
    expected = jnp.broadcast_to(Recurrence(cell)(INPUTS)[0], (*batch, 4))
    assert_allclose(outputs, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["ReluCell", "PassthroughGRUCell", "PassthroughLSTMCell"])
@pytest.mark.parametrize(
    ("dtype", "param_dtype", "expected"),
    [(None, jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32, jnp.bfloat16), (None, jnp.bfloat16, jnp.float32)],
)
def test_dtypes(name, dtype, param_dtype, expected):
    cell = CELLS[name](dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    exact = CELLS[name](rngs=nnx.Rngs(0))
    nnx.update(exact, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), nnx.state(cell)))
    outputs = Recurrence(cell)(INPUTS)
    assert outputs.dtype == expected
    assert_allclose(np.asarray(outputs, float), Recurrence(exact)(INPUTS), atol=0.03)


def test_no_steps():
    assert Recurrence(CELLS["PassthroughGRUCell"](rngs=nnx.Rngs(0)), output="every")(INPUTS[:, :0]).shape == (3, 0, 4)


def test_unknown_output():
    with pytest.raises(ValueError, match=r"one of \('last', 'every'\), got 'first'"):
        Recurrence(CELLS["GRUCell"](rngs=nnx.Rngs(0)), output="first")


def test_inputs_of_other_cells_cannot_be_hoisted():
    with pytest.raises(ValueError, match="a RecurrentCell to hoist inputs from, got GRUCell"):
        Recurrence(CELLS["GRUCell"](rngs=nnx.Rngs(0)), hoist_inputs=True)


def test_inputs_without_time():
    # The annotations that tests check at run time would refuse them first.
    plain_call = inspect.unwrap(Recurrence.__call__)
    with pytest.raises(ValueError, match=r"shape \(\*batch, time, in_features\), got \(2,\)"):
        plain_call(Recurrence(CELLS["GRUCell"](rngs=nnx.Rngs(0))), jnp.ones(2))


def test_sizes_of_relu_cells():
    with pytest.raises(ValueError, match="in_features and hidden_features of 1 or more, got 2 and 0"):
        ReluCell(2, 0, rngs=nnx.Rngs(0))
