"""The arithmetic of a program, and how fast this machine does arithmetic: together the least time that it can take."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pathspace.tracing.compat import Jaxpr, JaxprEqn, inner_call, open_jaxpr, shape_of, trace

_SIZE = 2048
_REPEATS = 10


def product_operations(function: Callable[..., Any], *args: Any) -> int:
    """Multiplications and additions in the matrix products and convolutions of a function.

    Loops count as often as they run, of branches the largest or, where they are chosen by platform,
    that for this one. Dead code does not count.

    Raises:
      ValueError: for loops of unknown length.
    """
    return _operations(trace(function, *args)[0].jaxpr)


def product_rate() -> float:
    """Multiplications and additions per second in the product of two large float32 matrices, at best."""
    matrix = jnp.ones((_SIZE, _SIZE))
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(matrix, matrix))
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        seconds.append(time.perf_counter() - begin)
    return 2 * _SIZE**3 / min(seconds)


def _operations(jaxpr: Jaxpr) -> int:
    return sum(map(_operations_of, jaxpr.eqns))


def _operations_of(eqn: JaxprEqn) -> int:
    if eqn.primitive is lax.dot_general_p:
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * math.prod(shape_of(eqn.outvars[0])) * math.prod(shape_of(eqn.invars[0])[axis] for axis in contracted)
    if eqn.primitive is lax.conv_general_dilated_p:
        kernel = shape_of(eqn.invars[1])
        features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(shape_of(eqn.outvars[0])) * math.prod(kernel) // features
    if (inner := inner_call(eqn)) is not None:
        return _operations(inner.jaxpr)
    if eqn.primitive is lax.scan_p:
        return eqn.params["length"] * _operations(open_jaxpr(eqn.params["jaxpr"]).jaxpr)
    if eqn.primitive is lax.cond_p:
        branches = [_operations(open_jaxpr(branch).jaxpr) for branch in eqn.params["branches"]]
        platforms = eqn.params.get("branches_platforms")
        if platforms is None:
            return max(branches)
        # The last branch, of no names, is for all other platforms. So are GPUs, as "gpu" is not what they are named by:
        # a kernel's products cannot be counted.
        return next(
            branch
            for branch, names in zip(branches, platforms, strict=True)
            if names is None or jax.default_backend() in names
        )
    if eqn.primitive is lax.while_p and _operations(open_jaxpr(eqn.params["body_jaxpr"]).jaxpr):
        raise ValueError("expected loops of known length around products, got a while loop: use lax.scan.")
    return 0
