"""Formulas that are equal, of which one kind of device computes one faster than the other."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

_Out = TypeVar("_Out")
_Bilinear = Callable[[Array, Array], Array]


def by_platform(cpu: Callable[..., _Out], default: Callable[..., _Out], inputs: Array, other: Array) -> _Out:
    """The one function on CPUs, but not where axes of the inputs are spread explicitly, and the other elsewhere."""
    if cpu is default or any(jax.typeof(inputs).sharding.spec):
        return default(inputs, other)
    return lax.platform_dependent(inputs, other, cpu=cpu, default=default)


def bilinear(default: _Bilinear, cpu: _Bilinear, in_inputs: _Bilinear, in_other: _Bilinear) -> _Bilinear:
    """`default`, a bilinear function, as which traces see it, differentiated by platform.

    Where it is differentiated, CPUs compute `cpu`; the tangent for one of the two arguments is that function of its
    tangent and the other argument which is named for it, and gradients are the transpose of that.
    """
    # The rule closes over the functions, which are no arrays.
    function, differentiated = jax.custom_jvp(default), jax.custom_jvp(functools.partial(by_platform, cpu, default))

    def jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
        inputs, other = primals
        inputs_tangent, other_tangent = tangents
        result = differentiated(inputs, other)
        tangent = jnp.zeros_like(result)
        if not isinstance(inputs_tangent, SymbolicZero):
            tangent += by_platform(in_inputs, default, inputs_tangent, other)
        if not isinstance(other_tangent, SymbolicZero):
            tangent += by_platform(in_other, default, inputs, other_tangent)
        return result, tangent

    function.defjvp(jvp, symbolic_zeros=True)
    differentiated.defjvp(jvp, symbolic_zeros=True)
    return function
