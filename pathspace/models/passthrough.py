"""Gated networks that pass their state through, with low-rank matrices: GRU and LSTM."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from .initializers import Initializer
from .recurrence import RecurrentCell
from .state_matrix import DIAGONAL_INIT, KERNEL_INIT, Factors, Kernel, StateMatrix, apply_matrix

_Constants = tuple[dict[str, Array | Factors], dict[str, Array]]


def passthrough(proposal: Array, transform: Array, state: Array, carry: Array) -> Array:
    """The next state x_t = proposal * transform + x_{t-1} * carry, elementwise.

    Source: Miceli Barone, "Low-rank passthrough neural networks" (2016), equation 2.
    """
    return proposal * transform + state * carry


class StateFunction(nnx.Module):
    """An affine function u U + x W + b of the inputs u and the state x, W full, low-rank or low-rank plus diagonal."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        bias: float,
        weight_norm: bool,
        kernel_init: Initializer,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
        **matrix: Any,
    ) -> None:
        shared: dict[str, Any] = {
            "weight_norm": weight_norm,
            "kernel_init": kernel_init,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.input = Kernel(in_features, hidden_features, scale=True, **shared)
        self.recurrent = StateMatrix(hidden_features, **shared, **matrix)
        self.bias = nnx.Param(jnp.full((hidden_features,), bias, param_dtype))

    def project(self, inputs: Float[Array, "*batch in_features"], dtype: DTypeLike | None) -> Array:
        """u U + b."""
        return jnp.asarray(inputs, dtype) @ self.input.weights(dtype) + jnp.asarray(self.bias[...], dtype)


class PassthroughCell(RecurrentCell):
    """A recurrent network whose state is passed through its steps, changed by elementwise products and sums alone.

    Base of `PassthroughGRUCell`, `ResetAfterGRUCell` and `PassthroughLSTMCell`, which compute the next state from
    affine functions u U + x W + b of inputs u and state x, one of them called the carry.

    Args:
        in_features: size m of the inputs u.
        hidden_features: size n of the state x, which is also that of the output.
        rank: number d of inner components of each recurrent matrix W = R L; None for full matrices.
        diagonal: whether recurrent matrices are low-rank plus diagonal, W = R L + D.
        tied_projections: whether all recurrent matrices have one projection R in common.
        weight_norm: whether all matrices but the diagonals are normalised, the projections to norm 1 for each
            component, the others to trainable norms for each of their targets.
        carry_bias: start of the carry's bias; other biases start at 0. The paper has 4 for copying and adding, 5 for
            sequential MNIST.
        recurrent_dropout: rate at which units of the state are dropped where matrices read it, the same ones in all
            steps; with a mask of its own for each matrix, unless projections are tied.
        kernel_init: initialiser of matrices and factors.
        diagonal_init: initialiser of the diagonals.
        dtype: dtype of the computation; None for that of inputs and parameters, promoted.
        param_dtype: dtype of the parameters.
        rngs: random keys; the streams ``params`` and ``dropout`` are used.

    Raises:
        ValueError: sizes below 1; a rank below 1 or above `hidden_features`; a diagonal or tied projections without a
            rank; a dropout rate outside [0, 1); in a call, inputs of another size.

    Source:
        Miceli Barone, "Low-rank passthrough neural networks" (2016), equations 2, 4 and 5, appendix A.2.
        `recurrent_dropout`: Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
        Networks" (2016).

    Example:
        >>> from flax import nnx
        >>> from pathspace.models import PassthroughCell, PassthroughLSTMCell
        >>> isinstance(PassthroughLSTMCell(2, 50, rank=5, rngs=nnx.Rngs(0)), PassthroughCell)
        True
    """

    functions: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rank: int | None = None,
        diagonal: bool = False,
        tied_projections: bool = False,
        weight_norm: bool = False,
        carry_bias: float = 1.0,
        recurrent_dropout: float = 0.0,
        kernel_init: Initializer = KERNEL_INIT,
        diagonal_init: Initializer = DIAGONAL_INIT,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if min(in_features, hidden_features) < 1:
            raise ValueError(
                f"expected in_features and hidden_features of 1 or more, got {in_features} and {hidden_features}"
            )
        if not 0 <= recurrent_dropout < 1:
            raise ValueError(f"expected recurrent_dropout from 0 to below 1, got {recurrent_dropout}")
        if rank is None and tied_projections:
            raise ValueError("expected a rank with tied_projections, got None: full matrices have no projection")
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.tied_projections = tied_projections
        self.dtype = dtype
        self.param_dtype = param_dtype
        projection = None
        for name in self.functions:
            function = StateFunction(
                in_features,
                hidden_features,
                rank=rank,
                diagonal=diagonal,
                projection=projection,
                bias=carry_bias if name == "carry" else 0.0,
                weight_norm=weight_norm,
                kernel_init=kernel_init,
                diagonal_init=diagonal_init,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            setattr(self, name, function)
            if tied_projections:
                projection = function.recurrent.projection
        self.dropout = nnx.data(nnx.Dropout(recurrent_dropout, rngs=rngs) if recurrent_dropout else None)

    def project(self, inputs: Float[Array, "*batch in_features"]) -> dict[str, Array]:
        """The part of each function that inputs and bias make."""
        if inputs.shape[-1] != self.in_features:
            raise ValueError(f"expected inputs of {self.in_features} features, got shape {inputs.shape}")
        return {name: getattr(self, name).project(inputs, self.dtype) for name in self.functions}

    def constants(self, batch_shape: tuple[int, ...]) -> _Constants:
        """Matrices of the functions, and in training the dropout masks of the states that they read."""
        matrices = {name: getattr(self, name).recurrent.weights(self.dtype) for name in self.functions}
        if self.dropout is None or self.dropout.deterministic:
            return matrices, {}
        ones = jnp.ones((*batch_shape, self.hidden_features), self.dtype or self.param_dtype)
        if self.tied_projections:
            return matrices, dict.fromkeys(self.functions, self.dropout(ones))
        return matrices, {name: self.dropout(ones) for name in self.functions}

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> PyTree:
        """Zeros of shape (*batch, hidden_features), for inputs of shape (*batch, in_features)."""
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.dtype or self.param_dtype)


class PassthroughGRUCell(PassthroughCell):
    """Gated recurrent unit with full, low-rank or low-rank plus diagonal recurrent matrices.

        x_t = proposal * (1 - carry) + x_{t-1} * carry
        carry = sigmoid(u_t U + x_{t-1} W + b),    likewise the reset
        proposal = tanh(u_t U + (x_{t-1} * reset) W + b)

    Arguments and errors are those of `PassthroughCell`.

    Source: Miceli Barone, "Low-rank passthrough neural networks" (2016), equation 6.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import PassthroughGRUCell, Recurrence
        >>> cell = PassthroughGRUCell(1, 128, rank=24, diagonal=True, carry_bias=5.0, rngs=nnx.Rngs(0))
        >>> Recurrence(cell)(jnp.ones((20, 28, 1))).shape
        (20, 128)
    """

    functions = ("proposal", "carry", "reset")

    def step(self, carry: Array, projected: Mapping[str, Array], constants: _Constants) -> tuple[Array, Array]:
        """The next state, twice."""
        carried = jax.nn.sigmoid(projected["carry"] + _recur("carry", carry, constants))
        reset = jax.nn.sigmoid(projected["reset"] + _recur("reset", carry, constants))
        proposal = jnp.tanh(projected["proposal"] + self._reset_and_recur(carry, reset, constants))
        state = passthrough(proposal, 1 - carried, carry, carried)
        return state, state

    def _reset_and_recur(self, state: Array, reset: Array, constants: _Constants) -> Array:
        return _recur("proposal", state * reset, constants)


class ResetAfterGRUCell(PassthroughGRUCell):
    """The gated recurrent unit with the reset after the product with the proposal's matrix.

        proposal = tanh(u_t U + (x_{t-1} W) * reset + b)

    and otherwise `PassthroughGRUCell`. Arguments and errors are those of `PassthroughCell`.

    Source: Miceli Barone, "Low-rank passthrough neural networks" (2016), equation 7.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import Recurrence, ResetAfterGRUCell
        >>> cell = ResetAfterGRUCell(51, 100, rank=8, diagonal=True, tied_projections=True, rngs=nnx.Rngs(0))
        >>> Recurrence(cell, output="every")(jnp.ones((20, 10, 51))).shape
        (20, 10, 100)
    """

    def _reset_and_recur(self, state: Array, reset: Array, constants: _Constants) -> Array:
        return _recur("proposal", state, constants) * reset


class PassthroughLSTMCell(PassthroughCell):
    """Long short-term memory with full, low-rank or low-rank plus diagonal recurrent matrices.

        x_t = proposal * transform + x_{t-1} * carry        the part of the state that is passed through
        h_t = output * tanh(x_t)                            the part that is not
        transform = sigmoid(u_t U + h_{t-1} W + b),    likewise carry and output
        proposal = tanh(u_t U + h_{t-1} W + b)

    Flax's carry is the pair (x, h); the cell's output is h. Arguments and errors are those of `PassthroughCell`.

    Source: Miceli Barone, "Low-rank passthrough neural networks" (2016), equations 8 and 9.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import PassthroughLSTMCell, Recurrence
        >>> cell = PassthroughLSTMCell(49, 170, rank=30, diagonal=True, rngs=nnx.Rngs(0))
        >>> Recurrence(cell, output="every")(jnp.ones((20, 10, 49))).shape
        (20, 10, 170)
    """

    functions = ("proposal", "transform", "carry", "output")

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> tuple[Array, Array]:
        """Zeros (x, h), each of shape (*batch, hidden_features), for inputs of shape (*batch, in_features)."""
        zeros = super().initialize_carry(input_shape)
        return zeros, zeros

    def step(
        self, carry: tuple[Array, Array], projected: Mapping[str, Array], constants: _Constants
    ) -> tuple[tuple[Array, Array], Array]:
        """The next pair (x, h), and h."""
        passed, hidden = carry
        values = {name: projected[name] + _recur(name, hidden, constants) for name in self.functions}
        proposal = jnp.tanh(values["proposal"])
        transform, carried, output = (jax.nn.sigmoid(values[name]) for name in ("transform", "carry", "output"))
        passed = passthrough(proposal, transform, passed, carried)
        hidden = output * jnp.tanh(passed)
        return (passed, hidden), hidden


def _recur(name: str, state: Float[Array, "*batch hidden_features"], constants: _Constants) -> Array:
    matrices, masks = constants
    return apply_matrix(matrices[name], state * masks[name] if masks else state)
