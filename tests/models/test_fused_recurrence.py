"""The recurrence in kernels for GPUs, in Pallas' interpreter, against the plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec, use_abstract_mesh
from numpy.testing import assert_allclose, assert_array_equal

import pathspace
from pathspace.models import ReluRNN
from pathspace.models.fused_recurrence import fused_relu_states
from tests.jaxprs import equations


def plain_states(projected, kernel, first):
    def step(state, projected):
        state = jax.nn.relu(projected + (state @ kernel.astype(state.dtype)))
        return state, state

    return jax.lax.scan(step, first, projected)


def in_kernels(projected, kernel, first):
    return fused_relu_states(projected, kernel, first, 1, True)


def arguments(time, batch, units, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(time + units), 3)
    return (
        jax.random.normal(keys[0], (time, *batch, units), dtype),
        jax.random.normal(keys[1], (units, units)) / np.sqrt(units),
        jax.nn.relu(jax.random.normal(keys[2], (*batch, units), dtype)),
    )


def gradient(states_of):
    def weighted_sum(*args):
        last, states = (each.astype(jnp.promote_types(each.dtype, jnp.float32)) for each in states_of(*args))
        return jnp.sum(last**3) + jnp.sum(states**2 * jnp.cos(jnp.arange(states.size)).reshape(states.shape))

    return jax.grad(weighted_sum, argnums=(0, 1, 2))


def primitives(function, *args):
    """Names of the primitives at all depths, but not of those inside kernels."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return [eqn.primitive.name for eqn in equations(jaxpr, closed=["pallas_call"])]


def relative_error(got, expected):
    got, expected = (np.asarray(each, np.float64) for each in (got, expected))
    return np.max(np.abs(got - expected), initial=0) / np.max(np.abs(expected), initial=1e-300)


@pytest.mark.parametrize(
    ("time", "batch", "units"), [(28, (64,), 100), (1, (), 1), (7, (3,), 4), (4, (2, 9), 16), (3, (17,), 128)]
)
@pytest.mark.parametrize("states_of", [in_kernels, lambda *args: fused_relu_states(*args, 1)], ids=["kernel", "loop"])
def test_states_and_gradients_are_those_of_the_plain_loop(time, batch, units, states_of):
    args = arguments(time, batch, units)
    for function in (lambda states_of: states_of, gradient):
        got, expected = jax.jit(function(states_of))(*args), jax.jit(function(plain_states))(*args)
        for ours, plain in zip(got, expected, strict=True):
            assert (ours.shape, ours.dtype) == (plain.shape, plain.dtype)
            assert relative_error(ours, plain) < 2e-6


def test_gradients_of_narrow_states_add_up_in_the_dtype_of_the_kernel():
    projected, kernel, first = arguments(400, (8,), 4)
    kernel = kernel / 2

    def total(kernel, states_of, dtype):
        return states_of(projected.astype(dtype), kernel, first.astype(dtype))[1].astype(jnp.float32).sum()

    got = jax.grad(total)(kernel, in_kernels, jnp.bfloat16)
    assert got.dtype == jnp.float32
    exact = jax.grad(total)(kernel, plain_states, jnp.float32)
    # Sums of 3,200 products in bfloat16 would be off by more than a tenth.
    assert relative_error(got, exact) < 0.01


def test_gradients_of_a_batch_of_networks():
    args = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arguments(time=4, batch=(2,), units=3) for _ in range(2)))
    args = jax.tree.map(lambda leaf: leaf * jnp.array([1, 2]).reshape(2, *[1] * (leaf.ndim - 1)), args)
    for got, expected in zip(
        jax.vmap(gradient(in_kernels))(*args), jax.vmap(gradient(plain_states))(*args), strict=True
    ):
        assert relative_error(got, expected) < 2e-6


def test_each_loop_is_in_a_kernel():
    names = primitives(gradient(in_kernels), *arguments(4, (2,), 3))
    assert (names.count("pallas_call"), names.count("scan")) == (2, 0)


@pytest.mark.parametrize(
    ("time", "batch", "units", "dtype"),
    [(0, (2,), 3, jnp.float32), (3, (0,), 3, jnp.float32), (3, (2,), 129, jnp.float32), (3, (2,), 3, jnp.float64)],
)
def test_other_sizes_and_dtypes_run_in_scans(x64, time, batch, units, dtype):
    args = arguments(time, batch, units, dtype)
    names = primitives(gradient(in_kernels), *args)
    assert (names.count("pallas_call"), names.count("scan")) == (0, 2)
    for got, expected in zip(gradient(in_kernels)(*args), gradient(plain_states)(*args), strict=True):
        assert_allclose(got, expected, rtol=1e-4, atol=1e-5 if dtype == jnp.float32 else 1e-12)


def test_sequences_that_are_spread_explicitly_run_in_scans():
    mesh = jax.make_mesh((jax.device_count(),), ("sequences",), axis_types=(AxisType.Explicit,))
    projected, kernel, first = arguments(4, (2 * jax.device_count(),), 3)
    expected = gradient(plain_states)(projected, kernel, first)
    with jax.set_mesh(mesh):
        spread = [
            jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
            for array, spec in ((projected, (None, "sequences")), (kernel, ()), (first, ("sequences",)))
        ]
        got = jax.jit(gradient(in_kernels))(*spread)
        assert "pallas_call" not in primitives(gradient(in_kernels), *spread)
    for ours, plain in zip(got, expected, strict=True):
        assert relative_error(ours, plain) < 2e-6


def test_forward_derivatives_are_refused():
    args = arguments(3, (2,), 3)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(in_kernels, args, args)


def test_for_gpus_both_loops_are_lowered_to_kernels():
    gpu = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    function, args = jax.jit(gradient(lambda *args: fused_relu_states(*args, 1))), arguments(28, (64,), 100)
    with use_abstract_mesh(AbstractMesh((1,), ("device",), abstract_device=gpu)):
        text = function.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert (text.count("stablehlo.custom_call @__gpu$xla.gpu.triton"), text.count("stablehlo.while")) == (2, 0)


def models():
    return [ReluRNN(3, [4, 5], 2, fused=fused, rngs=nnx.Rngs(0)) for fused in (True, False)]


def test_a_network_that_is_trained_in_kernels_has_the_same_gradients_elsewhere():
    inputs = jax.random.normal(jax.random.key(0), (6, 7, 3))
    fused, plain = (nnx.grad(lambda model: jnp.sum(model(inputs) ** 2))(model) for model in models())
    for got, expected in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
        assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_its_structure_and_curvature_are_traced():
    def measured(model):
        graphdef, params = nnx.split(model, nnx.Param)

        def network(params, inputs):
            return nnx.merge(graphdef, params)(inputs)

        inputs = jnp.ones((1, 7, 3))
        return pathspace.reduction_graph(network, params, inputs), pathspace.path_kappa(network, params, inputs)

    (graph, kappa), (plain_graph, plain_kappa) = map(measured, models())
    assert graph == plain_graph
    jax.tree.map(assert_array_equal, kappa, plain_kappa)
