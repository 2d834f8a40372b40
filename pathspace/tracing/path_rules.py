"""Rules of the primitives in the path network."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from ..convolutions import convolution
from .compat import JaxprEqn, apply, is_inexact, is_numeric, primitives, scan_sizes
from .path_interpreter import PathNetwork, all_constant, weights_only
from .path_values import DATA, Constant, Data, Signal, Value, Weight, common_shift, shifted_to
from .tables import PATH_RULES, out_shape, register_in

_register = functools.partial(register_in, PATH_RULES, "path")


def _apply(eqn: JaxprEqn, *arrays: Any) -> Any:
    """The only output."""
    return apply(eqn, *arrays)[0]


def _contracted(eqn: JaxprEqn, first: Any, second: Any) -> Any:
    if eqn.primitive is lax.conv_general_dilated_p:
        return convolution(first, second, **eqn.params)
    return _apply(eqn, first, second)


def _moves(network: PathNetwork, eqn: JaxprEqn, value: Value, *rest: Value) -> Sequence[Value]:
    """Entries are where others were."""
    return _is_linear(network, eqn, Weight, value, *rest)


def _sums(network: PathNetwork, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    """Entries are sums of others."""
    return _is_linear(network, eqn, network.merged, value)


def _is_linear(
    network: PathNetwork, eqn: JaxprEqn, made: Callable[[Array, Array], Weight], value: Value, *rest: Value
) -> Sequence[Value]:
    if not isinstance(value, Signal | Weight):
        return network.unknown(eqn, (value, *rest))
    if not is_inexact(eqn.outvars[0]):
        return [DATA]
    indices = [other.array for other in rest if isinstance(other, Constant)]
    if len(indices) < len(rest):
        return network.unknown(eqn, (value, *rest))

    def of_weight(weight: Weight) -> Weight:
        return made(_apply(eqn, weight.raw, *indices), _apply(eqn, weight.path, *indices))

    if isinstance(value, Weight):
        return [of_weight(value)]
    offset = None if value.offset is None else of_weight(value.offset)
    return [Signal(_apply(eqn, value.path, *indices), value.shift, offset)]


def _negates(network: PathNetwork, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    if isinstance(value, Weight):
        return [Weight(-value.raw, value.path)]
    if not isinstance(value, Signal):
        return network.unknown(eqn, [value])
    return [Signal(value.path, value.shift, value.offset and Weight(-value.offset.raw, value.offset.path))]


def _is_identity(network: PathNetwork, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    return [network.signal(value)] if isinstance(value, Signal) else network.unknown(eqn, [value])


def _adds(network: PathNetwork, eqn: JaxprEqn, first: Value, second: Value) -> Sequence[Value]:
    if isinstance(first, Data) or isinstance(second, Data) or all_constant((first, second)):
        return network.unknown(eqn, (first, second))
    if isinstance(first, Constant | Weight) and isinstance(second, Constant | Weight):
        a, b = network.weight(first), network.weight(second)
        return [network.merged(_apply(eqn, a.raw, b.raw), a.path + b.path)]
    if isinstance(first, Signal) and isinstance(second, Signal):
        return [network.sum_of(network.signal(first), network.signal(second))]
    stream, other = (first, second) if isinstance(first, Signal) else (second, first)
    assert isinstance(stream, Signal) and isinstance(other, Constant | Weight)
    added = network.weight(other)
    if isinstance(other, Weight) and stream.offset is None:
        summed = network.sum_of(stream, added.path)
        if stream.total is None:
            return [summed]
        total = stream.total + jnp.sum(jnp.broadcast_to(added.path, summed.path.shape))
        return [dataclasses.replace(summed, total=total)]
    # The stream's own sign does not matter, only that of the offset relative to what is added.
    before = stream.offset or Weight(jnp.zeros_like(stream.path), jnp.zeros_like(stream.path))
    raws = (before.raw, added.raw) if isinstance(first, Signal) else (added.raw, before.raw)
    return [Signal(stream.path, stream.shift, network.merged(_apply(eqn, *raws), before.path + added.path))]


def _multiplies(network: PathNetwork, eqn: JaxprEqn, first: Value, second: Value) -> Sequence[Value]:
    if isinstance(first, Signal) and isinstance(second, Constant | Weight):
        stream, by = first, network.weight(second)
    elif isinstance(second, Signal) and isinstance(first, Constant | Weight) and eqn.primitive is lax.mul_p:
        stream, by = second, network.weight(first)
    elif isinstance(first, Signal) and isinstance(second, Data) and eqn.primitive is lax.mul_p:
        return [first]  # a mask of zeros and ones
    elif isinstance(second, Signal) and isinstance(first, Data) and eqn.primitive is lax.mul_p:
        return [second]
    else:
        return _multiplies_weights(network, eqn, first, second)
    offset = stream.offset and Weight(_apply(eqn, stream.offset.raw, by.raw), _apply(eqn, stream.offset.path, by.path))
    return [Signal(_apply(eqn, stream.path, by.path), stream.shift, offset)]


def _multiplies_weights(network: PathNetwork, eqn: JaxprEqn, first: Value, second: Value) -> Sequence[Value]:
    pair = first, second
    if all_constant(pair) or not weights_only(pair):
        return network.unknown(eqn, pair)
    a, b = (network.weight(value) for value in pair)
    return [Weight(_apply(eqn, a.raw, b.raw), _apply(eqn, a.path, b.path))]


def contracts(network: PathNetwork, eqn: JaxprEqn, first: Value, second: Value) -> Sequence[Value]:
    """Matrix products and convolutions."""
    if isinstance(first, Signal) and isinstance(second, Constant | Weight):
        stream = network.signal(first)
        factors = stream.path, network.weight(second).path
    elif isinstance(second, Signal) and isinstance(first, Constant | Weight):
        stream = network.signal(second)
        factors = network.weight(first).path, stream.path
    else:
        return _multiplies_weights(network, eqn, first, second)
    product = network.tempered(Signal(_contracted(eqn, *factors), stream.shift))
    if network.rescales or eqn.primitive is not lax.dot_general_p:
        return [product]
    return [dataclasses.replace(product, total=_sum_of_product(eqn, product.path.dtype, *factors))]


def _sum_of_product(eqn: JaxprEqn, dtype: DTypeLike, *factors: Array) -> Array:
    """The sum of all entries, from each factor's sums over the axes that the other does not have."""
    contracted, batched = eqn.params["dimension_numbers"]

    def summed(place: int) -> Array:
        common = [*contracted[place], *batched[place]]
        own = set(range(factors[place].ndim)).difference(common)
        sums = jnp.sum(factors[place], tuple(own), dtype=dtype)
        return jnp.transpose(sums, [sorted(common).index(axis) for axis in common])

    # No product of matrices, which has to be told where axes are spread explicitly.
    return jnp.sum(summed(0) * summed(1))


def _sums_windows(network: PathNetwork, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    if not isinstance(value, Signal):
        return network.unknown(eqn, [value])
    stream = network.signal(value)
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    path = lax.reduce_window(stream.path, np.zeros((), stream.path.dtype), lax.add, *(eqn.params[n] for n in names))
    return [network.tempered(Signal(path, stream.shift))]


def _sums_maximum(network: PathNetwork, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    if not isinstance(value, Signal):
        return network.unknown(eqn, [value])
    stream = network.signal(value)
    return [network.tempered(Signal(jnp.sum(stream.path, tuple(eqn.params["axes"])), stream.shift))]


def _takes_larger(network: PathNetwork, eqn: JaxprEqn, first: Value, second: Value) -> Sequence[Value]:
    values = first, second
    if isinstance(first, Signal) and isinstance(second, Signal):
        return [network.sum_of(network.signal(first), network.signal(second))]
    # Paths begin at the biases of a state that no input has reached, too.
    streams = [value for value in values if isinstance(value, Signal | Weight)]
    bounds = [value.array for value in values if isinstance(value, Constant)]
    if len(streams) == len(bounds) == 1 and is_numeric(np.asarray(bounds[0])) and _is_homogeneous(bounds[0]):
        return [network.signal(streams[0])]
    return network.unknown(eqn, values)


def _is_homogeneous(bound: Any) -> bool:
    """Whether a bound stays what it is whatever it is multiplied by."""
    return not isinstance(bound, jax.core.Tracer) and bool(np.all((bound == 0) | np.isinf(bound)))


def _selects(network: PathNetwork, eqn: JaxprEqn, which: Value, *cases: Value) -> Sequence[Value]:
    if all_constant(cases) and not isinstance(which, Constant):
        return [DATA]
    if any(isinstance(case, Data) for case in cases) or all_constant((which, *cases)):
        return network.unknown(eqn, (which, *cases))
    streams = [network.signal(case) for case in cases]
    shift = common_shift(streams)
    paths = [jnp.broadcast_to(shifted_to(stream, shift), out_shape(eqn)) for stream in streams]
    if isinstance(which, Constant):
        return [Signal(_apply(eqn, which.array, *paths), shift)]
    return [Signal(functools.reduce(jnp.maximum, paths), shift)]


def _compares(network: PathNetwork, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    return network.unknown(eqn, values) if all_constant(values) else [DATA] * len(eqn.outvars)


def _splits(network: PathNetwork, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    if isinstance(value, Weight):
        return [Weight(*pair) for pair in zip(apply(eqn, value.raw), apply(eqn, value.path), strict=True)]
    if isinstance(value, Signal):
        stream = network.signal(value)
        return [Signal(part, stream.shift) for part in apply(eqn, stream.path)]
    return network.unknown(eqn, [value])


def _joins(network: PathNetwork, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    """Entries of several arrays side by side, zeros among them."""
    if all_constant(values) or any(isinstance(value, Data) for value in values):
        return network.unknown(eqn, values)
    if weights_only(values):
        weights = [network.weight(value) for value in values]
        return [Weight(_apply(eqn, *(w.raw for w in weights)), _apply(eqn, *(w.path for w in weights)))]
    streams = [network.signal(value) for value in values]
    shift = common_shift(streams)
    return [Signal(_apply(eqn, *(shifted_to(stream, shift) for stream in streams)), shift)]


def _picks(network: PathNetwork, eqn: JaxprEqn, value: Value, *indices: Value) -> Sequence[Value]:
    """What data picks may be any of the entries: the ones input meets them all."""
    if not isinstance(value, Signal | Weight) or all(isinstance(index, Constant) for index in indices):
        return _moves(network, eqn, value, *indices)
    if eqn.primitive is not lax.gather_p:
        return network.unknown(eqn, (value, *indices))
    stream = network.signal(value)
    numbers, slice_sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    hidden = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    picked = tuple(axis for axis, size in enumerate(stream.path.shape) if axis in hidden or slice_sizes[axis] != size)
    windows = [axis for axis in range(stream.path.ndim) if axis not in hidden]
    sums = jnp.sum(stream.path, picked)
    places = [place for axis, place in zip(windows, numbers.offset_dims, strict=True) if axis not in picked]
    return [Signal(lax.broadcast_in_dim(sums, out_shape(eqn), places), stream.shift)]


def _scans(network: PathNetwork, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    num_consts, num_carry = scan_sizes(eqn)
    consts, carry, sliced = values[:num_consts], list(values[num_consts:][:num_carry]), values[num_consts + num_carry :]

    def body(carry: Sequence[Value], slices: Sequence[Value]) -> list[Value]:
        outs = network.walk(eqn.params["jaxpr"], [*consts, *carry, *slices])
        return [network.signal(out) if isinstance(out, Signal) else out for out in outs]

    # The factor that a signal's entries have in common lies along no axis: in slices it is the same each time.
    streams = {i: network.signal(value) for i, value in enumerate(sliced) if isinstance(value, Signal)}
    stacked = [streams[i].path if i in streams else value for i, value in enumerate(sliced)]

    def unstacked(slices: Sequence[Any]) -> list[Value]:
        return [Signal(value, streams[i].shift) if i in streams else value for i, value in enumerate(slices)]

    def first(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf))

    while True:
        kinds = jax.eval_shape(lambda c, x: body(c, unstacked(x))[:num_carry], carry, jax.tree.map(first, stacked))
        rises = [
            not isinstance(before, Signal) and isinstance(after, Signal)
            for before, after in zip(carry, kinds, strict=True)
        ]
        carry = [
            network.signal(before) if isinstance(before, Signal) or rise else before
            for before, rise in zip(carry, rises, strict=True)
        ]
        if not any(rises):
            break

    def step(carry: Sequence[Value], slices: Sequence[Any]) -> tuple[Any, Any]:
        outs = body(carry, unstacked(slices))
        following = [
            network.signal(out) if isinstance(before, Signal) else out for before, out in zip(carry, outs, strict=False)
        ]
        return following, outs[num_carry:]

    last, ys = network.loop(eqn, step, consts, carry, stacked)
    outs = []
    for y in ys:
        if isinstance(y, Signal) and y.shift is not None:
            shift = jnp.max(y.shift)
            along = (-1, *(1,) * (y.path.ndim - 1))
            y = Signal(y.path * jnp.exp(y.shift - shift).reshape(along), shift)
        outs.append(y)
    return [*last, *outs]


_register(
    _moves,
    *(lax.copy_p, lax.convert_element_type_p, lax.reduce_precision_p, lax.stop_gradient_p),
    *(lax.optimization_barrier_p, primitives.name_p, lax.reshape_p, lax.transpose_p, lax.squeeze_p),
    *(lax.broadcast_in_dim_p, lax.rev_p, lax.slice_p, lax.tile_p),
)
_register(_sums, lax.reduce_sum_p, lax.cumsum_p, lax.reduce_window_sum_p)
_register(_negates, lax.neg_p)
_register(_is_identity, lax.abs_p)
_register(_adds, lax.add_p, lax.sub_p, primitives.add_jaxvals_p)
_register(_multiplies, lax.mul_p, lax.div_p)
_register(contracts, lax.dot_general_p, lax.conv_general_dilated_p)
_register(_sums_windows, lax.reduce_window_max_p, lax.reduce_window_min_p)
_register(_sums_maximum, lax.reduce_max_p, lax.reduce_min_p)
_register(_takes_larger, lax.max_p, lax.min_p)
_register(_selects, lax.select_n_p)
_register(
    _compares,
    *(lax.eq_p, lax.ne_p, lax.lt_p, lax.le_p, lax.gt_p, lax.ge_p),
    *(lax.sign_p, lax.is_finite_p, lax.argmax_p, lax.argmin_p),
)
_register(_splits, lax.split_p, lax.unstack_p)
_register(_joins, lax.concatenate_p, lax.pad_p, lax.stack_p)
_register(_picks, lax.gather_p, lax.dynamic_slice_p)
_register(_scans, lax.scan_p)
