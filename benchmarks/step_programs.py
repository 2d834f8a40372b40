"""Training steps of a workload as a program of their own, to be timed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

import pathspace
from benchmarks.arithmetic import product_operations
from benchmarks.optimizers import Optimizer, Setting
from benchmarks.training import split
from benchmarks.workloads import Workload

# In a program, so that little of its time is what a call takes, to map its memory above all: with 1024 units a sixth of
# a step's time.
STEPS = 10
_LEARNING_RATE = 1e-3


class StepProgram(NamedTuple):
    """Ten training steps, the weights and the optimiser's state of the last of which the next call goes on from.

    Attributes:
      run: a call, of `STEPS` steps.
      operations: of the matrix products and convolutions in a step.
      bytes: the most memory that a call takes, with the weights.
    """

    run: Callable[[], Any]
    operations: float
    bytes: int


def step_program(workload: Workload, optimizer: Optimizer, *, runs: int = 1, both_terms: bool = False) -> StepProgram:
    """The loop of forward and backward pass, update and new weights, compiled, on random examples.

    With several `runs` as many networks train side by side. Kappa has its second term too if `both_terms`, estimated
    from one random vector where it has no closed form.
    """
    inputs, labels = workload.examples(jax.random.key(0))
    graphdef, params, variables = split(workload.make_model(nnx.Rngs(0)))

    def evaluated(params: Any, inputs: Array) -> Array:
        model = nnx.merge(graphdef, params, variables, copy=True)
        model.eval()
        return workload.logits(model, inputs)

    def loss(params: Any, variables: Any) -> tuple[Array, Any]:
        model = nnx.merge(graphdef, params, variables, copy=True)
        model.train()
        losses = optax.softmax_cross_entropy_with_integer_labels(workload.logits(model, inputs), labels)
        return losses.mean(), split(model)[2]

    graph = pathspace.reduction_graph(evaluated, params, inputs[:1])
    second: dict[str, Any] = {"second_term": True, "num_probes": 1, "key": jax.random.key(0)} if both_terms else {}
    setting = Setting(
        jax.jit(pathspace.choose_skeleton, static_argnums=0)(graph, params),
        lambda params: pathspace.path_kappa(evaluated, params, inputs[:1], **second),
    )
    transformation = optimizer.make(_LEARNING_RATE, setting)

    def step(latest: Any, _: None) -> tuple[Any, None]:
        params, variables, state = latest
        grads, variables = jax.grad(loss, has_aux=True)(params, variables)
        updates, state = transformation.update(grads, state, params)
        return (optax.apply_updates(params, updates), variables, state), None

    def train(latest: Any) -> Any:
        return jax.lax.scan(step, latest, length=STEPS)[0]

    # The graph and kappa go on reading the first variables, which a donated copy would take away.
    latest = (params, jax.tree.map(jnp.copy, variables), transformation.init(params))
    if runs > 1:
        train = jax.vmap(train)
        latest = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], runs, axis=0), latest)
    operations = product_operations(train, latest) / STEPS
    compiled = jax.jit(train, donate_argnums=0).lower(latest).compile()

    def run() -> Any:
        nonlocal latest
        latest = compiled(latest)
        return latest

    return StepProgram(run, operations, peak_bytes(compiled))


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """The most memory that a program takes, with its inputs and outputs."""
    memory: Any = compiled.memory_analysis()
    inputs_and_outputs = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return inputs_and_outputs + memory.temp_size_in_bytes
