import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose

from pathspace import (
    ReductionGraph,
    basis_paths,
    choose_skeleton,
    from_basis_paths,
    inverse_chain_rule,
    rescale,
    skeleton_masks,
    weight_allocation,
)
from pathspace.basis import allocate
from pathspace.chart import chart_at
from pathspace.trees import named_leaves
from tests.architectures import CNN, MLP, RNN, Mixture
from tests.compiled import choose, masks_of, outputs, paths_of, rescaled
from tests.composites import COMPOSITES
from tests.edges import (
    all_paths,
    basis_paths_by_loops,
    edges_by_loops,
    exponents,
    paths_of_unrolled,
    skeleton_by_loops,
    weight_of,
)
from tests.examples import over_networks, random_scales_by_numpy, seeds

pytestmark = pytest.mark.usefixtures("x64")

CHOICES = [("largest", "balanced"), ("cyclic", None), ("largest", "initial")]


def skeleton_of(network, params, seed):
    method, reference = CHOICES[seed % len(CHOICES)]
    return choose(network.graph, params, method=method, reference=reference)


def gauge_of(network, skeleton):
    """True at the out-skeleton entries, by leaf."""
    gauge = {leaf.name: np.zeros(leaf.shape, bool) for leaf in network.graph.leaves}
    for edge in skeleton_by_loops(skeleton)[1].values():
        gauge[edge.leaf][edge.index] = True
    return gauge


def assert_trees_close(actual, expected, tolerance):
    """To a tolerance relative to the largest entry of each leaf."""
    expected = named_leaves(expected)
    for name, leaf in named_leaves(actual).items():
        assert_allclose(
            leaf, expected[name], rtol=tolerance, atol=tolerance * np.max(np.abs(expected[name])), err_msg=name
        )


from_paths = jax.jit(from_basis_paths)


@jax.jit
def there_and_back(params, skeleton):
    paths = basis_paths(params, skeleton)
    return paths, from_basis_paths(paths, skeleton)


@over_networks(max_examples=2)
def test_round_trip(network, seed):
    params = network.parameters(seed)
    paths, back = there_and_back(params, skeleton_of(network, params, seed))
    assert_trees_close(back, params, 1e-12)
    assert jax.tree.structure(paths) == jax.tree.structure(params)


@over_networks(max_examples=2)
def test_values_are_products_along_basis_paths_relative_to_the_reference(network, seed):
    params = network.parameters(seed + 1)
    skeleton = skeleton_of(network, network.parameters(seed), seed)
    in_edges, out_edges = skeleton_by_loops(skeleton)
    references = {edge: skeleton.in_reference[group][i] for (group, i), edge in in_edges.items()}
    references |= {edge: skeleton.out_reference[group][i] for (group, i), edge in out_edges.items()}
    all_skeleton = set(in_edges.values())
    values = named_leaves(there_and_back(params, skeleton)[0])
    for edge, path in basis_paths_by_loops(skeleton).items():
        expected = math.prod(weight_of(params, e) for e in path)
        expected /= math.prod(references.get(e, 1) for e in path)
        if edge in all_skeleton:
            expected *= skeleton.path_reference[edge.target[0]][edge.target[1]]
        assert_allclose(values[edge.leaf][edge.index], expected, rtol=1e-12, err_msg=str(edge))
    for edge in out_edges.values():
        assert values[edge.leaf][edge.index] == weight_of(params, edge)
    for name in network.graph.outside:
        np.testing.assert_array_equal(values[name], named_leaves(params)[name])


@over_networks(max_examples=2)
def test_rescaling_keeps_path_values(network, seed):
    params = network.parameters(seed)
    skeleton = skeleton_of(network, params, seed)
    equivalent = rescaled(params, network.graph, random_scales_by_numpy(network.graph, seed))
    gauge = gauge_of(network, skeleton)
    paths, _ = there_and_back(params, skeleton)
    same, _ = there_and_back(equivalent, skeleton)
    for name, value in named_leaves(same).items():
        inside = ~gauge.get(name, np.zeros(value.shape, bool))
        assert_allclose(value[inside], named_leaves(paths)[name][inside], rtol=1e-11, err_msg=name)


@partial(jax.jit, static_argnums=0)
def both_gradients(network, params, skeleton, inputs):
    fast = inverse_chain_rule(jax.grad(network.loss)(params, inputs), params, skeleton)
    through = jax.grad(lambda paths: network.loss(from_basis_paths(paths, skeleton), inputs))
    return fast, through(basis_paths(params, skeleton))


@over_networks(max_examples=2)
def test_inverse_chain_rule_is_the_gradient_in_path_space(network, seed):
    params = network.parameters(seed)
    skeleton = skeleton_of(network, params, seed)
    fast, exact = both_gradients(network, params, skeleton, network.inputs(seed))
    gauge = gauge_of(network, skeleton)
    assert any(np.any(named_leaves(fast)[name] != 0) for name in gauge) or seed != 0
    exact = {name: np.where(gauge.get(name, False), 0, value) for name, value in named_leaves(exact).items()}
    assert_trees_close(named_leaves(fast), exact, 1e-9)


@settings(max_examples=15)
@given(
    network=st.one_of(
        st.builds(MLP, st.lists(st.integers(1, 3), min_size=3, max_size=4).map(tuple), st.booleans()),
        st.builds(RNN, st.lists(st.integers(1, 3), min_size=3, max_size=4).map(tuple), st.booleans()),
        st.builds(CNN, st.lists(st.integers(1, 2), min_size=2, max_size=3).map(tuple), st.just((2, 1))),
        st.just(Mixture(2, 2, 2)),
        st.sampled_from(COMPOSITES),
    ),
    seed=seeds,
)
def test_number_of_basis_paths_is_the_rank_of_all_paths(network, seed):
    """Theorem 3: weights minus units, and the chosen paths span all others."""
    graph = network.graph
    edges = edges_by_loops(graph)
    every = exponents(list(all_paths(graph)), edges)
    assert graph.num_weights == len(edges)
    assert graph.num_basis_paths == len(edges) - sum(group.size for group in graph.groups)
    assert np.linalg.matrix_rank(every) == graph.num_basis_paths
    skeleton = choose(graph, network.parameters(seed), method="largest", reference=None)
    basis = exponents(list(basis_paths_by_loops(skeleton).values()), edges)
    assert len(basis) == np.linalg.matrix_rank(basis) == graph.num_basis_paths
    assert np.linalg.matrix_rank(np.concatenate([every, basis])) == graph.num_basis_paths


@pytest.mark.parametrize("method", ["largest", "cyclic"])
@pytest.mark.parametrize("network", [RNN((2, 3, 2), length=4), RNN((1, 2, 3, 2), bias=True, length=3)], ids=str)
def test_unrolled_paths_are_products_of_powers_of_basis_paths(network, method):
    """Theorem 1."""
    params = network.parameters(0)
    skeleton = choose(network.graph, params, method=method, reference=None)
    by_edge = basis_paths_by_loops(skeleton)
    edges = edges_by_loops(network.graph)
    unrolled = list(paths_of_unrolled(network))
    paths, basis = exponents(unrolled, edges), exponents(list(by_edge.values()), edges)
    assert paths.max() > 1  # some path runs through a recurrent weight twice
    powers = np.linalg.lstsq(basis.T.astype(float), paths.T.astype(float))[0].T.round().astype(int)
    np.testing.assert_array_equal(powers @ basis, paths)
    values = named_leaves(paths_of(params, skeleton))
    basis_values = np.array([values[edge.leaf][edge.index] for edge in by_edge])
    expected = [math.prod(weight_of(params, edge) for edge in path) for path in unrolled]
    assert_allclose(np.prod(basis_values**powers, axis=1), expected, rtol=1e-11)


@over_networks(max_examples=2)
def test_outputs_follow_from_path_values_and_signs(network, seed):
    """Theorem 2: the sizes of the out-skeleton weights do not matter, given the values of basis paths."""
    params = network.parameters(seed)
    skeleton = skeleton_of(network, params, seed)
    paths = named_leaves(there_and_back(params, skeleton)[0])
    gauge = gauge_of(network, skeleton)
    signs = {name: np.where(gauge[name], np.sign(paths[name]), paths[name]) for name in gauge}
    treedef = jax.tree.structure(params)
    known = treedef.unflatten([signs.get(name, value) for name, value in paths.items()])
    inputs = network.inputs(seed)
    recomputed = outputs(network, from_paths(known, skeleton), inputs)
    assert_allclose(recomputed, outputs(network, params, inputs), rtol=1e-9, atol=1e-11)


@given(seed=seeds)
@settings(max_examples=10)
def test_forward_pass_written_with_path_values(seed):
    """Theorem 2 for one recurrent layer, by its formulas: h_v |w_O(v)| follows from path values and signs."""
    network = RNN((2, 3, 2), length=4)
    params = network.parameters(seed)
    skeleton = choose(network.graph, params, method="cyclic", reference=None)
    paths = {name: np.asarray(leaf) for name, leaf in named_leaves(paths_of(params, skeleton)).items()}
    in_edges, out_edges = skeleton_by_loops(skeleton)
    p_in, p_rec, p_out = paths["input0/kernel"], paths["recurrent0/kernel"], paths["readout/kernel"]
    special = np.array([p_in[in_edges["h0", v].index] for v in range(3)])
    sign = np.array([np.sign(weight_of(params, out_edges["h0", v])) for v in range(3)])
    gauge = gauge_of(network, skeleton)["readout/kernel"]
    inputs = network.inputs(seed)
    for x, expected in zip(inputs, outputs(network, params, inputs), strict=True):
        h = np.zeros(3)
        for step in x:
            h = np.maximum(sign * (step @ p_in + (sign / special * h) @ p_rec), 0)
        output = h @ np.where(gauge, sign[:, None], (sign / special)[:, None] * p_out)
        assert_allclose(output, expected, rtol=1e-10, atol=1e-12)


@partial(jax.jit, static_argnums=3)
def step(params, updates, skeleton, max_ratio):
    updates, limited = allocate(params, updates, chart_at(params, skeleton), max_ratio)
    return optax.apply_updates(params, updates), limited


@over_networks(max_examples=2)
def test_weight_allocation_reaches_the_new_path_values(network, seed):
    params = network.parameters(seed)
    skeleton = skeleton_of(network, params, seed)
    paths, _ = there_and_back(params, skeleton)
    rng = np.random.default_rng(seed)
    updates = jax.tree.map(lambda q: 0.3 * rng.uniform(-1, 1, q.shape) * np.abs(q), paths)
    new, limited = step(params, updates, skeleton, 2.0)
    assert limited == 0
    gauge = gauge_of(network, skeleton)
    updates = named_leaves(updates)
    expected = {name: q + np.where(gauge.get(name, False), 0, updates[name]) for name, q in named_leaves(paths).items()}
    assert_trees_close(named_leaves(there_and_back(new, skeleton)[0]), expected, 1e-11)


@pytest.mark.parametrize(("wanted", "ratio"), [(0.6, 0.6), (1.9, 1.9), (0.1, 0.5), (-3.0, 0.5), (50.0, 2.0)])
def test_update_ratio_is_limited(wanted, ratio):
    """Two units; the first one's all-skeleton path is asked to grow `wanted`-fold, at limit 2."""
    params = {"in": {"kernel": jnp.array([[2.0, 3.0]])}, "out": {"kernel": jnp.array([[5.0, 0.5], [7.0, 0.25]])}}
    graph = ReductionGraph.from_edges(params, {"in/kernel": (None, "h"), "out/kernel": ("h", None)})
    skeleton = choose_skeleton(graph, params, reference=None)
    updates = jax.tree.map(jnp.zeros_like, params)
    updates["in"]["kernel"] = jnp.array([[10.0 * (wanted - 1), 0.0]])
    new, limited = step(params, updates, skeleton, 2.0)
    assert limited == (wanted != ratio)
    assert_allclose(new["in"]["kernel"], [[2 * ratio, 3]], rtol=1e-12)
    assert_allclose(new["out"]["kernel"], [[5, 0.5 / ratio], [7, 0.25]], rtol=1e-12)


@pytest.mark.parametrize("side", ["in", "out"])
def test_units_with_a_skeleton_weight_of_zero_are_trained_as_they_are(side):
    params = {"in": {"kernel": jnp.array([[2.0, 3.0]])}, "out": {"kernel": jnp.array([[5.0], [7.0]])}}
    graph = ReductionGraph.from_edges(params, {"in/kernel": (None, "h"), "out/kernel": ("h", None)})
    skeleton = choose_skeleton(graph, params, reference=None)
    at = (0, 1) if side == "in" else (1, 0)
    params[side]["kernel"] = params[side]["kernel"].at[at].set(0.0)
    paths, back = there_and_back(params, skeleton)
    assert_trees_close(back, params, 1e-12)
    assert_allclose(paths["in"]["kernel"], [[10, params["in"]["kernel"][0, 1]]])
    assert paths["out"]["kernel"][1, 0] == params["out"]["kernel"][1, 0]
    grads = jax.tree.map(lambda leaf: jnp.arange(1.0, 3.0).reshape(leaf.shape), params)
    path_grads = inverse_chain_rule(grads, params, skeleton)
    assert (path_grads["in"]["kernel"][0, 1], path_grads["out"]["kernel"][1, 0]) == (2, 2)
    new = weight_allocation(params, grads, skeleton)
    assert new["in"]["kernel"][0, 1] == params["in"]["kernel"][0, 1] + 2
    assert new["out"]["kernel"][1, 0] == params["out"]["kernel"][1, 0] + 2


def test_out_skeleton_weights_never_change():
    network = RNN((2, 3, 2, 2), bias=True)
    params = network.parameters(0)
    skeleton = choose(network.graph, params)
    updates = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), params)
    new = named_leaves(jax.jit(weight_allocation)(params, updates, skeleton))
    for name, gauge in gauge_of(network, skeleton).items():
        np.testing.assert_array_equal(new[name][gauge], named_leaves(params)[name][gauge])
    masks = named_leaves(masks_of(skeleton, params))
    assert not np.array_equal(new["input0/kernel"][masks["input0/kernel"]], 0)


@pytest.mark.parametrize("max_ratio", [1.0, 0.5, -2.0])
def test_max_ratio_must_be_above_one(max_ratio):
    network = MLP((1, 1, 1))
    params = network.parameters(0)
    with pytest.raises(ValueError, match=re.escape(f"must be above 1, got {max_ratio}")):
        weight_allocation(params, params, choose(network.graph, params), max_ratio=max_ratio)


MISMATCHES = {
    "missing": (
        lambda params: {"dense0": params["dense0"]},
        "the tree lacks the leaves ['dense1/kernel'] of the graph; it has ['dense0/kernel']",
    ),
    "shape": (
        lambda params: params | {"dense1": {"kernel": jnp.ones((2, 3))}},
        "leaf 'dense1/kernel' has shape (2, 1) in the graph, but (2, 3) in this tree",
    ),
    "dtype": (
        lambda params: params | {"dense1": {"kernel": jnp.ones((2, 1), int)}},
        "leaf 'dense1/kernel' has dtype int64, expected a real floating-point dtype",
    ),
}
TRANSFORMS = {
    "basis_paths": lambda good, bad, skeleton: basis_paths(bad, skeleton),
    "from_basis_paths": lambda good, bad, skeleton: from_basis_paths(bad, skeleton),
    "inverse_chain_rule, grads": lambda good, bad, skeleton: inverse_chain_rule(bad, good, skeleton),
    "inverse_chain_rule, params": lambda good, bad, skeleton: inverse_chain_rule(good, bad, skeleton),
    "weight_allocation, params": lambda good, bad, skeleton: weight_allocation(bad, good, skeleton),
    "weight_allocation, updates": lambda good, bad, skeleton: weight_allocation(good, bad, skeleton),
    "skeleton_masks": lambda good, bad, skeleton: skeleton_masks(skeleton, bad),
    "choose_skeleton": lambda good, bad, skeleton: choose_skeleton(skeleton.graph, bad),
    "rescale": lambda good, bad, skeleton: rescale(bad, skeleton.graph, {}),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize(("spoil", "message"), MISMATCHES.values(), ids=MISMATCHES)
def test_trees_that_do_not_match_the_graph(transform, spoil, message):
    network = MLP((1, 2, 1), bias=False)
    params = network.parameters(0)
    with pytest.raises(ValueError, match=re.escape(message)):
        transform(params, spoil(params), choose(network.graph, params))
