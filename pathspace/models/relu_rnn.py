"""Stacked recurrent networks of rectified linear units."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .initializers import starts
from .products import kernel_product
from .recurrence import scan_cell
from .relu_cell import relu_cells

_OUTPUTS = ("last", "every")


class ReluRNN(nnx.Module):
    """ReLU network with recurrent layers and a linear readout.

    Layer i, of H_i units, maps its inputs x_1 ... x_T (the states of layer i - 1 where i > 0) to

        h_t = relu(x_t W_in + h_{t-1} W_rec + b),    h_0 = 0,

    and the readout computes y = h W_out + c from the states of the last layer.

    Parameters are named ``layers/{i}/input/kernel``, ``layers/{i}/input/bias``,
    ``layers/{i}/recurrent/kernel``, ``readout/kernel`` and ``readout/bias``; kernels have shape (in, out).
    Biases start at zero; the start of the kernels is one of

    - ``"glorot"``: every kernel Glorot uniform, U(+-sqrt(6 / (in + out))).
    - ``"identity"``: the IRNN; recurrent kernels are the identity, all others N(0, 0.001^2).
    - ``"np_rnn"``: recurrent kernels are normalized positive definite, (A + I) / lambda_max(A + I) with
      A = R^T R / H and R_ij ~ N(0, 1); input kernels are N(0, (alpha / H)^2) with
      alpha = sqrt(2) exp(1.2 / (max(H, 6) - 2.4)), the readout is N(0, 2 / (in + out)).
    - ``"uniform"``: recurrent kernels are the identity, or U(+-recurrent_scale) where that is given; all
      others U(+-uniform_scale).

    Args:
        in_features: size of the last axis of the inputs.
        hidden_features: number of units of each recurrent layer, first layer first.
        out_features: size of the last axis of the outputs.
        use_bias: whether the layers and the readout have a bias; without, there is no such parameter.
        start: ``"glorot"``, ``"identity"``, ``"np_rnn"`` or ``"uniform"``, see above.
        output: ``"last"`` for the readout of the last step, ``"every"`` for that of every step.
        uniform_scale: bound of the non-recurrent kernels of the start ``"uniform"``.
        recurrent_scale: bound of the recurrent kernels of the start ``"uniform"``; None for the identity.
        unroll: number of time steps in one iteration of the scan, see `jax.lax.scan`.
        fused: whether to train in kernels for GPUs, see `ReluCell`.
        dtype: dtype of the computation; None for that of inputs and parameters, promoted.
        param_dtype: dtype of the parameters.
        rngs: random keys; the stream ``params`` is used.

    Raises:
        ValueError: for an unknown `start` or `output`, and where `hidden_features` is empty or holds a width
            below 1.

    Source:
        Neyshabur, Wu, Salakhutdinov and Srebro, "Path-Normalized Optimization of Recurrent Neural Networks
        with ReLU Activations" (2016): table 1; section 5.2 for the start ``"uniform"``, section 5.3 for
        `recurrent_scale`. ``"identity"``: Le, Jaitly and Hinton, "A Simple Way to Initialize Recurrent
        Networks of Rectified Linear Units" (2015). ``"np_rnn"``: Talathi and Vartak, "Improving Performance
        of Recurrent Neural Network with ReLU Nonlinearity" (2015). ``"glorot"``: Glorot and Bengio,
        "Understanding the Difficulty of Training Deep Feedforward Neural Networks" (2010), eq. 16.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import ReluRNN
        >>> model = ReluRNN(28, [100, 50], 10, start="identity", rngs=nnx.Rngs(0))
        >>> model(jnp.ones((64, 28, 28))).shape
        (64, 10)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        *,
        use_bias: bool = True,
        start: str = "glorot",
        output: str = "last",
        uniform_scale: float = 0.01,
        recurrent_scale: float | None = None,
        unroll: int = 1,
        fused: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        known = starts(uniform_scale, recurrent_scale)
        if start not in known:
            raise ValueError(f"expected start to be one of {tuple(known)}, got {start!r}")
        if output not in _OUTPUTS:
            raise ValueError(f"expected output to be one of {_OUTPUTS}, got {output!r}")

        self.in_features = in_features
        self.use_bias = use_bias
        self.output = output
        self.unroll = unroll
        self.layers = nnx.List(
            relu_cells(
                in_features,
                hidden_features,
                use_bias=use_bias,
                start=known[start],
                fused=fused,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
        )
        self.readout = nnx.Linear(
            hidden_features[-1],
            out_features,
            use_bias=use_bias,
            kernel_init=known[start].readout,
            dot_general=kernel_product,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self, inputs: Float[Array, "*batch time in_features"]
    ) -> Float[Array, "*batch out_features"] | Float[Array, "*batch time out_features"]:
        """Outputs for a batch of sequences, from a zero initial state.

        Args:
            inputs: shape (*batch, time, in_features), floating.

        Returns:
            Shape (*batch, out_features) where `output` is ``"last"``, (*batch, time, out_features) where it
            is ``"every"``; of `dtype` where that was given, otherwise of the promoted dtype of inputs and
            parameters.

        Raises:
            ValueError: for inputs without a time axis, or with another number of features than `in_features`.
        """
        if inputs.ndim < 2 or inputs.shape[-1] != self.in_features:
            raise ValueError(
                f"expected inputs of shape (*batch, time, {self.in_features}), got {inputs.shape}: the last "
                "axis holds in_features values, the one before it the time steps"
            )
        states = jnp.moveaxis(inputs, -2, 0)
        for layer in self.layers:
            last_state, states = scan_cell(layer, states, unroll=self.unroll)
        if self.output == "last":
            return self.readout(last_state)
        return self.readout(jnp.moveaxis(states, 0, -2))

    def edges(self) -> dict[str, tuple[str | None, str | None]]:
        """Reduction graph: source and target group of the weights of each parameter.

        The units of layer i are the group ``layers/{i}``; None is ground (inputs, outputs, the constant 1 of
        a bias). Time steps share their weights and are merged. ``readout/bias`` touches no unit and is not
        listed.

        Returns:
            Parameter name -> (source group, target group).

        Example:
            >>> from flax import nnx
            >>> from pathspace.models import ReluRNN
            >>> model = ReluRNN(28, [100], 10, use_bias=False, rngs=nnx.Rngs(0))
            >>> for name, (source, target) in model.edges().items():
            ...     print(name, source, target)
            layers/0/input/kernel None layers/0
            layers/0/recurrent/kernel layers/0 layers/0
            readout/kernel layers/0 None
        """
        edges: dict[str, tuple[str | None, str | None]] = {}
        source = None
        for index in range(len(self.layers)):
            target = f"layers/{index}"
            edges[f"{target}/input/kernel"] = (source, target)
            edges[f"{target}/recurrent/kernel"] = (target, target)
            if self.use_bias:
                edges[f"{target}/input/bias"] = (None, target)
            source = target
        edges["readout/kernel"] = (source, None)
        return edges
