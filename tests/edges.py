"""What graphs, skeletons and paths are by definition, edge by edge and slow."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pathspace import ReductionGraph, Skeleton
from pathspace.trees import named_leaves
from pathspace.units import UnitMap
from tests.architectures import RNN

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
