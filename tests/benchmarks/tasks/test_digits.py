"""The benchmark on handwritten digits, end to end at toy size, and what its parts promise."""

import dataclasses
import functools
import itertools
import json
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose
from rich.console import Console

from benchmarks import training
from benchmarks.data import digit_rows
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.options import Work
from benchmarks.results import (
    Experiment,
    Quantity,
    Run,
    best_learning_rate,
    grid_tables,
    summary_table,
    write_json_lines,
)
from benchmarks.sweeps import grid, sweep
from benchmarks.tasks.digits import Digits
from benchmarks.training import Classification, Configuration
from pathspace.models import ReluRNN

QUANTITY = Quantity("test error", "%", by_chance=0.9)
TOY = {
    "--optimizers": "sgd g_adam",
    "--hidden": "6",
    "--epochs": "2",
    "--seeds": "2",
    "--batch-size": "256",
    "--sgd-learning-rates": "0.1 1e6",
    "--adam-learning-rates": "0.01 0.1",
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Standard output and folder of the command at toy size."""
    folder = tmp_path_factory.mktemp("digits")
    options = [word for name, values in TOY.items() for word in (name, *values.split())]
    command = [sys.executable, "-m", "benchmarks", "digits", *options, "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, folder


@pytest.fixture(scope="module")
def problem():
    return Classification(
        make_model=lambda rngs: ReluRNN(8, (5,), 10, rngs=rngs),
        data=digit_rows()[:3],
        batch_size=256,
        skeleton_method="largest",
        skeleton_reference="balanced",
        max_ratio=2.0,
    )


@pytest.fixture(scope="module")
def initial_model(problem):
    return jax.jit(functools.partial(training.initial_model, problem, problem.graph))


def a_run(**changes):
    run = Run(
        optimizer="sgd",
        learning_rate=0.1,
        rescale=0.0,
        seed=0,
        train_loss=[1.0],
        validation_error=[0.1],
        test_error=[0.1],
    )
    return dataclasses.replace(run, **changes)


def shown(*tables):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(*tables)
    return capture.get()


def examples_of(parts):
    return [inputs.tobytes() for part in parts for inputs in np.asarray(part.inputs)]


def test_command_names_each_optimiser_and_its_files(toy):
    output, folder = toy
    for name in ("sgd", "g_adam"):
        assert f"│ {OPTIMIZERS[name].label} " in output
    for name in ("learning_rates.png", "learning_curves.png", "runs.jsonl"):
        assert str(folder / name) in output


def test_lines_hold_configuration_curves_settings_and_environment(toy):
    _, folder = toy
    lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    keys = [(line["optimizer"], line["learning_rate"], line["rescale"], line["seed"]) for line in lines]
    assert len(set(keys)) == len(keys) == 2 * 2 * 2 * 2
    for line in lines:
        assert len(line["train_loss"]) == len(line["validation_error"]) == len(line["test_error"]) == 2
        assert set(line["settings"]) == {field.name for field in dataclasses.fields(Digits)} - {"output", "work"}
        assert line["settings"]["hidden"] == 6
        assert line["sweep_seconds"] > 0
        assert line["device"]
        assert line["versions"].keys() >= {"python", "jax", "optax"}
    diverged = [line for line in lines if line["optimizer"] == "sgd" and line["learning_rate"] == 1e6]
    assert {line["outcome"] for line in diverged} == {"diverged"}
    assert diverged[0]["train_loss"][-1] is None


@pytest.mark.parametrize("name", ["learning_rates.png", "learning_curves.png"])
def test_pictures_show_something(toy, name):
    _, folder = toy
    pixels = plt.imread(folder / name)
    assert min(pixels.shape[:2]) > 400
    assert pixels.std() > 0.05


@pytest.mark.parametrize("task", ["digits", "overhead"])
def test_help_explains_every_option(task, capsys, monkeypatch):
    from benchmarks.__main__ import TASKS, main

    monkeypatch.setattr(sys, "argv", ["benchmarks", task, "--help"])
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(SystemExit):
        main()
    text = capsys.readouterr().out
    own = {field.name for field in dataclasses.fields(TASKS[task])}
    shared = {field.name for field in dataclasses.fields(Work)} if "work" in own else set()
    for name in (own | shared) - {"work"}:
        _, explanation = re.split(f"--{name.replace('_', '-')}[ ,]", text, maxsplit=1)
        before_default, _, _ = explanation.partition("(default:")
        assert len(before_default.split()) > 5, name


@pytest.mark.parametrize("changes", [{"seeds": 0}, {"epochs": 0}, {"rescale": ()}, {"optimizers": ("sgd", "sgd")}])
def test_impossible_options_are_named(changes):
    with pytest.raises(ValueError, match=f"expected {next(iter(changes))}"):
        Digits(**changes)


def test_batch_larger_than_the_data_is_an_error(problem):
    with pytest.raises(ValueError, match="1078 training examples, got 2000"):
        dataclasses.replace(problem, batch_size=2000)


def test_split_is_stratified_and_standardised():
    data = digit_rows()
    parts = data.train, data.validation, data.test
    assert [len(part.labels) for part in parts] == [1078, 359, 360]
    assert data.train.inputs.shape == (1078, 8, 8)
    pixels = np.concatenate([part.inputs for part in parts])
    assert_allclose([pixels.mean(), pixels.std()], [0, 1], atol=1e-5)
    for part in parts:
        assert_allclose(np.bincount(part.labels) / len(part.labels), 0.1, atol=0.01)


def test_learning_rate_is_chosen_by_validation_error():
    runs = [
        a_run(learning_rate=0.1, validation_error=[0.3], test_error=[0.1]),
        a_run(learning_rate=0.2, validation_error=[0.2], test_error=[0.4]),
    ]
    assert best_learning_rate(runs, optimizer="sgd", rescale=0.0) == 0.2
    assert "40.00" in shown(summary_table(runs, QUANTITY))


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "trained"),
        ({"validation_error": [0.9], "test_error": [0.9]}, "at chance"),
        ({"train_loss": [float("nan")], "validation_error": [0.9]}, "diverged"),
        ({"train_loss": [float("inf")]}, "diverged"),
    ],
)
def test_outcome_is_named_in_table_and_file(changes, outcome, tmp_path):
    run = a_run(**changes)
    assert run.outcome(QUANTITY) == outcome
    assert (outcome in shown(summary_table([run], QUANTITY), *grid_tables([run], QUANTITY))) == (outcome != "trained")
    experiment = Experiment(task="digits", model="", title="", quantity=QUANTITY)
    write_json_lines([run], tmp_path / "runs.jsonl", experiment=experiment, settings={}, seconds=1.0)
    assert json.loads((tmp_path / "runs.jsonl").read_text())["outcome"] == outcome


def test_mixed_outcomes_are_counted():
    runs = [a_run(), a_run(seed=1, train_loss=[float("nan")], test_error=[float("nan")])]
    table = shown(*grid_tables(runs, QUANTITY))
    assert "10.00 ± 0.00" in table
    assert "1 diverged" in table


@pytest.mark.slow
def test_sweep_equals_its_single_runs(problem, initial_model):
    configurations = {name: grid([0.01, 0.05], [0.0, 1.0], seeds=2) for name in ("sgd", "g_adam")}
    runs, _ = sweep(problem, configurations, epochs=4)
    assert len(runs) == 16
    data = jax.tree.map(jnp.asarray, problem.data)
    train = {
        name: jax.jit(functools.partial(training.train, problem, OPTIMIZERS[name], lambda batches: batches))
        for name in configurations
    }
    for run in runs[::3]:
        single = Configuration(jnp.float32(run.learning_rate), jnp.float32(run.rescale), jnp.int32(run.seed))
        state = training.start(problem, OPTIMIZERS[run.optimizer], single, *initial_model(single))
        _, metrics = train[run.optimizer](single, state, data, jnp.arange(4))
        assert_allclose(run.train_loss, metrics.train_loss, rtol=1e-4)
        # One example more or less: rounding may tip the balance.
        assert_allclose(run.test_error, metrics.test_error, atol=1.5 / 360)


def test_each_seed_draws_its_own_split_of_all_examples(problem):
    drawing = dataclasses.replace(problem, redraws=True)
    data = jax.tree.map(jnp.asarray, problem.data)
    first, again, other = (
        jax.tree.map(np.asarray, drawing.data_of_run(jax.random.key(seed), data)) for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    assert [part.inputs.shape for part in other] == [(1078, 8, 8), (359, 8, 8), (360, 8, 8)]
    for one, another in itertools.combinations([problem.data, first, other], 2):
        assert sorted(examples_of(one)) == sorted(examples_of(another))
        # Two random fifths have about a fifth of themselves in common.
        assert len(set(examples_of(one[2:])) & set(examples_of(another[2:]))) < 0.3 * 360
    chex.assert_trees_all_equal(problem.data_of_run(jax.random.key(0), problem.data), problem.data)


def test_a_run_learns_and_is_judged_by_the_split_of_its_seed(problem, initial_model, monkeypatch):
    drawing = dataclasses.replace(problem, redraws=True)
    drawn = []
    draw = Classification.data_of_run
    monkeypatch.setattr(Classification, "data_of_run", lambda *args: drawn.append(draw(*args)) or drawn[-1])

    def metrics_of(problem, seed, data):
        single = Configuration(jnp.float32(0.1), jnp.float32(0.0), jnp.int32(seed))
        state = training.start(problem, OPTIMIZERS["sgd"], single, *initial_model(single))
        return training.train(problem, OPTIMIZERS["sgd"], lambda batches: batches, single, state, data, jnp.arange(1))[
            1
        ]

    data = jax.tree.map(jnp.asarray, problem.data)
    of_split = [metrics_of(drawing, seed, data) for seed in (0, 1)]
    chex.assert_trees_all_equal(of_split, [metrics_of(problem, seed, drawn[seed]) for seed in (0, 1)])
    assert set(examples_of(drawn[0][2:])) != set(examples_of(drawn[1][2:]))


def test_sweep_is_compiled_once(problem, monkeypatch):
    traced = []
    train = training.train
    monkeypatch.setattr(training, "train", lambda *args: traced.append(args[1].label) or train(*args))
    sweep(problem, {name: grid([0.01], [0.0], seeds=2) for name in ("sgd", "g_sgd")}, epochs=6)
    assert sorted(traced) == ["G-SGD", "SGD"]


def test_initial_function_and_normal_draws_are_those_of_the_seed(problem, initial_model):
    inputs = jnp.asarray(problem.data[2].inputs[:4])

    def initial(rescale):
        configuration = Configuration(jnp.float32(0.1), jnp.float32(rescale), jnp.int32(3))
        return initial_model(configuration)[0]

    params = {rescale: initial(rescale) for rescale in (0.0, 1.0, 2.0)}
    for rescale in (1.0, 2.0):
        assert_allclose(problem.outputs(params[rescale], inputs), problem.outputs(params[0.0], inputs), atol=1e-4)
    kernel = {rescale: jnp.log(jnp.abs(params[rescale]["readout"]["kernel"][...])) for rescale in params}
    assert_allclose(kernel[2.0] - kernel[0.0], 2 * (kernel[1.0] - kernel[0.0]), atol=1e-4)
