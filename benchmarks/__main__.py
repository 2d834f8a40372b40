"""The command line: one subcommand a task, its options the fields of the task's dataclass."""

import os
from collections.abc import Callable
from typing import Protocol

import jax
import tyro

from benchmarks.listing import Listing
from benchmarks.report import Report
from benchmarks.tasks.adding import Adding
from benchmarks.tasks.copying import Copying
from benchmarks.tasks.digits import Digits
from benchmarks.tasks.growth import Growth
from benchmarks.tasks.highway import Highway
from benchmarks.tasks.kappa import Kappa
from benchmarks.tasks.language_modelling import LanguageModelling
from benchmarks.tasks.overhead import Overhead
from benchmarks.tasks.rcnn import Rcnn
from benchmarks.tasks.recurrence_time import RecurrenceTime
from benchmarks.tasks.smnist import SequentialMnist
from benchmarks.tasks.sweep_time import SweepTime
from benchmarks.tasks.tracing_time import TracingTime


class Task(Protocol):
    """What a subcommand makes of its options."""

    def run(self) -> None:
        """Do the task and show the results."""


TASKS: dict[str, Callable[..., Task]] = {
    "list": Listing,
    "digits": Digits,
    "adding": Adding,
    "copying": Copying,
    "highway": Highway,
    "smnist": SequentialMnist,
    "rcnn": Rcnn,
    "lm": LanguageModelling,
    "overhead": Overhead,
    "growth": Growth,
    "kappa": Kappa,
    "recurrence-time": RecurrenceTime,
    "sweep-time": SweepTime,
    "tracing-time": TracingTime,
    "report": Report,
}


def main() -> None:
    # Batches of small matrix products run on one core a device: one device a core keeps all of them busy.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
        )
    tyro.extras.subcommand_cli_from_dict(TASKS, prog="python -m benchmarks", description=__doc__).run()


if __name__ == "__main__":
    main()
