"""The language models that the papers train."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from benchmarks.optimizers import OPTIMIZERS
from pathspace.models import PassthroughCell, PassthroughLSTMCell, ReluCell, ReluLanguageModel, ResetAfterGRUCell
from pathspace.models.initializers import uniform
from pathspace.models.recurrence import scan_cell

_GLOROT = nnx.initializers.glorot_uniform()


class Network(NamedTuple):
    """A model of the next token.

    Attributes:
      title: its name in reports.
      make: makes it from the size of the vocabulary and random keys; it is called with inputs and the state that it
        has returned for the segment before, and has an `initial_state`.
      one_hot: whether it reads one-hot vectors, not tokens.
      rescalable: whether it has units that can be rescaled.
      homogeneous: whether it has a path-norm.
    """

    title: str
    make: Callable[[int, nnx.Rngs], Any]
    one_hot: bool = True
    rescalable: bool = True
    homogeneous: bool = False

    def allows(self, optimizer: str) -> bool:
        """Whether an optimiser can train it, and differs there from its counterpart in weight space."""
        if optimizer == "path_adam":
            return self.homogeneous
        return self.rescalable or not OPTIMIZERS[optimizer].respects_rescaling


class OneHotModel(nnx.Module):
    """A recurrent cell that reads one-hot vectors, without an embedding, and a linear readout.

    Args:
      cell: of as many inputs as the vocabulary has tokens.
      readout_init: initialiser of the readout's kernel.
      rngs: random keys.
    """

    def __init__(
        self,
        cell: ReluCell | PassthroughCell,
        vocabulary_size: int,
        *,
        readout_init: nnx.Initializer = _GLOROT,
        rngs: nnx.Rngs,
    ) -> None:
        self.cell = cell
        self.vocabulary_size = vocabulary_size
        self.readout = nnx.Linear(cell.hidden_features, vocabulary_size, kernel_init=readout_init, rngs=rngs)

    def __call__(
        self, inputs: Float[Array, "batch time vocabulary"], state: PyTree = None
    ) -> tuple[Float[Array, "batch time vocabulary"], PyTree]:
        """Logits of the next token at every step, and the state to go on from."""
        state, outputs = scan_cell(self.cell, jnp.moveaxis(inputs, 1, 0), state)
        return self.readout(jnp.moveaxis(outputs, 0, 1)), state

    def initial_state(self, batch_size: int) -> PyTree:
        """Zeros."""
        return self.cell.initialize_carry((batch_size, self.vocabulary_size))


class Carrying(nnx.Module):
    """A model with the state that it carries from segment to segment of the training text.

    Args:
      network: makes the model.
      vocabulary: how many tokens it has.
      batch_size: of the segments.
      rngs: random keys.
    """

    def __init__(self, network: Network, vocabulary: int, batch_size: int, rngs: nnx.Rngs) -> None:
        self.model = network.make(vocabulary, rngs)
        self.state = nnx.Variable(self.model.initial_state(batch_size))

    def __call__(self, inputs: Array) -> Float[Array, "batch time vocabulary"]:
        """Logits, from the zero state."""
        return self.model(inputs)[0]


def _stacked(title: str, embedding: int, hidden: tuple[int, ...], **rates: Any) -> Network:
    def make(vocabulary: int, rngs: nnx.Rngs) -> ReluLanguageModel:
        return ReluLanguageModel(vocabulary, embedding, hidden, rngs=rngs, **rates)

    return Network(title, make, one_hot=False)


def _relu(units: int) -> Network:
    def make(vocabulary: int, rngs: nnx.Rngs) -> OneHotModel:
        cell = ReluCell(vocabulary, units, kernel_init=uniform(0.2), recurrent_kernel_init=uniform(0.01), rngs=rngs)
        return OneHotModel(cell, vocabulary, readout_init=uniform(0.2), rngs=rngs)

    return Network(f"ReLU RNN, {units} units", make, homogeneous=True)


def _passthrough(
    title: str, cell: Callable[..., PassthroughCell], units: int, rank: int | None = None, **options: Any
) -> Network:
    def make(vocabulary: int, rngs: nnx.Rngs) -> OneHotModel:
        made = cell(vocabulary, units, rank=rank, diagonal=rank is not None, carry_bias=0.0, rngs=rngs, **options)
        return OneHotModel(made, vocabulary, rngs=rngs)

    return Network(title, make, rescalable=rank is not None)


def _table_of_low_rank() -> dict[str, Network]:
    # Cell, units, rank, whether projections are tied and states dropped: table 2 of the paper, row by row.
    rows: list[tuple[str, int, int | None, bool, bool]] = [
        ("gru", 1000, None, False, False),
        ("gru", 1000, None, False, True),
        ("gru", 3298, None, False, True),
        ("lstm", 1000, None, False, True),
        ("gru", 1000, 64, False, False),
        ("gru", 3298, 128, False, False),
        ("gru", 3298, 128, False, True),
        ("gru", 5459, 64, False, True),
        ("gru", 5459, 64, True, True),
        ("gru", 1000, 64, True, False),
        ("gru", 4480, 128, True, True),
        ("gru", 6985, 64, True, True),
        ("lstm", 1740, 300, False, True),
    ]
    cells: dict[str, Callable[..., PassthroughCell]] = {"gru": ResetAfterGRUCell, "lstm": PassthroughLSTMCell}
    table = {}
    for cell, units, rank, tied, dropped in rows:
        parts = [cell, str(units), "" if rank is None else str(rank), "tied" * tied, "dropout" * dropped]
        low_rank = "" if rank is None else f", low-rank plus diagonal of rank {rank}{', tied' * tied}"
        table["-".join(filter(None, parts))] = _passthrough(
            f"{cell.upper()}, {units} units{low_rank}{', dropout' * dropped}",
            cells[cell],
            units,
            rank,
            tied_projections=tied,
            recurrent_dropout=_RECURRENT_DROPOUT * dropped,
        )
    return table


_RECURRENT_DROPOUT = 0.2
_UNDROPPED = dict.fromkeys(
    ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_drop"), 0.0
)
LOW_RANK = _table_of_low_rank()
NETWORKS = {
    "relu-2x200": _stacked("2-layer ReLU RNN, 200 units a layer", 200, (200, 200), **_UNDROPPED),
    "relu-4x1550": _stacked("4-layer ReLU RNN, 1550 units a layer", 400, (1550, 1550, 1550, 400)),
    "relu-2048": _relu(2048),
    **LOW_RANK,
}
