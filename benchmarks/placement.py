"""Where the runs of a sweep are computed: devices, processes, and how many runs fit into memory at once."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.training import Configuration

_EXAMPLES = "examples"
# Of the memory that is free, for what the compiler's analysis does not see.
_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class Placement:
    """All devices of all processes, in rows: each row has some of the runs, and its devices share their batches.

    Attributes:
      devices_per_run: the length of a row.
    """

    devices_per_run: int = 1
    runs_axis: ClassVar[str] = "runs"

    def __post_init__(self) -> None:
        if self.devices_per_run < 1 or jax.device_count() % self.devices_per_run:
            raise ValueError(
                f"expected a number of devices per run that divides all {jax.device_count()} devices, "
                f"got {self.devices_per_run}"
            )

    @property
    def mesh(self) -> Mesh:
        """The devices, by runs and examples."""
        return Mesh(np.array(jax.devices()).reshape(-1, self.devices_per_run), (self.runs_axis, _EXAMPLES))

    @property
    def rows(self) -> int:
        """Groups of devices with runs of their own."""
        return jax.device_count() // self.devices_per_run

    @property
    def runs(self) -> NamedSharding:
        """For arrays with one entry a run."""
        return NamedSharding(self.mesh, PartitionSpec(self.runs_axis))

    @property
    def everywhere(self) -> NamedSharding:
        """For arrays of which every device has a copy."""
        return NamedSharding(self.mesh, PartitionSpec())

    def share_batches(self, batches: jax.Array) -> jax.Array:
        """Batches of shape (steps, examples, ...), inside a program that is mapped over runs."""
        if self.devices_per_run == 1 or batches.ndim < 2:
            return batches
        return jax.lax.with_sharding_constraint(batches, NamedSharding(self.mesh, PartitionSpec(None, _EXAMPLES)))

    def chunks(self, configurations: Configuration, count: int) -> list[Configuration]:
        """The runs in `count` parts of one length that all rows share evenly; the last run fills the last part up."""
        size = configurations.seed.size
        length = math.ceil(math.ceil(size / count) / self.rows) * self.rows
        at = np.minimum(np.arange(count * length), size - 1).reshape(count, length)
        return [
            jax.device_put(jax.tree.map(lambda leaf, part=part: leaf[part], configurations), self.runs) for part in at
        ]

    def chunks_needed(self, compiled: jax.stages.Compiled) -> int:
        """Into how many parts the runs of a program have to be divided for the memory that is free."""
        return math.ceil(_bytes_needed(compiled) / (_SHARE * self.free_bytes()))

    def free_bytes(self) -> int:
        """What each device has left."""
        device = jax.local_devices()[0]
        if device.platform == "cpu":
            return psutil.virtual_memory().available // jax.local_device_count()
        statistics = device.memory_stats()
        return statistics["bytes_limit"] - statistics["bytes_in_use"]


def _bytes_needed(compiled: jax.stages.Compiled) -> int:
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
