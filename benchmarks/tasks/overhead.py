"""What a training step in path space, or of Path-SGD, costs, measured against the same step in weight space."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pathspace
from benchmarks import pytorch
from benchmarks.arithmetic import product_rate
from benchmarks.optimizers import OPTIMIZERS, Optimizer
from benchmarks.options import check_distinct, check_positive
from benchmarks.report.reading import StepTime
from benchmarks.step_programs import STEPS, StepProgram, step_program
from benchmarks.timing import time_in_turns
from benchmarks.workloads import WORKLOADS

_BOTH_TERMS = "path_sgd_both"
_PYTORCH = "pytorch_sgd"


def _path_sgd(label: str, **options: Any) -> Optimizer:
    return Optimizer(label, "sgd", True, "", lambda rate, setting: pathspace.path_sgd(rate, setting.kappa, **options))


_OPTIMIZERS = {
    **OPTIMIZERS,
    "path_sgd": _path_sgd("Path-SGD"),
    _BOTH_TERMS: _path_sgd("Path-SGD, both terms"),
    # Kappa is computed once in a program.
    "path_sgd_10": _path_sgd(f"Path-SGD every {STEPS}", every=STEPS),
}

_Row = Literal[
    "digits",
    "smnist-28",
    "smnist-98",
    "smnist-784",
    "smnist-28-fused",
    "smnist-98-fused",
    "smnist-784-fused",
    "wide",
    "rcnn-96",
    "rcnn-128",
    "rcnn-160",
    "lm-ptb",
    "lm-wikitext-2",
    "lm-ptb-char",
    "lm-enwik8",
]


@dataclasses.dataclass(frozen=True)
class Overhead:
    """Time training steps of a network with optimisers and with their counterparts in weight space.

    Ten steps (forward and backward pass, update and new weights) are one program, as in an epoch of the other tasks.
    All programs of a network take turns, so that whatever else the machine does befalls all; ratios are taken turn by
    turn. Beside the times stand the most memory that a program takes, and the floor: what its matrix products and
    convolutions take at the rate of this machine's product of two matrices of 2048 x 2048. Where PyTorch is installed,
    its SGD steps take turns with ours.
    """

    rows: tuple[_Row, ...] = ("digits", "smnist-28", "smnist-98", "smnist-784", "wide")
    """Networks. The ReLU RNNs of digits and smnist have 100 units and read batches of 64 (digits: 32); fused: on GPUs,
    each time loop is one kernel; wide: 1024 units, 50 time steps, batches of 128; rcnn: so many maps, images of CIFAR's
    size, batches of 64; lm: four layers of 1550, 1550, 1550 and 400 units, batches of 40 sequences (characters: 128) of
    70 tokens. Turns of the last two take minutes on a CPU."""
    optimizers: tuple[Literal["g_sgd", "g_adam", "path_sgd", "path_sgd_both", "path_sgd_10"], ...] = (
        "g_sgd",
        "g_adam",
        "path_sgd",
        "path_sgd_10",
    )
    """Optimisers to compare with SGD or Adam; path_sgd_both computes both terms of kappa (the second from one random
    vector where it has no closed form), path_sgd_10 the first in every tenth step only."""
    turns: int = 200
    """How often the programs take turns at most."""
    seconds: float = 20.0
    """The programs of a network begin no more turns after so many seconds; two at least."""
    output: Path = Path("results/overhead")
    """Folder for the results, which the report reads."""

    def __post_init__(self) -> None:
        check_positive(self, "turns")
        check_distinct(self, "rows", "optimizers")

    def run(self) -> None:
        """Measure, print a table, and write it for the report."""
        console = Console()
        rate = product_rate()
        lines: list[StepTime] = []
        for row in track(self.rows, description="Measuring", console=console):
            measured = self._measured(row, rate)
            console.print(_table(row, measured))
            lines += measured
        console.print(f"Floors: at {rate / 1e9:.0f} billion operations a second")
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / "times.json"
        path.write_text(json.dumps([msgspec.structs.asdict(line) for line in lines], indent=1))
        console.print(f"Wrote {path.resolve()}", soft_wrap=True)

    def _measured(self, row: _Row, rate: float) -> list[StepTime]:
        workload = WORKLOADS[row]
        names = dict.fromkeys(itertools.chain.from_iterable((_baseline(name), name) for name in self.optimizers))
        programs = {name: step_program(workload, _OPTIMIZERS[name], both_terms=name == _BOTH_TERMS) for name in names}
        seconds = self._seconds({name: program.run for name, program in programs.items()})
        lines = [_line(row, name, seconds, program, rate) for name, program in programs.items()]
        if pytorch.is_installed() and "sgd" in programs:
            # With turns of their own: PyTorch's threads go on for a while after a step, and whatever follows is slower.
            calls = {"sgd": programs["sgd"].run, _PYTORCH: pytorch.sgd_training(workload, STEPS)}
            lines.append(_line(row, _PYTORCH, self._seconds(calls), None, rate))
        return lines

    def _seconds(self, calls: Mapping[str, Callable[[], Any]]) -> dict[str, np.ndarray]:
        times = time_in_turns([*calls.values()], turns=self.turns, seconds=self.seconds)
        return {name: column / STEPS for name, column in zip(calls, times.T, strict=True)}


def _baseline(name: str) -> str:
    return "sgd" if name == _PYTORCH else _OPTIMIZERS[name].family


def _line(row: str, name: str, seconds: dict[str, np.ndarray], program: StepProgram | None, rate: float) -> StepTime:
    lower, middle, upper = np.quantile(seconds[name] / seconds[_baseline(name)], (0.25, 0.5, 0.75)).tolist()
    return StepTime(
        row=row,
        optimizer=name,
        label="SGD in PyTorch" if name == _PYTORCH else _OPTIMIZERS[name].label,
        seconds=float(np.median(seconds[name])),
        ratio=middle,
        quartiles=(lower, upper),
        floor=None if program is None else program.operations / rate,
        bytes=None if program is None else program.bytes,
    )


def _table(row: str, lines: Sequence[StepTime]) -> Table:
    table = Table(title=f"{row}: a training step; ratio to weight space: median (quartiles) over turns")
    table.add_column("optimiser", no_wrap=True)
    for column in ("ms", "floor", "ratio", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        lower, upper = line.quartiles
        table.add_row(
            line.label,
            f"{1000 * line.seconds:.3f}",
            "" if line.floor is None else f"{1000 * line.floor:.3f}",
            "" if line.optimizer == _baseline(line.optimizer) else f"{line.ratio:.3f} ({lower:.3f}-{upper:.3f})",
            "" if line.bytes is None else f"{line.bytes / 1e6:.1f}",
        )
    return table
