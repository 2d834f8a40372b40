"""Sweeps: in chunks, over devices and processes, stopped and gone on with."""

import json
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks.checkpoints import Checkpoints
from benchmarks.placement import Placement
from benchmarks.sweeps import grid, sweep
from tests.benchmarks.sweeping import CONFIGURATIONS, curves, small_problem

EPOCHS = 6


@pytest.fixture(scope="module")
def problem():
    return small_problem()


@pytest.fixture(scope="module")
def expected(problem):
    return curves(sweep(problem, CONFIGURATIONS, EPOCHS)[0])


def assert_same(runs, expected, **tolerances):
    """Bit for bit, unless there are tolerances."""
    check = assert_allclose if tolerances else assert_array_equal
    assert len(runs) == len(expected)
    for run, other in zip(runs, expected, strict=True):
        for name in ("train_loss", "validation_error", "test_error"):
            check(run.pop(name), other[name], **tolerances)
        assert run == {name: other[name] for name in run}


def test_networks_learn_and_diverged_ones_leave_others_alone(expected):
    for run in expected:
        assert (run["test_error"][-1] < 0.4) == (run["learning_rate"] < 1)


def test_statistics_and_random_keys_of_the_model_are_carried(problem, monkeypatch):
    seen = []
    monkeypatch.setattr(
        type(problem), "errors", lambda self, model, data: (seen.append(model), model.norm.mean[...][:2])[1]
    )
    runs, _ = sweep(problem, {"sgd": grid([0.05], [0.0], seeds=1)}, 2)
    assert runs[0].validation_error[0] != 0
    assert runs[0].validation_error[1] != runs[0].validation_error[0]
    assert all(model.dropout.deterministic for model in seen)


def test_what_does_not_fit_into_memory_is_trained_in_chunks(problem, expected, monkeypatch):
    needed = []
    monkeypatch.setattr(Placement, "chunks_needed", lambda self, compiled: needed.append(compiled) or 1)
    sweep(problem, CONFIGURATIONS, 2)
    monkeypatch.undo()
    analysis = needed[0].memory_analysis()
    size = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    monkeypatch.setattr(Placement, "free_bytes", lambda self: 0.6 * size / 0.8)
    seen = []
    runs, _ = sweep(problem, CONFIGURATIONS, EPOCHS, report=seen.append)
    (chunks,) = {progress.chunks for progress in seen}
    assert 1 < chunks <= len(expected)
    # Programs of other sizes round differently.
    finite = [run for run in curves(runs) if run["learning_rate"] < 1]
    assert_same(finite, [run for run in expected if run["learning_rate"] < 1], rtol=1e-3, atol=2 / 359)


@pytest.mark.parametrize(("backend", "one_by_one"), [("cpu", False), ("cpu", True), ("accelerator", False)])
@pytest.mark.parametrize("count", [1, 2, 7, 10, 12])
def test_runs_keep_their_order(count, backend, one_by_one, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    placement = Placement()
    runs = (np.arange(count * placement.rows), np.arange(count * placement.rows * 6).reshape(-1, 3, 2))
    function = jax.jit(
        placement.over_runs(lambda first, second, shared: (first + shared, second.sum(axis=1)), one_by_one=one_by_one)
    )
    first, second = function(runs, 5)
    assert_array_equal(first, runs[0] + 5)
    assert_array_equal(second, runs[1].sum(axis=2))


@pytest.mark.parametrize(("one_by_one", "turns"), [(False, 6), (True, 12)])
def test_a_processor_computes_a_few_runs_at_once_or_one_by_one(one_by_one, turns):
    placement = Placement()
    function = placement.over_runs(lambda run, shared: run + shared, one_by_one=one_by_one)
    assert f" length={turns}\n" in str(jax.make_jaxpr(function)((np.arange(12 * placement.rows),), 5))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("epoch", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stopped_sweep_goes_on_and_ends_as_if_it_had_not_been(problem, expected, epoch, tmp_path):
    def stop(progress):
        if progress.epochs == epoch:
            raise Stopped

    with pytest.raises(Stopped):
        sweep(problem, CONFIGURATIONS, EPOCHS, checkpoints=Checkpoints(tmp_path, {}), report=stop)
    seen = []
    runs, seconds = sweep(problem, CONFIGURATIONS, EPOCHS, checkpoints=Checkpoints(tmp_path, {}), report=seen.append)
    # What is reported has not been saved yet.
    assert seen[0].epochs == epoch - 2
    assert seconds > 0
    assert_same(curves(runs), expected)


def test_checkpoints_of_other_settings_are_not_seen(tmp_path):
    Checkpoints(tmp_path, {"epochs": 1}).save(0, 1, {"a": np.arange(3), "none": np.zeros((2, 0))})
    like = {"a": np.zeros(3, int), "none": np.zeros((2, 0))}
    assert Checkpoints(tmp_path, {"epochs": 2}).load(0, like) is None
    assert Checkpoints(tmp_path, {"epochs": 1}).load(1, like) is None
    assert_array_equal(Checkpoints(tmp_path, {"epochs": 1}).load(0, like)["a"], np.arange(3))
    Checkpoints(tmp_path, {"epochs": 1}).clear()
    assert Checkpoints(tmp_path, {"epochs": 1}).load(0, like) is None
    Checkpoints(tmp_path, {"epochs": 1}).clear()
    Checkpoints(tmp_path, {"epochs": 2}).clear()
    assert not list(tmp_path.iterdir())


def test_devices_per_run_must_divide_all_devices():
    devices = jax.device_count()
    with pytest.raises(ValueError, match=f"divides all {devices} devices, got {devices + 1}"):
        Placement(devices + 1)


# --- programs of their own ---


def command(*options):
    return [sys.executable, "-m", "tests.benchmarks.sweeping", *map(str, options)]


def printed(output):
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("per_run", [1, 2])
def test_several_devices_make_no_difference(expected, per_run):
    options = ("--devices", 4, "--devices-per-run", per_run)
    done = subprocess.run(command(*options), capture_output=True, text=True, check=True)
    tolerances = {"rtol": 1e-3, "atol": 2 / 359} if per_run > 1 else {"rtol": 1e-4, "atol": 1 / 359}
    finite = [run for run in printed(done.stdout) if run["learning_rate"] < 1]
    assert_same(finite, [run for run in expected if run["learning_rate"] < 1], **tolerances)


@pytest.mark.slow
@pytest.mark.parametrize("per_run", [1, 2])
def test_two_processes_make_no_difference(expected, per_run):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [
        subprocess.Popen(
            command("--process", number, "--port", port, "--devices-per-run", per_run),
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    for output in outputs:
        finite = [run for run in printed(output) if run["learning_rate"] < 1]
        assert_same(finite, [run for run in expected if run["learning_rate"] < 1], rtol=1e-3, atol=2 / 359)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    epochs = ("--epochs", 60)
    whole = subprocess.run(command(*epochs), capture_output=True, text=True, check=True)
    options = (*epochs, "--checkpoints", tmp_path)
    killed = 0
    while True:
        process = subprocess.Popen(command(*options), stdout=subprocess.PIPE, text=True)
        lines = iter(process.stdout.readline, "")
        if killed < 4:
            for _ in range(random.randint(1, 4)):
                next(lines)
            time.sleep(random.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
        output = process.communicate()[0]
        if process.returncode == 0:
            break
        killed += 1
    assert killed == 4
    assert_same(printed(output), printed(whole.stdout))
