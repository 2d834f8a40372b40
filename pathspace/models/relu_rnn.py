"""Stacked recurrent networks of rectified linear units."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

_Initializer = Callable[[PRNGKeyArray, tuple[int, ...], DTypeLike], Array]

_OUTPUTS = ("last", "every")


class _Start(NamedTuple):
    """Initializers of the three kinds of kernel."""

    input: _Initializer
    recurrent: _Initializer
    readout: _Initializer


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
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        starts = _starts(uniform_scale, recurrent_scale)
        if start not in starts:
            raise ValueError(f"expected start to be one of {tuple(starts)}, got {start!r}")
        if output not in _OUTPUTS:
            raise ValueError(f"expected output to be one of {_OUTPUTS}, got {output!r}")
        if not hidden_features or min(hidden_features) < 1:
            raise ValueError(
                "expected hidden_features to hold at least one width, each of 1 or more, "
                f"got {tuple(hidden_features)}: give one width for each recurrent layer"
            )

        self.in_features = in_features
        self.use_bias = use_bias
        self.output = output
        initializers = starts[start]
        widths = [in_features, *hidden_features]
        self.layers = nnx.List(
            [
                _ReluLayer(
                    layer_in,
                    layer_out,
                    use_bias=use_bias,
                    initializers=initializers,
                    unroll=unroll,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    rngs=rngs,
                )
                for layer_in, layer_out in itertools.pairwise(widths)
            ]
        )
        self.readout = nnx.Linear(
            widths[-1],
            out_features,
            use_bias=use_bias,
            kernel_init=initializers.readout,
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
            last_state, states = layer(states)
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


class _ReluLayer(nnx.Module):
    """One recurrent layer on time-major sequences."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool,
        initializers: _Start,
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
        self, inputs: Float[Array, "time *batch in_features"]
    ) -> tuple[Float[Array, "*batch units"], Float[Array, "time *batch units"]]:
        """State after the last step, and the states of every step."""
        # One product over all time steps is faster than one product in each step of the scan.
        projected = self.input(inputs)

        def step(state: Array, projected_inputs: Array) -> tuple[Array, Array]:
            state = jax.nn.relu(projected_inputs + self.recurrent(state))
            return state, state

        initial_state = jnp.zeros(projected.shape[1:], projected.dtype)
        return jax.lax.scan(step, initial_state, projected, unroll=self.unroll)


def _starts(uniform_scale: float, recurrent_scale: float | None) -> dict[str, _Start]:
    glorot = nnx.initializers.glorot_uniform()
    small = nnx.initializers.normal(0.001)
    uniform = _uniform(uniform_scale)
    return {
        "glorot": _Start(glorot, glorot, glorot),
        "identity": _Start(small, _identity, small),
        "np_rnn": _Start(
            _np_rnn_input,
            _normalized_positive_definite,
            nnx.initializers.variance_scaling(1.0, "fan_avg", "normal"),
        ),
        "uniform": _Start(uniform, _identity if recurrent_scale is None else _uniform(recurrent_scale), uniform),
    }


def _uniform(scale: float) -> _Initializer:
    def initializer(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return jax.random.uniform(key, shape, dtype, minval=-scale, maxval=scale)

    return initializer


def _identity(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.eye(shape[0], dtype=dtype)


def _np_rnn_input(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    units = shape[-1]
    alpha = math.sqrt(2) * math.exp(1.2 / (max(units, 6) - 2.4))
    return alpha / units * jax.random.normal(key, shape, dtype)


def _normalized_positive_definite(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    units = shape[-1]
    # Half precision is too coarse for this, and `float` alone would promote as a weak type.
    at_least_single = jnp.promote_types(jax.dtypes.canonicalize_dtype(dtype), jnp.float32)
    random = jax.random.normal(key, shape, at_least_single)
    shifted = random.T @ random / units + jnp.eye(units, dtype=random.dtype)
    return (shifted / _largest_eigenvalue(shifted)).astype(dtype)


def _largest_eigenvalue(matrix: Float[Array, "units units"]) -> Float[Array, ""]:
    """Of a positive definite matrix: the limit of the norm of its 2^k-th power, to the power 1 / 2^k."""
    # Not `eigvalsh`: under `vmap` on several CPU devices at once, XLA's calls of LAPACK wait for each other forever.

    def square(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        power, log_eigenvalue = carry
        norm = jnp.linalg.norm(power)
        return jnp.matmul(power / norm, power / norm, precision="highest"), log_eigenvalue + jnp.log(norm) / 2.0**step

    return jnp.exp(jax.lax.fori_loop(0, 30, square, (matrix, jnp.zeros((), matrix.dtype)))[1])
