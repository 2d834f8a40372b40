"""Numbers and names beside the trees."""

import functools
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose

from pathspace import (
    ReductionGraph,
    g_adam,
    g_sgd,
    in_path_space,
    path_kappa,
    path_network,
    path_norm,
    reduction_graph,
    rescale,
    weight_allocation,
)
from pathspace.trees import named_leaves
from tests.abuse.subjects import EDGES, PARAMS, network, optimizers_of, parameters
from tests.compiled import choose, kappa_of, rescaled

GRAPH = ReductionGraph.from_edges(PARAMS, EDGES)
SKELETON = choose(GRAPH, PARAMS)
X = jnp.ones((1, 2))


def raises(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert str(caught.value).endswith("."), str(caught.value)


# --- rescale ---

SCALES = {
    "zero": ([1.0, 0.0, 2.0], "0.0"),
    "negative": ([1.0, -2.0, 2.0], "-2.0"),
    "no number": ([np.nan, 1.0, 1.0], "nan"),
    "infinite": ([1.0, 1.0, np.inf], "inf"),
    "beyond float32": ([1.0, 1e300, 1.0], "inf"),
    "subnormal, 0 to XLA": ([1e-45, 1.0, 1.0], "1.4.*e-45"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_scales_that_are_not_positive(scales):
    values, text = scales
    message = f"the scales of group 'h' hold {text}, expected positive and finite numbers: rescaling by others changes"
    raises(lambda: rescale(PARAMS, GRAPH, {"h": np.array(values)}), message)


def test_scales_that_a_compiled_function_closes_over():
    wrong, right = (jnp.full(3, value) for value in (-2.0, 2.0))
    raises(lambda: jax.jit(lambda tree: rescale(tree, GRAPH, {"h": wrong}))(PARAMS), "hold -2.0, expected positive")
    inside = jax.jit(lambda tree: rescale(tree, GRAPH, {"h": right}))(PARAMS)
    assert_allclose(inside["out"]["kernel"], PARAMS["out"]["kernel"] / 2)


def test_scales_that_are_traced_are_not_checked():
    """As the docstring says: there is nothing to raise an error with."""
    assert_allclose(rescaled(PARAMS, GRAPH, {"h": -jnp.ones(3)})["out"]["kernel"], -PARAMS["out"]["kernel"])


@settings(max_examples=30)
@given(logarithms=st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_rescaling_there_and_back(logarithms):
    there = rescaled(PARAMS, GRAPH, {"h": np.exp2(logarithms).astype(np.float32)})
    back = rescaled(there, GRAPH, {"h": np.exp2(np.negative(logarithms)).astype(np.float32)})
    for name, leaf in named_leaves(back).items():
        assert_allclose(leaf, named_leaves(PARAMS)[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"g": np.ones(3)}, "scales name the group 'g', but the graph has only ['h']: name groups as they are there"),
        ({"h": np.ones(4)}, "the scales of group 'h' have shape (4,), expected (3,): one a unit"),
        ({"h": np.ones(0)}, "the scales of group 'h' have shape (0,), expected (3,): one a unit"),
    ],
)
def test_groups_and_sizes_of_scales(scales, message):
    raises(lambda: rescale(PARAMS, GRAPH, scales), re.escape(message))


# --- powers ---


@pytest.mark.parametrize("p", [0, -1, 0.0, -0.5, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    "function", [lambda p: path_norm(network, PARAMS, X, p=p), lambda p: path_network(network, p=p)]
)
def test_powers_that_are_not_positive_and_finite(function, p):
    message = f"p is the power of an l_p norm and must be above 0 and finite, got {p}"
    raises(functools.partial(function, p), re.escape(message))


@pytest.mark.parametrize("p", [0.1, 7.5])
def test_all_other_powers(p):
    by_layer = [np.abs(leaf) ** p for leaf in jax.tree.leaves(PARAMS)]
    hidden_bias, hidden, out_bias, out = by_layer
    expected = ((hidden.sum(0) + hidden_bias) @ out + out_bias).sum() ** (1 / p)
    assert_allclose(path_norm(network, PARAMS, X, p=p), expected, rtol=1e-4)


@pytest.mark.parametrize("size", [8e37, 9e37, 3e38])
def test_a_path_norm_of_almost_the_largest_number(size):
    """Its reciprocal is subnormal."""

    def fn(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": jnp.array([[size, 1.0]]), "b": jnp.ones((2, 1))}
    assert_allclose(path_norm(fn, params, jnp.ones((1, 1)), p=1), size, rtol=1e-4)
    assert_allclose(path_norm(fn, params, jnp.ones((1, 1)), p=1, log=True), math.log(size), rtol=1e-6)


# --- limits and learning rates ---

LIMITED = {
    "weight_allocation": lambda ratio: weight_allocation(PARAMS, PARAMS, SKELETON, max_ratio=ratio),
    "in_path_space": lambda ratio: in_path_space(g_sgd(0.1, SKELETON), SKELETON, max_ratio=ratio),
    "g_sgd": lambda ratio: g_sgd(0.1, SKELETON, max_ratio=ratio),
    "g_adam": lambda ratio: g_adam(0.1, SKELETON, max_ratio=ratio),
}


@pytest.mark.parametrize("ratio", [1.0, math.nan])
@pytest.mark.parametrize("call", LIMITED.values(), ids=LIMITED)
def test_ratios_that_limit_nothing(call, ratio):
    def run():
        optimizer = call(ratio)
        return optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)

    raises(lambda: jax.eval_shape(run), f"max_ratio limits an update ratio around 1 and must be above 1, got {ratio}")


RATES = [0.0, -0.1, 1e38, -1e38, 1e-45, math.nan, math.inf]
# They end with Optax's own multiplication by the rate.
CHAINS = ("path_sgd", "path_adam")


@functools.cache
def updates_at_rates():
    makes = optimizers_of(SKELETON, lambda params: path_kappa(network, params, X))

    def updates(rate, gradient):
        optimizers = {name: make(rate) for name, make in makes.items()}
        return {name: each.update(gradient, each.init(PARAMS), PARAMS)[0] for name, each in optimizers.items()}

    return jax.jit(updates)


@pytest.mark.parametrize("rate", RATES)
def test_learning_rates(rate):
    for name, updates in updates_at_rates()(rate, PARAMS).items():
        if abs(rate) <= 1 or name not in CHAINS:
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates)), name
        if rate == 0 and name != "scale_by_path_kappa":
            assert_allclose(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(updates)]), 0, atol=1e-6)


# --- edges ---

PAIRS = {
    "a name": "h",
    "a name of two letters": "hg",
    "one": ("h",),
    "three": (None, "h", None),
    "nothing": None,
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_edges_that_are_no_pair(pair):
    # The tests' type checker would be first to object; users have none.
    from_edges = inspect.unwrap(ReductionGraph.from_edges.__func__)
    message = f"the edges of leaf 'hidden/kernel' are {pair!r}, expected a pair: name its source and its target, or "
    raises(lambda: from_edges(ReductionGraph, PARAMS, EDGES | {"hidden/kernel": pair}), re.escape(message))


# --- axes without entries ---

EMPTY = {
    "units": (
        (2, 0, 2),
        r"group 'h' has no units on axis 1 of 'hidden/kernel' of shape \(2, 0\), expected one or more",
    ),
    "outputs": (
        (2, 3, 0),
        "nothing flows out of group 'h': name the leaf that reads its units, or leave the group out",
    ),
    "anything": ((0, 0, 0), "group 'h' has no units on axis 1"),
}


@pytest.mark.parametrize(("dims", "message"), EMPTY.values(), ids=EMPTY)
def test_graphs_of_empty_axes(dims, message):
    raises(lambda: ReductionGraph.from_edges(parameters(*dims), EDGES), message)


def test_inputs_of_no_entries_leave_biases():
    params = parameters(0, 3, 2)
    graph = ReductionGraph.from_edges(params, EDGES)
    assert (graph.num_weights, graph.in_chain["h"].name) == (9, "hidden/bias")
    assert "3 units, 9 weights, 6 basis paths" in graph.describe()
    assert choose(graph, params).in_edges["h"].tolist() == [0, 1, 2]
    edges = {name: EDGES[name] for name in ("hidden/kernel", "out/kernel")}
    raises(lambda: ReductionGraph.from_edges(params, edges), "nothing flows into group 'h': name the leaf that feeds")


@pytest.mark.parametrize("dims", [(2, 0, 2), (2, 3, 0)], ids=["units", "outputs"])
def test_traced_functions_of_empty_axes(dims):
    with pytest.raises(ValueError, match="the function has no units that can be rescaled"):
        reduction_graph(network, parameters(*dims), X)


@pytest.mark.parametrize(("steps", "units"), [(0, 3), (3, 0)], ids=["no steps", "no units"])
def test_kappa_of_empty_recurrences(steps, units):
    def fn(params, x):
        def step(h, x):
            return jax.nn.relu(h @ params["u"] + x @ params["w"]), None

        return jax.lax.scan(step, jnp.zeros(units), x)[0] @ params["v"]

    params = {"u": jnp.ones((units, units)), "w": jnp.ones((2, units)), "v": jnp.ones((units, 2))}
    kappa = kappa_of(fn, params, jnp.ones((steps, 2)), second_term=True)
    assert jax.tree.map(jnp.shape, kappa) == jax.tree.map(jnp.shape, params)
    assert not np.any(kappa["u"])
