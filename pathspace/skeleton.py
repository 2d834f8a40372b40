"""The skeleton: one incoming and one outgoing edge per unit, and the reference values that paths are measured in."""

import dataclasses
import functools
import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from .graph import Leaf, ReductionGraph
from .rescaling import Units, add_units, balance
from .sharding import in_auto_mode
from .trees import named_leaves, replace_leaves
from .units import GROUND, UnitMap

Edges = dict[str, Int[Array, " _"]]
Flags = dict[str, Bool[Array, " _"]]

_LAST = jnp.iinfo(jnp.int32).max


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["in_edges", "out_edges", "in_reference", "out_reference", "path_reference"],
    meta_fields=["graph"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Skeleton:
    """The chosen in-skeleton and out-skeleton edge of each unit, with reference values (path space, section 4).

    Following in-skeleton edges backwards, and out-skeleton edges forwards, reaches ground without a cycle. The products
    of weights along them are A(v) and B(v); coordinates measure them relative to the products A_ref(v) and B_ref(v)
    of the reference values.

    Attributes:
      graph: the reduction graph (static).
      in_edges: `{group: (units,)}`, int32: the position of I(v) in the flattened leaf `graph.in_chain[group]`; -1 for
        a unit without a skeleton, treated as ground.
      out_edges: the same for O(v) in `graph.out_chain[group]`.
      in_reference: `{group: (units,)}`: the weight of I(v) at the reference point, or 1.
      out_reference: the same for O(v).
      path_reference: `{group: (units,)}`: N(v), the value at the reference point of the path that has skeleton edges
        alone up to v and from v on: there the norm of all weights into and out of v, or 1. Other paths have there the
        value of their one weight outside the skeleton.

    Source: path space for ReLU RNNs, Algorithm 1; reference values other than 1 are ours.

    >>> from pathspace import ReductionGraph
    >>> params = {"hidden": {"kernel": jnp.array([[3.0, -8.0]])}, "out": {"kernel": jnp.array([[1.0], [2.0]])}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> skeleton = choose_skeleton(graph, params)
    >>> skeleton.in_edges["h"].tolist(), skeleton.out_edges["h"].tolist()
    ([0, 1], [0, 1])
    """

    # Under jax.vmap and in tree operations the arrays have further axes, or are no arrays at all.
    graph: ReductionGraph
    in_edges: dict[str, Any]
    out_edges: dict[str, Any]
    in_reference: dict[str, Any]
    out_reference: dict[str, Any]
    path_reference: dict[str, Any]

    def restricted_to(self, names: Collection[str]) -> "Skeleton":
        """The skeleton of `graph.restricted_to(names)`: for trees in which whole groups are masked out."""
        graph = self.graph.restricted_to(names)
        kept = [group.name for group in graph.groups]
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "graph"}
        return Skeleton(graph=graph, **{part: {name: held[name] for name in kept} for part, held in parts.items()})


@in_auto_mode(like=None)
def choose_skeleton(
    graph: ReductionGraph,
    params: PyTree,
    *,
    method: str = "largest",
    reference: str | None = "balanced",
) -> Skeleton:
    """Choose the skeleton edges and the reference values at a point of weight space.

    Each group takes its edges from one leaf, fixed by the graph: the nearest to the inputs (in-skeleton) or to the
    outputs (out-skeleton), kernels before vectors. Recurrent weights are never skeleton edges, nor is a bias where a
    kernel feeds the unit. A unit whose skeleton weight is exactly 0 at the reference point has no coordinates there:
    it is left out, and its weights are trained as they are.

    Under `jax.jit(choose_skeleton, static_argnums=0)` the first call takes half the time, as one program is compiled
    and not one for each operation.

    Args:
      graph: the reduction graph.
      params: the parameters.
      method: `"largest"` takes the edge of largest magnitude at the reference point; `"cyclic"`, the papers' choice,
        takes edge j mod n for unit j of n possible ones, at the centre tap of a convolution kernel.
      reference: `"balanced"` chooses at the balanced representative of `params` (see `balance`), so that the skeleton
        and with it the whole optimiser depends on the network's function alone; `"initial"` at `params` themselves;
        `None` also picks edges at `params`, and makes all reference values 1: coordinates are then the raw path values
        of the papers.

    Returns:
      The skeleton, a pytree; arrays in it are int32, and float32 or the parameters' dtype if wider.

    Raises:
      ValueError: an unknown method or reference; a tree that does not match the graph.

    Source: path space for ReLU RNNs, Algorithm 1 and the skeleton method of section 4.

    >>> from pathspace import ReductionGraph
    >>> params = {"hidden": {"kernel": jnp.array([[3.0, -8.0]])}, "out": {"kernel": jnp.array([[1.0], [2.0]])}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> skeleton = choose_skeleton(graph, params, reference="initial")
    >>> skeleton.in_reference["h"].tolist(), skeleton.out_reference["h"].tolist()
    ([3.0, -8.0], [1.0, 2.0])
    """
    if method not in ("largest", "cyclic"):
        raise ValueError(f"method is 'largest' or 'cyclic', got {method!r}.")
    if reference not in ("balanced", "initial", None):
        raise ValueError(f"reference is 'balanced', 'initial' or None, got {reference!r}.")
    weights = graph.weights(params)
    if reference == "balanced":
        # In their own dtype balanced weights may overflow.
        weights = graph.weights(balance(replace_leaves(params, weights), graph))

    def choose(chain: dict[str, Leaf], near: str, far: str) -> tuple[Edges, Units]:
        edges: Edges = {}
        values: Units = {}
        for name, leaf in chain.items():
            ends = getattr(leaf, near), getattr(leaf, far)
            chosen = _choose_in_leaf(leaf, *ends, name, edges.keys(), weights[leaf.name], method)
            mask = edge_mask(leaf, ends[0], {name: chosen})
            value = ends[0].collect(jnp.where(mask, weights[leaf.name], 0))[name]
            if reference is None:
                edges[name], values[name] = chosen, jnp.ones_like(value)
            else:
                edges[name], values[name] = jnp.where(value == 0, -1, chosen), jnp.where(value == 0, 1, value)
        return edges, values

    in_edges, in_reference = choose(graph.in_chain, "target", "source")
    out_edges, out_reference = choose(graph.out_chain, "source", "target")
    return Skeleton(
        graph=graph,
        in_edges=in_edges,
        out_edges=out_edges,
        in_reference=in_reference,
        out_reference=out_reference,
        path_reference=_ones(in_reference) if reference is None else _norms_around(graph, weights, in_reference),
    )


@in_auto_mode(like="params")
def skeleton_masks(skeleton: Skeleton, params: PyTree) -> PyTree[Bool[Array, "..."]]:
    """The papers' mask matrices: a tree like `params` of booleans, true on skeleton edges.

    Raises:
      ValueError: the tree does not match the skeleton's graph.

    Source: path space for ReLU RNNs, Algorithm 1.

    >>> from pathspace import ReductionGraph
    >>> params = {"hidden": {"kernel": jnp.ones((2, 2))}, "out": {"kernel": jnp.ones((2, 1))}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> skeleton_masks(choose_skeleton(graph, params, method="cyclic"), params)["hidden"]["kernel"].tolist()
    [[True, False], [False, True]]
    """
    skeleton.graph.weights(params)
    masks = {name: jnp.zeros(np.shape(leaf), bool) for name, leaf in named_leaves(params).items()}
    for leaf in skeleton.graph.leaves:
        masks[leaf.name] = in_mask(skeleton, leaf) | out_mask(skeleton, leaf)
    return replace_leaves(params, masks)


@in_auto_mode(like="params")
def with_unit_skeleton(params: PyTree, skeleton: Skeleton) -> PyTree:
    """The papers' initialisation: all skeleton weights set to 1. This changes the function that the network computes.

    To be used with a skeleton chosen with `reference=None`.

    Raises:
      ValueError: the tree does not match the skeleton's graph.

    Source: path space for ReLU RNNs, section 4 (Algorithm 2 divides by skeleton weights of 1).

    >>> from pathspace import ReductionGraph
    >>> params = {"hidden": {"kernel": jnp.full((2, 2), 0.5)}, "out": {"kernel": jnp.full((2, 1), 0.5)}}
    >>> graph = ReductionGraph.from_edges(params, {"hidden/kernel": (None, "h"), "out/kernel": ("h", None)})
    >>> skeleton = choose_skeleton(graph, params, method="cyclic", reference=None)
    >>> with_unit_skeleton(params, skeleton)["hidden"]["kernel"].tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    masks, leaves = (named_leaves(tree) for tree in (skeleton_masks(skeleton, params), params))
    names = [leaf.name for leaf in skeleton.graph.leaves]
    return replace_leaves(
        params, {name: jnp.where(masks[name], jnp.ones_like(leaves[name]), leaves[name]) for name in names}
    )


def edge_mask(leaf: Leaf, near: UnitMap, edges: Edges, among: Flags | None = None) -> Array:
    """True at the entry that each unit of the given groups, or each of the units `among` them, has chosen in the leaf.

    Comparisons with an iota: XLA fuses them into what reads them, and they shard, where an index would gather. And
    nothing is computed from the iotas that XLA would take for worth keeping, as an array of the leaf's size, from one
    turn of a training loop to the next; what is computed from the edges, it may keep.
    """
    if not edges:
        return jnp.zeros(leaf.shape, bool)
    rank = len(leaf.shape)
    axes = [axis for axis in range(rank) if not (near.is_in_order and axis in near.axes)] or range(rank)
    mask = jnp.ones((), bool)
    for axis in axes:
        chosen = {name: _coordinate(leaf, axis, edge) for name, edge in edges.items()}
        if among is not None:
            chosen = {name: jnp.where(among[name], each, -1) for name, each in chosen.items()}
        mask &= jax.lax.broadcasted_iota(jnp.int32, leaf.shape, axis) == near.spread(chosen, rank, -1)
    return mask


def far_units(leaf: Leaf, far: UnitMap, edges: Int[Array, " _"]) -> Int[Array, " _"]:
    """The unit at the far end of each edge, as `far.index` counts them; ground where there is no edge."""
    place = jnp.zeros_like(edges)
    for axis, size in zip(far.axes, far.index.shape, strict=True):
        place = place * size + _coordinate(leaf, axis, edges)
    return jnp.where(edges < 0, GROUND, jnp.asarray(far.index.ravel(), edges.dtype)[place])


def in_mask(skeleton: Skeleton, leaf: Leaf, among: Flags | None = None) -> Array:
    """Where the leaf holds in-skeleton edges, of all units or of those `among` them."""
    return edge_mask(leaf, leaf.target, edges_in(leaf, skeleton.graph.in_chain, skeleton.in_edges), among)


def out_mask(skeleton: Skeleton, leaf: Leaf, among: Flags | None = None) -> Array:
    """Where the leaf holds out-skeleton edges, of all units or of those `among` them."""
    return edge_mask(leaf, leaf.source, edges_in(leaf, skeleton.graph.out_chain, skeleton.out_edges), among)


def edges_in(leaf: Leaf, chain: dict[str, Leaf], edges: Edges) -> Edges:
    """Those of the groups that take their edges from the leaf."""
    return {name: edge for name, edge in edges.items() if chain[name] is leaf}


def _ones(values: Units) -> Units:
    return {name: jnp.ones_like(value) for name, value in values.items()}


def _norms_around(graph: ReductionGraph, weights: dict[str, Array], in_weights: Units) -> Units:
    """The norm of all weights into and out of each unit.

    They say how far a step along an all-skeleton path changes the unit as a whole. With 1 in their place G-SGD has a
    validation error of 2.77 +- 0.05 % on the digits benchmark (400 splits, learning rate 0.2), with these norms
    2.63 +- 0.04, with twice as large ones 2.67 +- 0.06 (200 splits); SGD has 2.54 +- 0.04. On the 200 splits
    that came after the choice: 2.78 +- 0.07, 2.69 +- 0.06 and 2.58 +- 0.06. G-Adam's errors are alike.
    """
    if not weights:
        return {}
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(weight), initial=0) for weight in weights.values()])
    # Relative to the largest weight no square overflows.
    largest = jnp.where(largest > 0, largest, 1)
    squares: Units = {}
    for leaf in graph.leaves:
        square = jnp.square(weights[leaf.name] / largest)
        add_units(squares, leaf.source.collect(square))
        add_units(squares, leaf.target.collect(square))
    norms = {name: largest * jnp.sqrt(square) for name, square in squares.items()}
    # Squares may vanish beside the largest, a skeleton weight does not; and a norm may overflow where no weight does.
    return {
        name: jnp.clip(norms[name], jnp.abs(weight), jnp.finfo(weight.dtype).max) for name, weight in in_weights.items()
    }


def _coordinate(leaf: Leaf, axis: int, edges: Int[Array, " _"]) -> Int[Array, " _"]:
    """Where edges lie along an axis; -1 where there is no edge."""
    size, stride = np.asarray((leaf.shape[axis], math.prod(leaf.shape[axis + 1 :])), edges.dtype)
    return jnp.where(edges < 0, -1, jax.lax.rem(jax.lax.div(edges, stride), size))


def _positions(leaf: Leaf) -> Array:
    """The position of each entry in the flattened leaf."""
    positions = jnp.zeros(leaf.shape, jnp.int32)
    for axis, size in enumerate(leaf.shape):
        positions = positions * size + jax.lax.broadcasted_iota(jnp.int32, leaf.shape, axis)
    return positions


def _choose_in_leaf(
    leaf: Leaf, near: UnitMap, far: UnitMap, name: str, settled: Collection[str], weights: Array, method: str
) -> Array:
    """For each unit of the group the best-scored edge to ground or to a settled group; of several the first."""
    rank = len(leaf.shape)
    possible = far.along_axes(np.asarray((far.index == GROUND) | far.lies_in(settled)), rank)
    score = jnp.abs(weights) if method == "largest" else _cyclic_score(leaf, near, far, name)
    score = jnp.where(possible, score, -1)
    best = near.collect(score, "max")[name]
    at_best = score == near.spread({name: best}, rank, -2)
    return near.collect(jnp.where(at_best, _positions(leaf), _LAST), "min")[name]


def _cyclic_score(leaf: Leaf, near: UnitMap, far: UnitMap, name: str) -> Array:
    """Highest at far position j mod n for unit j, at the centre tap; -1 at all other taps."""
    rank = len(leaf.shape)
    far_position, num_positions, centre = np.zeros((1,) * rank, int), 1, np.ones((1,) * rank, bool)
    for axis in set(range(rank)) - set(near.axes):
        size = leaf.shape[axis]
        along = np.arange(size).reshape([size if i == axis else 1 for i in range(rank)])
        if axis in far.axes:
            far_position, num_positions = far_position * size + along, num_positions * size
        else:
            centre = centre & (along == size // 2)
    unit = near.along_axes(np.asarray(near.index - near.offsets[name]), rank)
    cyclic = num_positions - jnp.mod(jnp.asarray(far_position) - unit, num_positions)
    return jnp.where(centre, jnp.broadcast_to(cyclic, leaf.shape), -1)
