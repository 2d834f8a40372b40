"""Scale rules of the primitives that work element by element."""

import functools
from collections.abc import Sequence
from typing import Any

from jax import lax

from .compat import JaxprEqn, Literal, is_inexact, primitives
from .inference import FREE, Free, Fresh, ScaleInference, Value, renamed
from .scales import TRIVIAL, Scale
from .tables import in_shape, out_shape, register_family, why


def _named(*names: str) -> list[Any]:
    """The primitives of these names that this version of JAX has."""
    return [getattr(primitives, name) for name in names if hasattr(primitives, name)]


def _keeps_scale(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    if not all(map(is_inexact, eqn.outvars)):
        inference.all_trivial(eqn, values, why(eqn))
        return [TRIVIAL] * len(eqn.outvars)
    return values


def _broadcast(inference: ScaleInference, eqn: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    """Scalars, and axes of length 1, among arrays of the result's shape."""
    sizes = out_shape(eqn)
    broadcast: list[Value] = []
    for index, value in enumerate(values):
        own = in_shape(eqn, index)
        kept = {axis: axis for axis, size in enumerate(own) if size == sizes[axis]}
        broadcast.append(value if own == sizes else renamed(inference.read(value), kept, len(sizes)))
    return broadcast


def _one_scale(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    return [inference.equal(_broadcast(inference, eqn, values), out_shape(eqn), why(eqn))]


def _compares(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    _one_scale(inference, eqn, *values)
    return [TRIVIAL]


def _forgets_scale(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    return [TRIVIAL] * len(eqn.outvars)


def _makes_ground(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    inference.all_trivial(eqn, values, why(eqn))
    return [TRIVIAL] * len(eqn.outvars)


def _selects(inference: ScaleInference, eqn: JaxprEqn, which: Value, *cases: Value) -> Sequence[Value]:
    inference.trivial(which, in_shape(eqn), why(eqn))
    return [inference.equal(cases, out_shape(eqn), why(eqn))]


def _multiplies(sign: int, inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    first, second = (inference.read(value) for value in _broadcast(inference, eqn, values))
    if isinstance(first, Free) or isinstance(second, Free):
        return [FREE]
    if isinstance(first, Fresh) and second == TRIVIAL:
        return [first]
    if isinstance(second, Fresh) and first == TRIVIAL and sign > 0:
        return [second]
    scales = [_factor_scale(inference, pair, sign, out_shape(eqn)) for pair in ((first, second), (second, first))]
    return [(*scales[0], *(term.times(sign) for term in scales[1]))]


def _factor_scale(inference: ScaleInference, pair: tuple[Value, Value], sign: int, sizes: tuple[int, ...]) -> Scale:
    """The scale of the first of two factors.

    A gain on activations runs, as a kernel does, from the units that it multiplies to units of its own, one for each
    element. Of a matrix among matrices each axis has units of its own.
    """
    value, other = map(inference.read, pair)
    if not isinstance(value, Fresh):
        return inference.scale(value)
    own = [i for i, axis in enumerate(value.dims) if axis is not None]
    met = () if isinstance(other, Fresh) else [term for term in inference.scale(other) if set(term.axes) <= set(own)]
    is_gain = any(size != 1 for i, size in enumerate(sizes) if i not in own) or len(own) < 2
    return inference.settle(value, [own] if is_gain else [[i] for i in own], tuple(term.times(-sign) for term in met))


def _power(exponent: float | int, inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    value = inference.read(value)
    if isinstance(value, Free):
        return [FREE]
    return [tuple(term.times(exponent) for term in inference.scale(value))]


def _integer_power(inference: ScaleInference, eqn: JaxprEqn, value: Value) -> Sequence[Value]:
    return _power(eqn.params["y"], inference, eqn, value)


def _general_power(inference: ScaleInference, eqn: JaxprEqn, value: Value, exponent: Value) -> Sequence[Value]:
    power = eqn.invars[1]
    if isinstance(power, Literal):
        return _power(float(power.val), inference, eqn, value)
    return _makes_ground(inference, eqn, value, exponent)


register_family(
    _keeps_scale,
    lax.neg_p,
    lax.abs_p,
    lax.copy_p,
    lax.convert_element_type_p,
    lax.reduce_precision_p,
    lax.stop_gradient_p,
    lax.optimization_barrier_p,
    lax.device_put_p,
    lax.sharding_constraint_p,
    primitives.name_p,
)
register_family(
    _one_scale, lax.add_p, lax.sub_p, lax.max_p, lax.min_p, lax.rem_p, primitives.add_jaxvals_p, lax.clamp_p
)
register_family(
    _compares, lax.eq_p, lax.ne_p, lax.lt_p, lax.le_p, lax.gt_p, lax.ge_p, lax.eq_to_p, lax.lt_to_p, lax.le_to_p
)
register_family(_forgets_scale, lax.sign_p, lax.is_finite_p)
register_family(_selects, lax.select_n_p)
register_family(functools.partial(_multiplies, 1), lax.mul_p)
register_family(functools.partial(_multiplies, -1), lax.div_p)
register_family(functools.partial(_power, 2), lax.square_p)
register_family(functools.partial(_power, 1 / 2), lax.sqrt_p)
register_family(functools.partial(_power, -1 / 2), lax.rsqrt_p)
register_family(functools.partial(_power, 1 / 3), lax.cbrt_p)
register_family(_integer_power, lax.integer_pow_p)
register_family(_general_power, lax.pow_p)
register_family(
    _makes_ground,
    *(lax.exp_p, lax.exp2_p, lax.expm1_p, lax.log_p, lax.log1p_p, lax.logistic_p, lax.tanh_p, lax.sin_p, lax.cos_p),
    *(lax.tan_p, lax.asin_p, lax.acos_p, lax.atan_p, lax.atan2_p, lax.sinh_p, lax.cosh_p, lax.asinh_p, lax.acosh_p),
    *(lax.atanh_p, lax.erf_p, lax.erfc_p, lax.erf_inv_p, lax.lgamma_p, lax.digamma_p, lax.floor_p, lax.ceil_p),
    *(lax.round_p, lax.reduce_prod_p, lax.cumprod_p, lax.cumlogsumexp_p, lax.iota_p, lax.and_p, lax.or_p, lax.not_p),
    *(lax.xor_p, lax.reduce_and_p, lax.reduce_or_p, lax.nextafter_p, lax.shift_left_p, lax.shift_right_logical_p),
    *(lax.rng_bit_generator_p, lax.rng_uniform_p, primitives.random_bits_p, primitives.random_seed_p),
    *(primitives.random_split_p, primitives.random_fold_in_p, primitives.threefry2x32_p),
    *_named("random_wrap_p", "random_unwrap_p"),
)
