"""The differences between JAX versions: everything here reads what JAX gives under more than one name."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import source_info_util
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, primitives
from jax.interpreters import partial_eval

__all__ = ["Jaxpr", "JaxprEqn", "Literal", "OpenJaxpr", "Var", "primitives"]


class OpenJaxpr(NamedTuple):
    """A jaxpr and the values of its constants."""

    jaxpr: Jaxpr
    consts: Sequence[Any]


def open_jaxpr(jaxpr: Any) -> OpenJaxpr:
    """Split a jaxpr from its constants. JAX before 0.11 has closed jaxprs apart from plain ones."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return OpenJaxpr(inner, getattr(jaxpr, "consts", ()))


def trace(function: Callable[..., Any], *args: Any) -> tuple[OpenJaxpr, Any]:
    """The jaxpr of a function of pytrees without its dead code, and its output tree of shapes and dtypes."""
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(*args)
    jaxpr, consts = open_jaxpr(closed)
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return OpenJaxpr(live, consts), out_shape


def inner_call(eqn: JaxprEqn) -> OpenJaxpr | None:
    """The jaxpr of an equation that only calls it: jit, checkpoint, custom derivatives and the like."""
    if eqn.primitive not in _CALLS:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return open_jaxpr(eqn.params[name])
    return None


def scan_sizes(eqn: JaxprEqn) -> tuple[int, int]:
    """The numbers of constants and of carried values of a scan."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(consts), len(carry)


def apply(eqn: JaxprEqn, *arrays: Any) -> Sequence[Any]:
    """The outputs of an equation for other inputs."""
    outs = eqn.primitive.bind(*arrays, **eqn.primitive.get_bind_params(eqn.params))
    return outs if eqn.primitive.multiple_results else [outs]


def scopes(enclosing: Sequence[JaxprEqn]) -> str:
    """The `jax.named_scope`s around the last of these equations, each inside the one before it, divided by "/"."""
    return "/".join(filter(None, (str(eqn.source_info.name_stack) for eqn in enclosing)))


def place(eqn: JaxprEqn) -> str:
    """The user's file, line and function of an equation, or nothing where JAX does not know them."""
    summary = source_info_util.summarize(eqn.source_info)
    return "" if summary == "<unknown>" else os.path.basename(summary)


def shape_of(var: Any) -> tuple[int, ...]:
    """The shape of a variable of a jaxpr; of what is no array, ()."""
    return tuple(getattr(var.aval, "shape", ()))


def is_inexact(var: Any) -> bool:
    """Whether a variable of a jaxpr holds floating-point numbers."""
    return jnp.issubdtype(getattr(var.aval, "dtype", jnp.int32), jnp.inexact)


def is_numeric(value: Any) -> bool:
    """Whether a constant holds plain numbers (random keys do not)."""
    return hasattr(value, "dtype") and (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool)


def _calls() -> set[Any]:
    names = ("jit_p", "pjit_p", "remat_p", "closed_call_p", "call_p", "custom_jvp_call_p", "custom_vjp_call_p")
    return {getattr(primitives, name) for name in names if hasattr(primitives, name)}


_CALLS = _calls()
