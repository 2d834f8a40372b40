"""The recurrent cell of rectified linear units, and stacks of it."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .fused_recurrence import fused_relu_states
from .initializers import Initializer, Start
from .products import kernel_product
from .recurrence import RecurrentCell
from .relu_recurrence import relu_states

_KERNEL_INIT = nnx.initializers.glorot_uniform()


class ReluCell(RecurrentCell):
    """The recurrent network of rectified linear units: h_t = relu(x_t W_in + h_{t-1} W_rec + b),    h_0 = 0.

    Parameters are ``input/kernel``, of shape (in_features, hidden_features), ``input/bias`` and ``recurrent/kernel``.
    `ReluRNN` and `ReluLanguageModel` are stacks of it.

    Args:
        in_features: size of the inputs x.
        hidden_features: number of units h.
        use_bias: whether there is b.
        kernel_init: initialiser of W_in.
        recurrent_kernel_init: initialiser of W_rec.
        fused: whether `Recurrence` trains it in kernels for GPUs, up to 128 units, that hold the time loop and W_rec
            (Pallas). Derivatives are backward ones. Checked in Pallas' interpreter and compiled for an H100, but not
            yet run on one.
        dtype: dtype of the computation; None for that of inputs and parameters, promoted.
        param_dtype: dtype of the parameters.
        rngs: random keys; the stream ``params`` is used.

    Raises:
        ValueError: sizes below 1.

    Source:
        Neyshabur, Wu, Salakhutdinov and Srebro, "Path-Normalized Optimization of Recurrent Neural Networks with ReLU
        Activations" (2016), table 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import Recurrence, ReluCell
        >>> Recurrence(ReluCell(2, 100, rngs=nnx.Rngs(0)))(jnp.ones((16, 50, 2))).shape
        (16, 100)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        use_bias: bool = True,
        kernel_init: Initializer = _KERNEL_INIT,
        recurrent_kernel_init: Initializer = _KERNEL_INIT,
        fused: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if min(in_features, hidden_features) < 1:
            raise ValueError(
                f"expected in_features and hidden_features of 1 or more, got {in_features} and {hidden_features}"
            )
        self.hidden_features = hidden_features
        self.fused = fused
        self.dtype = param_dtype if dtype is None else dtype
        self.input = nnx.Linear(
            in_features,
            hidden_features,
            use_bias=use_bias,
            kernel_init=kernel_init,
            dot_general=kernel_product,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.recurrent = nnx.Linear(
            hidden_features,
            hidden_features,
            use_bias=False,
            kernel_init=recurrent_kernel_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.weight_drop: nnx.Dropout | None = nnx.data(None)

    def project(self, inputs: Float[Array, "*batch in_features"]) -> Float[Array, "*batch hidden_features"]:
        """x W_in + b."""
        return self.input(inputs)

    def constants(self, batch_shape: tuple[int, ...]) -> Float[Array, "hidden_features hidden_features"]:
        """W_rec, some of its entries dropped where there is a `weight_drop`."""
        kernel = jnp.asarray(self.recurrent.kernel[...])
        return kernel if self.weight_drop is None else self.weight_drop(kernel)

    def step(self, carry: Array, projected: Array, constants: Array) -> tuple[Array, Array]:
        """The next state, twice."""
        state = jax.nn.relu(projected + carry.astype(projected.dtype) @ constants.astype(projected.dtype))
        return state, state

    def loop(self, carry: Array, projected: Array, constants: Array, *, unroll: int = 1) -> tuple[Array, Array]:
        """The last state, and all states; see `relu_states` and `fused_relu_states`."""
        states_of = fused_relu_states if self.fused else relu_states
        return states_of(projected, constants, carry, unroll)

    @property
    def hoists_inputs(self) -> bool:
        """True: the gradient of the kernel is one product then."""
        return True

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Array:
        """Zeros of shape (*batch, hidden_features), for inputs of shape (*batch, in_features)."""
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.dtype)


def relu_cells(
    in_features: int,
    hidden_features: Sequence[int],
    *,
    use_bias: bool,
    start: Start,
    fused: bool = False,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> list[ReluCell]:
    """Cells of the given widths, each of which reads the states of the one before."""
    if not hidden_features or min(hidden_features) < 1:
        raise ValueError(
            "expected hidden_features to hold at least one width, each of 1 or more, "
            f"got {tuple(hidden_features)}: give one width for each recurrent layer"
        )
    return [
        ReluCell(
            cell_in,
            cell_out,
            use_bias=use_bias,
            kernel_init=start.input,
            recurrent_kernel_init=start.recurrent,
            fused=fused,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        for cell_in, cell_out in itertools.pairwise([in_features, *hidden_features])
    ]
