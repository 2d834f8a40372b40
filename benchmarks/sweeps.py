"""Sweeps: all configurations of all optimisers as one jitted program."""

import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree

from benchmarks import training
from benchmarks.checkpoints import Checkpoints
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.placement import Placement
from benchmarks.results import Run
from benchmarks.training import Configuration, Metrics, Problem, State

_EPOCHS_PER_CALL = 2


class Progress(NamedTuple):
    """How far a sweep has come.

    Attributes:
      chunk: that is being trained, from 0.
      chunks: of the runs; those of one chunk are trained in one program.
      epochs: that this chunk has done.
      validation_error: the least of its runs after them; None before the first.
    """

    chunk: int
    chunks: int
    epochs: int
    validation_error: float | None


def grid(learning_rates: Sequence[float], rescales: Sequence[float], seeds: int) -> Configuration:
    """Every combination: arrays of one entry a run."""
    rates, sigmas, numbers = zip(*itertools.product(learning_rates, rescales, range(seeds)), strict=True)
    return Configuration(np.array(rates, np.float32), np.array(sigmas, np.float32), np.array(numbers, np.int32))


def sweep(
    problem: Problem,
    configurations: Mapping[str, Configuration],
    epochs: int,
    *,
    placement: Placement | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 1,
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[list[Run], float]:
    """Train every configuration of every optimiser.

    All are trained in one program (see `Placement.over_runs`); where memory is short, in as few chunks as possible, one
    after the other.

    Args:
      problem: what to train.
      configurations: for each name in `OPTIMIZERS`, its runs.
      epochs: how long.
      placement: on which devices; all, with runs of their own, if None is given.
      checkpoints: where the states are kept, and where those of an earlier call with the same arguments are found.
      checkpoint_every: how many epochs pass at least between checkpoints.
      report: called with the progress.

    Returns:
      The runs, in the order of `configurations`, and the seconds that all of them took, with compilation.
    """
    began = time.perf_counter()
    placement = Placement() if placement is None else placement
    program = _Program(problem, placement, math.gcd(epochs, _EPOCHS_PER_CALL))
    chunks, advance = program.fit(configurations)
    data = jax.device_put(problem.data, placement.everywhere)
    save_every = math.ceil(checkpoint_every / program.epochs_per_call) * program.epochs_per_call

    seconds, collected = 0.0, []
    for number, chunk in enumerate(chunks):
        states = program.start(chunk)
        curves = {name: _no_metrics(each.seed.size, epochs) for name, each in chunk.items()}
        done, before = 0, 0.0
        kept = {"states": states, "curves": curves, "done": np.array(0), "seconds": np.array(0.0)}
        if checkpoints is not None and (found := checkpoints.load(number, kept)) is not None:
            states, done, before = found["states"], int(found["done"]), float(found["seconds"])
            curves = jax.tree.map(np.array, found["curves"])
        report(Progress(number, len(chunks), done, _least(curves, done)))
        while done < epochs:
            numbers = np.arange(done, done + program.epochs_per_call)
            states, metrics = advance(chunk, states, data, numbers)
            for name, part in jax.device_get(metrics).items():
                for curve, values in zip(curves[name], part, strict=True):
                    curve[:, numbers] = values
            done += program.epochs_per_call
            report(Progress(number, len(chunks), done, _least(curves, done)))
            if checkpoints is not None and (done % save_every == 0 or done == epochs):
                seconds_of_chunk = before + time.perf_counter() - began
                kept = {"states": states, "curves": curves, "done": np.array(done)}
                checkpoints.save(number, done, kept | {"seconds": np.array(seconds_of_chunk)})
        seconds += before + time.perf_counter() - began
        began = time.perf_counter()
        collected.append(curves)
    return _runs(configurations, collected), seconds


class _Program:
    """The compiled parts of a sweep."""

    def __init__(self, problem: Problem, placement: Placement, epochs_per_call: int) -> None:
        self.epochs_per_call = epochs_per_call
        self._problem = problem
        self._placement = placement
        runs = placement.runs
        self._initial_models = jax.jit(
            jax.vmap(functools.partial(training.initial_model, problem, problem.graph)),
            in_shardings=runs,
            out_shardings=runs,
        )
        self._advance = jax.jit(
            functools.partial(_advance, problem, placement),
            in_shardings=(runs, runs, placement.everywhere, None),
            out_shardings=(runs, placement.everywhere),
            donate_argnums=1,
        )

    def start(self, configurations: Mapping[str, Configuration]) -> dict[str, State]:
        """The states before the first epoch."""
        return {
            name: jax.jit(
                jax.vmap(functools.partial(training.start, self._problem, OPTIMIZERS[name])),
                out_shardings=self._placement.runs,
            )(each, *self._initial_models(each))
            for name, each in configurations.items()
        }

    def fit(
        self, configurations: Mapping[str, Configuration]
    ) -> tuple[list[dict[str, Configuration]], Callable[..., Any]]:
        """The runs in chunks that fit into memory, and the program that advances one of them."""
        most = max(each.seed.size for each in configurations.values())
        count = 1
        while True:
            parts = {name: self._placement.chunks(each, count) for name, each in configurations.items()}
            chunks = [dict(zip(parts, chunk, strict=True)) for chunk in zip(*parts.values(), strict=True)]
            states = jax.eval_shape(self.start, chunks[0])
            compiled = self._advance.lower(
                chunks[0], states, self._problem.data, np.arange(self.epochs_per_call)
            ).compile()
            needed = self._placement.chunks_needed(compiled)
            if needed == 1 or count >= most:
                return chunks, compiled
            count = min(count * needed, most)


def _advance(
    problem: Problem,
    placement: Placement,
    configurations: dict[str, Configuration],
    states: dict[str, State],
    data: PyTree,
    epochs: Int[Array, " epochs"],
) -> tuple[dict[str, State], dict[str, Metrics]]:
    trained = {
        name: placement.over_runs(
            functools.partial(training.train, problem, OPTIMIZERS[name], placement.share_batches),
            one_by_one=problem.one_by_one,
        )((each, states[name]), data, epochs)
        for name, each in configurations.items()
    }
    return {name: state for name, (state, _) in trained.items()}, {
        name: metrics for name, (_, metrics) in trained.items()
    }


def _no_metrics(runs: int, epochs: int) -> Metrics:
    return Metrics(*(np.full((runs, epochs), np.nan, np.float32) for _ in Metrics._fields))


def _least(curves: Mapping[str, Metrics], done: int) -> float | None:
    if done == 0:
        return None
    return float(min(np.nanmin(curve.validation_error[:, done - 1], initial=np.inf) for curve in curves.values()))


def _runs(configurations: Mapping[str, Configuration], chunks: Sequence[Mapping[str, Metrics]]) -> list[Run]:
    runs = []
    for name, each in configurations.items():
        curves = [np.concatenate(parts) for parts in zip(*(chunk[name] for chunk in chunks), strict=True)]
        # Where chunks are filled up, what comes after the last run is the last run again.
        for rate, sigma, seed, loss, validation, test in zip(
            each.learning_rate, each.rescale, each.seed, *curves, strict=False
        ):
            runs.append(
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
            )
    return runs
