"""Reads what the tasks leave behind."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.results import Experiment, Quantity, Run


class ResultsError(ValueError):
    """A file of results is not what the tasks write."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """The runs of one file.

    Attributes:
      folder: of the file, below the folder of results.
      experiment: what they are runs of.
      settings: of the task.
      seconds: that all runs took.
      device: that they ran on.
      versions: of the packages, by name.
      runs: one or several, all of as many epochs.
    """

    folder: Path
    experiment: Experiment
    settings: dict[str, Any]
    seconds: float
    device: str
    versions: dict[str, str]
    runs: tuple[Run, ...]

    @property
    def epochs(self) -> int:
        """How long each run is."""
        return len(self.runs[0].test_error)


class Ratios(msgspec.Struct, frozen=True):
    """|kappa2| / |kappa1| of networks of one size, for each seed."""

    length: int
    width: int
    ratios: Annotated[list[float], msgspec.Meta(min_length=1)]


class StepTime(msgspec.Struct, frozen=True):
    """The cost of a training step of an optimiser.

    Attributes:
      row: the network.
      optimizer: the name of the optimiser.
      label: the same in tables.
      seconds: that a step takes.
      ratio: of these to those of the counterpart in weight space.
      quartiles: of this ratio.
      floor: the seconds that the products of a step take at best; None where they were not counted.
      bytes: the most memory that it takes; None where it is not known.
    """

    row: str
    optimizer: str
    label: str
    seconds: float
    ratio: float
    quartiles: tuple[float, float]
    floor: float | None
    bytes: int | None


class GridTime(msgspec.Struct, frozen=True):
    """The time of a grid of runs in one program, as a ratio to that of one run after the other."""

    problem: str
    optimizer: str
    runs: int
    ratio: float
    quartiles: tuple[float, float]


class Measurements(NamedTuple):
    """What tasks measure that train nothing; empty where nothing has been measured."""

    kappa_ratios: list[Ratios]
    step_times: list[StepTime]
    grid_times: list[GridTime]


_Curve = Annotated[list[float | None], msgspec.Meta(min_length=1)]


class _Quantity(msgspec.Struct, frozen=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    unit: str
    by_chance: float


class _Experiment(msgspec.Struct, frozen=True):
    task: str
    variant: str
    model: str
    title: str
    quantity: _Quantity
    notes: tuple[str, ...]


class _Line(msgspec.Struct, frozen=True):
    experiment: _Experiment
    settings: dict[str, Any]
    optimizer: str
    learning_rate: float
    rescale: float
    seed: int
    train_loss: _Curve
    validation_error: _Curve
    test_error: _Curve
    sweep_seconds: float
    device: str
    versions: dict[str, str]

    @property
    def shared(self) -> tuple[Any, ...]:
        """What is the same in all lines of a file."""
        return self.experiment, self.settings, self.sweep_seconds, self.device, self.versions, len(self.test_error)


_Content = TypeVar("_Content")


def read_sweeps(results: Path) -> list[Sweep]:
    """Read each `runs.jsonl` below a folder.

    Raises:
      ResultsError: there is none, or one is not as `benchmarks.results.write_json_lines` writes them.
    """
    paths = sorted(results.rglob("runs.jsonl"))
    if not paths:
        raise ResultsError(
            f"expected files runs.jsonl below {results}, got none: train something first, "
            "for instance with python -m benchmarks digits"
        )
    return [_sweep(path, path.parent.relative_to(results)) for path in paths]


def read_measurements(results: Path) -> Measurements:
    """Read what `kappa`, `overhead` and `sweep-time` have left in a folder.

    Raises:
      ResultsError: a file is not as they write it.
    """
    return Measurements(
        _listed(results / "kappa" / "ratios.json", Ratios),
        _listed(results / "overhead" / "times.json", StepTime),
        _listed(results / "sweep-time" / "ratios.json", GridTime),
    )


def _listed(path: Path, kind: type[_Content]) -> list[_Content]:
    return _decoded(path.read_bytes(), list[kind], f"{path}") if path.exists() else []  # type: ignore[valid-type]


def _sweep(path: Path, folder: Path) -> Sweep:
    texts = path.read_bytes().splitlines()
    if not texts:
        raise ResultsError(f"{path}: expected a line for each run, got an empty file: delete it")
    lines = [_decoded(text, _Line, f"{path}, line {number}") for number, text in enumerate(texts, start=1)]
    known: dict[tuple[Any, ...], int] = {}
    for number, line in enumerate(lines, start=1):
        place = f"{path}, line {number}"
        if line.optimizer not in OPTIMIZERS:
            raise ResultsError(f"{place}: expected an optimizer of {', '.join(OPTIMIZERS)}, got {line.optimizer!r}")
        lengths = len(line.train_loss), len(line.validation_error), len(line.test_error)
        if len(set(lengths)) > 1:
            raise ResultsError(
                f"{place}: expected training losses, validation errors and test errors of as many epochs, got {lengths}"
            )
        for name, first, here in zip(_SHARED, lines[0].shared, line.shared, strict=True):
            if here != first:
                raise ResultsError(
                    f"{place}: expected the {name} of line 1, {_shown(first)}, got {_shown(here)}: "
                    "keep each sweep in a folder of its own"
                )
        run = line.optimizer, line.learning_rate, line.rescale, line.seed
        if run in known:
            raise ResultsError(f"{place}: expected each run once, got that of line {known[run]} again: {run}")
        known[run] = number
    experiment = lines[0].experiment
    return Sweep(
        folder=folder,
        experiment=Experiment(
            task=experiment.task,
            variant=experiment.variant,
            model=experiment.model,
            title=experiment.title,
            quantity=Quantity(*msgspec.structs.astuple(experiment.quantity)),
            notes=experiment.notes,
        ),
        settings=lines[0].settings,
        seconds=lines[0].sweep_seconds,
        device=lines[0].device,
        versions=lines[0].versions,
        runs=tuple(map(_run, lines)),
    )


_SHARED = ("experiment", "settings", "seconds of the sweep", "device", "versions", "number of epochs")


def _run(line: _Line) -> Run:
    def curve(values: Sequence[float | None]) -> list[float]:
        return [math.nan if value is None else value for value in values]

    return Run(
        optimizer=line.optimizer,
        learning_rate=line.learning_rate,
        rescale=line.rescale,
        seed=line.seed,
        train_loss=curve(line.train_loss),
        validation_error=curve(line.validation_error),
        test_error=curve(line.test_error),
    )


def _decoded(content: bytes, kind: type[_Content], place: str) -> _Content:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        begin = content[:40].decode(errors="replace")
        raise ResultsError(
            f"{place}: expected what the benchmarks write, got {begin!r}...: {error}; "
            "delete the file, or take another folder of results"
        ) from error


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}..."
