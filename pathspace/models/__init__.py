"""Flax NNX modules of the networks that the papers train."""

from pathspace.models.relu_rnn import ReluRNN

__all__ = ["ReluRNN"]
