import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pathspace import reduction_graph
from pathspace.models.unitary import UnitaryCell, unitary_product

from .training import train_two_steps


def cell_of(in_features, hidden_features, seed=0, **options):
    """A cell whose biases are large enough to close some units."""
    options = {"bias_init": nnx.initializers.normal(0.5)} | options
    return UnitaryCell(in_features, hidden_features, rngs=nnx.Rngs(seed), **options)


def complex_of(parts):
    real, imaginary = np.split(np.asarray(parts), 2, axis=-1)
    return real + 1j * imaginary


def recurrent_matrix(cell):
    """W as a product of seven matrices."""
    n = cell.hidden_features
    d = [np.diag(np.exp(1j * theta)) for theta in np.asarray(cell.phases[...])]
    r = [np.eye(n) - 2 * np.outer(v, v.conj()) / np.vdot(v, v) for v in complex_of(cell.reflections[...])]
    f = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / np.sqrt(n)
    permutation = np.eye(n)[np.asarray(cell.permutation[...])]
    return d[2] @ r[1] @ f.conj().T @ d[1] @ permutation @ r[0] @ f @ d[0]


def states_by_loops(cell, sequence):
    """The definition for one sequence of shape (time, in_features), unit by unit."""
    w, v = recurrent_matrix(cell), complex_of(cell.input.kernel[...]).T
    b = np.asarray(cell.bias[...])
    h = complex_of(cell.initial_state[...])
    states = []
    for x in np.asarray(sequence):
        z = w @ h + v @ x
        h = np.array([max(abs(z_j) + b_j, 0) * z_j / abs(z_j) for z_j, b_j in zip(z, b, strict=True)])
        states.append(h)
    return np.stack(states)


def run(cell, inputs):
    """The scan of steps over projected inputs of shape (time, *batch, in_features)."""
    constants = cell.constants(inputs.shape[1:-1])

    def step(carry, projected):
        return cell.step(carry, projected, constants)

    return jax.lax.scan(step, cell.initialize_carry(inputs.shape[1:]), cell.project(inputs))


@pytest.mark.parametrize("hidden_features", [1, 5])
def test_outputs_equal_loops(x64, hidden_features):
    cell = cell_of(2, hidden_features, param_dtype=float)
    inputs = jax.random.normal(jax.random.key(1), (3, 6, 2))
    expected = np.stack([states_by_loops(cell, sequence) for sequence in inputs])
    assert hidden_features == 1 or np.any(expected == 0)

    carry, outputs = run(cell, jnp.moveaxis(inputs, 1, 0))
    assert outputs.dtype == np.float64
    assert_allclose(complex_of(jnp.moveaxis(outputs, 0, 1)), expected, rtol=1e-12, atol=1e-12)
    assert_allclose(carry, expected[:, -1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_runs_in_nnx_rnn_with_any_number_of_batch_axes(x64, batch):
    cell = cell_of(2, 4, param_dtype=float)
    inputs = jax.random.normal(jax.random.key(1), (*batch, 6, 2))
    expected = [states_by_loops(cell, sequence) for sequence in inputs.reshape(-1, 6, 2)]
    outputs = nnx.jit(lambda rnn, inputs: rnn(inputs))(nnx.RNN(cell), inputs)
    assert_allclose(complex_of(outputs), np.reshape(expected, (*batch, 6, 4)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hidden_features", [1, 5])
def test_recurrent_matrix_is_unitary(x64, hidden_features):
    cell = cell_of(2, hidden_features, param_dtype=float)
    w = np.asarray(jax.jit(unitary_product)(jnp.eye(hidden_features, dtype=complex), cell.constants(()))).T
    assert_allclose(w, recurrent_matrix(cell), atol=1e-13)
    assert_allclose(w.conj().T @ w, np.eye(hidden_features), atol=1e-13)


def change_of_norm(cell, products):
    constants = cell.constants(())

    @jax.jit
    def power(state):
        return jax.lax.fori_loop(0, products, lambda _, state: unitary_product(state, constants), state)

    state = cell.initialize_carry((2,))
    return jnp.linalg.norm(power(state)) / jnp.linalg.norm(state) - 1


def test_thousand_products_keep_the_norm(x64):
    cell = cell_of(2, 128, param_dtype=float)
    assert abs(change_of_norm(cell, 1000)) < 1e-12


def test_thousand_products_in_single_precision_keep_the_norm():
    # Less than half a rounding error of float32 in each.
    assert abs(change_of_norm(cell_of(2, 128), 1000)) < 6e-5


def test_network_without_biases_is_linear(x64):
    cell = cell_of(2, 4, param_dtype=float, bias_init=nnx.initializers.zeros)
    carry, inputs = cell.initialize_carry((2,)), jax.random.normal(jax.random.key(1), (2,))
    state, _ = jax.jit(cell)(carry, inputs)
    assert_allclose(state, recurrent_matrix(cell) @ carry + complex_of(cell.project(inputs)), rtol=1e-12)


def test_gradients(x64):
    cell = cell_of(2, 4, param_dtype=float)
    graphdef, params, rest = nnx.split(cell, nnx.Param, ...)
    inputs = jax.random.normal(jax.random.key(1), (5, 3, 2))

    @jax.jit
    def outputs(params, inputs):
        return run(nnx.merge(graphdef, params, rest), inputs)[1]

    assert np.any(outputs(params, inputs) == 0)
    check_grads(outputs, (params, inputs), order=1, modes=["fwd", "rev"])


def gradients_of_a_step(projected):
    """Outputs from a zero state, and gradients of their sum, where units have a negative, no and a positive bias."""

    def biases(key, shape, dtype):
        return jnp.array([-0.01, 0.0, 0.01], dtype)

    graphdef, params, rest = nnx.split(UnitaryCell(2, 3, bias_init=biases, rngs=nnx.Rngs(0)), nnx.Param, ...)

    @jax.jit
    def loss_and_gradients(params, carry, projected):
        def loss(params, carry, projected):
            cell = nnx.merge(graphdef, params, rest)
            outputs = cell.step(jax.lax.complex(*carry), projected, cell.constants(()))[1]
            return jnp.sum(outputs), outputs

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, carry, projected)

    gradients, outputs = loss_and_gradients(params, jnp.zeros((2, *projected.shape[:-1], 3)), projected)
    return outputs, gradients


def test_outputs_and_gradients_at_zero_are_zero():
    for leaf in jax.tree.leaves(gradients_of_a_step(jnp.zeros((1, 6)))):
        assert_allclose(leaf, 0)


def test_outputs_and_gradients_are_finite_near_zero_and_far_from_it():
    sizes = 10.0 ** np.array([-45, -38, -30, -20, -19, -18, -10, 10, 30])
    projected = sizes[:, None] * np.random.default_rng(0).normal(size=(len(sizes), 6))
    chex.assert_tree_all_finite(gradients_of_a_step(jnp.asarray(projected, jnp.float32)))


def test_parameters():
    cell = UnitaryCell(2, 4, rngs=nnx.Rngs(0))
    params = nnx.state(cell, nnx.Param)
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(params)) == {
        "input": {"kernel": (2, 8)},
        "bias": (4,),
        "phases": (3, 4),
        "reflections": (2, 8),
        "initial_state": (8,),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2 * 4 * 2 + 10 * 4
    chex.assert_type(jax.tree.leaves(params), jnp.float32)
    assert sorted(np.asarray(cell.permutation[...])) == list(range(4))


def test_start():
    cell = UnitaryCell(200, 300, rngs=nnx.Rngs(0))
    bounds = {
        "input/kernel": np.sqrt(6 / (200 + 600)),
        "bias": 0.01,
        "phases": np.pi,
        "reflections": 1.0,
        "initial_state": np.sqrt(3 / 600),
    }
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(cell, nnx.Param)))
    for path, leaf in leaves:
        bound = bounds.pop("/".join(key.key for key in path))
        assert 0.98 * bound < np.max(np.abs(leaf)) <= np.float32(bound)
        assert_allclose(np.mean(leaf), 0, atol=0.1 * bound)
    assert not bounds
    assert_allclose(np.sum(np.abs(cell.initialize_carry((200,))) ** 2), 1, rtol=0.1)


def test_initializers():
    constants = {"kernel_init": 1, "phase_init": 2, "reflection_init": 3, "bias_init": 4, "initial_state_init": 5}
    options = {name: nnx.initializers.constant(value) for name, value in constants.items()}
    cell = UnitaryCell(2, 4, **options, rngs=nnx.Rngs(0))
    leaves = [cell.input.kernel, cell.phases, cell.reflections, cell.bias, cell.initial_state]
    assert [set(np.ravel(leaf[...])) for leaf in leaves] == [{value} for value in constants.values()]


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_initial_carry_is_the_initial_state(batch):
    cell = UnitaryCell(2, 4, rngs=nnx.Rngs(0))
    carry = cell.initialize_carry((*batch, 2), nnx.Rngs(1))
    assert carry.shape == (*batch, 4)
    assert_allclose(carry, np.broadcast_to(complex_of(cell.initial_state[...]), carry.shape))


def test_seeds_train_together_compiled_once():
    inputs = jax.random.normal(jax.random.key(1), (3, 6, 2))
    train_two_steps(
        lambda rngs: nnx.Sequential(nnx.RNN(UnitaryCell(2, 4, rngs=rngs)), nnx.Linear(8, 1, rngs=rngs)), inputs
    )


def test_vmapped_seeds_equal_single_seeds():
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(jax.random.key(1), (6, 3, 2))

    def permutation_and_outputs(key):
        cell = UnitaryCell(2, 8, rngs=nnx.Rngs(key))
        return cell.permutation[...], run(cell, inputs)[1]

    permutations, outputs = jax.jit(jax.vmap(permutation_and_outputs))(keys)
    assert len(np.unique(permutations, axis=0)) == 4
    for i in (0, 3):
        permutation, single = jax.jit(permutation_and_outputs)(keys[i])
        assert_allclose(permutations[i], permutation)
        assert_allclose(outputs[i], single, rtol=1e-4, atol=1e-6)


def test_merging_keeps_the_permutation():
    cell = UnitaryCell(2, 4, rngs=nnx.Rngs(0))
    merged = nnx.merge(*nnx.split(cell, nnx.Param, ...))
    chex.assert_trees_all_equal(merged.permutation[...], cell.permutation[...])
    assert nnx.graphdef(cell) == nnx.graphdef(UnitaryCell(2, 4, rngs=nnx.Rngs(1)))


def test_long_sequences_stay_finite():
    graphdef, params, rest = nnx.split(UnitaryCell(2, 4, rngs=nnx.Rngs(0)), nnx.Param, ...)
    inputs = jax.random.uniform(jax.random.key(1), (1000, 4, 2))

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradient(params):
        return jnp.mean(run(nnx.merge(graphdef, params, rest), inputs)[1][-1] ** 2)

    chex.assert_tree_all_finite(loss_and_gradient(params))


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "outputs_dtype"),
    [
        (None, jnp.float32, jnp.float32),
        (jnp.bfloat16, jnp.float32, jnp.bfloat16),
        (None, jnp.bfloat16, jnp.float32),
        (jnp.float16, jnp.bfloat16, jnp.float16),
    ],
)
def test_dtypes(dtype, param_dtype, outputs_dtype):
    inputs = jax.random.normal(jax.random.key(1), (6, 3, 2))
    cell = UnitaryCell(2, 4, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    chex.assert_type(jax.tree.leaves(nnx.state(cell, nnx.Param)), param_dtype)
    carry, outputs = jax.eval_shape(lambda: run(cell, inputs))
    chex.assert_type([carry, outputs], [jnp.complex64, outputs_dtype])


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "carry_dtype"),
    [
        (None, jnp.float32, jnp.complex64),
        (None, float, jnp.complex128),
        (float, jnp.bfloat16, jnp.complex128),
    ],
)
def test_dtypes_with_inputs_in_double_precision(x64, dtype, param_dtype, carry_dtype):
    inputs = jax.random.normal(jax.random.key(1), (6, 3, 2))
    cell = UnitaryCell(2, 4, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    carry, outputs = jax.eval_shape(lambda: run(cell, inputs))
    chex.assert_type([carry, outputs], [carry_dtype, jnp.float64])


def test_half_precision_is_close():
    inputs = jax.random.normal(jax.random.key(1), (6, 3, 2))
    exact, rounded = (
        run(UnitaryCell(2, 4, dtype=dtype, rngs=nnx.Rngs(0)), inputs)[1] for dtype in (None, jnp.bfloat16)
    )
    assert_allclose(np.asarray(rounded, float), exact, atol=0.1)


def model_and_params(*layers):
    graphdef, params, rest = nnx.split(nnx.Sequential(*layers), nnx.Param, ...)
    return lambda params, inputs: nnx.merge(graphdef, params, rest, copy=True)(inputs), params


def test_reduction_graph_has_no_units_of_the_cell():
    rngs = nnx.Rngs(0)
    rnn = nnx.RNN(UnitaryCell(2, 4, rngs=rngs))
    fn, params = model_and_params(rnn, nnx.Linear(8, 5, rngs=rngs), jax.nn.relu, nnx.Linear(5, 1, rngs=rngs))
    graph = reduction_graph(fn, params, jnp.ones((3, 6, 2)))
    assert [group.size for group in graph.groups] == [5]
    cell = ["bias", "initial_state", "input/kernel", "phases", "reflections"]
    assert {f"layers/0/cell/{name}" for name in cell} <= set(graph.outside)


def test_reduction_graph_of_nothing_else():
    rngs = nnx.Rngs(0)
    fn, params = model_and_params(nnx.RNN(UnitaryCell(2, 4, rngs=rngs)), nnx.Linear(8, 1, rngs=rngs))
    with pytest.raises(ValueError, match="no units that can be rescaled"):
        reduction_graph(fn, params, jnp.ones((3, 6, 2)))


@pytest.mark.parametrize(("in_features", "hidden_features"), [(0, 4), (2, 0)])
def test_bad_sizes(in_features, hidden_features):
    message = f"in_features and hidden_features of 1 or more, got {in_features} and {hidden_features}"
    with pytest.raises(ValueError, match=message):
        UnitaryCell(in_features, hidden_features, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(3, 5), (1,)], ids=str)
def test_wrong_number_of_features(shape):
    message = f"expected inputs of shape (*batch, 2), got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        UnitaryCell(2, 4, rngs=nnx.Rngs(0)).project(jnp.ones(shape))
