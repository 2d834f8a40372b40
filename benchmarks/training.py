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
from benchmarks.data import Examples
from benchmarks.optimizers import Optimizer, Setting
from pathspace.basis import DEFAULT_MAX_RATIO

_EVALUATED_AT_ONCE = 1000


class Configuration(NamedTuple):
    """What tells one run of a sweep from another: scalars, or arrays with one entry a run.

    Attributes:
      learning_rate: of the optimiser.
      rescale: the initial weights are rescaled by lognormal(0, rescale) per unit.
      seed: sets the initial weights, the normal draws behind their rescaling, the order of the batches, and the run's
        data where they are drawn, see `Problem.data_of_run`.
    """

    learning_rate: Array | np.ndarray
    rescale: Array | np.ndarray
    seed: Array | np.ndarray


class State(NamedTuple):
    """What a run carries from epoch to epoch.

    Attributes:
      params: the model's parameters.
      variables: what else it holds: statistics, random keys, the state between segments.
      skeleton: of the initial weights.
      optimizer: the optimiser's state.
    """

    params: PyTree
    variables: PyTree
    skeleton: pathspace.Skeleton
    optimizer: optax.OptState


class Metrics(NamedTuple):
    """Mean loss of an epoch's training steps, and errors after the epoch."""

    train_loss: Array | np.ndarray
    validation_error: Array | np.ndarray
    test_error: Array | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem(abc.ABC):
    """A model, and what it learns.

    Attributes:
      make_model: makes the model from random keys.
      data: the arrays that `loss` and `errors` get.
      batch_size: examples a step.
      skeleton_method: see `pathspace.choose_skeleton`.
      skeleton_reference: see `pathspace.choose_skeleton`.
      max_ratio: see `pathspace.in_path_space`.
      weight_decay: see `benchmarks.optimizers.Setting`.
      max_gradient_norm: to which gradients are clipped.
      rescalable: whether the model has units that can be rescaled. Without, the graph is empty.
      one_by_one: whether a processor computes no two runs at once, see `Placement.over_runs`.
    """

    make_model: Callable[[nnx.Rngs], Any]
    data: PyTree = ()
    batch_size: int
    skeleton_method: Literal["largest", "cyclic"] = "cyclic"
    skeleton_reference: Literal["balanced", "initial"] | None = "balanced"
    max_ratio: float = DEFAULT_MAX_RATIO
    weight_decay: float = 0.0
    max_gradient_norm: float | None = None
    rescalable: bool = True
    one_by_one: bool = False

    def data_of_run(self, key: Array, data: PyTree) -> PyTree:
        """What `loss` and `errors` get of the data in the run with this random key: all of them, as they are."""
        return data

    @abc.abstractmethod
    def batches(self, key: Array) -> Array:
        """What tells the batches of an epoch from each other, one entry a step."""

    @abc.abstractmethod
    def loss(self, model: Any, data: PyTree, batch: Array) -> Float[Array, ""]:
        """The mean loss of the model in training over the batch of an entry of `batches`."""

    @abc.abstractmethod
    def errors(self, model: Any, data: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The errors of the evaluating model on validation and test examples."""

    @abc.abstractmethod
    def one_input(self) -> Array:
        """An array like the inputs of one example."""

    def schedule(self, learning_rate: ArrayLike) -> optax.ScalarOrSchedule:
        """The learning rate in the course of training."""
        return learning_rate

    def outputs(self, params: PyTree, inputs: Array) -> Array:
        """The outputs of the evaluating model, its other variables as they were at first."""
        return self.merge(params, self._first[2], training=False)(inputs)

    def merge(self, params: PyTree, variables: PyTree, *, training: bool) -> Any:
        """The model with these parameters and variables."""
        model = nnx.merge(self._first[0], params, variables, copy=True)
        model.train() if training else model.eval()
        return model

    @functools.cached_property
    def graph(self) -> pathspace.ReductionGraph:
        """The model's reduction graph."""
        if not self.rescalable:
            return pathspace.ReductionGraph.from_edges({}, {})
        return pathspace.reduction_graph(self.outputs, self._first[1], self.one_input())

    @functools.cached_property
    def _first(self) -> tuple[Any, Any, Any]:
        return split(self.make_model(nnx.Rngs(0)))

    def transformation(
        self, optimizer: Optimizer, learning_rate: ArrayLike, skeleton: pathspace.Skeleton
    ) -> optax.GradientTransformation:
        """The optimiser for this model."""

        def kappa(params: PyTree) -> PyTree:
            return pathspace.path_kappa(self.outputs, params, self.one_input())

        setting = Setting(skeleton, kappa, self.max_ratio, self.weight_decay)
        made = optimizer.make(self.schedule(learning_rate), setting)
        if self.max_gradient_norm is None:
            return made
        return optax.chain(optax.clip_by_global_norm(self.max_gradient_norm), made)


def split(model: Any) -> tuple[Any, Any, Any]:
    """The model's structure, its parameters, and its other variables."""
    graphdef, params, variables = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, params, variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Problem):
    """A classifier of the examples of a data set; the last ones of an epoch that do not fill a batch are left out.

    Attributes:
      data: training, validation and test examples.
      prepare: makes the model's inputs of those of examples.
      redraws: whether each seed draws its own training, validation and test examples from all of them, as many each as
        in `data`. The spread of the errors over seeds then holds that of the test examples.
    """

    data: tuple[Examples, Examples, Examples]
    prepare: Callable[[Array], Array] = lambda inputs: inputs
    redraws: bool = False

    def __post_init__(self) -> None:
        available = len(self.data[0].labels)
        if not 1 <= self.batch_size <= available:
            raise ValueError(
                f"expected a batch size from 1 to the {available} training examples, got {self.batch_size}"
            )

    def data_of_run(self, key: Array, data: PyTree) -> PyTree:
        """The examples, drawn anew if the problem redraws."""
        if not self.redraws:
            return data
        sizes = [len(part.labels) for part in data]
        order = jax.random.permutation(key, sum(sizes))
        drawn = jax.tree.map(lambda *parts: jnp.concatenate(parts)[order], *data)
        starts = np.cumsum([0, *sizes])
        return tuple(
            jax.tree.map(lambda whole, start=start, size=size: whole[start : start + size], drawn)
            for start, size in zip(starts, sizes, strict=False)
        )

    def batches(self, key: Array) -> Int[Array, "steps batch"]:
        available = len(self.data[0].labels)
        steps = available // self.batch_size
        order = jax.random.permutation(key, available)
        return order[: steps * self.batch_size].reshape(steps, self.batch_size)

    def loss(self, model: Any, data: PyTree, batch: Int[Array, " batch"]) -> Float[Array, ""]:
        """Mean cross-entropy."""
        inputs, labels = data[0].inputs[batch], data[0].labels[batch]
        return optax.softmax_cross_entropy_with_integer_labels(model(self.prepare(inputs)), labels).mean()

    def errors(self, model: Any, data: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Fractions of the examples misclassified."""
        return self._error(model, data[1]), self._error(model, data[2])

    def one_input(self) -> Array:
        return self.prepare(jnp.asarray(self.data[0].inputs[:1]))

    def _error(self, model: Any, examples: Examples) -> Float[Array, ""]:
        def right(inputs: Array) -> Array:
            return model(self.prepare(inputs[None]))[0].argmax(-1)

        predicted = jax.lax.map(right, examples.inputs, batch_size=_EVALUATED_AT_ONCE)
        return jnp.mean(predicted != examples.labels)


def initial_model(
    problem: Problem, graph: pathspace.ReductionGraph, configuration: Configuration
) -> tuple[PyTree, PyTree, pathspace.Skeleton]:
    """Initial weights, other variables, and the skeleton of the weights in the problem's graph.

    They depend on seed and rescaling alone, and are the same for every optimiser.
    """
    keys = _keys(configuration.seed)
    _, params, variables = split(problem.make_model(nnx.Rngs(keys.weights)))
    scales = pathspace.random_scales(keys.scales, graph, sigma=configuration.rescale)
    params = pathspace.rescale(params, graph, scales)
    skeleton = pathspace.choose_skeleton(
        graph, params, method=problem.skeleton_method, reference=problem.skeleton_reference
    )
    return params, variables, skeleton


def start(
    problem: Problem,
    optimizer: Optimizer,
    configuration: Configuration,
    params: PyTree,
    variables: PyTree,
    skeleton: pathspace.Skeleton,
) -> State:
    """The state before the first epoch."""
    transformation = problem.transformation(optimizer, configuration.learning_rate, skeleton)
    return State(params, variables, skeleton, transformation.init(params))


def train(
    problem: Problem,
    optimizer: Optimizer,
    share_batches: Callable[[Array], Array],
    configuration: Configuration,
    state: State,
    data: PyTree,
    epochs: Int[Array, " epochs"],
) -> tuple[State, Metrics]:
    """Train for the epochs of these numbers; the metrics have one entry for each.

    `share_batches` says how the batches of an epoch are laid out over devices.
    """
    transformation = problem.transformation(optimizer, configuration.learning_rate, state.skeleton)
    keys = _keys(configuration.seed)
    data = problem.data_of_run(keys.data, data)

    def step(carry: tuple[PyTree, PyTree, optax.OptState], batch: Array) -> tuple[Any, Float[Array, ""]]:
        params, variables, optimizer_state = carry

        def loss_of(params: PyTree) -> tuple[Float[Array, ""], PyTree]:
            model = problem.merge(params, variables, training=True)
            loss = problem.loss(model, data, batch)
            return loss, split(model)[2]

        (loss, variables), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, optimizer_state = transformation.update(grads, optimizer_state, params)
        return (optax.apply_updates(params, updates), variables, optimizer_state), loss

    def epoch(carry: tuple[PyTree, PyTree, optax.OptState], number: Int[Array, ""]) -> tuple[Any, Metrics]:
        batches = share_batches(problem.batches(jax.random.fold_in(keys.order, number)))
        carry, losses = jax.lax.scan(step, carry, batches)
        model = problem.merge(carry[0], carry[1], training=False)
        return carry, Metrics(losses.mean(), *problem.errors(model, data))

    carry, metrics = jax.lax.scan(epoch, (state.params, state.variables, state.optimizer), epochs)
    params, variables, optimizer_state = carry
    return State(params, variables, state.skeleton, optimizer_state), metrics


class _Keys(NamedTuple):
    weights: Array
    scales: Array
    order: Array
    data: Array


def _keys(seed: Array | np.ndarray) -> _Keys:
    return _Keys(*jax.random.split(jax.random.key(seed), len(_Keys._fields)))
