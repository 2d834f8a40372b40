"""One training run as pure functions, for `jax.vmap` to make a sweep of."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

import pathspace
from benchmarks.data import Dataset, Examples
from benchmarks.optimizers import Geometry, Optimizer


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
    """Mean loss of an epoch's training steps, and errors after the epoch."""

    train_loss: Float[Array, "..."]
    validation_error: Float[Array, "..."]
    test_error: Float[Array, "..."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem(abc.ABC):
    """A model, and what it learns.

    Attributes:
      make_model: makes the model, which knows its `edges()`, from random keys.
      batch_size: examples a step.
      skeleton_method: see `pathspace.choose_skeleton`.
      skeleton_reference: see `pathspace.choose_skeleton`.
      max_ratio: see `pathspace.in_path_space`.
    """

    make_model: Callable[[nnx.Rngs], Any]
    batch_size: int
    skeleton_method: Literal["largest", "cyclic"]
    skeleton_reference: Literal["balanced", "initial"] | None
    max_ratio: float

    @abc.abstractmethod
    def batches(self, key: Array) -> Array:
        """What tells the batches of an epoch from each other, one entry a step."""

    @abc.abstractmethod
    def loss(self, params: PyTree, batch: Array) -> Float[Array, ""]:
        """The mean loss over the batch of an entry of `batches`."""

    @abc.abstractmethod
    def errors(self, params: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The errors on validation and test examples."""

    @abc.abstractmethod
    def one_input(self) -> Array:
        """An array like the inputs of one example."""

    def schedule(self, learning_rate: ArrayLike) -> optax.ScalarOrSchedule:
        """The learning rate in the course of training."""
        return learning_rate

    @functools.cached_property
    def graphdef(self) -> nnx.GraphDef[Any]:
        """The model without its parameters."""
        return nnx.split(self.make_model(nnx.Rngs(0)), nnx.Param)[0]

    @functools.cached_property
    def graph(self) -> pathspace.ReductionGraph:
        """The model's reduction graph."""
        model = self.make_model(nnx.Rngs(0))
        return pathspace.ReductionGraph.from_edges(nnx.state(model, nnx.Param), model.edges())

    def outputs(self, params: PyTree, inputs: Float[Array, "batch ..."]) -> Float[Array, "batch outputs"]:
        """The model's outputs."""
        return nnx.merge(self.graphdef, params)(inputs)

    def transformation(
        self, optimizer: Optimizer, learning_rate: ArrayLike, skeleton: pathspace.Skeleton
    ) -> optax.GradientTransformation:
        """The optimiser for this model."""

        def kappa(params: PyTree) -> PyTree:
            return pathspace.path_kappa(self.outputs, params, self.one_input())

        return optimizer.make(self.schedule(learning_rate), Geometry(skeleton, self.max_ratio, kappa))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Problem):
    """A classifier of the examples of a data set; the last ones of an epoch that do not fill a batch are left out.

    Attributes:
      data: the examples.
    """

    data: Dataset

    def __post_init__(self) -> None:
        available = len(self.data.train.labels)
        if not 1 <= self.batch_size <= available:
            raise ValueError(
                f"expected a batch size from 1 to the {available} training examples, got {self.batch_size}"
            )

    def batches(self, key: Array) -> Int[Array, "steps batch"]:
        steps = len(self.data.train.labels) // self.batch_size
        order = jax.random.permutation(key, len(self.data.train.labels))
        return order[: steps * self.batch_size].reshape(steps, self.batch_size)

    def loss(self, params: PyTree, batch: Int[Array, " batch"]) -> Float[Array, ""]:
        """Mean cross-entropy."""
        inputs, labels = (jnp.asarray(part)[batch] for part in self.data.train)
        return optax.softmax_cross_entropy_with_integer_labels(self.outputs(params, inputs), labels).mean()

    def errors(self, params: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Fractions of the examples misclassified."""
        return self._error(params, self.data.validation), self._error(params, self.data.test)

    def one_input(self) -> Array:
        return jnp.asarray(self.data.train.inputs[:1])

    def _error(self, params: PyTree, examples: Examples) -> Float[Array, ""]:
        return jnp.mean(self.outputs(params, jnp.asarray(examples.inputs)).argmax(-1) != examples.labels)


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
    transformation = problem.transformation(optimizer, configuration.learning_rate, skeleton)
    return State(params, skeleton, transformation.init(params))


def train(
    problem: Problem, optimizer: Optimizer, configuration: Configuration, state: State, epochs: Int[Array, " epochs"]
) -> tuple[State, Metrics]:
    """Train for the epochs of these numbers; the metrics have one entry for each."""
    transformation = problem.transformation(optimizer, configuration.learning_rate, state.skeleton)
    _, _, order_key = _keys(configuration.seed)

    def step(carry: tuple[PyTree, optax.OptState], batch: Array) -> tuple[Any, Float[Array, ""]]:
        params, optimizer_state = carry
        loss, grads = jax.value_and_grad(problem.loss)(params, batch)
        updates, optimizer_state = transformation.update(grads, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), loss

    def epoch(carry: tuple[PyTree, optax.OptState], number: Int[Array, ""]) -> tuple[Any, Metrics]:
        batches = problem.batches(jax.random.fold_in(order_key, number))
        (params, optimizer_state), losses = jax.lax.scan(step, carry, batches)
        return (params, optimizer_state), Metrics(losses.mean(), *problem.errors(params))

    (params, optimizer_state), metrics = jax.lax.scan(epoch, (state.params, state.optimizer), epochs)
    return State(params, state.skeleton, optimizer_state), metrics


def _keys(seed: Array | np.ndarray) -> Array:
    return jax.random.split(jax.random.key(seed), 3)
