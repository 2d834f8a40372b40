"""Scale rules of the primitives that add up or compare entries: products, convolutions, reductions."""

from collections.abc import Sequence

import numpy as np
from jax import lax

from .compat import JaxprEqn
from .inference import FREE, Free, Fresh, ScaleInference, Value, without_axes
from .scales import NONE, TRIVIAL, Scale, Term
from .tables import in_shape, out_shape, register_family, why


def _dot(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    """Contracted axes cancel, free axes pass through; a leaf met first here gets its scale here."""
    contracts, batches = eqn.params["dimension_numbers"]
    out_rank = len(out_shape(eqn))
    sizes = [*out_shape(eqn), *(in_shape(eqn)[axis] for axis in contracts[0])]
    contracted = list(range(out_rank, len(sizes)))
    batch = list(range(len(batches[0])))
    # Both operands are looked at in common axes: those of the output, and behind them the contracted ones.
    places: list[dict[int, int]] = []
    free: list[list[int]] = []
    next_place = len(batch)
    for side in range(2):
        rank = len(in_shape(eqn, side))
        own = [axis for axis in range(rank) if axis not in (*contracts[side], *batches[side])]
        free.append(list(range(next_place, next_place + len(own))))
        next_place += len(own)
        axes = [*batches[side], *own, *contracts[side]]
        places.append(dict(zip(axes, [*batch, *free[side], *contracted], strict=True)))

    read = [inference.read(value) for value in values]
    if any(isinstance(value, Free) for value in read):
        return [FREE]

    def settle(side: int, fresh: Fresh, known: Scale, together: Sequence[Sequence[int]]) -> None:
        own_axis = {place: axis for axis, place in places[side].items()}
        inference.settle(
            fresh,
            [[own_axis[place] for place in (*batch, *axes)] for axes in together],
            tuple(term.on([own_axis[axis] for axis in term.axes]) for term in known),
        )

    def common(side: int) -> Scale:
        scale = inference.scale(values[side])
        return tuple(term.on([places[side][axis] for axis in term.axes]) for term in scale)

    if isinstance(read[0], Fresh) and isinstance(read[1], Fresh):
        axis_of = {place: read[0].dims[axis] for axis, place in places[0].items()}
        sets = [axes for axes in (contracted, free[0]) if any(axis_of[place] is not None for place in axes)]
        settle(0, read[0], TRIVIAL, sets or [[]])
        read[0] = inference.read(values[0])
    for side, value in enumerate(read):
        other = inference.read(values[1 - side])
        if isinstance(value, Fresh) and not isinstance(other, Fresh):
            lacks = {place for axis, place in places[side].items() if value.dims[axis] is None}
            met = [term for term in common(1 - side) if not term.axes or set(term.axes) & set(contracted)]
            across = [inference.constant_along((term,), [*free[1 - side], *lacks], sizes, why(eqn)) for term in met]
            reads = [place for place in contracted if place not in lacks]
            known = _source([term for terms in across for term in terms], reads, sizes)
            settle(side, value, known, [free[side]])
    return [inference.constant_along((*common(0), *common(1)), contracted, sizes, why(eqn))]


def _source(met: Sequence[Term], axes: Sequence[int], sizes: Sequence[int]) -> Scale:
    """What a kernel carries for what it reads. Of one unit, or of ground, it has its axes, too."""
    if met:
        wide = (term if term.axes else term.over({axis: sizes[axis] for axis in axes}) for term in met)
        return tuple(term.times(-1) for term in wide)
    shape = [sizes[axis] for axis in axes]
    return (Term(tuple(axes), np.full(shape, NONE), np.full(shape, -1.0)),)


def _convolves(inference: ScaleInference, eqn: JaxprEqn, image: Value, kernel: Value) -> Sequence[Value]:
    """Input features cancel, output features pass through; pixels and taps carry no scale."""
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1:
        inference.all_trivial(eqn, (image, kernel), why(eqn))
        return [TRIVIAL]
    image, kernel = inference.read(image), inference.read(kernel)
    if isinstance(image, Free) or isinstance(kernel, Free):
        return [FREE]
    reason, sizes, kernel_sizes = why(eqn), in_shape(eqn), in_shape(eqn, 1)
    (example, feature, *pixels), (out_axis, in_axis, *taps) = numbers.lhs_spec, numbers.rhs_spec
    scale = inference.constant_along(inference.scale(image), pixels, sizes, reason)
    apart = tuple(term for term in scale if term.axes and feature not in term.axes)
    met = tuple(
        kept
        for term in scale
        if not term.axes or feature in term.axes
        for kept in inference.constant_along((term,), [example], sizes, reason)
    )

    per_group = kernel_sizes[in_axis]
    reads = np.arange(per_group) + per_group * np.arange(groups)[:, None]
    reads = np.repeat(reads, kernel_sizes[out_axis] // groups, axis=0)

    def on_kernel(term: Term) -> Term:
        if groups == 1 or not term.axes:
            return term.on([in_axis] * len(term.axes))
        return term.rearranged(lambda array: array[reads], (0, 1)).on([out_axis, in_axis])

    incoming = [on_kernel(term) for term in met]
    if isinstance(kernel, Fresh):
        kernel = inference.settle(kernel, [[out_axis]], _source(incoming, [in_axis], kernel_sizes))
    kernel_scale = inference.constant_along(inference.scale(kernel), taps, kernel_sizes, reason)
    outgoing = inference.constant_along((*incoming, *kernel_scale), [in_axis], kernel_sizes, reason)
    out_example, out_feature = numbers.out_spec[:2]
    return [
        (
            *(term.on([out_example]) for term in apart),
            *(term.on([out_feature] * len(term.axes)) for term in outgoing),
        )
    ]


def _reduces(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    axes, sizes = [int(axis) for axis in eqn.params["axes"]], in_shape(eqn)
    if isinstance(inference.read(value), Free):
        return [FREE]
    constant = inference.constant_along(inference.scale(value), axes, sizes, why(eqn))
    return [without_axes(constant, axes, len(sizes))]


def _finds_position(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    if not isinstance(inference.read(value), Free):
        inference.constant_along(inference.scale(value), eqn.params["axes"], in_shape(eqn), why(eqn))
    return [TRIVIAL]


def _constant_along(inference: ScaleInference, eqn: JaxprEqn, value: Value, axes: Sequence[int]) -> Value:
    if isinstance(inference.read(value), Free):
        return FREE
    return inference.constant_along(inference.scale(value), axes, in_shape(eqn), why(eqn))


def _accumulates(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    return [_constant_along(inference, eqn, value, [eqn.params["axis"]])]


def _reduces_windows(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    windows = [axis for axis, size in enumerate(eqn.params["window_dimensions"]) if size != 1]
    return [_constant_along(inference, eqn, value, windows)]


def _sorts(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    return [_constant_along(inference, eqn, value, [eqn.params["dimension"]]) for value in values]


def _takes_largest(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    axis = eqn.params.get("axis", len(in_shape(eqn)) - 1)
    return [_constant_along(inference, eqn, value, [axis]), TRIVIAL]


register_family(_dot, lax.dot_general_p)
register_family(_convolves, lax.conv_general_dilated_p)
register_family(_reduces, lax.reduce_sum_p, lax.reduce_max_p, lax.reduce_min_p)
register_family(_finds_position, lax.argmax_p, lax.argmin_p)
register_family(_accumulates, lax.cumsum_p, lax.cummax_p, lax.cummin_p)
register_family(_reduces_windows, lax.reduce_window_sum_p, lax.reduce_window_max_p, lax.reduce_window_min_p)
register_family(_sorts, lax.sort_p)
register_family(_takes_largest, lax.top_k_p)
