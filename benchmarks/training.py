"""One training run as pure functions, for `jax.vmap` to make a sweep of."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

import pathspace
from benchmarks.data import Dataset, Examples
from benchmarks.optimizers import Optimizer


class Configuration(NamedTuple):
    """What tells one run of a sweep from another: scalars, or arrays with one entry a run.

    Attributes:
      learning_rate: of the optimiser.
      rescale: the initial weights are rescaled by lognormal(0, rescale) per unit.
      seed: sets the initial weights, the normal draws behind their rescaling, and the order of the batches.
    """

    learning_rate: Array | np.ndarray
    rescale: Array | np.ndarray
    seed: Array | np.ndarray


class State(NamedTuple):
    """What a run carries from epoch to epoch."""

    params: PyTree
    skeleton: pathspace.Skeleton
    optimizer: optax.OptState


class Metrics(NamedTuple):
    """Mean loss of an epoch's training steps, and fractions of examples misclassified after the epoch."""

    train_loss: Float[Array, "..."]
    validation_error: Float[Array, "..."]
    test_error: Float[Array, "..."]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model to train as a classifier.

    Attributes:
      make_model: makes the model, which knows its `edges()`, from random keys.
      data: what it learns.
      batch_size: examples a step; the last examples of an epoch that do not fill a batch are left out.
      skeleton_method: see `pathspace.choose_skeleton`.
      skeleton_reference: see `pathspace.choose_skeleton`.
      max_ratio: see `pathspace.in_path_space`.
    """

    make_model: Callable[[nnx.Rngs], Any]
    data: Dataset
    batch_size: int
    skeleton_method: Literal["largest", "cyclic"]
    skeleton_reference: Literal["balanced", "initial"] | None
    max_ratio: float

    def __post_init__(self) -> None:
        available = len(self.data.train.labels)
        if not 1 <= self.batch_size <= available:
            raise ValueError(
                f"expected a batch size from 1 to the {available} training examples, got {self.batch_size}"
            )

    @functools.cached_property
    def graphdef(self) -> nnx.GraphDef[Any]:
        """The model without its parameters."""
        return nnx.split(self.make_model(nnx.Rngs(0)), nnx.Param)[0]

    @functools.cached_property
    def graph(self) -> pathspace.ReductionGraph:
        """The model's reduction graph."""
        model = self.make_model(nnx.Rngs(0))
        return pathspace.ReductionGraph.from_edges(nnx.state(model, nnx.Param), model.edges())

    def logits(self, params: PyTree, inputs: Float[Array, "batch ..."]) -> Float[Array, "batch classes"]:
        """The model's outputs."""
        return nnx.merge(self.graphdef, params)(inputs)

    def loss(self, params: PyTree, inputs: Float[Array, "batch ..."], labels: Int[Array, " batch"]) -> Float[Array, ""]:
        """Mean cross-entropy."""
        return optax.softmax_cross_entropy_with_integer_labels(self.logits(params, inputs), labels).mean()

    def error(self, params: PyTree, examples: Examples) -> Float[Array, ""]:
        """Fraction of the examples misclassified."""
        return jnp.mean(self.logits(params, jnp.asarray(examples.inputs)).argmax(-1) != examples.labels)


def initial_weights(problem: Problem, configuration: Configuration) -> tuple[PyTree, pathspace.Skeleton]:
    """Initial weights and their skeleton: given by seed and rescaling alone, the same for every optimiser."""
    weights_key, scales_key, _ = _keys(configuration.seed)
    params = nnx.state(problem.make_model(nnx.Rngs(weights_key)), nnx.Param)
    scales = pathspace.random_scales(scales_key, problem.graph, sigma=configuration.rescale)
    params = pathspace.rescale(params, problem.graph, scales)
    return params, pathspace.choose_skeleton(
        problem.graph, params, method=problem.skeleton_method, reference=problem.skeleton_reference
    )


def start(
    problem: Problem,
    optimizer: Optimizer,
    configuration: Configuration,
    params: PyTree,
    skeleton: pathspace.Skeleton,
) -> State:
    """The state before the first epoch."""
    transformation = optimizer.make(configuration.learning_rate, skeleton, problem.max_ratio)
    return State(params, skeleton, transformation.init(params))


def train(
    problem: Problem, optimizer: Optimizer, configuration: Configuration, state: State, epochs: Int[Array, " epochs"]
) -> tuple[State, Metrics]:
    """Train for the epochs of these numbers; the metrics have one entry for each."""
    transformation = optimizer.make(configuration.learning_rate, state.skeleton, problem.max_ratio)
    inputs, labels = (jnp.asarray(part) for part in problem.data.train)
    steps = len(labels) // problem.batch_size
    _, _, order_key = _keys(configuration.seed)

    def step(carry: tuple[PyTree, optax.OptState], batch: Int[Array, " batch"]) -> tuple[Any, Float[Array, ""]]:
        params, optimizer_state = carry
        loss, grads = jax.value_and_grad(problem.loss)(params, inputs[batch], labels[batch])
        updates, optimizer_state = transformation.update(grads, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), loss

    def epoch(carry: tuple[PyTree, optax.OptState], number: Int[Array, ""]) -> tuple[Any, Metrics]:
        order = jax.random.permutation(jax.random.fold_in(order_key, number), len(labels))
        batches = order[: steps * problem.batch_size].reshape(steps, problem.batch_size)
        (params, optimizer_state), losses = jax.lax.scan(step, carry, batches)
        metrics = Metrics(
            train_loss=losses.mean(),
            validation_error=problem.error(params, problem.data.validation),
            test_error=problem.error(params, problem.data.test),
        )
        return (params, optimizer_state), metrics

    (params, optimizer_state), metrics = jax.lax.scan(epoch, (state.params, state.optimizer), epochs)
    return State(params, state.skeleton, optimizer_state), metrics


def _keys(seed: Array | np.ndarray) -> Array:
    return jax.random.split(jax.random.key(seed), 3)
