"""The reduction graph: which weights flow into and out of which hidden units, time steps merged."""

import collections
import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .trees import as_array, named_leaves
from .units import GROUND, Group, UnitMap


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter leaf of the graph: every entry is an edge from its source to its target, a unit or ground."""

    name: str
    shape: tuple[int, ...]
    source: UnitMap
    target: UnitMap
    is_bias: bool = False  # added to what it feeds

    @property
    def is_vector(self) -> bool:
        """Whether the leaf has axes at one end only, as biases and normalisation scales."""
        return not (self.source.axes and self.target.axes)

    def grounded(self, end: UnitMap) -> np.ndarray:
        """Where along its axes one end of the edges is ground, in a shape that broadcasts against the leaf."""
        return end.along_axes(np.asarray(end.index == GROUND), len(self.shape))

    @functools.cached_property
    def num_edges(self) -> int:
        """The entries with a unit at one end or both."""
        if set(self.source.axes) & set(self.target.axes):
            outside = np.sum(self.grounded(self.source) & self.grounded(self.target))
        else:
            outside = np.sum(self.grounded(self.source)) * np.sum(self.grounded(self.target))
        mapped = math.prod(self.shape[i] for i in {*self.source.axes, *self.target.axes})
        return math.prod(self.shape) // max(mapped, 1) * (mapped - int(outside))


@dataclasses.dataclass(frozen=True)
class Grounded:
    """Positions along some axes of a leaf that belong to ground although they were candidates for units, and why."""

    leaf: str
    axes: tuple[int, ...]
    count: int
    reason: str


@dataclasses.dataclass(frozen=True)
class ReductionGraph:
    """Hidden units and the parameter entries that flow into and out of them (path space, Definition 3).

    A weight shared over time steps, or over the pixels of a feature map, is one edge. A node-wise rescaling
    multiplies what flows into a unit by c > 0 and divides what flows out of it by c. The graph is static: it holds no
    arrays, is hashable, and can be a static argument of `jax.jit`.

    Attributes:
      groups: the groups of units that can be rescaled.
      leaves: the parameter leaves with a unit at one end or both.
      outside: the names of all other leaves.
      grounded: what a traced graph does not hold, and why; no part of the graph's identity.

    Raises:
      ValueError: a group that nothing flows into or out of, or that only cycles connect to ground.

    Source: path space for ReLU RNNs, Definition 3.

    >>> params = {"hidden": {"kernel": np.ones((3, 4))}, "out": {"kernel": np.ones((4, 2)), "bias": np.ones(2)}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> graph.num_units, graph.num_weights, graph.num_basis_paths
    (4, 20, 16)
    """

    groups: tuple[Group, ...]
    leaves: tuple[Leaf, ...]
    outside: tuple[str, ...] = ()
    grounded: tuple[Grounded, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        # Both orders are computed here so that a graph without a skeleton cannot exist.
        for near, chain in ("target", self.in_chain), ("source", self.out_chain):
            if disconnected := [group for group in self.groups if group.name not in chain]:
                _raise_disconnected(disconnected, self.leaves, near)

    @classmethod
    def from_edges(cls, params: PyTree, edges: Mapping[str, tuple[str | None, str | None]]) -> "ReductionGraph":
        """The graph that names, for each leaf, the groups it comes from and goes to.

        Args:
          params: the parameters, or a tree of `jax.ShapeDtypeStruct` like them.
          edges: `{leaf_name: (source_group, target_group)}`, `None` for ground (inputs, outputs, the constant 1
            behind biases). The last axis of a kernel is its target and the one before it its source, as Flax lays out
            dense and convolution kernels; a one-dimensional leaf has only one of the two. Leaves not named lie
            outside the graph.

        Raises:
          ValueError: an unknown leaf name; edges that are no pair; a leaf with too few axes; a group without units, or
            that has different sizes on two leaves; a group that nothing flows into or out of, or that only cycles
            connect to ground.

        >>> params = {"kernel": np.ones((3, 4))}
        >>> ReductionGraph.from_edges(params, {"kernel": (None, "hidden")})
        Traceback (most recent call last):
        ValueError: nothing flows out of group 'hidden': name the leaf that reads its units, or leave the group out.
        """
        shapes = {name: np.shape(leaf) for name, leaf in named_leaves(params).items()}
        if unknown := [name for name in edges if name not in shapes]:
            raise ValueError(
                f"edges name the leaves {unknown}, but params have only {list(shapes)}: name leaves as they are there."
            )
        seen: dict[str, tuple[int, str]] = {}

        def along(name: str, axis: int, group: str | None) -> UnitMap:
            axis += len(shapes[name])
            size = shapes[name][axis]
            if group is None:
                return UnitMap.ground((size,), (axis,))
            expected, where = seen.setdefault(group, (size, f"axis {axis} of {name!r}"))
            if not size:
                raise ValueError(
                    f"group {group!r} has no units on axis {axis} of {name!r} of shape {shapes[name]}, expected one or "
                    "more: leave the group out."
                )
            if size != expected:
                raise ValueError(
                    f"group {group!r} has {expected} units on {where}, but {size} on axis {axis} of {name!r}: "
                    "name two groups, or mend the shapes."
                )
            return UnitMap.along(axis, Group(group, size))

        leaves = []
        for name, pair in edges.items():
            source, target = _source_and_target(name, pair)
            if source is None and target is None:
                continue
            rank = len(shapes[name])
            if rank == 0 or (rank == 1 and source is not None and target is not None):
                raise ValueError(
                    f"leaf {name!r} of shape {shapes[name]} cannot run from {source!r} to {target!r}: a kernel needs "
                    "two axes or more, a one-dimensional leaf has a source or a target, a scalar has neither."
                )
            if rank == 1:
                near = along(name, -1, source if target is None else target)
                ends = (near, UnitMap.ground()) if target is None else (UnitMap.ground(), near)
            else:
                ends = along(name, -2, source), along(name, -1, target)
            leaves.append(Leaf(name, shapes[name], *ends))
        in_graph = {leaf.name for leaf in leaves}
        groups = tuple(Group(name, size) for name, (size, _) in seen.items())
        return cls(groups, tuple(leaves), tuple(name for name in shapes if name not in in_graph))

    @property
    def num_units(self) -> int:
        """H, the number of units."""
        return sum(group.size for group in self.groups)

    @property
    def num_weights(self) -> int:
        """E, the number of entries with a unit at one end or both."""
        return sum(leaf.num_edges for leaf in self.leaves)

    @property
    def num_basis_paths(self) -> int:
        """E - H, the dimension of the path space (path space, Theorem 3)."""
        return self.num_weights - self.num_units

    @functools.cached_property
    def in_chain(self) -> dict[str, Leaf]:
        """The leaf that holds each group's in-skeleton edges; groups in their order from the inputs on."""
        return skeleton_chain(self.groups, self.leaves, "target", "source")

    @functools.cached_property
    def out_chain(self) -> dict[str, Leaf]:
        """The leaf that holds each group's out-skeleton edges; groups in their order from the outputs back."""
        return skeleton_chain(self.groups, self.leaves, "source", "target")

    def weights(self, params: PyTree) -> dict[str, Array]:
        """The leaves of the graph by name, in float32 or wider.

        Raises:
          ValueError: a leaf that is missing, no array, not real floating point, or of another shape than the graph's.
        """
        leaves = named_leaves(params)
        if missing := [leaf.name for leaf in self.leaves if leaf.name not in leaves]:
            raise ValueError(
                f"the tree lacks the leaves {missing} of the graph; it has {list(leaves)}: "
                "build the graph from parameters of the model in use."
            )
        weights = {}
        for leaf in self.leaves:
            value = as_array(leaf.name, leaves[leaf.name])
            if value.shape != leaf.shape:
                raise ValueError(
                    f"leaf {leaf.name!r} has shape {leaf.shape} in the graph, but {value.shape} in this tree: "
                    "build the graph from parameters of the model in use."
                )
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise ValueError(
                    f"leaf {leaf.name!r} has dtype {value.dtype}, expected a real floating-point dtype: "
                    "leave it out of the graph."
                )
            weights[leaf.name] = value.astype(jnp.promote_types(value.dtype, jnp.float32))
        return weights

    def restricted_to(self, names: Collection[str]) -> "ReductionGraph":
        """The graph without the groups all of whose leaves are missing from `names`.

        Raises:
          ValueError: a group has some of its leaves among the names, but not all.
        """
        kept = {leaf.name for leaf in self.leaves} & set(names)
        groups = []
        for group in self.groups:
            around = [leaf.name for leaf in self.leaves if group in (*leaf.source.groups, *leaf.target.groups)]
            if present := kept.intersection(around):
                if masked := [name for name in around if name not in kept]:
                    raise ValueError(
                        f"group {group.name!r} has the leaves {sorted(present)}, but {masked} are masked or missing: "
                        "mask all leaves around a group of units, or none."
                    )
                groups.append(group)
        leaves = tuple(leaf for leaf in self.leaves if leaf.name in kept)
        return ReductionGraph(tuple(groups), leaves, self.outside, self.grounded)

    def describe(self) -> str:
        """A table of the groups, the leaves that feed and read each, the counts, and what became ground and why.

        >>> params = {"hidden": {"kernel": np.ones((3, 4))}, "out": {"kernel": np.ones((4, 2))}}
        >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
        >>> print(graph.describe())
        group  units  fed by          read by
        h          4  hidden/kernel*  out/kernel*
        4 units, 20 weights, 16 basis paths; * holds the skeleton edges
        outside the graph: none
        """
        feeds, reads = collections.defaultdict(list), collections.defaultdict(list)
        for leaf in self.leaves:
            for group in leaf.target.groups:
                feeds[group.name].append(leaf.name + "*" * (self.in_chain[group.name] is leaf))
            for group in leaf.source.groups:
                reads[group.name].append(leaf.name + "*" * (self.out_chain[group.name] is leaf))
        rows = [("group", "units", "fed by", "read by")]
        rows += [
            (group.name, str(group.size), ", ".join(feeds[group.name]), ", ".join(reads[group.name]))
            for group in self.groups
        ]
        counts = f"{self.num_units} units, {self.num_weights} weights, {self.num_basis_paths} basis paths"
        outside = ", ".join(self.outside) or "none"
        lines = [*_table(rows), f"{counts}; * holds the skeleton edges", f"outside the graph: {outside}"]
        if self.grounded:
            rows = [("ground", "axes", "units", "because of")]
            rows += [
                (each.leaf, ", ".join(map(str, each.axes)), str(each.count), each.reason) for each in self.grounded
            ]
            lines += _table(rows)
        return "\n".join(lines)


def _source_and_target(name: str, pair: Any) -> tuple[str | None, str | None]:
    # A name of two letters can be unpacked as well.
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            f"the edges of leaf {name!r} are {pair!r}, expected a pair: name its source and its target, or None for "
            "ground."
        )
    source, target = pair
    return source, target


def _table(rows: Sequence[tuple[str, str, str, str]]) -> list[str]:
    first, second, third, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [f"{a:{first}}  {b:>{second}}  {c:{third}}  {d}" for a, b, c, d in rows]


def skeleton_chain(groups: Sequence[Group], leaves: Sequence[Leaf], near: str, far: str) -> dict[str, Leaf]:
    """For each group the first leaf whose edges connect every unit to ground or to groups settled before it.

    Groups that no leaf connects so are missing from the result.
    """
    # A vector may start a chain only where no kernel can: a unit that a kernel feeds needs no bias to reach it.
    kernels, gains = ([leaf for leaf in leaves if not getattr(leaf, kind)] for kind in ("is_vector", "is_bias"))
    settled: dict[str, Leaf] = {}
    while len(settled) < len(groups):
        for candidates in kernels, gains, leaves:
            ready: dict[str, Leaf] = {}
            for leaf in candidates:
                ends = getattr(leaf, near), getattr(leaf, far)
                for group in ends[0].groups:
                    if group.name not in settled and _connects(leaf, *ends, group, settled):
                        ready.setdefault(group.name, leaf)
            if ready:
                break
        else:
            break
        settled.update({group.name: ready[group.name] for group in groups if group.name in ready})
    return settled


def _connects(leaf: Leaf, near: UnitMap, far: UnitMap, group: Group, settled: Collection[str]) -> bool:
    """Whether each unit of the group has an edge in the leaf whose far end is ground or settled."""
    if 0 in leaf.shape:
        return False
    open_end = np.asarray((far.index == GROUND) | far.lies_in(settled))
    reached = near.index
    if set(near.axes) & set(far.axes):
        rank = len(leaf.shape)
        both = np.broadcast_arrays(near.along_axes(near.index, rank), far.along_axes(open_end, rank))
        reached = both[0][both[1]]
    elif not open_end.any():
        return False
    local = np.unique(reached) - near.offsets[group.name]
    return int(np.sum((local >= 0) & (local < group.size))) == group.size


def _raise_disconnected(groups: list[Group], leaves: tuple[Leaf, ...], near: str) -> None:
    flow, remedy = ("into", "feeds") if near == "target" else ("out of", "reads")
    for group in groups:
        touched: set[int] = set()
        for end in (getattr(leaf, near) for leaf in leaves if 0 not in leaf.shape):
            if group in end.groups:
                touched |= set((end.index.ravel() - end.offsets[group.name]).tolist())
        missing = group.size - len(touched & set(range(group.size)))
        if missing:
            units = "" if missing == group.size else f"{missing} of the {group.size} units of "
            raise ValueError(
                f"nothing flows {flow} {units}group {group.name!r}: name the leaf that {remedy} its units, "
                "or leave the group out."
            )
    end = "the inputs" if near == "target" else "the outputs"
    raise ValueError(
        f"only cycles connect the groups {[group.name for group in groups]} to {end}: skeleton edges must reach ground "
        f"without a cycle, so each unit needs a weight that does not flow {flow} the units of those groups themselves."
    )
