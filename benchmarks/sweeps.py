"""Sweeps: all configurations of all optimisers as one jitted program."""

import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from benchmarks import training
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.results import Run
from benchmarks.training import Configuration, Metrics, Problem, State

_EPOCHS_PER_CALL = 2


def grid(learning_rates: Sequence[float], rescales: Sequence[float], seeds: int) -> Configuration:
    """Every combination: arrays of one entry a run."""
    rates, sigmas, numbers = zip(*itertools.product(learning_rates, rescales, range(seeds)), strict=True)
    return Configuration(np.array(rates, np.float32), np.array(sigmas, np.float32), np.array(numbers, np.int32))


def sweep(
    problem: Problem,
    configurations: Mapping[str, Configuration],
    epochs: int,
    report: Callable[[int], None] = lambda epochs_done: None,
) -> tuple[list[Run], float]:
    """Train every configuration of every optimiser.

    Args:
      problem: what to train.
      configurations: for each name in `OPTIMIZERS`, its runs.
      epochs: how long.
      report: called with the number of epochs done, with 0 before anything is compiled.

    Returns:
      The runs, in the order of `configurations`, and the seconds that all of them took, with compilation.
    """
    configurations = dict(configurations)
    started = time.perf_counter()
    report(0)
    sharding = _sharding([each.seed.size for each in configurations.values()])
    initial_weights = jax.jit(
        jax.vmap(functools.partial(training.initial_weights, problem)), in_shardings=sharding, out_shardings=sharding
    )
    states = {
        name: jax.vmap(functools.partial(training.start, problem, OPTIMIZERS[name]))(each, *initial_weights(each))
        for name, each in configurations.items()
    }

    # One compilation serves all calls: they are of equal length, and the first gets states that lie as results do.
    states = jax.device_put(states, sharding)
    epochs_per_call = math.gcd(epochs, _EPOCHS_PER_CALL)
    advance = jax.jit(
        functools.partial(_advance, problem),
        in_shardings=(sharding, sharding, None),
        out_shardings=sharding,
        donate_argnums=1,
    )
    collected = []
    for numbers in np.arange(epochs).reshape(-1, epochs_per_call):
        states, metrics = advance(configurations, states, numbers)
        collected.append(jax.device_get(metrics))
        report(int(numbers[-1]) + 1)
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *collected)
    return _runs(configurations, metrics), time.perf_counter() - started


def _advance(
    problem: Problem, configurations: dict[str, Configuration], states: dict[str, State], epochs: Int[Array, " epochs"]
) -> tuple[dict[str, State], dict[str, Metrics]]:
    trained = {
        name: jax.vmap(functools.partial(training.train, problem, OPTIMIZERS[name]), in_axes=(0, 0, None))(
            each, states[name], epochs
        )
        for name, each in configurations.items()
    }
    return {name: state for name, (state, _) in trained.items()}, {
        name: metrics for name, (_, metrics) in trained.items()
    }


def _runs(configurations: Mapping[str, Configuration], metrics: Mapping[str, Metrics]) -> list[Run]:
    return [
        Run(
            optimizer=name,
            # The shortest decimal number that is this float32, as it was given.
            learning_rate=float(str(rate)),
            rescale=float(str(sigma)),
            seed=int(seed),
            train_loss=loss.tolist(),
            validation_error=validation.tolist(),
            test_error=test.tolist(),
        )
        for name, each in configurations.items()
        for rate, sigma, seed, loss, validation, test in zip(
            each.learning_rate, each.rescale, each.seed, *metrics[name], strict=True
        )
    ]


def _sharding(sizes: Sequence[int]) -> NamedSharding:
    """Configurations spread over as many devices as divide every sweep evenly; they never communicate."""
    devices = jax.devices()
    used = devices[: math.gcd(len(devices), *sizes)]
    return NamedSharding(Mesh(np.array(used), ("configurations",)), PartitionSpec("configurations"))
