"""Highway networks: the state is passed through the layers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .initializers import Initializer
from .passthrough import passthrough
from .state_matrix import DIAGONAL_INIT, KERNEL_INIT, StateMatrix, apply_matrix


class HighwayNetwork(nnx.Module):
    """Highway network with full, low-rank or low-rank plus diagonal matrices.

        x_0 = relu(u U + b)
        x_t = proposal * transform + x_{t-1} * (1 - transform),    t = 1 ... layers
        proposal = relu(x_{t-1} W + b),    transform = sigmoid(x_{t-1} W + b)
        y = x_layers V + c

    each layer and function with W and b of its own.

    Args:
        in_features: size of the inputs u.
        hidden_features: size n of the state x.
        out_features: size of the outputs y.
        layers: number of steps of the state.
        rank: number d of inner components of each W = R L; None for full matrices.
        diagonal: whether matrices are low-rank plus diagonal, W = R L + D.
        use_batch_norm: whether to normalise what U, each R and each W make; with scales, but for R.
        input_dropout: rate of dropout of the inputs.
        hidden_dropout: rate of dropout of the states and inner components that matrices read.
        readout_dropout: rate of dropout of the last state.
        transform_bias: start of the transforms' biases; all others start at 0.
        kernel_init: initialiser of matrices and factors.
        diagonal_init: initialiser of the diagonals.
        dtype: dtype of the computation; None for that of inputs and parameters, promoted.
        param_dtype: dtype of the parameters.
        rngs: random keys; the streams ``params`` and ``dropout`` are used.

    Raises:
        ValueError: sizes below 1; a rank below 1 or above `hidden_features`; a diagonal without a rank; dropout rates
            outside [0, 1); in a call, inputs of another size.

    Source: Miceli Barone, "Low-rank passthrough neural networks" (2016), equations 3 to 5 and appendix A.1.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import HighwayNetwork
        >>> model = HighwayNetwork(784, 64, 10, rank=16, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((32, 784))).shape
        (32, 10)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        layers: int = 5,
        rank: int | None = None,
        diagonal: bool = False,
        use_batch_norm: bool = False,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        readout_dropout: float = 0.0,
        transform_bias: float = -1.0,
        kernel_init: Initializer = KERNEL_INIT,
        diagonal_init: Initializer = DIAGONAL_INIT,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = {
            "in_features": in_features,
            "hidden_features": hidden_features,
            "out_features": out_features,
            "layers": layers,
        }
        if min(sizes.values()) < 1:
            raise ValueError(f"expected sizes of 1 or more, got {sizes}")
        rates = {
            "input_dropout": input_dropout,
            "hidden_dropout": hidden_dropout,
            "readout_dropout": readout_dropout,
        }
        if not all(0 <= rate < 1 for rate in rates.values()):
            raise ValueError(f"expected dropout rates from 0 to below 1, got {rates}")
        self.in_features = in_features
        shared: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.input_dropout = nnx.Dropout(input_dropout, rngs=rngs)
        self.input = nnx.Linear(
            in_features, hidden_features, use_bias=not use_batch_norm, kernel_init=kernel_init, **shared
        )
        self.input_norm = nnx.data(nnx.BatchNorm(hidden_features, **shared) if use_batch_norm else None)
        self.layers = nnx.List(
            [
                _HighwayLayer(
                    hidden_features,
                    rank=rank,
                    diagonal=diagonal,
                    use_batch_norm=use_batch_norm,
                    dropout=hidden_dropout,
                    transform_bias=transform_bias,
                    kernel_init=kernel_init,
                    diagonal_init=diagonal_init,
                    **shared,
                )
                for _ in range(layers)
            ]
        )
        self.readout_dropout = nnx.Dropout(readout_dropout, rngs=rngs)
        self.readout = nnx.Linear(hidden_features, out_features, kernel_init=kernel_init, **shared)

    def __call__(self, inputs: Float[Array, "*batch in_features"]) -> Float[Array, "*batch out_features"]:
        """Outputs, of shape (*batch, out_features), for inputs of shape (*batch, in_features)."""
        if inputs.shape[-1] != self.in_features:
            raise ValueError(f"expected inputs of shape (*batch, {self.in_features}), got {inputs.shape}")
        state = self.input(self.input_dropout(inputs))
        if self.input_norm is not None:
            state = self.input_norm(state)
        state = jax.nn.relu(state)
        for layer in self.layers:
            state = layer(state)
        return self.readout(self.readout_dropout(state))


class _HighwayLayer(nnx.Module):
    """One step of the state."""

    def __init__(
        self, hidden_features: int, *, transform_bias: float, dropout: float, rngs: nnx.Rngs, **options: Any
    ) -> None:
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.proposal = _LayerFunction(hidden_features, bias=0.0, dropout=dropout, rngs=rngs, **options)
        self.transform = _LayerFunction(hidden_features, bias=transform_bias, dropout=dropout, rngs=rngs, **options)

    def __call__(self, state: Float[Array, "*batch hidden_features"]) -> Float[Array, "*batch hidden_features"]:
        read = self.dropout(state)
        proposal = jax.nn.relu(self.proposal(read))
        transform = jax.nn.sigmoid(self.transform(read))
        return passthrough(proposal, transform, state, 1 - transform)


class _LayerFunction(nnx.Module):
    """x W + b, normalised where that is wanted."""

    def __init__(
        self,
        hidden_features: int,
        *,
        rank: int | None,
        bias: float,
        use_batch_norm: bool,
        dropout: float,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
        **matrix: Any,
    ) -> None:
        self.dtype = dtype
        self.matrix = StateMatrix(
            hidden_features,
            rank=rank,
            projection=None,
            weight_norm=False,
            param_dtype=param_dtype,
            rngs=rngs,
            **matrix,
        )
        norm: dict[str, Any] = {"use_bias": False, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.component_norm = nnx.data(
            nnx.BatchNorm(rank, use_scale=False, **norm) if use_batch_norm and rank is not None else None
        )
        self.norm = nnx.data(nnx.BatchNorm(hidden_features, **norm) if use_batch_norm else None)
        self.component_dropout = nnx.Dropout(dropout, rngs=rngs)
        self.bias = nnx.Param(jnp.full((hidden_features,), bias, param_dtype))

    def __call__(self, state: Float[Array, "*batch hidden_features"]) -> Float[Array, "*batch hidden_features"]:
        def between(components: Array) -> Array:
            if self.component_norm is not None:
                components = self.component_norm(components)
            return self.component_dropout(components)

        values = apply_matrix(self.matrix.weights(self.dtype), jnp.asarray(state, self.dtype), between)
        if self.norm is not None:
            values = self.norm(values)
        return values + jnp.asarray(self.bias[...], self.dtype)
