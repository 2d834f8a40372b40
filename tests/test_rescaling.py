import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pathspace import ReductionGraph, balance, conservation_error, random_scales, rescale
from pathspace.trees import named_leaves
from tests.architectures import MLP, RNN, Mixture
from tests.compiled import balanced, conservation, loss_gradient, outputs, rescaled
from tests.edges import edges_by_loops, weight_of
from tests.examples import NETWORKS, over_networks, random_scales_by_numpy

pytestmark = pytest.mark.usefixtures("x64")


def squared_norms(params, graph):
    """What flows into and out of each unit, weights from a unit to itself aside."""
    flow_in, flow_out = {}, {}
    for edge in edges_by_loops(graph):
        square = 0 if edge.source == edge.target else weight_of(params, edge) ** 2
        flow_in[edge.target] = flow_in.get(edge.target, 0) + square
        flow_out[edge.source] = flow_out.get(edge.source, 0) + square
    units = [(group.name, i) for group in graph.groups for i in range(group.size)]
    return [flow_in[unit] for unit in units], [flow_out[unit] for unit in units]


def sum_of_squares(params):
    return sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(params))


@over_networks(max_examples=2)
def test_rescale(network, seed):
    params, graph = network.parameters(seed), network.graph
    scales = random_scales_by_numpy(graph, seed)
    equivalent = rescaled(params, graph, scales)
    for edge in edges_by_loops(graph):
        into = scales[edge.target[0]][edge.target[1]] if edge.target else 1
        out_of = scales[edge.source[0]][edge.source[1]] if edge.source else 1
        assert_allclose(weight_of(equivalent, edge), weight_of(params, edge) * into / out_of, rtol=1e-14)
    for name in graph.outside:
        np.testing.assert_array_equal(named_leaves(equivalent)[name], named_leaves(params)[name])
    inputs = network.inputs(seed)
    assert_allclose(outputs(network, equivalent, inputs), outputs(network, params, inputs), rtol=1e-10, atol=1e-10)


def test_rescale_leaves_other_groups_alone():
    network = MLP((2, 3, 3, 2))
    params = network.parameters(0)
    rescaled = rescale(params, network.graph, {"h1": jnp.array([1.0, 2.0, 4.0])})
    np.testing.assert_array_equal(rescaled["dense2"]["kernel"], params["dense2"]["kernel"])
    np.testing.assert_array_equal(rescaled["dense1"]["kernel"], params["dense1"]["kernel"] / [[1], [2], [4]])


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"h2": np.ones(3)}, "scales name the group 'h2', but the graph has only ['h1']"),
        ({"h1": np.ones(2)}, "the scales of group 'h1' have shape (2,), expected (3,)"),
    ],
)
def test_rescale_errors(scales, message):
    network = MLP((2, 3, 2))
    with pytest.raises(ValueError, match=re.escape(message)):
        rescale(network.parameters(0), network.graph, scales)


def test_random_scales():
    graph = MLP((1, 4000, 3, 1)).graph
    scales = random_scales(jax.random.key(0), graph, sigma=2.0)
    assert {name: value.shape for name, value in scales.items()} == {"h1": (4000,), "h2": (3,)}
    logs = np.log(scales["h1"])
    assert abs(np.mean(logs)) < 0.1
    assert abs(np.std(logs) - 2) < 0.1
    again = random_scales(jax.random.key(0), graph, sigma=2.0)
    np.testing.assert_array_equal(again["h1"], scales["h1"])
    other = random_scales(jax.random.key(1), graph, sigma=2.0)
    assert not np.array_equal(other["h1"], scales["h1"])


@over_networks(max_examples=2)
def test_balance(network, seed):
    params, graph = network.parameters(seed), network.graph
    least = balanced(params, graph)
    flow_in, flow_out = squared_norms(least, graph)
    assert_allclose(flow_in, flow_out, rtol=1e-10)
    for i in range(5):
        scales = random_scales_by_numpy(graph, seed + i, decades=0.1)
        assert sum_of_squares(rescaled(least, graph, scales)) > sum_of_squares(least)
    inputs = network.inputs(seed)
    assert_allclose(outputs(network, least, inputs), outputs(network, params, inputs), rtol=1e-10, atol=1e-10)


@over_networks(max_examples=2)
def test_equivalent_parameters_have_one_balanced_representative(network, seed):
    params, graph = network.parameters(seed), network.graph
    rng = np.random.default_rng(seed)
    scales = {group.name: rng.lognormal(0, 2, group.size) for group in graph.groups}
    least = named_leaves(balanced(params, graph))
    for name, leaf in named_leaves(balanced(rescaled(params, graph, scales), graph)).items():
        assert_allclose(leaf, least[name], rtol=1e-10, err_msg=name)


def test_weights_from_a_unit_to_itself_do_not_matter():
    """An identity recurrent start is not a reason to move any scale."""
    network = RNN((2, 3, 2))
    params = network.parameters(0)
    expected = balanced(params | {"recurrent0": {"kernel": jnp.zeros((3, 3))}}, network.graph)
    least = balanced(params | {"recurrent0": {"kernel": 5 * jnp.eye(3)}}, network.graph)
    assert_allclose(least["input0"]["kernel"], expected["input0"]["kernel"], rtol=1e-12)
    assert_allclose(least["recurrent0"]["kernel"], 5 * jnp.eye(3), rtol=1e-14)


@pytest.mark.parametrize("side", ["dense0", "dense1"])
def test_dead_units_keep_their_scale(side):
    network = MLP((2, 3, 2), bias=False)
    params = network.parameters(0)
    at = (slice(None), 1) if side == "dense0" else (1, slice(None))
    params[side]["kernel"][at] = 0
    least = balanced(params, network.graph)
    assert_allclose(least["dense0"]["kernel"][:, 1], params["dense0"]["kernel"][:, 1], rtol=1e-14)
    assert_allclose(least["dense1"]["kernel"][1], params["dense1"]["kernel"][1], rtol=1e-14)
    others = np.array([0, 2])
    norms = np.sum(least["dense0"]["kernel"][:, others] ** 2, 0), np.sum(least["dense1"]["kernel"][others] ** 2, 1)
    assert_allclose(*norms, rtol=1e-12)


def test_balance_of_zeros_is_zero():
    network = RNN((2, 3, 2), bias=True)
    zeros = jax.tree.map(np.zeros_like, network.parameters(0))
    for leaf in jax.tree.leaves(balanced(zeros, network.graph)):
        np.testing.assert_array_equal(leaf, 0)


def test_max_sweeps():
    network = MLP((2, 3, 2))
    params = network.parameters(0)
    for leaf, start in zip(
        jax.tree.leaves(balance(params, network.graph, max_sweeps=0)), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_array_equal(leaf, start)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_balance_keeps_the_dtype(dtype):
    network = RNN((2, 3, 2))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), network.parameters(0))
    least = balanced(params, network.graph)
    assert {leaf.dtype for leaf in jax.tree.leaves(least)} == {jnp.dtype(dtype)}
    flow_in, flow_out = squared_norms(least, network.graph)
    # Sweeps end in float32 when no step, an eighth of the remaining imbalance, is above 16 units of rounding.
    tolerance = 8 * float(jnp.finfo(dtype).eps) + 8 * 16 * float(jnp.finfo(jnp.float32).eps)
    assert_allclose(flow_in, flow_out, rtol=tolerance)


def test_balance_of_an_empty_graph():
    network = MLP((2, 3, 2))
    params = network.parameters(0)
    assert balance(params, ReductionGraph.from_edges(params, {})) is params


@pytest.mark.parametrize("network", [MLP((2, 3, 2)), RNN((1, 2, 2, 1)), Mixture(1, 2, 1)], ids=str)
def test_balance_is_differentiable(network):
    weigh = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), network.parameters(0))

    def read(params):
        return jax.tree.reduce(
            jnp.add, jax.tree.map(lambda w, leaf: jnp.sum(w * leaf), weigh, balanced(params, network.graph))
        )

    check_grads(read, (network.parameters(0),), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_balance_of_many_at_once():
    network = RNN((2, 3, 2))
    many = [network.parameters(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *many)
    together = jax.jit(jax.vmap(lambda params: balance(params, network.graph)))(stacked)
    for i, params in enumerate(many):
        alone = balanced(params, network.graph)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            assert_allclose(a[i], b, rtol=1e-12)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_gradients_conserve_clipped_by_the_norm_but_not_by_value(network):
    params, graph = network.parameters(1), network.graph
    grads = loss_gradient(network, params, network.inputs(1))
    sizes = np.concatenate([np.abs(leaf).ravel() for leaf in jax.tree.leaves(grads)])
    typical = float(np.median(sizes[sizes > 0]))

    def clipped(clip):
        return max(conservation(clip.update(grads, clip.init(params))[0], params, graph).values())

    assert max(conservation(grads, params, graph).values()) < 1e-12
    assert clipped(optax.clip_by_global_norm(1e-3)) < 1e-12
    assert clipped(optax.clip(typical)) > 1e-3


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_conservation_errors_are_in_the_order_of_the_groups(network):
    names = []
    # What jax.jit returns is sorted by name.
    jax.eval_shape(
        lambda params: names.extend(conservation_error(params, params, network.graph)), network.parameters(0)
    )
    assert names == [group.name for group in network.graph.groups]


def test_conservation_error_by_loops():
    network = RNN((2, 3, 2, 2), bias=True)
    params, grads = network.parameters(0), network.parameters(1)
    flow_in, flow_out = ({group.name: np.zeros(group.size) for group in network.graph.groups} for _ in range(2))
    for edge in edges_by_loops(network.graph):
        flow = weight_of(params, edge) * weight_of(grads, edge)
        if edge.target:
            flow_in[edge.target[0]][edge.target[1]] += flow
        if edge.source:
            flow_out[edge.source[0]][edge.source[1]] += flow
    for name, error in conservation(grads, params, network.graph).items():
        norms = [np.linalg.norm(v) for v in (flow_in[name] - flow_out[name], flow_in[name], flow_out[name])]
        assert_allclose(error, norms[0] / (norms[1] + norms[2]), rtol=1e-12)


def test_zero_gradients_conserve():
    network = MLP((2, 3, 2))
    zeros = jax.tree.map(np.zeros_like, network.parameters(0))
    assert conservation(zeros, network.parameters(0), network.graph)["h1"] == 0
