"""Scale rules of the primitives that move entries about: reshaping, slicing, joining, indexing."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jax import lax

from .compat import JaxprEqn
from .inference import FREE, Free, Fresh, ScaleInference, Value, renamed, without_axes
from .scales import NONE, TRIVIAL, Term
from .tables import in_shape, out_shape, register_family, why


def _broadcast(inference: ScaleInference, eqn: JaxprEqn, value: Value, *_: Value) -> Sequence[Value]:
    sizes, out_sizes = in_shape(eqn), out_shape(eqn)
    places = enumerate(map(int, eqn.params["broadcast_dimensions"]))
    kept = {axis: place for axis, place in places if sizes[axis] == out_sizes[place]}
    return [renamed(inference.read(value), kept, len(out_sizes))]


def _transposes(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    permutation = [int(axis) for axis in eqn.params["permutation"]]
    places = {axis: place for place, axis in enumerate(permutation)}
    return [renamed(inference.read(value), places, len(permutation))]


def _squeezes(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    return [without_axes(inference.read(value), eqn.params["dimensions"], len(in_shape(eqn)))]


def _reshapes(inference: ScaleInference, eqn: JaxprEqn, value: Value, *_: Value) -> Sequence[Value]:
    value = inference.read(value)
    if isinstance(value, Free):
        return [value]
    sizes, out_sizes = in_shape(eqn), out_shape(eqn)
    if 0 in sizes:
        return [TRIVIAL]
    blocks = list(_blocks(sizes, out_sizes))
    places = {old[0]: new[0] for old, new in blocks if len(old) == len(new) == 1}
    if isinstance(value, Fresh):
        if all(len(old) == len(new) <= 1 for old, new in blocks):
            return [renamed(value, places, len(out_sizes))]
        value = inference.settle(value, [old for old, _ in blocks])
    return [tuple(_reshaped(term, blocks, sizes, out_sizes) for term in value)]


def _blocks(sizes: Sequence[int], out_sizes: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes that a reshape turns into each other; axes of length 1 belong to none."""
    blocks = []
    old_axes = [axis for axis, size in enumerate(sizes) if size != 1]
    new_axes = [axis for axis, size in enumerate(out_sizes) if size != 1]
    while old_axes:
        old, new = [old_axes.pop(0)], [new_axes.pop(0)]
        while (ratio := math.prod(sizes[i] for i in old) - math.prod(out_sizes[i] for i in new)) != 0:
            old, new = (old, [*new, new_axes.pop(0)]) if ratio > 0 else ([*old, old_axes.pop(0)], new)
        blocks.append((old, new))
    return blocks


def _reshaped(
    term: Term, blocks: Sequence[tuple[list[int], list[int]]], sizes: Sequence[int], out_sizes: Sequence[int]
) -> Term:
    touched = [(old, new) for old, new in blocks if set(old) & set(term.axes)]
    old_axes = list(itertools.chain(*(old for old, _ in touched)))
    new_axes = tuple(itertools.chain(*(new for _, new in touched)))
    term = term.over({axis: sizes[axis] for axis in old_axes})
    return term.rearranged(lambda array: array.reshape([out_sizes[axis] for axis in new_axes]), new_axes)


def _reverses(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    value, dimensions = inference.read(value), eqn.params["dimensions"]
    if isinstance(value, Free):
        return [value]
    if isinstance(value, Fresh):
        axes = frozenset(axis for i in dimensions if (axis := value.dims[i]) is not None)
        return [Fresh(value.name, value.dims, value.flipped ^ axes)]
    return [tuple(term.flipped(dimensions) for term in value)]


def _slices(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    starts, limits, strides = (eqn.params[name] for name in ("start_indices", "limit_indices", "strides"))
    if isinstance(inference.read(value), Free):
        return [FREE]
    steps = strides or (1,) * len(starts)
    picks = {axis: slice(*bounds) for axis, bounds in enumerate(zip(starts, limits, steps, strict=True))}
    return [tuple(term.picked(picks) for term in inference.scale(value))]


def _splits(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    if isinstance(inference.read(value), Free):
        return [FREE] * len(eqn.outvars)
    scale, ends = inference.scale(value), np.cumsum(eqn.params["sizes"])
    bounds = itertools.pairwise([0, *ends.tolist()])
    return [tuple(term.picked({eqn.params["axis"]: slice(*bound)}) for term in scale) for bound in bounds]


def _pads(inference: ScaleInference, eqn: JaxprEqn, value: Value, padding: Value) -> Sequence[Value]:
    value, sizes, out_sizes = inference.read(value), in_shape(eqn), out_shape(eqn)
    if isinstance(value, Free) and isinstance(inference.read(padding), Free):
        return [FREE]
    if not isinstance(inference.read(padding), Free):
        inference.trivial(value, sizes, why(eqn))
        return [TRIVIAL]
    config = eqn.params["padding_config"]
    padded_axes = {axis for axis, padding in enumerate(config) if tuple(padding) != (0, 0, 0)}
    padded: list[Term] = []
    for number, term in enumerate(inference.scale(value)):
        if not padded_axes & set(term.axes):
            padded.append(term)
            continue
        # Zeros take any scale: unknowns of their own leave them free to.
        free = inference.free_entries(number, [out_sizes[axis] for axis in term.axes], term.axes)
        unknowns, coefficients = free.unknowns.copy(), free.coefficients.copy()
        at = []
        for axis in term.axes:
            low, _, interior = config[axis]
            at.append(low + np.arange(sizes[axis]) * (interior + 1))
        inside = [(where >= 0) & (where < out_sizes[axis]) for where, axis in zip(at, term.axes, strict=True)]
        target, origin = np.ix_(*(w[i] for w, i in zip(at, inside, strict=True))), np.ix_(*map(np.flatnonzero, inside))
        unknowns[target], coefficients[target] = term.unknowns[origin], term.coefficients[origin]
        padded.append(Term(term.axes, unknowns, coefficients))
    return [tuple(padded)]


def _concatenates(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    values = tuple(inference.read(value) for value in values)
    if all(isinstance(value, Free) for value in values):
        return [FREE]
    axis, sizes = eqn.params["dimension"], out_shape(eqn)
    scales = [inference.scale(value) for value in values]
    along = [[term for term in scale if axis in term.axes] for scale in scales]
    across = [
        tuple(term for term in scale if axis not in term.axes)
        for scale, value in zip(scales, values, strict=True)
        if not isinstance(value, Free)
    ]
    rest = inference.equal(across, [1 if i == axis else size for i, size in enumerate(sizes)], why(eqn))
    axes = tuple(sorted({axis, *(i for terms in along for term in terms for i in term.axes)}))
    joined = []
    for number in range(max(map(len, along))):
        parts = []
        for index, (terms, value) in enumerate(zip(along, values, strict=True)):
            lengths = {i: in_shape(eqn, index)[i] if i == axis else sizes[i] for i in axes}
            shape = list(lengths.values())
            if number < len(terms):
                parts.append(terms[number].over(lengths))
            elif isinstance(value, Free) and number == 0:
                parts.append(inference.free_entries(index, shape, axes))
            else:
                parts.append(Term(axes, np.full(shape, NONE), np.zeros(shape)))
        place = axes.index(axis)
        unknowns, coefficients = (
            np.concatenate([getattr(part, name) for part in parts], place) for name in ("unknowns", "coefficients")
        )
        joined.append(Term(axes, unknowns, coefficients))
    return [(*inference.scale(rest), *joined)]


def _stacks(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    one = inference.read(inference.equal(values, in_shape(eqn), why(eqn)))
    axis, rank = eqn.params["axis"], len(in_shape(eqn))
    return [renamed(one, {i: i + (i >= axis) for i in range(rank)}, rank + 1)]


def _unstacks(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    axis, sizes = eqn.params["axis"], in_shape(eqn)
    if isinstance(inference.read(value), Free):
        return [FREE] * len(eqn.outvars)
    constant = inference.constant_along(inference.scale(value), [axis], sizes, why(eqn))
    return [without_axes(constant, [axis], len(sizes))] * len(eqn.outvars)


def _tiles(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    if isinstance(inference.read(value), Free):
        return [FREE]
    reps = eqn.params["reps"]

    def tiled(term: Term) -> Term:
        return term.rearranged(lambda array: np.tile(array, [reps[axis] for axis in term.axes]), term.axes)

    return [tuple(map(tiled, inference.scale(value)))]


def _gathers(inference: ScaleInference, eqn: JaxprEqn, value: Value, indices: Value) -> Sequence[Value]:
    value, sizes, why_not = inference.read(value), in_shape(eqn), why(eqn)
    inference.trivial(indices, in_shape(eqn, 1), why_not)
    if isinstance(value, Free):
        return [FREE]
    numbers, slice_sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    hidden = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    picked = [axis for axis, size in enumerate(sizes) if slice_sizes[axis] != size or axis in hidden]
    value = inference.one_of(value, picked, sizes, why_not)
    windows = [axis for axis in range(len(sizes)) if axis not in hidden]
    places = {axis: place for axis, place in zip(windows, numbers.offset_dims, strict=True) if axis not in picked}
    return [renamed(value, places, len(out_shape(eqn)))]


def _slices_dynamically(inference: ScaleInference, eqn: JaxprEqn, value: Value, *starts: Value) -> Sequence[Value]:
    value, sizes, out_sizes = inference.read(value), in_shape(eqn), out_shape(eqn)
    whole = {axis: axis for axis, size in enumerate(sizes) if out_sizes[axis] == size}
    picked = [axis for axis in range(len(sizes)) if axis not in whole]
    return [renamed(inference.one_of(value, picked, sizes, why(eqn)), whole, len(sizes))]


def _updates_slice(
    inference: ScaleInference, eqn: JaxprEqn, value: Value, update: Value, *starts: Value
) -> Sequence[Value]:
    sizes, update_sizes = in_shape(eqn), in_shape(eqn, 1)
    picked = [axis for axis, size in enumerate(sizes) if update_sizes[axis] != size]
    parts: list[Value] = []
    for part, part_sizes in (value, sizes), (update, update_sizes):
        part = inference.read(part)
        if not isinstance(part, Free):
            part = inference.constant_along(inference.scale(part), picked, part_sizes, why(eqn))
        parts.append(part)
    return [inference.equal(parts, sizes, why(eqn))]


def _scatters(
    inference: ScaleInference, eqn: JaxprEqn, value: Value, indices: Value, updates: Value
) -> Sequence[Value]:
    sizes, update_sizes, why_not = in_shape(eqn), in_shape(eqn, 2), why(eqn)
    inference.trivial(indices, in_shape(eqn, 1), why_not)
    numbers = eqn.params["dimension_numbers"]
    hidden = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    windows = [axis for axis in range(len(sizes)) if axis not in hidden]
    places = dict(zip(numbers.update_window_dims, windows, strict=True))
    whole = {axis for axis, place in places.items() if update_sizes[axis] == sizes[place]}
    parts: list[Value] = []
    for part, part_sizes, kept in (
        (value, sizes, {places[axis] for axis in whole}),
        (updates, update_sizes, whole),
    ):
        part = inference.read(part)
        if not isinstance(part, Free):
            partial = [axis for axis in range(len(part_sizes)) if axis not in kept]
            part = inference.constant_along(inference.scale(part), partial, part_sizes, why_not)
        parts.append(part)
    parts[1] = renamed(parts[1], {axis: places[axis] for axis in whole}, len(sizes))
    return [inference.equal(parts, sizes, why_not)]


register_family(_broadcast, lax.broadcast_in_dim_p)
register_family(_transposes, lax.transpose_p)
register_family(_squeezes, lax.squeeze_p)
register_family(_reshapes, lax.reshape_p)
register_family(_reverses, lax.rev_p)
register_family(_slices, lax.slice_p)
register_family(_splits, lax.split_p)
register_family(_pads, lax.pad_p)
register_family(_concatenates, lax.concatenate_p)
register_family(_stacks, lax.stack_p)
register_family(_unstacks, lax.unstack_p)
register_family(_tiles, lax.tile_p)
register_family(_gathers, lax.gather_p)
register_family(_slices_dynamically, lax.dynamic_slice_p)
register_family(_updates_slice, lax.dynamic_update_slice_p)
register_family(_scatters, lax.scatter_p, lax.scatter_add_p, lax.scatter_sub_p, lax.scatter_max_p, lax.scatter_min_p)
