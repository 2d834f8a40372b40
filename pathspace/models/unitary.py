"""Recurrent networks whose recurrent matrix is unitary."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float, Int, PRNGKeyArray

from .initializers import Initializer, uniform
from .recurrence import RecurrentCell


def _unit_length(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Uniform, of expected squared length 1."""
    return uniform(math.sqrt(3 / math.prod(shape)))(key, shape, dtype)


_KERNEL_INIT = nnx.initializers.glorot_uniform()
_PHASE_INIT = uniform(math.pi)
_REFLECTION_INIT = uniform(1.0)
_BIAS_INIT = uniform(0.01)


class _Constants(NamedTuple):
    """b, the diagonals of D_1, D_2 and D_3, v_1 and v_2, and P."""

    bias: Float[Array, " units"]
    rotations: Complex[Array, "3 units"]
    vectors: Complex[Array, "2 units"]
    permutation: Int[Array, " units"]


class UnitaryCell(RecurrentCell):
    """Unitary evolution recurrent network (uRNN): one step.

    The state h, n complex numbers, follows the inputs x, m real numbers, by

        h_t = modReLU(W h_{t-1} + V x_t),    modReLU(z) = relu(|z| + b) z / |z|,    modReLU(0) = 0,

    elementwise, with b real, V complex and W the unitary matrix

        W = D_3 R_2 F^-1 D_2 P R_1 F D_1,

    in which F is the unitary discrete Fourier transform, P a fixed random permutation, and

        D_k = diag(exp(i theta_k)),    R_k = I - 2 v_k v_k* / |v_k|^2.

    The outputs are the real and the imaginary parts of h_t, 2n numbers. All parameters are real; where they stand for
    complex numbers, the first half of the last axis holds the real parts:

    - ``input/kernel``, (m, 2n): V transposed;
    - ``bias``, (n,): b;
    - ``phases``, (3, n): theta_1, theta_2 and theta_3;
    - ``reflections``, (2, 2n): v_1 and v_2;
    - ``initial_state``, (2n,): h_0, which is learned.

    These are 2nm + 10n numbers, 7n of them for W. ``permutation``, (n,), is an `nnx.Variable` and no `nnx.Param`:
    (P h)_j = h_permutation[j]. At z = 0 the gradients of modReLU are taken as 0. The reduction graph has none of these
    units: W and b fix their scales.

    Args:
        in_features: size m of the last axis of the inputs.
        hidden_features: size n of the state; the outputs have twice as many features.
        kernel_init: initializer of V, of shape (m, 2n); Glorot uniform, U(+-sqrt(6 / (m + 2n))).
        phase_init: initializer of theta; U(+-pi).
        reflection_init: initializer of v; U(+-1).
        bias_init: initializer of b; U(+-0.01) as in the authors' code. With zeros, as in the paper, the network
            starts linear.
        initial_state_init: initializer of h_0; U(+-sqrt(3 / (2n))), so that E |h_0|^2 = 1.
        dtype: dtype of outputs and of the product with V; None for that of inputs and parameters, promoted. The
            state is complex128 where `dtype` is float64, or is None and `param_dtype` is; otherwise complex64.
        param_dtype: dtype of the parameters.
        rngs: random keys; the stream ``params`` is used.

    Raises:
        ValueError: for `in_features` or `hidden_features` below 1.

    Source:
        Arjovsky, Shah and Bengio, "Unitary Evolution Recurrent Neural Networks" (2016): equation 6 for W, equation 8
        for modReLU, section 4.3 for the initializers.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import Recurrence, UnitaryCell
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(Recurrence(UnitaryCell(2, 128, rngs=rngs)), nnx.Linear(256, 1, rngs=rngs))
        >>> model(jnp.ones((16, 100, 2))).shape
        (16, 1)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        kernel_init: Initializer = _KERNEL_INIT,
        phase_init: Initializer = _PHASE_INIT,
        reflection_init: Initializer = _REFLECTION_INIT,
        bias_init: Initializer = _BIAS_INIT,
        initial_state_init: Initializer = _unit_length,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if min(in_features, hidden_features) < 1:
            raise ValueError(
                "expected in_features and hidden_features of 1 or more, "
                f"got {in_features} and {hidden_features}: give the size of the inputs and that of the state"
            )
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.dtype = dtype
        self.input = nnx.Linear(
            in_features,
            2 * hidden_features,
            use_bias=False,
            kernel_init=kernel_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.bias = nnx.Param(bias_init(rngs.params(), (hidden_features,), param_dtype))
        self.phases = nnx.Param(phase_init(rngs.params(), (3, hidden_features), param_dtype))
        self.reflections = nnx.Param(reflection_init(rngs.params(), (2, 2 * hidden_features), param_dtype))
        self.initial_state = nnx.Param(initial_state_init(rngs.params(), (2 * hidden_features,), param_dtype))
        self.permutation = nnx.Variable(jax.random.permutation(rngs.params(), hidden_features))

    def initialize_carry(  # type: ignore[override]
        self, input_shape: tuple[int, ...], rngs: nnx.Rngs | nnx.RngStream | None = None
    ) -> Complex[Array, "*batch hidden_features"]:
        """The learned initial state h_0, once for each sequence.

        Args:
            input_shape: shape (*batch, in_features) of the inputs of one step.
            rngs: not used: h_0 is a parameter.

        Returns:
            Shape (*batch, hidden_features), complex.
        """
        state = _as_complex(jnp.asarray(self.initial_state[...], self.dtype), self._part_dtype())
        return jnp.broadcast_to(state, (*input_shape[:-1], self.hidden_features))

    def project(self, inputs: Float[Array, "*batch in_features"]) -> Float[Array, "*batch parts"]:
        """Real and imaginary parts of V x, for any number of steps at once.

        Args:
            inputs: shape (*batch, in_features), floating.

        Returns:
            Shape (*batch, 2 hidden_features).

        Raises:
            ValueError: for inputs with another number of features than `in_features`.
        """
        if inputs.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"expected inputs of shape (*batch, {self.in_features}), got {inputs.shape}: the last axis holds "
                "in_features values"
            )
        return self.input(inputs)

    def constants(self, batch_shape: tuple[int, ...]) -> _Constants:
        """Parameters as the steps need them, for any `batch_shape`, in the precision of the state."""
        dtype = self._part_dtype()
        phases = self.phases[...].astype(dtype)
        return _Constants(
            self.bias[...].astype(dtype),
            jax.lax.complex(jnp.cos(phases), jnp.sin(phases)),
            _as_complex(self.reflections[...], dtype),
            self.permutation[...],
        )

    def step(
        self,
        carry: Complex[Array, "*batch hidden_features"],
        projected: Float[Array, "*batch parts"],
        constants: _Constants,
    ) -> tuple[Complex[Array, "*batch hidden_features"], Float[Array, "*batch parts"]]:
        """Next state, and its real and imaginary parts.

        Args:
            carry: state h of shape (*batch, hidden_features), complex.
            projected: shape (*batch, 2 hidden_features), from `project`.
            constants: from `constants`.

        Returns:
            The next state, of the shape and dtype of `carry`; outputs of the shape and dtype of `projected`.
        """
        product = unitary_product(carry, constants)
        state = _mod_relu(product + _as_complex(projected, product.real.dtype), constants.bias)
        return state, jnp.concatenate([state.real, state.imag], axis=-1).astype(projected.dtype)

    def _part_dtype(self) -> DTypeLike:
        """Dtype of the state's real and imaginary parts."""
        dtype = self.initial_state.dtype if self.dtype is None else jax.dtypes.canonicalize_dtype(self.dtype)
        return jnp.promote_types(dtype, jnp.float32)


def unitary_product(state: Complex[Array, "*batch units"], constants: _Constants) -> Complex[Array, "*batch units"]:
    """W h, in O(n log n) operations."""
    first, second, third = constants.rotations
    # Transforms without scales: in F^-1 F they cancel, while a rounded 1 / sqrt(n) would change norms.
    state = jnp.fft.fft(first * state)
    state = _reflect(state, constants.vectors[0])[..., constants.permutation]
    state = jnp.fft.ifft(second * state)
    return third * _reflect(state, constants.vectors[1])


def _reflect(state: Complex[Array, "*batch units"], vector: Complex[Array, " units"]) -> Complex[Array, "*batch units"]:
    """R h = h - 2 v (v* h) / |v|^2."""
    squared_length = jnp.sum(vector.real**2 + vector.imag**2)
    # Not as a matrix product: accelerators may compute those in lower precision, and R would not be unitary.
    coefficient = jnp.sum(vector.conj() * state, axis=-1, keepdims=True) * (2 / squared_length)
    return state - coefficient * vector


def _mod_relu(z: Complex[Array, "*batch units"], bias: Float[Array, " units"]) -> Complex[Array, "*batch units"]:
    """relu(|z| + b) z / |z|; 0 at z = 0."""
    # The gradient of the quotient needs 1 / |z|^2, which must not overflow, in the unused branch neither.
    nonzero = jnp.abs(z) > math.sqrt(jnp.finfo(bias.dtype).tiny)
    modulus = jnp.abs(jnp.where(nonzero, z, 1))
    return jnp.where(nonzero, jax.nn.relu(modulus + bias) / modulus, 0) * z


def _as_complex(parts: Float[Array, "*shape parts"], dtype: DTypeLike) -> Complex[Array, "*shape half"]:
    """Complex numbers with parts of the given dtype: the first half of the last axis holds the real ones."""
    real, imaginary = jnp.split(parts.astype(dtype), 2, axis=-1)
    return jax.lax.complex(real, imaginary)
