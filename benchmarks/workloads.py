"""The networks whose training steps are timed: those of the papers' table of costs, at their real sizes, and more."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from pathspace.models import RCNN, ReluLanguageModel, ReluRNN


class Workload(abc.ABC):
    """A network, and the shape of what it learns from.

    Attributes:
      batch_size: examples in a training step.
    """

    batch_size: int

    @abc.abstractmethod
    def make_model(self, rngs: nnx.Rngs) -> Any:
        """The model."""

    @abc.abstractmethod
    def examples(self, key: Array) -> tuple[Array, Array]:
        """Random inputs and labels."""

    def logits(self, model: Any, inputs: Array) -> Array:
        """Those of the classes of each label."""
        return model(inputs)


@dataclasses.dataclass(frozen=True)
class Recurrent(Workload):
    """A ReLU RNN of one layer that reads sequences to their end."""

    time_steps: int
    features: int
    classes: int = 10
    hidden: tuple[int, ...] = (100,)
    batch_size: int = 64
    fused: bool = False

    def make_model(self, rngs: nnx.Rngs) -> ReluRNN:
        return ReluRNN(self.features, self.hidden, self.classes, fused=self.fused, rngs=rngs)

    def examples(self, key: Array) -> tuple[Array, Array]:
        return _examples(key, (self.batch_size, self.time_steps, self.features), self.classes)


@dataclasses.dataclass(frozen=True)
class Convolutional(Workload):
    """The recurrent convolutional network of the paper's repository."""

    maps: int
    size: int = 32
    channels: int = 3
    classes: int = 10
    batch_size: int = 64

    def make_model(self, rngs: nnx.Rngs) -> RCNN:
        return RCNN(self.channels, self.maps, self.classes, variant="cited", rngs=rngs)

    def examples(self, key: Array) -> tuple[Array, Array]:
        return _examples(key, (self.batch_size, self.size, self.size, self.channels), self.classes)


@dataclasses.dataclass(frozen=True)
class Language(Workload):
    """A ReLU RNN that predicts the next token, with the dropout of the paper."""

    vocabulary: int
    embedding: int = 400
    hidden: tuple[int, ...] = (1550, 1550, 1550, 400)
    time_steps: int = 70
    batch_size: int = 40

    def make_model(self, rngs: nnx.Rngs) -> ReluLanguageModel:
        return ReluLanguageModel(self.vocabulary, self.embedding, self.hidden, rngs=rngs)

    def examples(self, key: Array) -> tuple[Array, Array]:
        tokens = jax.random.randint(key, (self.batch_size, self.time_steps), 0, self.vocabulary)
        return tokens, jnp.roll(tokens, -1, axis=1)

    def logits(self, model: Any, inputs: Array) -> Array:
        return model(inputs)[0]


def _examples(key: Array, shape: tuple[int, ...], classes: int) -> tuple[Array, Array]:
    inputs_key, labels_key = jax.random.split(key)
    return jax.random.normal(inputs_key, shape), jax.random.randint(labels_key, shape[:1], 0, classes)


WORKLOADS: dict[str, Workload] = {
    "digits": Recurrent(8, 8, batch_size=32),
    "smnist-28": Recurrent(28, 28),
    "smnist-98": Recurrent(98, 8),
    "smnist-784": Recurrent(784, 1),
    "smnist-28-fused": Recurrent(28, 28, fused=True),
    "smnist-98-fused": Recurrent(98, 8, fused=True),
    "smnist-784-fused": Recurrent(784, 1, fused=True),
    "wide": Recurrent(50, 28, hidden=(1024,), batch_size=128),
    "rcnn-96": Convolutional(96),
    "rcnn-128": Convolutional(128),
    "rcnn-160": Convolutional(160),
    "lm-ptb": Language(10_000),
    "lm-wikitext-2": Language(33_278),
    "lm-ptb-char": Language(50, batch_size=128),
    "lm-enwik8": Language(205, batch_size=128),
}
