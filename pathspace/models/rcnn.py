"""Recurrent convolutional networks of rectified linear units."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .initializers import Initializer
from .pooling import max_pool
from .winograd import winograd_convolution

_VARIANTS = ("canonical", "cited")

_HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

_batch_norm = partial(nnx.BatchNorm, momentum=0.9)
_convolution = partial(nnx.Conv, kernel_size=(3, 3), padding="SAME", conv_general_dilated=winograd_convolution)


class RCNN(nnx.Module):
    """Recurrent convolutional network for images: a convolution, recurrent convolutional layers, a linear readout.

    A recurrent layer convolves its inputs x with a feed-forward kernel F and its states, in each iteration, with a
    recurrent kernel R. BatchNorm_t, one for each t, has scales, biases and running averages of its own:

    - ``"canonical"``: the layer starts from its feed-forward convolution,

          h_0 = relu(BatchNorm_0(F * x)),    h_t = relu(BatchNorm_t(F * x + R * h_{t-1})),    t = 1 ... iterations

    - ``"cited"``: the recurrent kernel reads the inputs first, and BatchNorm follows the ReLU,

          h_0 = BatchNorm_0(relu(R * x)),    h_t = BatchNorm_t(relu(F * x + R * h_{t-1})),    t = 1 ... iterations

    The first convolution has a ReLU and a BatchNorm in the same order. All kernels are 3 x 3, padded with zeros to keep
    the size of the images, and make as many maps. Max-pooling, 3 x 3 with stride 2 and one pixel of padding (32 -> 16),
    follows the first convolution and the second recurrent layer. The readout is y = dropout(m) W + c, with m the
    largest value of each map.

    Parameters are named ``first/kernel``, ``first_norm/scale``, ``first_norm/bias``,
    ``layers/{i}/feed_forward/kernel``, ``layers/{i}/recurrent/kernel``, ``layers/{i}/norms/{t}/scale``,
    ``layers/{i}/norms/{t}/bias``, ``readout/kernel`` and ``readout/bias``; without BatchNorm ``first/bias`` and
    ``layers/{i}/feed_forward/bias`` too, the former in the cited variant always. Convolution kernels have shape
    (3, 3, in, out). Biases start at zero, scales at one.

    On CPUs, large convolutions of 24 maps or more are differentiated by Winograd's minimal filtering (a step of 96 maps
    takes .65 of the time), whose rounding errors in float32 are 2.3 to 3.2 times those of XLA's convolution.

    As Flax modules do, a new model trains: `eval` switches to running averages and switches dropout off, `train` back.

    Args:
        in_channels: number of channels of the images.
        maps: number of feature maps of each layer.
        out_features: size of the last axis of the outputs.
        layers: number of recurrent layers.
        iterations: number of times that a layer applies its recurrent kernel to its states.
        variant: ``"canonical"`` or ``"cited"``, see above.
        use_batch_norm: whether there is any BatchNorm; without, read BatchNorm as the identity above.
        dropout: rate of dropout in front of the readout.
        kernel_init: initializer of the convolution kernels; the default is N(0, 2 / (9 maps)).
        dtype: dtype of the computation; None for that of inputs, parameters and running averages (float32), promoted.
        param_dtype: dtype of the parameters.
        rngs: random keys; the streams ``params`` and ``dropout`` are used.

    Raises:
        ValueError: for an unknown `variant`, a size or number below 1, and a dropout rate outside [0, 1).

    Source:
        Liang and Hu, "Recurrent Convolutional Neural Network for Object Recognition" (2015), section 3, with BatchNorm
        in front of the ReLU for their local response normalization behind it. ``"cited"`` is the implementation that
        "Path space for ReLU RNNs" cites in appendix A.3. `kernel_init`: He, Zhang, Ren and Sun, "Delving Deep into
        Rectifiers" (2015), equation 14.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import RCNN
        >>> model = RCNN(3, 8, 10, layers=2, iterations=1, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((4, 32, 32, 3))).shape
        (4, 10)
    """

    def __init__(
        self,
        in_channels: int,
        maps: int,
        out_features: int,
        *,
        layers: int = 4,
        iterations: int = 3,
        variant: str = "canonical",
        use_batch_norm: bool = True,
        dropout: float = 0.5,
        kernel_init: Initializer = _HE_NORMAL,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if variant not in _VARIANTS:
            raise ValueError(f"expected variant to be one of {_VARIANTS}, got {variant!r}")
        numbers = {
            "in_channels": in_channels,
            "maps": maps,
            "out_features": out_features,
            "layers": layers,
            "iterations": iterations,
        }
        if min(numbers.values()) < 1:
            raise ValueError(f"expected {', '.join(numbers)} of 1 or more, got {numbers}")
        if not 0 <= dropout < 1:
            raise ValueError(f"expected a dropout rate from 0 to below 1, got {dropout}: 0 switches dropout off")

        self.in_channels = in_channels
        self.variant = variant
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.first = _convolution(
            in_channels,
            maps,
            use_bias=variant == "cited" or not use_batch_norm,
            kernel_init=kernel_init,
            **options,
        )
        self.first_norm = nnx.data(_batch_norm(maps, **options) if use_batch_norm else None)
        self.layers = nnx.List(
            [
                _RecurrentConvolution(
                    maps,
                    iterations=iterations,
                    variant=variant,
                    use_batch_norm=use_batch_norm,
                    kernel_init=kernel_init,
                    **options,
                )
                for _ in range(layers)
            ]
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.readout = nnx.Linear(maps, out_features, **options)

    def __call__(self, inputs: Float[Array, "*batch height width in_channels"]) -> Float[Array, "*batch out_features"]:
        """Outputs for a batch of images.

        Args:
            inputs: shape (*batch, height, width, in_channels), floating.

        Returns:
            Shape (*batch, out_features), of `dtype` where that was given.

        Raises:
            ValueError: for inputs with fewer than three axes, or with another number of channels than `in_channels`.
        """
        if inputs.ndim < 3 or inputs.shape[-1] != self.in_channels:
            raise ValueError(
                f"expected inputs of shape (*batch, height, width, {self.in_channels}), got {inputs.shape}: the last "
                "axis holds the channels"
            )
        state = max_pool(_activation(self.first(inputs), self.first_norm, self.variant))
        for index, layer in enumerate(self.layers):
            state = layer(state)
            if index == 1:
                state = max_pool(state)
        # Not `jnp.max`, whose gradient divides by the number of pixels that equal the largest: XLA may compute these
        # twice, round them differently, and count none.
        largest = jnp.squeeze(nnx.max_pool(state, state.shape[-3:-1]), axis=(-3, -2))
        return self.readout(self.dropout(largest))

    def edges(self) -> dict[str, tuple[str | None, str | None]]:
        """Reduction graph of the network without BatchNorm: source and target group of the weights of each parameter.

        None is ground (inputs, outputs, the constant 1 of a bias); pixels and iterations share their weights and are
        merged.

        - ``"canonical"``: the convolutions are a chain; the maps of the first convolution are the group ``first``,
          those of recurrent layer i the group ``layers/{i}``.
        - ``"cited"``: what a recurrent kernel reads, the maps of the layer before too, can only be rescaled as the
          states that it makes. All maps of one number, in all layers, are one unit of the only group, ``first``.

        That graph is exact with ``use_batch_norm=False`` alone. The paper uses it with BatchNorm too, whose scales and
        biases are not listed, and always as the chain: for that give `ReductionGraph.from_edges` the edges of a
        canonical model. The exact graph of a network with BatchNorm is the one that `reduction_graph` finds: there, the
        scales and biases flow into the maps, and the kernels only out of them.

        Returns:
            Parameter name -> (source group, target group).

        Source: "Path space for ReLU RNNs", Definition 3 and appendix B.4.

        Example:
            >>> from flax import nnx
            >>> from pathspace.models import RCNN
            >>> model = RCNN(3, 8, 10, layers=1, rngs=nnx.Rngs(0))
            >>> for name, (source, target) in model.edges().items():
            ...     print(name, source, target)
            first/kernel None first
            layers/0/feed_forward/kernel first layers/0
            layers/0/recurrent/kernel layers/0 layers/0
            readout/kernel layers/0 None
        """
        source = "first"
        edges: dict[str, tuple[str | None, str | None]] = {"first/kernel": (None, source)}
        if self.first.use_bias:
            edges["first/bias"] = (None, source)
        for index, layer in enumerate(self.layers):
            name = f"layers/{index}"
            target = name if self.variant == "canonical" else source
            edges[f"{name}/feed_forward/kernel"] = (source, target)
            edges[f"{name}/recurrent/kernel"] = (target, target)
            if layer.feed_forward.use_bias:
                edges[f"{name}/feed_forward/bias"] = (None, target)
            source = target
        edges["readout/kernel"] = (source, None)
        return edges


class _RecurrentConvolution(nnx.Module):
    """One recurrent layer."""

    def __init__(
        self,
        maps: int,
        *,
        iterations: int,
        variant: str,
        use_batch_norm: bool,
        kernel_init: Initializer,
        **options: Any,
    ) -> None:
        self.variant = variant
        self.feed_forward = _convolution(maps, maps, use_bias=not use_batch_norm, kernel_init=kernel_init, **options)
        self.recurrent = _convolution(maps, maps, use_bias=False, kernel_init=kernel_init, **options)
        self.norms = nnx.List([_batch_norm(maps, **options) if use_batch_norm else None for _ in range(iterations + 1)])

    def __call__(self, inputs: Float[Array, "*batch height width maps"]) -> Float[Array, "*batch height width maps"]:
        """The states after the last iteration."""
        fed = self.feed_forward(inputs)
        state = _activation(self.recurrent(inputs) if self.variant == "cited" else fed, self.norms[0], self.variant)
        # No `lax.scan`: it would merge the units of the last state, which a norm of its own sets apart, with others.
        for norm in self.norms[1:]:
            state = _activation(fed + self.recurrent(state), norm, self.variant)
        return state


def _activation(inputs: Array, norm: nnx.BatchNorm | None, variant: str) -> Array:
    if norm is None:
        return jax.nn.relu(inputs)
    return jax.nn.relu(norm(inputs)) if variant == "canonical" else norm(jax.nn.relu(inputs))
