"""Options of tasks: presets, those that several tasks have, and what they must be."""

import dataclasses
from typing import Any, TypeVar

_Preset = TypeVar("_Preset", bound=Any)


@dataclasses.dataclass(frozen=True)
class Work:
    """Options of all tasks that train."""

    devices_per_run: int = 1
    """Devices that share the batches of a run, for large models; all others are for more runs side by side."""
    checkpoint_every: int = 10
    """Epochs between checkpoints. The same command, run again, goes on from the last one."""
    tensorboard: bool = False
    """Write the curves for TensorBoard, too, beside the results."""

    def __post_init__(self) -> None:
        check_positive(self, "devices_per_run", "checkpoint_every")


def resolved(task: Any, preset: _Preset) -> _Preset:
    """The preset, a dataclass, with the options of the same names that were given to the task in place of its own."""
    names = [field.name for field in dataclasses.fields(preset)]
    given = {name: value for name in names if (value := getattr(task, name)) is not None}
    return dataclasses.replace(preset, **given)


def settings_of(task: Any) -> dict[str, Any]:
    """The options of a task that its results depend on."""
    others = ("data_dir", "output", "work")
    return {name: value for name, value in dataclasses.asdict(task).items() if name not in others}


def check_distinct(options: Any, *names: str) -> None:
    """Raise ValueError where one of these options of a task holds no value, or one twice."""
    for name in names:
        if len(values := getattr(options, name)) == 0 or len(set(values)) < len(values):
            raise ValueError(f"expected {name} to hold one or several distinct values, got {values}")


def check_positive(options: Any, *names: str) -> None:
    """Raise ValueError where one of these options of a task is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"expected {name} to be 1 or more, got {getattr(options, name)}")
