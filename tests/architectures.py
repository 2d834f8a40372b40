"""Small ReLU networks as plain functions on dicts of arrays, and the slow definitions of what their graphs hold.

Networks are frozen dataclasses, so that they can be static arguments of `jax.jit`: equal networks compile once.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, settings, strategies as st

from pathspace import ReductionGraph, Skeleton, balance, choose_skeleton, rescale
from pathspace.graph import Leaf
from pathspace.trees import named_leaves
from pathspace.units import Group, UnitMap

relu = jax.nn.relu


class Network:
    """A network: its parameter shapes, its edges, the function that it computes and the shape of one input."""

    @property
    def shapes(self) -> dict:
        raise NotImplementedError

    @property
    def edges(self) -> dict[str, tuple[str | None, str | None]]:
        raise NotImplementedError

    @property
    def input_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def apply(self, params: dict, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    @property
    def graph(self) -> ReductionGraph:
        return ReductionGraph.from_edges(self.structs, self.edges)

    @property
    def structs(self) -> dict:
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, np.float64), self.shapes, is_leaf=lambda x: isinstance(x, tuple)
        )

    def parameters(self, seed: int) -> dict:
        """Random parameters, float64, of the size of standard initialisations; never 0, biases positive."""
        rng = np.random.default_rng(seed)

        def draw(struct):
            size = 1 / math.sqrt(max(1, math.prod(struct.shape[:-1])))
            signs = rng.choice([-1.0, 1.0], struct.shape) if len(struct.shape) > 1 else 1
            return signs * rng.uniform(0.3, 1.7, struct.shape) * size

        return jax.tree.map(draw, self.structs)

    def inputs(self, seed: int, batch: int = 4) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(batch, *self.input_shape))

    def outputs(self, params: dict, inputs: jax.Array) -> jax.Array:
        return jax.vmap(self.apply, in_axes=(None, 0))(params, inputs)

    def loss(self, params: dict, inputs: jax.Array) -> jax.Array:
        """Mean squared distance to the targets 1, 2, 3, ..."""
        outputs = self.outputs(params, inputs)
        return jnp.mean((outputs - 1 - jnp.arange(outputs.size).reshape(outputs.shape)) ** 2)


def _dense(shape: tuple[int, ...], bias: bool) -> dict:
    return {"kernel": shape, "bias": shape[-1:]} if bias else {"kernel": shape}


def _edges(ends: dict[str, tuple[str | None, str | None]], shapes: dict) -> dict:
    """The kernels' edges, and the biases' from ground to the same target."""
    biases = {f"{name}/bias": (None, target) for name, (_, target) in ends.items() if "bias" in shapes[name] and target}
    return {f"{name}/kernel": end for name, end in ends.items()} | biases


@dataclasses.dataclass(frozen=True)
class MLP(Network):
    widths: tuple[int, ...]
    bias: bool = True

    @property
    def shapes(self):
        return {f"dense{i}": _dense(pair, self.bias) for i, pair in enumerate(itertools.pairwise(self.widths))}

    @property
    def edges(self):
        groups = [None, *(f"h{i}" for i in range(1, len(self.widths) - 1)), None]
        return _edges({f"dense{i}": ends for i, ends in enumerate(itertools.pairwise(groups))}, self.shapes)

    @property
    def input_shape(self):
        return self.widths[:1]

    def apply(self, params, x):
        for i in range(len(self.widths) - 1):
            x = relu(x) if i else x
            x = x @ params[f"dense{i}"]["kernel"] + params[f"dense{i}"].get("bias", 0)
        return x


@dataclasses.dataclass(frozen=True)
class RNN(Network):
    """Stacked ReLU RNN that reads out the last step; the first width is that of the inputs."""

    widths: tuple[int, ...]
    bias: bool = False
    length: int = 3

    @property
    def shapes(self):
        shapes = {}
        for i, (fan_in, width) in enumerate(itertools.pairwise(self.widths[:-1])):
            shapes |= {f"input{i}": _dense((fan_in, width), self.bias), f"recurrent{i}": {"kernel": (width, width)}}
        return shapes | {"readout": _dense(self.widths[-2:], self.bias)}

    @property
    def edges(self):
        groups = [None, *(f"h{i}" for i in range(len(self.widths) - 2))]
        ends = {f"input{i}": ends for i, ends in enumerate(itertools.pairwise(groups))}
        ends |= {f"recurrent{i}": (group, group) for i, group in enumerate(groups[1:])}
        return _edges(ends | {"readout": (groups[-1], None)}, self.shapes)

    @property
    def input_shape(self):
        return (self.length, self.widths[0])

    def apply(self, params, x):
        steps = list(x)
        for i, width in enumerate(self.widths[1:-1]):
            h = jnp.zeros(width)
            inputs, steps = steps, []
            for step in inputs:
                h = relu(
                    step @ params[f"input{i}"]["kernel"]
                    + h @ params[f"recurrent{i}"]["kernel"]
                    + params[f"input{i}"].get("bias", 0)
                )
                steps.append(h)
        return steps[-1] @ params["readout"]["kernel"] + params["readout"].get("bias", 0)


def _conv(x, layer, stride=1, groups=1):
    y = jax.lax.conv_general_dilated(
        x[None],
        layer["kernel"],
        (stride,) * (x.ndim - 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC") if x.ndim == 3 else ("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )
    return y[0] + layer.get("bias", 0)


@dataclasses.dataclass(frozen=True)
class CNN(Network):
    """Convolutions with ReLU, the mean over the pixels, a dense layer."""

    channels: tuple[int, ...]
    taps: tuple[int, int] = (3, 2)
    stride: int = 1
    bias: bool = True
    outputs_: int = 2

    @property
    def shapes(self):
        pairs = enumerate(itertools.pairwise(self.channels))
        convs = {f"conv{i}": _dense((*self.taps, *pair), self.bias) for i, pair in pairs}
        return convs | {"dense": _dense((self.channels[-1], self.outputs_), self.bias)}

    @property
    def edges(self):
        groups = [None, *(f"map{i}" for i in range(len(self.channels) - 1))]
        ends = {f"conv{i}": ends for i, ends in enumerate(itertools.pairwise(groups))}
        return _edges(ends | {"dense": (groups[-1], None)}, self.shapes)

    @property
    def input_shape(self):
        return (4, 3, self.channels[0])

    def apply(self, params, x):
        for i in range(len(self.channels) - 1):
            x = relu(_conv(x, params[f"conv{i}"], self.stride))
        return jnp.mean(x, (0, 1)) @ params["dense"]["kernel"] + params["dense"].get("bias", 0)


@dataclasses.dataclass(frozen=True)
class Mixture(Network):
    """A convolution of each frame, an RNN over the frames, a residual block; some leaves outside the graph."""

    channels: int = 2
    width: int = 3
    inner: int = 2
    length: int = 2

    @property
    def shapes(self):
        return {
            "shift": (2,),
            "conv": _dense((3, 2, self.channels), True),
            "input": _dense((self.channels, self.width), True),
            "recurrent": {"kernel": (self.width, self.width)},
            "up": _dense((self.width, self.inner), True),
            "down": _dense((self.inner, self.width), False),
            "readout": _dense((self.width, 2), True),
            "head": (2, 2),
        }

    @property
    def edges(self):
        ends = {
            "conv": (None, "map"),
            "input": ("map", "h"),
            "recurrent": ("h", "h"),
            "up": ("h", "inner"),
            "down": ("inner", "h"),
            "readout": ("h", None),
        }
        return _edges(ends, self.shapes)

    @property
    def input_shape(self):
        return (self.length, 4, 2)

    def apply(self, params, x):
        h = jnp.zeros(self.width)
        for frame in x:
            pooled = jnp.mean(relu(_conv(frame + params["shift"], params["conv"])), 0)
            current = pooled @ params["input"]["kernel"] + params["input"]["bias"]
            h = relu(current + h @ params["recurrent"]["kernel"])
        inner = relu(h @ params["up"]["kernel"] + params["up"]["bias"])
        h = h + inner @ params["down"]["kernel"]
        return jnp.tanh(h @ params["readout"]["kernel"] + params["readout"]["bias"]) @ params["head"]


class Composite(Network):
    """A network whose unit maps `from_edges` cannot write down."""

    @property
    def leaves(self) -> dict[str, tuple[UnitMap, UnitMap]]:
        """The source and target of each leaf by name."""
        raise NotImplementedError

    @property
    def graph(self):
        shapes = {name: struct.shape for name, struct in named_leaves(self.structs).items()}
        leaves = tuple(Leaf(name, shapes[name], *ends) for name, ends in self.leaves.items())
        groups = {group: None for leaf in leaves for end in (leaf.source, leaf.target) for group in end.groups}
        return ReductionGraph(tuple(groups), leaves, tuple(name for name in shapes if name not in self.leaves))


@dataclasses.dataclass(frozen=True)
class FlattenedCNN(Composite):
    """Convolution, ReLU, max-pool, flatten, dense: each row of the dense kernel belongs to a feature map."""

    @property
    def shapes(self):
        return {"conv": _dense((3, 3, 2, 3), True), "dense": _dense((2 * 2 * 3, 4), True), "out": _dense((4, 2), True)}

    @property
    def leaves(self):
        maps, hidden = Group("maps", 3), Group("hidden", 4)
        flat = UnitMap((0,), np.tile(np.arange(3), 4), (maps,))
        return {
            "conv/kernel": (UnitMap.ground((2,), (2,)), UnitMap.along(3, maps)),
            "conv/bias": (UnitMap.ground(), UnitMap.along(0, maps)),
            "dense/kernel": (flat, UnitMap.along(1, hidden)),
            "dense/bias": (UnitMap.ground(), UnitMap.along(0, hidden)),
            "out/kernel": (UnitMap.along(0, hidden), UnitMap.ground((2,), (1,))),
        }

    @property
    def input_shape(self):
        return (4, 4, 2)

    def apply(self, params, x):
        x = relu(_conv(x, params["conv"]))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2, 1), (2, 2, 1), "VALID")
        x = relu(x.ravel() @ params["dense"]["kernel"] + params["dense"]["bias"])
        return x @ params["out"]["kernel"] + params["out"]["bias"]


@dataclasses.dataclass(frozen=True)
class DenseNet(Composite):
    """Each layer reads the inputs and all layers before it, concatenated."""

    @property
    def shapes(self):
        return {"first": _dense((2, 3), True), "second": _dense((2 + 3, 2), False), "out": _dense((2 + 3 + 2, 2), True)}

    @property
    def leaves(self):
        a, b = Group("a", 3), Group("b", 2)
        return {
            "first/kernel": (UnitMap.ground((2,), (0,)), UnitMap.along(1, a)),
            "first/bias": (UnitMap.ground(), UnitMap.along(0, a)),
            "second/kernel": (UnitMap((0,), np.array([-1, -1, 0, 1, 2]), (a,)), UnitMap.along(1, b)),
            "out/kernel": (UnitMap((0,), np.array([3, 4, -1, -1, 0, 1, 2]), (a, b)), UnitMap.ground((2,), (1,))),
        }

    @property
    def input_shape(self):
        return (2,)

    def apply(self, params, x):
        a = relu(x @ params["first"]["kernel"] + params["first"]["bias"])
        b = relu(jnp.concatenate([x, a]) @ params["second"]["kernel"])
        return jnp.concatenate([b, x, a]) @ params["out"]["kernel"] + params["out"]["bias"]


@dataclasses.dataclass(frozen=True)
class GroupedCNN(Composite):
    """A grouped convolution: its source units depend on the input and on the output channel."""

    @property
    def shapes(self):
        return {"conv": _dense((3, 2, 4), False), "grouped": _dense((3, 2, 6), True), "dense": _dense((6, 2), False)}

    @property
    def leaves(self):
        maps, grouped = Group("maps", 4), Group("grouped", 6)
        source = UnitMap((1, 2), np.array([[0, 0, 0, 2, 2, 2], [1, 1, 1, 3, 3, 3]]), (maps,))
        return {
            "conv/kernel": (UnitMap.ground((2,), (1,)), UnitMap.along(2, maps)),
            "grouped/kernel": (source, UnitMap.along(2, grouped)),
            "grouped/bias": (UnitMap.ground(), UnitMap.along(0, grouped)),
            "dense/kernel": (UnitMap.along(0, grouped), UnitMap.ground((2,), (1,))),
        }

    @property
    def input_shape(self):
        return (5, 2)

    def apply(self, params, x):
        x = relu(_conv(x, params["conv"]))
        return jnp.mean(relu(_conv(x, params["grouped"], groups=2)), 0) @ params["dense"]["kernel"]


@dataclasses.dataclass(frozen=True)
class SplitHeads(Composite):
    """Units indexed by two axes together, in one leaf the other way round."""

    @property
    def shapes(self):
        return {"in": {"kernel": (3, 2, 3), "bias": (2, 3)}, "out": {"kernel": (3, 2, 2)}}

    @property
    def leaves(self):
        heads = Group("heads", 6)
        return {
            "in/kernel": (UnitMap.ground((3,), (0,)), UnitMap((1, 2), np.arange(6).reshape(2, 3), (heads,))),
            "in/bias": (UnitMap.ground(), UnitMap((0, 1), np.arange(6).reshape(2, 3), (heads,))),
            "out/kernel": (UnitMap((0, 1), np.arange(6).reshape(2, 3).T, (heads,)), UnitMap.ground((2,), (2,))),
        }

    @property
    def input_shape(self):
        return (3,)

    def apply(self, params, x):
        heads = relu(jnp.einsum("i,ihs->hs", x, params["in"]["kernel"]) + params["in"]["bias"])
        return jnp.einsum("hs,sho->o", heads, params["out"]["kernel"])


COMPOSITES = [FlattenedCNN(), DenseNet(), GroupedCNN(), SplitHeads()]
NETWORKS = [
    MLP((2, 4, 3, 2)),
    RNN((2, 3, 2, 2), bias=True),
    CNN((2, 3, 2), stride=2),
    Mixture(),
    *COMPOSITES,
]

_width = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)
mlps = st.builds(MLP, st.lists(_width, min_size=3, max_size=5).map(tuple), st.booleans())
rnns = st.builds(RNN, st.lists(_width, min_size=3, max_size=4).map(tuple), st.booleans())
cnns = st.builds(
    CNN,
    st.lists(_width, min_size=2, max_size=3).map(tuple),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 2),
    st.booleans(),
)
mixtures = st.builds(Mixture, _width, _width, _width, st.integers(1, 3))
networks = st.one_of(mlps, rnns, cnns, mixtures)


def over_networks(max_examples: int) -> Callable[[Callable], Callable]:
    """Runs a test of one network and one seed on the intricate networks and on random others."""

    def decorate(test: Callable) -> Callable:
        for network in [NETWORKS[1], Mixture(), *COMPOSITES]:
            test = example(network=network, seed=0)(test)
        return settings(max_examples=max_examples)(given(network=networks, seed=seeds)(test))

    return decorate


# Traced once per graph: eagerly, each operation would compile anew for each shape.
choose = jax.jit(choose_skeleton, static_argnums=0, static_argnames=["method", "reference"])
rescaled = jax.jit(rescale, static_argnums=1)
balanced = jax.jit(balance, static_argnums=1)
loss_gradient = jax.jit(lambda network, params, inputs: jax.grad(network.loss)(params, inputs), static_argnums=0)
outputs = jax.jit(lambda network, params, inputs: network.outputs(params, inputs), static_argnums=0)


def random_scales_by_numpy(graph: ReductionGraph, seed: int, decades: float = 3.0) -> dict[str, np.ndarray]:
    """Scales from 10^-decades to 10^decades, uniform in the logarithm."""
    rng = np.random.default_rng(seed)
    return {group.name: 10 ** rng.uniform(-decades, decades, group.size) for group in graph.groups}


Unit = tuple[str, int]


class Edge(NamedTuple):
    """One weight; `None` at an end is ground."""

    leaf: str
    index: tuple[int, ...]
    source: Unit | None
    target: Unit | None


def unit_at(units: UnitMap, index: tuple[int, ...]) -> Unit | None:
    """The unit of one entry of a leaf."""
    position = units.index[tuple(index[axis] for axis in units.axes)]
    if position < 0:
        return None
    for group in units.groups:
        if position < group.size:
            return group.name, int(position)
        position -= group.size
    raise AssertionError(f"no group holds position {position}")


def edges_by_loops(graph: ReductionGraph) -> list[Edge]:
    """All weights with a unit at one end or both."""
    edges = [
        Edge(leaf.name, index, unit_at(leaf.source, index), unit_at(leaf.target, index))
        for leaf in graph.leaves
        for index in np.ndindex(leaf.shape)
    ]
    return [edge for edge in edges if edge.source or edge.target]


def skeleton_by_loops(skeleton: Skeleton) -> tuple[dict[Unit, Edge], dict[Unit, Edge]]:
    """I(v) and O(v) of each unit that has them."""
    graph = skeleton.graph
    edges = {(edge.leaf, edge.index): edge for edge in edges_by_loops(graph)}
    found = []
    for chain, chosen in (graph.in_chain, skeleton.in_edges), (graph.out_chain, skeleton.out_edges):
        side = {}
        for group in graph.groups:
            leaf = chain[group.name]
            for i, position in enumerate(np.asarray(chosen[group.name])):
                if position >= 0:
                    index = tuple(int(k) for k in np.unravel_index(position, leaf.shape))
                    side[group.name, i] = edges[leaf.name, index]
        found.append(side)
    return found[0], found[1]


def skeleton_chains(skeleton: Skeleton) -> tuple[Callable, Callable]:
    """The lists of edges whose weights multiply to A(v) and to B(v)."""
    in_edges, out_edges = skeleton_by_loops(skeleton)

    def to_unit(unit: Unit | None) -> list[Edge]:
        return [*to_unit(in_edges[unit].source), in_edges[unit]] if unit in in_edges else []

    def from_unit(unit: Unit | None) -> list[Edge]:
        return [out_edges[unit], *from_unit(out_edges[unit].target)] if unit in out_edges else []

    return to_unit, from_unit


def basis_paths_by_loops(skeleton: Skeleton) -> dict[Edge, list[Edge]]:
    """The edges of each basis path, by the edge outside O that it belongs to."""
    to_unit, from_unit = skeleton_chains(skeleton)
    gauge = set(skeleton_by_loops(skeleton)[1].values())
    return {
        edge: [*to_unit(edge.source), edge, *from_unit(edge.target)]
        for edge in edges_by_loops(skeleton.graph)
        if edge not in gauge
    }


def weight_of(params: dict, edge: Edge) -> float:
    return float(named_leaves(params)[edge.leaf][edge.index])


def all_paths(graph: ReductionGraph) -> Iterator[list[Edge]]:
    """All paths from ground to ground with at most one edge that does not go forward in the order of the groups."""
    order = {name: i for i, name in enumerate(graph.in_chain)}
    leaving: dict[Unit | None, list[Edge]] = {}
    for edge in edges_by_loops(graph):
        leaving.setdefault(edge.source, []).append(edge)

    def forward(edge: Edge) -> bool:
        return not (edge.source and edge.target) or order[edge.source[0]] < order[edge.target[0]]

    def extend(path: list[Edge], backward: int) -> Iterator[list[Edge]]:
        for edge in leaving.get(path[-1].target if path else None, []):
            if forward(edge) or not backward:
                now = [*path, edge]
                if edge.target is None:
                    yield now
                else:
                    yield from extend(now, backward + (not forward(edge)))

    return extend([], 0)


def paths_of_unrolled(network: RNN) -> Iterator[list[Edge]]:
    """All paths of the network unrolled in time, from the input or a bias at any step to the last output."""
    arriving: dict[Unit | None, list[Edge]] = {}
    for edge in edges_by_loops(network.graph):
        arriving.setdefault(edge.target, []).append(edge)

    def extend(path: list[Edge], step: int) -> Iterator[list[Edge]]:
        source = path[0].source
        if source is None:
            yield path
            return
        for edge in arriving[source]:
            before = step - edge.leaf.startswith("recurrent")
            if before >= 0:
                yield from extend([edge, *path], before)

    for edge in arriving[None]:
        yield from extend([edge], network.length - 1)


def exponents(paths: list[list[Edge]], edges: list[Edge]) -> np.ndarray:
    """How often each path runs through each edge."""
    column = {edge: i for i, edge in enumerate(edges)}
    matrix = np.zeros((len(paths), len(edges)), int)
    for row, path in zip(matrix, paths, strict=True):
        for edge in path:
            row[column[edge]] += 1
    return matrix
