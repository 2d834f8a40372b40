"""A small sweep as a program of its own: `python -m tests.benchmarks.sweeping` prints its runs as JSON."""

import dataclasses
import json
from pathlib import Path

import jax
import tyro
from flax import nnx

from benchmarks.checkpoints import Checkpoints
from benchmarks.data import digit_rows
from benchmarks.placement import Placement
from benchmarks.sweeps import grid, sweep
from benchmarks.training import Classification

CONFIGURATIONS = {"g_sgd": grid([0.05, 1e6], [0.0, 1.0], seeds=2)}


class Network(nnx.Module):
    """A perceptron with what recurrent layers have not: statistics and random keys of its own."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 12, rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.readout = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.hidden(x.reshape(*x.shape[:-2], 64))))
        return self.readout(self.dropout(x))


def small_problem():
    return Classification(make_model=Network, data=digit_rows()[:3], batch_size=64)


def curves(runs):
    return [dataclasses.asdict(run) for run in runs]


def main(
    *,
    epochs: int = 6,
    devices: int = 1,
    devices_per_run: int = 1,
    checkpoints: Path | None = None,
    process: int | None = None,
    port: int = 0,
) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    if process is not None:
        jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    runs, _ = sweep(
        small_problem(),
        CONFIGURATIONS,
        epochs,
        placement=Placement(devices_per_run),
        checkpoints=None if checkpoints is None else Checkpoints(checkpoints, {"epochs": epochs}),
        report=lambda progress: print(progress, flush=True),
    )
    print(json.dumps(curves(runs)))


if __name__ == "__main__":
    tyro.cli(main)
