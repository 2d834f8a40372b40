"""The command line: one subcommand a task, its options the fields of the task's dataclass."""

import os
from collections.abc import Callable
from typing import Protocol

import jax
import tyro

from benchmarks.adding import Adding
from benchmarks.digits import Digits
from benchmarks.kappa import Kappa
from benchmarks.overhead import Overhead
from benchmarks.recurrence_time import RecurrenceTime
from benchmarks.tracing_time import TracingTime


class Task(Protocol):
    """What a subcommand makes of its options."""

    def run(self) -> None:
        """Do the task and show the results."""


TASKS: dict[str, Callable[..., Task]] = {
    "adding": Adding,
    "digits": Digits,
    "kappa": Kappa,
    "recurrence-time": RecurrenceTime,
    "overhead": Overhead,
    "tracing-time": TracingTime,
}


def main() -> None:
    # Batches of small matrix products run on one core a device: one device a core keeps all of them busy.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    tyro.extras.subcommand_cli_from_dict(TASKS, prog="python -m benchmarks", description=__doc__).run()


if __name__ == "__main__":
    main()
