import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from pathspace import ReductionGraph, choose_skeleton
from pathspace.skeleton import edge_mask, far_units
from pathspace.trees import named_leaves
from pathspace.units import GROUND
from tests.architectures import CNN, MLP, RNN, Mixture
from tests.compiled import balanced, choose, masks_of, rescaled, unit_skeleton
from tests.composites import FlattenedCNN
from tests.edges import edges_by_loops, skeleton_by_loops, weight_of
from tests.examples import NETWORKS, over_networks, random_scales_by_numpy

pytestmark = pytest.mark.usefixtures("x64")

networks = pytest.mark.parametrize("network", NETWORKS, ids=str)


def largest_by_loops(graph, params):
    """I(v) and O(v): the largest weight from (to) ground or a group settled before."""
    found = []
    for chain, near, far in (graph.in_chain, "target", "source"), (graph.out_chain, "source", "target"):
        best, settled = {}, []
        for name, leaf in chain.items():
            for edge in edges_by_loops(graph):
                unit, other = getattr(edge, near), getattr(edge, far)
                possible = edge.leaf == leaf.name and unit and unit[0] == name and (not other or other[0] in settled)
                if possible and abs(weight_of(params, edge)) > best.get(unit, (None, -1.0))[1]:
                    best[unit] = edge, abs(weight_of(params, edge))
            settled.append(name)
        found.append({unit: edge for unit, (edge, _) in best.items()})
    return tuple(found)


@over_networks(max_examples=2)
def test_edge_mask_and_far_units(network, seed):
    skeleton = choose(network.graph, network.parameters(seed), method="largest", reference="initial")
    graph, (ins, outs) = network.graph, skeleton_by_loops(skeleton)
    for chain, near, far, edges, expected in (
        (graph.in_chain, "target", "source", skeleton.in_edges, ins),
        (graph.out_chain, "source", "target", skeleton.out_edges, outs),
    ):
        for name, leaf in chain.items():
            present = (np.asarray(edges[name]) >= 0) & (np.arange(len(edges[name])) % 3 != 2)
            some = jnp.where(jnp.asarray(present), edges[name], -1)
            kept = [expected[name, i] for i in np.flatnonzero(present)]
            mask = np.asarray(edge_mask(leaf, getattr(leaf, near), {name: some}))
            assert sorted(map(tuple, np.argwhere(mask).tolist())) == sorted(edge.index for edge in kept)
            units = getattr(leaf, far)
            counted = [(group.name, i) for group in units.groups for i in range(group.size)]
            for i, place in enumerate(far_units(leaf, units, some).tolist()):
                unit = getattr(expected[name, i], far) if present[i] else None
                assert (None if place == GROUND else counted[place]) == unit


@over_networks(max_examples=2)
def test_largest(network, seed):
    params = network.parameters(seed)
    skeleton = choose(network.graph, params, method="largest", reference="initial")
    assert skeleton_by_loops(skeleton) == largest_by_loops(network.graph, params)


@networks
def test_reference_values(network):
    params = network.parameters(0)
    for reference, point in ("initial", params), ("balanced", balanced(params, network.graph)):
        skeleton = choose(network.graph, params, method="cyclic", reference=reference)
        for edges, values in zip(
            skeleton_by_loops(skeleton), (skeleton.in_reference, skeleton.out_reference), strict=True
        ):
            for (group, i), edge in edges.items():
                assert_allclose(values[group][i], weight_of(point, edge), rtol=1e-10)
        for group, i in skeleton_by_loops(skeleton)[0]:
            assert_allclose(
                skeleton.path_reference[group][i], norm_around(point, network.graph, (group, i)), rtol=1e-10
            )
    raw = choose(network.graph, params, method="cyclic", reference=None)
    for value in jax.tree.leaves((raw.in_reference, raw.out_reference, raw.path_reference)):
        np.testing.assert_array_equal(value, 1)


def norm_around(params, graph, unit):
    """A weight from a unit to itself counts on both sides."""
    ends = [(end, edge) for edge in edges_by_loops(graph) for end in (edge.source, edge.target)]
    return math.sqrt(sum(weight_of(params, edge) ** 2 for end, edge in ends if end == unit))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_of_weights_whose_squares_leave_the_dtype(scale):
    network = MLP((2, 3, 2), bias=False)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network.parameters(0))
    usual = choose(network.graph, params, reference="initial")
    extreme = choose(network.graph, jax.tree.map(lambda leaf: leaf * scale, params), reference="initial")
    assert extreme.path_reference["h1"].dtype == jnp.float32
    assert_allclose(extreme.path_reference["h1"], usual.path_reference["h1"] * scale, rtol=1e-5)
    params["dense1"]["kernel"] *= 1e30
    params["dense0"]["kernel"] = params["dense0"]["kernel"].at[:, 0].set(0.5)
    params["dense1"]["kernel"] = params["dense1"]["kernel"].at[0].set(1e-8)
    mixed = choose(network.graph, params, reference="initial")
    assert mixed.path_reference["h1"][0] == 0.5  # the least that it can be: squares relative to 1e30 vanish
    largest = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.finfo(leaf.dtype).max), params)
    saturated = choose(network.graph, largest, reference="initial")
    np.testing.assert_array_equal(saturated.path_reference["h1"], jnp.finfo(jnp.float32).max)


@over_networks(max_examples=2)
def test_the_balanced_choice_depends_on_the_function_alone(network, seed):
    params, graph = network.parameters(seed), network.graph
    skeleton = choose(graph, params)
    same = choose(graph, rescaled(params, graph, random_scales_by_numpy(graph, seed)))
    assert skeleton_by_loops(skeleton) == skeleton_by_loops(same)
    assert skeleton_by_loops(skeleton) == largest_by_loops(graph, balanced(params, graph))
    for a, b in zip(jax.tree.leaves(skeleton), jax.tree.leaves(same), strict=True):
        assert_allclose(a, b, rtol=1e-9)


def algorithm_1(weights_in, weights_out):
    """Algorithm 1 on matrices of shape (outputs, inputs), with Mo[j % n_out][j] in the place of Mo[j][j % n_out]."""
    mask_in, mask_out = np.zeros_like(weights_in), np.zeros_like(weights_out)
    n_out, n_in = weights_in.shape
    for j in range(n_out):
        mask_in[j][j % n_in] = 1
    n_out, n_in = weights_out.shape
    for j in range(n_in):
        mask_out[j % n_out][j] = 1
    return mask_in, mask_out


@pytest.mark.parametrize("widths", [(3, 3, 3), (2, 5, 3), (5, 2, 3), (1, 4, 1)])
def test_cyclic_is_algorithm_1(widths):
    network = RNN(widths)
    params = network.parameters(0)
    masks = masks_of(choose(network.graph, params, method="cyclic", reference=None), params)
    expected = algorithm_1(params["input0"]["kernel"].T, params["readout"]["kernel"].T)
    np.testing.assert_array_equal(masks["input0"]["kernel"].T, expected[0])
    np.testing.assert_array_equal(masks["readout"]["kernel"].T, expected[1])
    assert not np.any(masks["recurrent0"]["kernel"])


def test_hidden_to_hidden_layers_of_equal_width_share_the_diagonal():
    network = MLP((3, 3, 3, 3), bias=False)
    params = network.parameters(0)
    masks = masks_of(choose(network.graph, params, method="cyclic", reference=None), params)
    for mask in jax.tree.leaves(masks):
        np.testing.assert_array_equal(mask, np.eye(3, dtype=bool))


@pytest.mark.parametrize(("taps", "centre"), [((3, 3), (1, 1)), ((5, 1), (2, 0)), ((3, 2), (1, 1)), ((1, 1), (0, 0))])
def test_cyclic_takes_the_centre_tap(taps, centre):
    network = CNN((2, 3, 4), taps=taps)
    skeleton = choose(network.graph, network.parameters(0), method="cyclic", reference=None)
    in_edges, out_edges = skeleton_by_loops(skeleton)
    assert [in_edges["map0", j].index for j in range(3)] == [(*centre, j % 2, j) for j in range(3)]
    assert [in_edges["map1", j].index for j in range(4)] == [(*centre, j % 3, j) for j in range(4)]
    assert [out_edges["map0", j].index for j in range(3)] == [(*centre, j, j % 4) for j in range(3)]
    assert [out_edges["map1", j].index for j in range(4)] == [(j, j % 2) for j in range(4)]


def test_cyclic_stays_with_the_units_of_a_flattened_feature_map():
    skeleton = choose(FlattenedCNN().graph, FlattenedCNN().parameters(0), method="cyclic", reference=None)
    out_edges = skeleton_by_loops(skeleton)[1]
    for j in range(3):
        row, column = out_edges["maps", j].index
        assert (row % 3, column) == (j, j % 4)


@networks
@pytest.mark.parametrize("method", ["largest", "cyclic"])
def test_masks_hold_one_edge_on_each_side_of_each_unit(network, method):
    params = network.parameters(2)
    graph = network.graph
    skeleton = choose(graph, params, method=method, reference="initial")
    in_edges, out_edges = skeleton_by_loops(skeleton)
    units = {(group.name, i) for group in graph.groups for i in range(group.size)}
    assert {edge.target for edge in in_edges.values()} == {edge.source for edge in out_edges.values()} == units
    for unit in units:
        assert in_edges[unit].target == out_edges[unit].source == unit
    masks = named_leaves(masks_of(skeleton, params))
    chosen = {(edge.leaf, edge.index) for edge in (*in_edges.values(), *out_edges.values())}
    assert {(name, index) for name, mask in masks.items() for index in np.ndindex(mask.shape) if mask[index]} == chosen
    for name, mask in masks.items():
        assert mask.dtype == bool
        if "recurrent" in name or "bias" in name or name in graph.outside:
            assert not np.any(mask), name


@networks
@pytest.mark.parametrize("method", ["largest", "cyclic"])
def test_skeleton_chains_reach_ground(network, method):
    params = network.parameters(3)
    in_edges, out_edges = skeleton_by_loops(choose(network.graph, params, method=method, reference="initial"))
    for start in in_edges:
        for edges, far in (in_edges, "source"), (out_edges, "target"):
            unit, steps = start, 0
            while unit is not None:
                unit, steps = getattr(edges[unit], far), steps + 1
                assert steps <= len(network.graph.groups)


@networks
def test_unit_skeleton(network):
    params = network.parameters(0)
    skeleton = choose(network.graph, params, method="cyclic", reference=None)
    masks = named_leaves(masks_of(skeleton, params))
    for name, leaf in named_leaves(unit_skeleton(params, skeleton)).items():
        np.testing.assert_array_equal(leaf, np.where(masks[name], 1, named_leaves(params)[name]))


def test_unit_skeleton_keeps_the_dtype():
    network = MLP((2, 3, 2))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), network.parameters(0))
    unit = unit_skeleton(params, choose(network.graph, params, reference=None))
    assert {leaf.dtype for leaf in jax.tree.leaves(unit)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("method", ["largest", "cyclic"])
def test_skeletons_of_many_seeds_at_once(method):
    network = Mixture()
    many = [network.parameters(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *many)
    together = jax.jit(jax.vmap(lambda params: choose_skeleton(network.graph, params, method=method)))(stacked)
    for i, params in enumerate(many):
        alone = choose(network.graph, params, method=method)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            assert_allclose(a[i], b, rtol=1e-12)


@pytest.mark.parametrize("method", ["largest", "cyclic"])
@pytest.mark.parametrize("reference", ["balanced", "initial", None])
def test_eager_and_traced_choices_agree(method, reference):
    network = RNN((2, 3, 2, 2), bias=True)
    params = network.parameters(0)
    eager = choose_skeleton(network.graph, params, method=method, reference=reference)
    for a, b in zip(
        jax.tree.leaves(eager),
        jax.tree.leaves(choose(network.graph, params, method=method, reference=reference)),
        strict=True,
    ):
        assert a.dtype == b.dtype
        assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("reference", ["balanced", "initial"])
def test_units_whose_skeleton_weight_is_zero_are_left_out(reference):
    network = MLP((2, 3, 2), bias=False)
    params = network.parameters(0)
    params["dense0"]["kernel"][:, 1] = 0
    params["dense1"]["kernel"][2] = 0
    skeleton = choose(network.graph, params, method="largest", reference=reference)
    np.testing.assert_array_equal(skeleton.in_edges["h1"] < 0, [False, True, False])
    np.testing.assert_array_equal(skeleton.out_edges["h1"] < 0, [False, False, True])
    assert (skeleton.in_reference["h1"][1], skeleton.out_reference["h1"][2]) == (1, 1)


def test_cyclic_skeleton_weight_of_zero():
    network = MLP((2, 2, 2), bias=False)
    params = network.parameters(0)
    params["dense0"]["kernel"][0, 0] = 0
    assert choose(network.graph, params, method="cyclic", reference="initial").in_edges["h1"].tolist() == [-1, 3]
    raw = choose(network.graph, params, method="cyclic", reference=None)
    assert raw.in_edges["h1"].tolist() == [0, 3]
    assert unit_skeleton(params, raw)["dense0"]["kernel"][0, 0] == 1


def test_of_equal_weights_the_first_is_chosen():
    params = {"in": jnp.array([[2.0, -1.0], [-2.0, 1.0]]), "out": jnp.ones((2, 3))}
    graph = ReductionGraph.from_edges(params, {"in": (None, "h"), "out": ("h", None)})
    skeleton = choose(graph, params, method="largest", reference="initial")
    assert skeleton.in_edges["h"].tolist() == [0, 1]
    assert skeleton.out_edges["h"].tolist() == [0, 3]


def test_edges_inside_a_leaf_come_from_earlier_groups_only():
    """One kernel that reads ground and two groups, of which the second is fed by the first."""
    for network in NETWORKS:
        order = {name: i for i, name in enumerate(network.graph.in_chain)}
        in_edges, _ = skeleton_by_loops(choose(network.graph, network.parameters(4), reference="initial"))
        for unit, edge in in_edges.items():
            assert edge.source is None or order[edge.source[0]] < order[unit[0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "smallest"}, "method is 'largest' or 'cyclic', got 'smallest'"),
        ({"reference": "ones"}, "reference is 'balanced', 'initial' or None, got 'ones'"),
    ],
)
def test_errors(arguments, message):
    network = MLP((2, 3, 2))
    with pytest.raises(ValueError, match=re.escape(message)):
        choose_skeleton(network.graph, network.parameters(0), **arguments)
