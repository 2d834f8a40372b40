"""The command line: one subcommand a task, its options the fields of the task's dataclass."""

import os
from collections.abc import Callable
from typing import Protocol

import jax
import tyro

from benchmarks.adding import Adding
from benchmarks.copying import Copying
from benchmarks.digits import Digits
from benchmarks.highway import Highway
from benchmarks.kappa import Kappa
from benchmarks.language_modelling import LanguageModelling
from benchmarks.listing import Listing
from benchmarks.overhead import Overhead
from benchmarks.rcnn import Rcnn
from benchmarks.recurrence_time import RecurrenceTime
from benchmarks.report import Report
from benchmarks.smnist import SequentialMnist
from benchmarks.sweep_time import SweepTime
from benchmarks.tracing_time import TracingTime


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
