"""The loop of a recurrent layer of rectified linear units as one kernel of a GPU."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .products import times_tangent
from .relu_recurrence import relu_states

_ROWS = 16  # sequences in one program of a kernel: the fewest that a GPU's matrix units multiply
# In float32 and compiled for an H100, with so many units the kernels take 72 KiB (forward) and 104 KiB (backward) of
# the 227 KiB of shared memory; with 256 they would take 272 KiB and 336 KiB.
_MOST_UNITS = 128
_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)

# From the state before, what the inputs are in a step, and a matrix: the state after it, and what is stored.
_Step = Callable[[Array, tuple[Array, ...], Array], tuple[Array, Array]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def fused_relu_states(
    projected: Float[Array, "time *batch units"],
    kernel: Float[Array, "units units"],
    first: Float[Array, "*batch units"],
    unroll: int,
    interpret: bool = False,
) -> tuple[Float[Array, "*batch units"], Float[Array, "time *batch units"]]:
    """What `relu_states` computes, for training on GPUs: each of its loops over time runs inside one kernel.

    Every program of a kernel takes 16 sequences, reads the matrix W once and keeps it on the chip for all steps, none
    of which waits for a kernel to be launched. Forward,

        h_t = relu(z_t + h_{t-1} W),

    and backward, with the cotangents g_t of the states,

        d_t = [h_t > 0] (g_t + d_{t+1} W^T),    dL/dz_t = d_t,    dL/dW = sum_t h_{t-1}^T d_t.

    The same steps run in a `lax.scan` on other devices, for more than 128 units, for other dtypes than float32,
    bfloat16 and float16, and where axes are spread over devices explicitly. What is not differentiated, and what a
    trace sees, is `relu_states`. Derivatives are backward ones.

    Args:
      projected: the projected inputs z.
      kernel: W.
      first: h_0.
      unroll: of the loops outside of kernels; see `jax.lax.scan`.
      interpret: run the kernels on any device, slowly, as a check.

    Returns:
      The last state and all states, of the dtype of `projected`.

    Source: Diamos et al., "Persistent RNNs: Stashing Recurrent Weights On-Chip" (2016).
    """
    return relu_states(projected, kernel, first, unroll)


def _forward(
    projected: Array, kernel: Array, first: Array, unroll: int, interpret: bool
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    last, states = _scan(_advance, first, (projected,), kernel, reverse=False, unroll=unroll, interpret=interpret)
    return (last, states), (kernel, first, states)


def _backward(
    unroll: int, interpret: bool, residuals: tuple[Array, Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    kernel, first, states = residuals
    of_last, of_states = cotangents
    of_first, entering = _scan(
        _go_back, of_last, (states, of_states), kernel.T, reverse=True, unroll=unroll, interpret=interpret
    )
    before = jnp.concatenate([first.astype(states.dtype)[None][: len(states)], states[:-1]])

    def product(kernel: Array) -> Array:
        return times_tangent(before, kernel.astype(before.dtype))

    (of_kernel,) = jax.linear_transpose(product, kernel)(entering)
    return entering, of_kernel, of_first.astype(first.dtype)


fused_relu_states.defvjp(_forward, _backward)


def _advance(state: Array, slices: tuple[Array, ...], kernel: Array) -> tuple[Array, Array]:
    (projected,) = slices
    state = jax.nn.relu(projected + _product(state, kernel)).astype(state.dtype)
    return state, state


def _go_back(later: Array, slices: tuple[Array, ...], transposed: Array) -> tuple[Array, Array]:
    state, of_state = slices
    entering = jnp.where(state > 0, of_state + later, 0)
    return _product(entering, transposed).astype(later.dtype), entering


def _product(vectors: Array, matrix: Array) -> Array:
    return jnp.dot(vectors, matrix, preferred_element_type=jnp.promote_types(vectors.dtype, jnp.float32))


def _scan(
    step: _Step,
    start: Array,
    sequences: tuple[Array, ...],
    matrix: Array,
    *,
    reverse: bool,
    unroll: int,
    interpret: bool,
) -> tuple[Array, Array]:
    """The last state and what is stored in all steps."""
    like = sequences[0]
    start, matrix = start.astype(like.dtype), matrix.astype(like.dtype)

    def loop(start: Array, matrix: Array, *sequences: Array) -> tuple[Array, Array]:
        return lax.scan(
            lambda state, slices: step(state, slices, matrix), start, sequences, reverse=reverse, unroll=unroll
        )

    is_spread = any(jax.typeof(like).sharding.spec)
    if not like.size or like.shape[-1] > _MOST_UNITS or like.dtype not in _DTYPES or is_spread:
        return loop(start, matrix, *sequences)
    in_kernel = functools.partial(_scan_in_kernel, step, reverse, interpret)
    if interpret:
        return in_kernel(start, matrix, *sequences)
    return lax.platform_dependent(start, matrix, *sequences, cuda=in_kernel, default=loop)


def _scan_in_kernel(
    step: _Step, reverse: bool, interpret: bool, start: Array, matrix: Array, *sequences: Array
) -> tuple[Array, Array]:
    # Imported where it is used: JAX means to remove this backend.
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    shape = sequences[0].shape
    time, units = shape[0], shape[-1]
    rows = math.prod(shape[1:-1])
    # Of blocks in a GPU's registers all sizes are powers of 2. Zeros go into no sum, and come out as zeros.
    wide = max(16, pallas.next_power_of_2(units))
    padding = (0, -rows % _ROWS), (0, wide - units)
    start = jnp.pad(start.reshape(rows, units), padding)
    sequences = tuple(jnp.pad(each.reshape(time, rows, units), ((0, 0), *padding)) for each in sequences)

    def run(start: Any, matrix: Any, *sequences_and_outs: Any) -> None:
        *sequences, last, stored = sequences_and_outs
        held = matrix[...]

        def body(count: Array, state: Array) -> Array:
            at = time - 1 - count if reverse else count
            state, stored[at] = step(state, tuple(each[at] for each in sequences), held)
            return state

        last[...] = lax.fori_loop(0, time, body, start[...])

    of_state = pallas.BlockSpec((_ROWS, wide), lambda program: (program, 0))
    of_matrix = pallas.BlockSpec((wide, wide), lambda program: (0, 0))
    of_sequence = pallas.BlockSpec((time, _ROWS, wide), lambda program: (0, program, 0))
    last, stored = pallas.pallas_call(
        run,
        grid=(len(start) // _ROWS,),
        in_specs=[of_state, of_matrix, *[of_sequence] * len(sequences)],
        out_specs=[of_state, of_sequence],
        out_shape=[jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (start, sequences[0])],
        compiler_params=triton.CompilerParams(),
        interpret=interpret,
    )(start, jnp.pad(matrix, [(0, wide - units)] * 2), *sequences)
    return last[:rows, :units].reshape(shape[1:]), stored[:, :rows, :units].reshape(shape)
