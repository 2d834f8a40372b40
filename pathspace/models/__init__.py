"""Flax NNX modules of the networks that the papers train."""

from .highway import HighwayNetwork
from .language_model import ReluLanguageModel
from .passthrough import PassthroughCell, PassthroughGRUCell, PassthroughLSTMCell, ResetAfterGRUCell
from .rcnn import RCNN
from .recurrence import Recurrence, RecurrentCell
from .relu_cell import ReluCell
from .relu_rnn import ReluRNN
from .row_norms import max_row_norm
from .unitary import UnitaryCell

__all__ = [
    "RCNN",
    "HighwayNetwork",
    "PassthroughCell",
    "PassthroughGRUCell",
    "PassthroughLSTMCell",
    "Recurrence",
    "RecurrentCell",
    "ReluCell",
    "ReluLanguageModel",
    "ReluRNN",
    "ResetAfterGRUCell",
    "UnitaryCell",
    "max_row_norm",
]
