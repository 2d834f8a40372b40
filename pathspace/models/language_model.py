"""Language models of recurrent layers of rectified linear units."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .initializers import Start, starts, uniform
from .products import kernel_product, times_kernel
from .recurrence import scan_cell
from .relu_cell import relu_cells


class ReluLanguageModel(nnx.Module):
    """Embedding, recurrent ReLU layers with dropout, and a softmax readout that may share the embedding.

    The embedding E has one row for each token of the vocabulary. Layer i, of H_i units, maps its inputs x_1 ... x_T
    (rows of E where i = 0, otherwise the states of layer i - 1) to

        h_t = relu(x_t W_in + h_{t-1} W_rec + b),

    and the states of the last layer give the logits h W_out + c, where W_out = E^T if weights are tied.

    Parameters are named ``embedding/embedding``, ``layers/{i}/input/kernel``, ``layers/{i}/input/bias``,
    ``layers/{i}/recurrent/kernel``, ``readout/bias`` and, unless weights are tied, ``readout/kernel``; kernels have
    shape (in, out). Embedding and readout start as U(+-embedding_scale), biases at zero. The start of the kernels of
    layers is ``"awd_lstm"``, U(+-1 / sqrt(H_i)), or one of those of `ReluRNN`.

    While the model trains (`nnx.Module.train`, and from the beginning; `nnx.Module.eval` ends it), each call draws new
    masks; what is kept is divided by the probability of being kept:

    - `embedding_dropout` drops tokens of the vocabulary: rows of E, for the whole batch, not in the readout;
    - `input_dropout`, `hidden_dropout` and `output_dropout` drop features of single sequences, the same at every step:
      of the inputs of layer 0, between layers, and in front of the readout;
    - `weight_drop` drops entries of all W_rec, the same at every step.

    Args:
        vocabulary_size: number of tokens.
        embedding_features: number of columns of the embedding.
        hidden_features: number of units of each recurrent layer, first layer first.
        tie_weights: whether the readout is the embedding, transposed.
        embedding_dropout: rate, the probability of being dropped.
        input_dropout: rate.
        hidden_dropout: rate.
        output_dropout: rate.
        weight_drop: rate.
        start: ``"awd_lstm"``, ``"glorot"``, ``"identity"``, ``"np_rnn"`` or ``"uniform"``.
        uniform_scale: bound of the input kernels of the start ``"uniform"``.
        recurrent_scale: bound of the recurrent kernels of the start ``"uniform"``; None for the identity.
        embedding_scale: bound of the embedding and of an untied readout, whatever the start of the layers.
        unroll: number of time steps in one iteration of the scan, see `jax.lax.scan`.
        dtype: dtype of the computation; None for that of the parameters.
        param_dtype: dtype of the parameters.
        rngs: random keys; the streams ``params`` and ``dropout`` are used.

    Raises:
        ValueError: for an unknown `start`, a rate outside [0, 1), where `hidden_features` is empty or holds a width
            below 1, and where weights are tied, but the last layer is not as wide as the embedding.

    Source:
        "Path Space for Recurrent Neural Networks with ReLU Activations" (2020), appendix A.2 and table 3: the default
        rates; embedding of 400 and four layers of 1550 units. All else: Merity, Keskar and Socher, "Regularizing and
        Optimizing LSTM Language Models" (2018), whose tied models have a last layer as wide as the embedding. The
        models of section 5.3 of Neyshabur, Wu, Salakhutdinov and Srebro, "Path-Normalized Optimization of Recurrent
        Neural Networks with ReLU Activations" (2016), have one layer of 2048 units, no dropout, and the start
        ``"uniform"`` with scales 0.2, but 0.01 of the recurrent kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from pathspace.models import ReluLanguageModel
        >>> model = ReluLanguageModel(50, 8, [16, 16, 8], rngs=nnx.Rngs(0))
        >>> logits, state = model(jnp.ones((4, 7), int), model.initial_state(4))
        >>> logits.shape, [layer_state.shape for layer_state in state]
        ((4, 7, 50), [(4, 16), (4, 16), (4, 8)])
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_features: int,
        hidden_features: Sequence[int],
        *,
        tie_weights: bool = True,
        embedding_dropout: float = 0.1,
        input_dropout: float = 0.4,
        hidden_dropout: float = 0.2,
        output_dropout: float = 0.4,
        weight_drop: float = 0.1,
        start: str = "awd_lstm",
        uniform_scale: float = 0.01,
        recurrent_scale: float | None = None,
        embedding_scale: float = 0.1,
        unroll: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        known = {"awd_lstm": Start(_awd_lstm, _awd_lstm, _awd_lstm)} | starts(uniform_scale, recurrent_scale)
        if start not in known:
            raise ValueError(f"expected start to be one of {tuple(known)}, got {start!r}")
        rates = {
            "embedding_dropout": embedding_dropout,
            "input_dropout": input_dropout,
            "hidden_dropout": hidden_dropout,
            "output_dropout": output_dropout,
            "weight_drop": weight_drop,
        }
        for name, rate in rates.items():
            if not 0 <= rate < 1:
                raise ValueError(
                    f"expected {name} to be in [0, 1), got {rate}: it is the probability of being dropped, "
                    "and what is kept is divided by the rest"
                )

        self.dtype = param_dtype if dtype is None else dtype
        self.unroll = unroll
        self.embedding = nnx.Embed(
            vocabulary_size,
            embedding_features,
            embedding_init=uniform(embedding_scale),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.layers = nnx.List(
            relu_cells(
                embedding_features,
                hidden_features,
                use_bias=True,
                start=known[start],
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
        )
        if tie_weights and hidden_features[-1] != embedding_features:
            raise ValueError(
                f"expected the last of hidden_features to be {embedding_features}, the width of the embedding, "
                f"got {hidden_features[-1]}: the tied readout is the embedding; widen one, or pass tie_weights=False"
            )
        self.readout: nnx.Linear | _TiedReadout
        if tie_weights:
            self.readout = _TiedReadout(vocabulary_size, param_dtype)
        else:
            self.readout = nnx.Linear(
                hidden_features[-1],
                vocabulary_size,
                kernel_init=uniform(embedding_scale),
                dot_general=kernel_product,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
        self.embedding_dropout = nnx.Dropout(embedding_dropout, rngs=rngs)
        self.input_dropout, self.hidden_dropout, self.output_dropout = (
            nnx.Dropout(rate, broadcast_dims=(0,), rngs=rngs)
            for rate in (input_dropout, hidden_dropout, output_dropout)
        )
        for layer in self.layers:
            layer.weight_drop = nnx.Dropout(weight_drop, rngs=rngs)

    def __call__(
        self, tokens: Array, state: Sequence[Array] | None = None
    ) -> tuple[Float[Array, "batch time vocabulary"], tuple[Float[Array, "batch _"], ...]]:
        """Logits of the next token at every step, and the state to go on from.

        Backpropagation is truncated at the start of a segment if the state comes in as an input: gradients flow into
        it only where the function that is differentiated made it.

        Args:
            tokens: shape (batch, time), integers in [0, vocabulary_size).
            state: what the call on the segment before has returned, or `initial_state`; None for the latter.

        Returns:
            Logits of shape (batch, time, vocabulary_size), and for each layer its last state, of shape (batch, H_i),
            before dropout; of `dtype` where that was given, otherwise of `param_dtype`.

        Raises:
            ValueError: for tokens that are not integers or not of two axes, and a state of other shapes than those of
                `initial_state`.
        """
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"expected tokens of shape (batch, time) and an integer dtype, got {tokens.shape} and {tokens.dtype}: "
                "the last axis holds the time steps; a single sequence is a batch of one"
            )
        initial_state = self.initial_state(len(tokens))
        expected = [zeros.shape for zeros in initial_state]
        state = initial_state if state is None else state
        if (got := [layer_state.shape for layer_state in state]) != expected:
            raise ValueError(
                f"expected a state of shapes {expected}, got {got}: pass the state of the same batch size that the "
                "segment before has returned, or None"
            )

        tokens = tokens.T
        embedded = self.embedding(tokens)
        kept_tokens = self.embedding_dropout(jnp.ones((self.embedding.num_embeddings, 1), embedded.dtype))
        states = self.input_dropout(embedded * kept_tokens[tokens])
        last_states = []
        for index, (layer, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            if index > 0:
                states = self.hidden_dropout(states)
            last_state, states = scan_cell(layer, states, layer_state, unroll=self.unroll)
            last_states.append(last_state)
        outputs = jnp.moveaxis(self.output_dropout(states), 0, 1)
        if isinstance(self.readout, _TiedReadout):
            return self.readout(outputs, self.embedding), tuple(last_states)
        return self.readout(outputs), tuple(last_states)

    def initial_state(self, batch_size: int) -> tuple[Float[Array, "batch _"], ...]:
        """The state before the first segment: zeros of shape (batch_size, H_i) for each layer."""
        return tuple(jnp.zeros((batch_size, layer.hidden_features), self.dtype) for layer in self.layers)

    def edges(self) -> dict[str, tuple[str | None, str | None]]:
        """Reduction graph of the recurrent layers alone: source and target group of the weights of each parameter.

        The units of layer i are the group ``layers/{i}``; None is ground. Embedding and readout lie outside the graph
        (the paper optimises them in weight space), so what they meet is ground: the inputs of layer 0, and the units of
        the last layer, whose outgoing weights are those of the readout. All other layers have units; a model of
        one layer has none. Parameters that touch no unit are not listed.

        The graph holds for training, too: masks commute with the scales of units. The state is in the scale of the
        units: segments that start from the state of the one before compute the same, too, once the first of them has
        started from zero.

        `reduction_graph` finds this graph if weights are tied: E then feeds layer 0 and reads the last layer, so that
        the entries of its W_in would lie between the units of two layers and the columns of E. If they are not, the
        units of the last layer and the columns of the embedding, which the linear map W_in of layer 0 reads, come in
        addition. In both cases trace the logits of the evaluating model from the zero state alone: a state that is
        given as input or returned is ground, and so are then the units of its layer.

        Returns:
            Parameter name -> (source group, target group).

        Source:
            "Path Space for Recurrent Neural Networks with ReLU Activations" (2020), appendix A.2.

        Example:
            >>> from flax import nnx
            >>> from pathspace.models import ReluLanguageModel
            >>> model = ReluLanguageModel(50, 8, [16, 8], rngs=nnx.Rngs(0))
            >>> for name, (source, target) in model.edges().items():
            ...     print(name, source, target)
            layers/0/input/kernel None layers/0
            layers/0/recurrent/kernel layers/0 layers/0
            layers/0/input/bias None layers/0
            layers/1/input/kernel layers/0 None
        """
        edges: dict[str, tuple[str | None, str | None]] = {}
        source = None
        for index in range(len(self.layers) - 1):
            target = f"layers/{index}"
            edges[f"{target}/input/kernel"] = (source, target)
            edges[f"{target}/recurrent/kernel"] = (target, target)
            edges[f"{target}/input/bias"] = (None, target)
            source = target
        if source is not None:
            edges[f"layers/{len(self.layers) - 1}/input/kernel"] = (source, None)
        return edges


class _TiedReadout(nnx.Module):
    """h E^T + c."""

    def __init__(self, vocabulary_size: int, param_dtype: DTypeLike) -> None:
        self.bias = nnx.Param(jnp.zeros(vocabulary_size, param_dtype))

    def __call__(
        self, states: Float[Array, "*batch features"], embedding: nnx.Embed
    ) -> Float[Array, "*batch vocabulary"]:
        states, table = embedding.promote_dtype((states, embedding.embedding[...]), dtype=embedding.dtype)
        products = times_kernel(states, table.T)
        return products + self.bias[...].astype(products.dtype)


def _awd_lstm(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return uniform(1 / math.sqrt(shape[-1]))(key, shape, dtype)
