import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pathspace import choose_skeleton, g_adam, g_sgd, path_kappa, path_sgd, random_scales, reduction_graph, rescale
from pathspace.models import PassthroughGRUCell, PassthroughLSTMCell, Recurrence, ResetAfterGRUCell
from pathspace.models.state_matrix import apply_matrix

from .test_relu_rnn import parameters, with_random_parameters
from .training import train_two_steps

CELLS = [PassthroughGRUCell, ResetAfterGRUCell, PassthroughLSTMCell]
FORMS = {
    "full": {},
    "low-rank": {"rank": 2},
    "low-rank plus diagonal": {"rank": 2, "diagonal": True},
    "tied": {"rank": 2, "diagonal": True, "tied_projections": True},
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalized(kernel, weight_norm, scale):
    """The definition of weight normalisation, column by column."""
    if not weight_norm:
        return kernel
    columns = []
    for j in range(kernel.shape[1]):
        norm = math.sqrt(sum(kernel[i, j] ** 2 for i in range(kernel.shape[0])))
        columns.append((1 if scale is None else scale[j]) * kernel[:, j] / norm)
    return np.stack(columns, axis=1)


def matrix(values, name, weight_norm):
    """The recurrent matrix of a function as one array."""
    if f"{name}/full/kernel" in values:
        return normalized(values[f"{name}/full/kernel"], weight_norm, values.get(f"{name}/full/scale"))
    projections = {key: value for key, value in values.items() if key.endswith("projection/kernel")}
    (projection,) = projections.values() if len(projections) == 1 else [projections[f"{name}/projection/kernel"]]
    expansion = normalized(values[f"{name}/expansion/kernel"], weight_norm, values.get(f"{name}/expansion/scale"))
    product = normalized(projection, weight_norm, None) @ expansion
    return product + np.diag(values[f"{name}/diagonal"]) if f"{name}/diagonal" in values else product


def outputs_by_loops(cell, sequence, weight_norm):
    """Equations 6 to 9 of the paper for one sequence of shape (time, in_features)."""
    values = parameters(cell)
    functions = cell.functions
    w = {name: matrix(values, f"{name}/recurrent", weight_norm) for name in functions}
    u = {
        name: normalized(values[f"{name}/input/kernel"], weight_norm, values.get(f"{name}/input/scale"))
        for name in functions
    }
    b = {name: values[f"{name}/bias"] for name in functions}
    n = len(b["carry"])
    x, h, outputs = np.zeros(n), np.zeros(n), []
    for inputs in sequence:
        read = h if isinstance(cell, PassthroughLSTMCell) else x
        f = {name: inputs @ u[name] + read @ w[name] + b[name] for name in functions}
        carry = sigmoid(f["carry"])
        if isinstance(cell, PassthroughLSTMCell):
            x = np.tanh(f["proposal"]) * sigmoid(f["transform"]) + x * carry
            h = sigmoid(f["output"]) * np.tanh(x)
            outputs.append(h)
            continue
        reset = sigmoid(f["reset"])
        after = isinstance(cell, ResetAfterGRUCell)
        recurrent = (x @ w["proposal"]) * reset if after else (x * reset) @ w["proposal"]
        proposal = np.tanh(inputs @ u["proposal"] + recurrent + b["proposal"])
        x = proposal * (1 - carry) + x * carry
        outputs.append(x)
    return np.stack(outputs)


@pytest.mark.parametrize(
    ("form", "weight_norm"), [*((form, False) for form in FORMS), ("full", True), ("tied", True)], ids=str
)
@pytest.mark.parametrize("cell_class", CELLS)
def test_outputs_equal_loops(x64, cell_class, form, weight_norm):
    cell = cell_class(2, 4, weight_norm=weight_norm, param_dtype=float, rngs=nnx.Rngs(0), **FORMS[form])
    cell = with_random_parameters(cell)
    inputs = jax.random.normal(jax.random.key(1), (3, 5, 2))
    expected = np.stack([outputs_by_loops(cell, sequence, weight_norm) for sequence in np.asarray(inputs)])
    assert_allclose(jax.jit(Recurrence(cell, output="every"))(inputs), expected, rtol=1e-12, atol=1e-12)
    assert_allclose(jax.jit(Recurrence(cell))(inputs), expected[:, -1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["full", "tied"])
@pytest.mark.parametrize("cell_class", CELLS)
def test_gradients(x64, cell_class, form):
    cell = cell_class(2, 3, weight_norm=True, param_dtype=float, rngs=nnx.Rngs(0), **FORMS[form])
    graphdef, state = nnx.split(with_random_parameters(Recurrence(cell)))
    inputs = jax.random.normal(jax.random.key(1), (2, 4, 2))
    check_grads(jax.jit(lambda state: nnx.merge(graphdef, state)(inputs)), (state,), order=1, modes=["rev"])


@pytest.mark.parametrize("cell_class", CELLS)
def test_finite_over_a_thousand_steps(cell_class):
    graphdef, state = nnx.split(Recurrence(cell_class(2, 8, rank=3, diagonal=True, rngs=nnx.Rngs(0))))
    inputs = jax.random.normal(jax.random.key(1), (2, 1000, 2))
    value, grads = jax.jit(jax.value_and_grad(lambda state: jnp.sum(nnx.merge(graphdef, state)(inputs) ** 2)))(state)
    chex.assert_tree_all_finite((value, grads))


def test_biases_start_at_zero_but_for_the_carry():
    values = parameters(PassthroughGRUCell(2, 4, carry_bias=5.0, rngs=nnx.Rngs(0)))
    biases = {name: set(value.tolist()) for name, value in values.items() if name.endswith("bias")}
    assert biases == {"carry/bias": {5.0}, "proposal/bias": {0.0}, "reset/bias": {0.0}}


def test_diagonals_start_small():
    values = parameters(PassthroughGRUCell(2, 200, rank=2, diagonal=True, rngs=nnx.Rngs(0)))
    diagonal = values["carry/recurrent/diagonal"]
    assert -0.01 <= diagonal.min() < -0.008 and 0.008 < diagonal.max() <= 0.01


def test_weight_norm_changes_nothing_at_the_start_but_projections():
    plain = PassthroughGRUCell(2, 4, rngs=nnx.Rngs(0))
    normal = PassthroughGRUCell(2, 4, weight_norm=True, rngs=nnx.Rngs(0))
    inputs = jnp.ones((3, 5, 2))
    assert_allclose(Recurrence(normal)(inputs), Recurrence(plain)(inputs), rtol=1e-5)


def test_weight_norm_ignores_the_length_of_its_parameters():
    cell = PassthroughGRUCell(2, 4, rank=2, weight_norm=True, rngs=nnx.Rngs(0))
    before = Recurrence(cell)(jnp.ones((3, 5, 2)))
    kernel = cell.reset.recurrent.projection.kernel
    kernel[...] = 7 * kernel[...]
    assert_allclose(Recurrence(cell)(jnp.ones((3, 5, 2))), before, rtol=1e-5)


def test_weight_norm_of_zero_weights_is_finite():
    cell = PassthroughGRUCell(2, 4, rank=2, weight_norm=True, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(Recurrence(cell))
    grads = jax.grad(lambda state: jnp.sum(nnx.merge(graphdef, state)(jnp.ones((3, 5, 2)))))(state)
    chex.assert_tree_all_finite(grads)


# The tables count one matrix of inputs, where the equations have one for each of the three functions.
@pytest.mark.parametrize(
    ("in_features", "hidden_features", "out_features", "form", "printed"),
    [
        (1, 128, 10, {}, "51.0k"),
        (1, 128, 10, {"rank": 24}, "20.2k"),
        (1, 512, 10, {"rank": 4}, "19.5k"),
        (1, 64, 10, {"rank": 24, "diagonal": True}, "10.3k"),
        (1, 128, 10, {"rank": 24, "diagonal": True}, "20.6k"),
        (1, 256, 10, {"rank": 24, "diagonal": True}, "41.2k"),
        (51, 1000, 51, {}, "3.11M"),
        (51, 3298, 51, {}, "33.0M"),
        (51, 1000, 51, {"rank": 64, "diagonal": True}, "0.49M"),
        (51, 3298, 51, {"rank": 128, "diagonal": True}, "2.89M"),
        (51, 5459, 51, {"rank": 64, "diagonal": True}, "2.69M"),
        (51, 5459, 51, {"rank": 64, "diagonal": True, "tied_projections": True}, "1.99M"),
        (51, 4480, 51, {"rank": 128, "diagonal": True, "tied_projections": True}, "2.78M"),
        (51, 6985, 51, {"rank": 64, "diagonal": True, "tied_projections": True}, "2.54M"),
    ],
)
def test_parameter_counts_of_the_papers_tables(in_features, hidden_features, out_features, form, printed):
    count = (
        _count(PassthroughGRUCell, in_features, hidden_features, out_features, form) - 2 * in_features * hidden_features
    )
    decimals = len(printed[:-1].split(".")[1])
    assert f"{count / {'k': 1e3, 'M': 1e6}[printed[-1]]:.{decimals}f}" == printed[:-1]


# The tables give 0.46, 4.25 and 4.25 millions; nothing that leads to the last one with rank 300 is in the paper.
@pytest.mark.parametrize(
    ("cell_class", "hidden_features", "in_features", "form", "count"),
    [
        (ResetAfterGRUCell, 1000, 51, {"rank": 64, "diagonal": True, "tied_projections": True}, 466_051),
        (PassthroughLSTMCell, 1000, 49, {}, 4_249_049),
        (PassthroughLSTMCell, 1740, 49, {"rank": 300, "diagonal": True}, 4_616_269),
    ],
)
def test_parameter_counts_with_all_input_matrices(cell_class, hidden_features, in_features, form, count):
    assert _count(cell_class, in_features, hidden_features, in_features, form) == count


def _count(cell_class, in_features, hidden_features, out_features, form):
    model = nnx.eval_shape(
        lambda: nnx.Sequential(
            Recurrence(cell_class(in_features, hidden_features, **form, rngs=nnx.Rngs(0))),
            nnx.Linear(hidden_features, out_features, rngs=nnx.Rngs(0)),
        )
    )
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(("form", "units"), [("low-rank", 2), ("low-rank plus diagonal", 2), ("tied", 2)])
@pytest.mark.parametrize("cell_class", CELLS)
def test_inner_components_are_the_units(x64, cell_class, form, units):
    cell = with_random_parameters(cell_class(2, 4, param_dtype=float, rngs=nnx.Rngs(0), **FORMS[form]))
    graph, _, _ = _traced(Recurrence(cell), jnp.ones((3, 5, 2)))
    assert graph.num_units == units * (1 if form == "tied" else len(cell.functions))


@pytest.mark.parametrize("optimizer", ["g_sgd", "g_adam"])
def test_optimizers_of_path_space_train_inner_components(optimizer):
    cell = PassthroughGRUCell(2, 8, rank=3, diagonal=True, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(1), (16, 6, 2))
    targets = jnp.tanh(jnp.sum(inputs, axis=1) @ jax.random.normal(jax.random.key(2), (2, 8)) / 2)
    graph, apply, params = _traced(Recurrence(cell), inputs)

    def loss(params):
        return jnp.mean((apply(params, inputs) - targets) ** 2)

    transformation = {"g_sgd": g_sgd, "g_adam": g_adam}[optimizer]
    optimizer = transformation({"g_sgd": 0.5, "g_adam": 0.01}[optimizer], choose_skeleton(graph, params))

    @jax.jit
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    _, losses = jax.lax.scan(step, (params, optimizer.init(params)), length=50)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("form", ["low-rank plus diagonal", "tied"])
def test_path_sgd_on_inner_components_commutes_with_rescaling(x64, form):
    # Gates have no path network, but the recurrent matrices have. All other weights take plain steps.
    cell = with_random_parameters(PassthroughGRUCell(2, 4, param_dtype=float, rngs=nnx.Rngs(0), **FORMS[form]))
    inputs = jax.random.normal(jax.random.key(1), (6, 5, 2))
    graph, apply, params = _traced(Recurrence(cell), inputs)
    graphdef = nnx.graphdef(Recurrence(cell))

    def products(params, states):
        matrices, _ = nnx.merge(graphdef, params).cell.constants(())
        return sum(apply_matrix(matrix, states) for matrix in matrices.values())

    def kappa(params):
        return jax.tree.map(lambda k: jnp.where(k > 0, k, 1), path_kappa(products, params, jnp.ones((1, 4))))

    optimizer = path_sgd(0.01, kappa)

    @jax.jit
    def train(params):
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(jax.grad(lambda p: jnp.sum(apply(p, inputs) ** 2))(params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    scales = random_scales(jax.random.key(2), graph, sigma=1.0)
    rescaled = rescale(params, graph, scales)
    trained = train(params)
    assert min(np.max(np.abs(w - old)) for w, old in zip(*map(jax.tree.leaves, (trained, params)), strict=True)) > 1e-4
    chex.assert_trees_all_close(train(rescaled), rescale(trained, graph, scales), rtol=1e-8)


def test_dropout_is_of_the_same_units_in_all_steps_and_in_training_alone():
    cell = PassthroughGRUCell(2, 50, recurrent_dropout=0.4, rngs=nnx.Rngs(0))
    _, masks = cell.constants((3,))
    for mask in masks.values():
        assert_allclose(np.unique(mask), [0, 1 / 0.6], rtol=1e-6)
    assert not np.array_equal(masks["carry"], masks["reset"])
    cell.eval()
    plain = PassthroughGRUCell(2, 50, rngs=nnx.Rngs(0))
    inputs = jnp.ones((3, 5, 2))
    assert_allclose(Recurrence(cell)(inputs), Recurrence(plain)(inputs), rtol=1e-6)


def test_dropped_units_are_not_read(x64):
    cell = PassthroughGRUCell(2, 5, recurrent_dropout=0.5, param_dtype=float, rngs=nnx.Rngs(0))
    projected = cell.project(jnp.ones((1, 2)))
    matrices, masks = cell.constants((1,))
    one = {name: jnp.asarray([[0.0, 2.0, 0.0, 2.0, 2.0]]) for name in masks}

    def next_state(state):
        return cell.step(state, projected, (matrices, one))[0]

    # The states themselves are passed on, elementwise.
    influence = jax.jacobian(next_state)(jnp.full((1, 5), 0.5))[0, :, 0, :]
    off_diagonal = influence - jnp.diag(jnp.diag(influence))
    assert not jnp.any(off_diagonal[:, jnp.array([0, 2])])
    assert jnp.all(jnp.abs(off_diagonal[:, 1]).sum() > 0)


def test_tied_projections_share_one_mask():
    cell = PassthroughLSTMCell(2, 50, rank=3, tied_projections=True, recurrent_dropout=0.4, rngs=nnx.Rngs(0))
    _, masks = cell.constants((3,))
    assert len({id(mask) for mask in masks.values()}) == 1


@pytest.mark.parametrize("form", ["full", "tied"])
@pytest.mark.parametrize("cell_class", CELLS)
def test_a_step_for_many_seeds_compiles_once(cell_class, form):
    def make(rngs):
        cell = cell_class(2, 4, weight_norm=True, recurrent_dropout=0.3, rngs=rngs, **FORMS[form])
        return nnx.Sequential(Recurrence(cell), nnx.Linear(4, 3, rngs=rngs))

    train_two_steps(make, jnp.ones((8, 5, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 5}, "rank from 1 to the size of the state, 4, got 5"),
        ({"rank": 0}, "rank from 1 to the size of the state, 4, got 0"),
        ({"diagonal": True}, "a rank with a diagonal, got None"),
        ({"tied_projections": True}, "a rank with tied_projections, got None"),
        ({"recurrent_dropout": 1.0}, "recurrent_dropout from 0 to below 1, got 1.0"),
        ({"hidden_features": 0}, "in_features and hidden_features of 1 or more, got 2 and 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PassthroughGRUCell(**{"in_features": 2, "hidden_features": 4} | options, rngs=nnx.Rngs(0))


def test_inputs_of_another_size():
    model = Recurrence(PassthroughGRUCell(2, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"inputs of 2 features, got shape \(3, 7\)"):
        model(jnp.ones((3, 5, 7)))


def _traced(model, inputs):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params, inputs):
        return nnx.merge(graphdef, params, rest)(inputs)

    return reduction_graph(apply, params, inputs), apply, params
