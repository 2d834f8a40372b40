"""Data-parallel and tensor-parallel training is that of one device, over simulated devices and in two processes."""

import json
import socket
import subprocess
import sys

import jax
import pytest
from numpy.testing import assert_allclose

from tests.distributed.training import OPTIMIZERS, train


@pytest.fixture(scope="module")
def expected():
    return {name: train(name, lambda array, spec: jax.device_put(array)) for name in OPTIMIZERS}


def started(**options):
    arguments = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tests.distributed.training", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def assert_same(process, expected):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0
    for name, result in json.loads(output.splitlines()[-1]).items():
        assert result["losses"][-1] < 0.9 * result["losses"][0]
        assert_allclose(result["losses"], expected[name]["losses"], rtol=1e-5)
        assert_allclose(result["kernel"], expected[name]["kernel"], rtol=1e-4, atol=1e-5)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("data", "model", "axes"),
    [
        pytest.param(8, 1, "auto", marks=slow),
        pytest.param(1, 8, "auto", marks=slow),
        (4, 2, "auto"),
        pytest.param(8, 1, "explicit", marks=slow),
        pytest.param(1, 8, "explicit", marks=slow),
        (4, 2, "explicit"),
    ],
)
def test_several_devices_make_no_difference(expected, data, model, axes):
    assert_same(started(data=data, model=model, axes=axes), expected)


@pytest.mark.parametrize(("data", "model"), [(2, 1), pytest.param(1, 2, marks=slow), pytest.param(2, 4, marks=slow)])
def test_two_processes_make_no_difference(expected, data, model):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [started(data=data, model=model, process=number, port=port) for number in range(2)]
    for process in both:
        assert_same(process, expected)
