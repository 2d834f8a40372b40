"""The tasks: what they reproduce, what data they need, and how long they take."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.data import DATASETS, locate
from benchmarks.papers import LOW_RANK, PATH_SGD, PATH_SPACE


class Entry(NamedTuple):
    """A task in the list.

    Attributes:
      name: on the command line.
      reproduces: experiments of the papers, by the names in `PAPERS`, or what else it shows.
      datasets: that it can use; the quick preset needs the first one.
      minutes: that the quick preset takes about, on two cores.
    """

    name: str
    reproduces: str
    datasets: tuple[str, ...]
    minutes: int


PAPERS = {"path space": PATH_SPACE, "Path-SGD": PATH_SGD, "low rank": LOW_RANK}

ENTRIES = (
    Entry("digits", "rescaled and standard starts", (), 2),
    Entry("adding", "Path-SGD: Figure 3, Table 2", (), 2),
    Entry("copying", "low rank: Section 3.0.1, Figure 2", (), 5),
    Entry("highway", "low rank: Appendix A.1", ("mnist",), 5),
    Entry(
        "smnist", "path space: Tables 1, 7, Figure 6; Path-SGD: Table 2; low rank: Table 1, Figure 2", ("mnist",), 15
    ),
    Entry(
        "rcnn",
        "path space: Tables 2, 4, Figure 7",
        ("mnist", "fashion_mnist", "cifar-10", "cifar-100", "cifar10_jpeg"),
        5,
    ),
    Entry(
        "lm",
        "path space: Figure 4; Path-SGD: Table 3; low rank: Table 2",
        ("ptb", "wikitext-2", "ptb_char", "text8", "enwik8"),
        5,
    ),
    Entry("overhead", "path space: Table 6", (), 5),
    Entry("growth", "cost against the sizes of a network", (), 5),
    Entry("kappa", "Path-SGD: Figure 2", (), 5),
    Entry("recurrence-time", "cost of our recurrent loop", (), 5),
    Entry("sweep-time", "cost of many runs in one program", (), 3),
    Entry("tracing-time", "cost of finding the reduction graph", (), 1),
)


@dataclasses.dataclass(frozen=True)
class Listing:
    """List the tasks: what they reproduce, what data they need, whether it is there, and how long they take.

    No file is read and nothing is downloaded.
    """

    data_dir: Path | None = None
    """Folder with the data files; None for $PATHSPACE_DATA, or what was downloaded before."""

    def run(self) -> None:
        """Print the table."""
        table = Table(title="Tasks of python -m benchmarks", show_lines=True)
        table.add_column("task", no_wrap=True, style="bold")
        table.add_column("what it shows")
        table.add_column("data", no_wrap=True)
        table.add_column("minutes", justify="right", no_wrap=True)
        for entry in ENTRIES:
            states = (f"{dataset}: {data_state(dataset, self.data_dir)}" for dataset in entry.datasets)
            table.add_row(entry.name, entry.reproduces, "\n".join(states) or "none needed", f"{entry.minutes}")
        console = Console()
        console.print(table)
        for name, title in PAPERS.items():
            console.print(f"{name}: {title}")
        console.print("download: when first used; missing: to be laid into a folder, see --data-dir")
        console.print("minutes: about, on two cores, with the preset quick and the first data set")


def data_state(dataset: str, data_dir: Path | None) -> str:
    """Whether the files of a data set are there, or how many of them, or how to come by them."""
    paths = locate(dataset, data_dir)
    found = sum(path is not None for path in paths.values())
    if found:
        return "there" if found == len(paths) else f"{found} of {len(paths)} files"
    return "download" if all((file.archive or file).address for file in DATASETS[dataset].files) else "missing"
