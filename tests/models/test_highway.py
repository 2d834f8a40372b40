import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pathspace import reduction_graph
from pathspace.models import HighwayNetwork

from .test_relu_rnn import parameters, with_random_parameters
from .training import train_two_steps

FORMS = {"full": {}, "low-rank": {"rank": 2}, "low-rank plus diagonal": {"rank": 2, "diagonal": True}}
EPSILON = 1e-5  # Flax's, of its batch normalisation


def highway(rngs=None, **options):
    return HighwayNetwork(3, 4, 2, layers=2, **options, rngs=nnx.Rngs(0) if rngs is None else rngs)


def normalized(values, scale):
    """By the statistics of the batch, feature by feature."""
    columns = [(column - column.mean()) / np.sqrt(column.var() + EPSILON) for column in values.T]
    return np.stack(columns, axis=1) * scale


def outputs_by_loops(values, inputs, use_batch_norm):
    """Equations 3 to 5 of the paper."""

    def function(name, x):
        if f"{name}/matrix/full/kernel" in values:
            result = x @ values[f"{name}/matrix/full/kernel"]
        else:
            components = x @ values[f"{name}/matrix/projection/kernel"]
            if use_batch_norm:
                components = normalized(components, 1)
            result = components @ values[f"{name}/matrix/expansion/kernel"]
            if f"{name}/matrix/diagonal" in values:
                result = result + x * values[f"{name}/matrix/diagonal"]
        if use_batch_norm:
            result = normalized(result, values[f"{name}/norm/scale"])
        return result + values[f"{name}/bias"]

    x = inputs @ values["input/kernel"]
    if use_batch_norm:
        x = normalized(x, values["input_norm/scale"]) + values["input_norm/bias"]
    else:
        x = x + values["input/bias"]
    x = np.maximum(x, 0)
    for layer in range(2):
        proposal = np.maximum(function(f"layers/{layer}/proposal", x), 0)
        transform = 1 / (1 + np.exp(-function(f"layers/{layer}/transform", x)))
        x = proposal * transform + x * (1 - transform)
    return x @ values["readout/kernel"] + values["readout/bias"]


@pytest.mark.parametrize("use_batch_norm", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_equal_loops(x64, form, use_batch_norm):
    model = with_random_parameters(highway(use_batch_norm=use_batch_norm, param_dtype=float, **FORMS[form]))
    inputs = jax.random.normal(jax.random.key(1), (6, 3))
    expected = outputs_by_loops(parameters(model), np.asarray(inputs), use_batch_norm)
    assert_allclose(model(inputs), expected, rtol=1e-10)


def test_gradients(x64):
    model = with_random_parameters(highway(rank=2, diagonal=True, param_dtype=float))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    inputs = jax.random.normal(jax.random.key(1), (6, 3))
    check_grads(jax.jit(lambda params: nnx.merge(graphdef, params, rest)(inputs)), (params,), order=1, modes=["rev"])


def test_frozen_normalisation_uses_running_statistics():
    model = highway(rank=2, use_batch_norm=True)
    inputs = jax.random.normal(jax.random.key(1), (6, 3))
    model.eval()
    single = jnp.concatenate([model(row[None]) for row in inputs])
    assert_allclose(model(inputs), single, rtol=1e-5, atol=1e-6)


def test_dropout_is_active_in_training_alone():
    model = highway(rank=2, input_dropout=0.2, hidden_dropout=0.3, readout_dropout=0.5)
    inputs = jnp.ones((6, 3))
    assert not np.array_equal(model(inputs), model(inputs))
    model.eval()
    assert_allclose(model(inputs), highway(rank=2)(inputs), rtol=1e-6)


def test_transform_biases_start_below_zero():
    values = parameters(highway(transform_bias=-2.0))
    biases = {name: set(value.tolist()) for name, value in values.items() if name.endswith("bias")}
    transforms = {name for name, start in biases.items() if start == {-2.0}}
    assert transforms == {"layers/0/transform/bias", "layers/1/transform/bias"}
    assert all(start == {0.0} for name, start in biases.items() if name not in transforms)


@pytest.mark.parametrize(
    ("options", "units"),
    [
        ({}, 4),
        ({"rank": 2, "diagonal": True}, 4 + 2 * 2 * 2),
        # A normalisation behind the projections takes their scales away; only the state is left.
        ({"rank": 2, "diagonal": True, "use_batch_norm": True}, 4),
    ],
    ids=str,
)
def test_state_and_inner_components_are_units(x64, options, units):
    # The rectified proposals are added to the state; the gates between them, which are no units, keep their scale.
    model = with_random_parameters(highway(param_dtype=float, **options))
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    graph = reduction_graph(lambda params, x: nnx.merge(graphdef, params, rest)(x), params, jnp.ones((6, 3)))
    assert graph.num_units == units


@pytest.mark.parametrize("form", FORMS)
def test_a_step_for_many_seeds_compiles_once(form):
    options = FORMS[form] | {"use_batch_norm": True, "hidden_dropout": 0.3}
    train_two_steps(lambda rngs: highway(rngs, **options), jax.random.normal(jax.random.key(1), (8, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 5}, "rank from 1 to the size of the state, 4, got 5"),
        ({"diagonal": True}, "a rank with a diagonal, got None"),
        ({"hidden_dropout": 1.0}, r"dropout rates from 0 to below 1, got .*'hidden_dropout': 1.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        highway(**options)


def test_no_layers():
    with pytest.raises(ValueError, match=r"sizes of 1 or more, got .*'layers': 0"):
        HighwayNetwork(3, 4, 2, layers=0, rngs=nnx.Rngs(0))


def test_inputs_of_another_size():
    with pytest.raises(ValueError, match=r"shape \(\*batch, 3\), got \(6, 5\)"):
        highway()(jnp.ones((6, 5)))
