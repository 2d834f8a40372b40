"""Recurrent layers of rectified linear units."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .initializers import Start


class ReluLayer(nnx.Module):
    """One recurrent layer on time-major sequences: h_t = relu(x_t W_in + h_{t-1} W_rec + b)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool,
        initializers: Start,
        unroll: int,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.unroll = unroll
        self.input = nnx.Linear(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=initializers.input,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.recurrent = nnx.Linear(
            out_features,
            out_features,
            use_bias=False,
            kernel_init=initializers.recurrent,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        inputs: Float[Array, "time *batch in_features"],
        initial_state: Float[Array, "*batch units"] | None = None,
        weight_drop: nnx.Dropout | None = None,
    ) -> tuple[Float[Array, "*batch units"], Float[Array, "time *batch units"]]:
        """State after the last step, and the states of every step.

        The first state is zero where none is given. `weight_drop` drops weights of W_rec, the same at every step.
        """
        # One product over all time steps is faster than one product in each step of the scan.
        projected = self.input(inputs)
        kernel = self.recurrent.kernel[...]
        if weight_drop is not None:
            kernel = weight_drop(kernel)
        if initial_state is None:
            initial_state = jnp.zeros(projected.shape[1:], projected.dtype)

        def step(state: Array, projected_inputs: Array) -> tuple[Array, Array]:
            # Cast here, not before the loop: so the gradients of the steps add up in the dtype of the parameter.
            state = jax.nn.relu(projected_inputs + state @ kernel.astype(state.dtype))
            return state, state

        return jax.lax.scan(step, initial_state.astype(projected.dtype), projected, unroll=self.unroll)


def relu_layers(
    in_features: int,
    hidden_features: Sequence[int],
    *,
    use_bias: bool,
    initializers: Start,
    unroll: int,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> list[ReluLayer]:
    """Layers of the given widths, each of which reads the states of the one before."""
    if not hidden_features or min(hidden_features) < 1:
        raise ValueError(
            "expected hidden_features to hold at least one width, each of 1 or more, "
            f"got {tuple(hidden_features)}: give one width for each recurrent layer"
        )
    return [
        ReluLayer(
            layer_in,
            layer_out,
            use_bias=use_bias,
            initializers=initializers,
            unroll=unroll,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        for layer_in, layer_out in itertools.pairwise([in_features, *hidden_features])
    ]
