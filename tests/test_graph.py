import re

import jax
import numpy as np
import pytest

from pathspace import ReductionGraph
from pathspace.graph import Leaf
from pathspace.units import Group, UnitMap
from tests.architectures import CNN, MLP, RNN, Mixture
from tests.composites import COMPOSITES
from tests.edges import edges_by_loops, unit_at
from tests.examples import NETWORKS


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_counts(network):
    graph, edges = network.graph, edges_by_loops(network.graph)
    units = {end for edge in edges for end in (edge.source, edge.target) if end}
    assert graph.num_units == len(units)
    assert graph.num_weights == len(edges)
    assert graph.num_basis_paths == len(edges) - len(units)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_equal_graphs_are_one_static_argument(network):
    traces = []

    def traced(x, graph):
        traces.append(graph)
        return x + graph.num_units

    traced = jax.jit(traced, static_argnums=1)
    first, second = network.graph, network.graph
    assert first is not second
    assert first == second
    assert hash(first) == hash(second)
    assert traced(1, first) == traced(1, second) == 1 + first.num_units
    assert len(traces) == 1


def test_different_graphs_differ():
    assert len({network.graph for network in NETWORKS}) == len(NETWORKS)
    plain, permuted = (UnitMap((0,), np.array(index), (Group("h", 3),)) for index in ([0, 1, 2], [2, 1, 0]))
    assert plain != permuted


def test_arrays_and_their_shapes_give_the_same_graph():
    network = Mixture()
    assert ReductionGraph.from_edges(network.parameters(0), network.edges) == network.graph


def test_the_last_axis_is_the_target_and_the_one_before_it_the_source():
    network = CNN((2, 3, 4))
    (leaf,) = [leaf for leaf in network.graph.leaves if leaf.name == "conv1/kernel"]
    for index in np.ndindex(3, 2, 3, 4):
        assert unit_at(leaf.source, index) == ("map0", index[2])
        assert unit_at(leaf.target, index) == ("map1", index[3])


def test_one_dimensional_leaves_have_a_source_or_a_target():
    params = {"scale": np.ones(3), "kernel": np.ones((3, 2))}
    graph = ReductionGraph.from_edges(params, {"scale": (None, "h"), "kernel": ("h", None)})
    assert [leaf.is_vector for leaf in graph.leaves] == [True, False]
    assert graph.in_chain["h"].name == "scale"
    params = {"kernel": np.ones((2, 3)), "scale": np.ones(3)}
    graph = ReductionGraph.from_edges(params, {"kernel": (None, "h"), "scale": ("h", None)})
    assert graph.out_chain["h"].name == "scale"


def test_leaves_without_units_lie_outside():
    network = Mixture()
    assert network.graph.outside == ("head", "readout/bias", "shift")
    assert not {leaf.name for leaf in network.graph.leaves} & set(network.graph.outside)
    empty = ReductionGraph.from_edges(network.structs, {"head": (None, None)})
    assert (empty.num_units, empty.num_weights, empty.num_basis_paths, empty.leaves) == (0, 0, 0, ())
    assert len(empty.outside) == len(jax.tree.leaves(network.structs))


CHAINS = [
    (MLP((2, 3, 4, 2)), ["h1:dense0/kernel", "h2:dense1/kernel"], ["h2:dense2/kernel", "h1:dense1/kernel"]),
    (RNN((2, 3, 4, 2), bias=True), ["h0:input0/kernel", "h1:input1/kernel"], ["h1:readout/kernel", "h0:input1/kernel"]),
    (
        Mixture(),
        ["map:conv/kernel", "h:input/kernel", "inner:up/kernel"],
        ["h:readout/kernel", "map:input/kernel", "inner:down/kernel"],
    ),
    (COMPOSITES[1], ["a:first/kernel", "b:second/kernel"], ["a:out/kernel", "b:out/kernel"]),
]


@pytest.mark.parametrize(("network", "in_chain", "out_chain"), CHAINS, ids=lambda case: str(case)[:20])
def test_chains(network, in_chain, out_chain):
    """Nearest to the inputs and to the outputs; never a bias or a recurrent kernel."""
    graph = network.graph
    assert [f"{group}:{leaf.name}" for group, leaf in graph.in_chain.items()] == in_chain
    assert [f"{group}:{leaf.name}" for group, leaf in graph.out_chain.items()] == out_chain


def test_kernels_come_before_vectors():
    """A bias alone would connect the hidden units to ground, and a kernel further from the inputs does it better."""
    params = {
        "a": {"bias": np.ones(2), "kernel": np.ones((3, 2))},
        "b": {"bias": np.ones(4), "kernel": np.ones((2, 4))},
        "c": {"kernel": np.ones((4, 1))},
    }
    edges = {
        "b/bias": (None, "b"),
        "b/kernel": ("a", "b"),
        "a/bias": (None, "a"),
        "a/kernel": (None, "a"),
        "c/kernel": ("b", None),
    }
    graph = ReductionGraph.from_edges(params, edges)
    assert {name: leaf.name for name, leaf in graph.in_chain.items()} == {"a": "a/kernel", "b": "b/kernel"}


def test_describe():
    assert RNN((2, 3, 2), bias=True).graph.describe().splitlines() == [
        "group  units  fed by                                          read by",
        "h0         3  input0/kernel*, recurrent0/kernel, input0/bias  recurrent0/kernel, readout/kernel*",
        "3 units, 24 weights, 21 basis paths; * holds the skeleton edges",
        "outside the graph: readout/bias",
    ]


def test_describe_names_every_group_and_leaf():
    for network in NETWORKS:
        table = network.graph.describe()
        for name in [*(group.name for group in network.graph.groups), *(leaf.name for leaf in network.graph.leaves)]:
            assert name in table


PARAMS = {
    "a": {"kernel": np.ones((3, 4)), "bias": np.ones(4)},
    "b": {"kernel": np.ones((5, 2))},
    "loop": {"kernel": np.ones((4, 4))},
    "c": {"kernel": np.ones((4, 2))},
    "scalar": np.ones(()),
}
ERRORS = {
    "unknown leaf": (
        {"a/kernel": (None, "h"), "x/kernel": ("h", None)},
        "edges name the leaves ['x/kernel'], but params have only "
        "['a/bias', 'a/kernel', 'b/kernel', 'c/kernel', 'loop/kernel', 'scalar']",
    ),
    "sizes": (
        {"a/kernel": (None, "h"), "b/kernel": ("h", None)},
        "group 'h' has 4 units on axis 1 of 'a/kernel', but 5 on axis 0 of 'b/kernel'",
    ),
    "nothing in": ({"c/kernel": ("h", None)}, "nothing flows into group 'h'"),
    "nothing out": ({"a/kernel": (None, "h"), "a/bias": (None, "h")}, "nothing flows out of group 'h'"),
    "only a cycle in": (
        {"loop/kernel": ("h", "h"), "c/kernel": ("h", None)},
        "only cycles connect the groups ['h'] to the inputs",
    ),
    "only a cycle out": (
        {"a/kernel": (None, "h"), "loop/kernel": ("h", "h")},
        "only cycles connect the groups ['h'] to the outputs",
    ),
    "scalar": ({"scalar": (None, "h")}, "leaf 'scalar' of shape () cannot run from None to 'h'"),
    "vector with two ends": ({"a/bias": ("g", "h")}, "leaf 'a/bias' of shape (4,) cannot run from 'g' to 'h'"),
}


@pytest.mark.parametrize(("edges", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(edges, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ReductionGraph.from_edges(PARAMS, edges)


@pytest.mark.parametrize("side", ["into", "out of"])
def test_a_single_unit_without_weights_on_one_side_is_an_error(side):
    group = Group("h", 3)
    whole, partial = UnitMap.along(1, group), UnitMap((1,), np.array([0, 1, -1]), (group,))
    near = (whole, partial) if side == "out of" else (partial, whole)
    ground = UnitMap.ground((2,), (0,))
    leaves = (
        Leaf("in", (2, 3), ground, near[0]),
        Leaf("out", (2, 3), near[1], ground),
    )
    with pytest.raises(ValueError, match=f"flows {side} .*'h'"):
        ReductionGraph((group,), leaves)


def test_restriction_to_the_leaves_that_are_left():
    assert MLP((2, 3, 2)).graph.restricted_to(["unrelated"]).groups == ()
    two_branches = {name: np.ones((2, 2)) for name in ("a", "b", "c", "d")}
    edges = {"a": (None, "h"), "b": ("h", None), "c": (None, "g"), "d": ("g", None)}
    graph = ReductionGraph.from_edges(two_branches, edges)
    left = graph.restricted_to(["c", "d", "unrelated"])
    assert left == ReductionGraph.from_edges(
        {"c": np.ones((2, 2)), "d": np.ones((2, 2))}, {"c": edges["c"], "d": edges["d"]}
    )
    with pytest.raises(ValueError, match=re.escape("group 'g' has the leaves ['c'], but ['d'] are masked or missing")):
        graph.restricted_to(["a", "b", "c"])
