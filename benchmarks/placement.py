"""Where the runs of a sweep are computed: devices, processes, and how many runs fit into memory at once."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from benchmarks.training import Configuration

_EXAMPLES = "examples"
# Of the memory that is free, for what the compiler's analysis does not see.
_SHARE = 0.8
# Of a processor's device, so that their weights and states stay in its caches: measured on ReLU RNNs of 100 units, two
# to six runs at once take .8 of the time of twelve where 8 steps of 32 sequences are read (one run .95), and one, two
# and four take .65, .73 and .86 of it where 28 steps of 64 are.
_AT_ONCE = (2, 3, 4, 5, 6)


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

    def over_runs(self, function: Callable[..., Any], *, one_by_one: bool = False) -> Callable[..., Any]:
        """A function of one run and of shared arguments, made one of all runs, which lie along the first axis.

        The runs of an accelerator are computed side by side, those of a processor a few at a time or `one_by_one`.
        """

        def of_row(runs: PyTree, *shared: Any) -> PyTree:
            count = len(jax.tree.leaves(runs)[0])
            at_once = 1 if one_by_one else next((few for few in _AT_ONCE if count % few == 0), 1)
            few = jax.vmap(lambda run: function(*run, *shared))
            if jax.default_backend() != "cpu" or at_once == count:
                return few(runs)
            parts = jax.tree.map(lambda leaf: leaf.reshape(count // at_once, at_once, *leaf.shape[1:]), runs)
            return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), jax.lax.map(few, parts))

        def of_all(runs: PyTree, *shared: Any) -> PyTree:
            own, everywhere = PartitionSpec(self.runs_axis), PartitionSpec()
            specs = (own, *(everywhere for _ in shared))
            return jax.shard_map(
                of_row, mesh=self.mesh, in_specs=specs, out_specs=own, axis_names={self.runs_axis}, check_vma=False
            )(runs, *shared)

        return of_all

    def share_batches(self, batches: jax.Array) -> jax.Array:
        """Batches of shape (steps, examples, ...), inside a program that is mapped over runs."""
        if self.devices_per_run == 1 or batches.ndim < 2:
            return batches
        return jax.lax.with_sharding_constraint(batches, PartitionSpec(None, _EXAMPLES))

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
