"""What of a sweep is on disk, so that it can go on after it was stopped."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree


class Checkpoints:
    """A folder that holds the latest state of each chunk of one sweep.

    Orbax gives a folder its name when all in it is written: whoever is killed while writing leaves the one before.

    Args:
      folder: of the task's results.
      settings: what the results depend on. Sweeps of other settings have other folders.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        text = json.dumps(settings, sort_keys=True, default=str)
        self._folder = folder.resolve() / "checkpoints" / hashlib.sha256(text.encode()).hexdigest()[:16]

    def load(self, chunk: int, like: PyTree) -> Any:
        """What `save` was last given for this chunk, None if nothing: arrays of the shapes and shardings of `like`."""
        with self._manager(chunk) as manager:
            step = manager.latest_step()
            if step is None:
                return None
            leaves, treedef = jax.tree.flatten(like)
            stored = iter(manager.restore(step, args=ocp.args.StandardRestore([leaf for leaf in leaves if leaf.size])))
            return jax.tree.unflatten(treedef, [next(stored) if leaf.size else leaf for leaf in leaves])

    def save(self, chunk: int, step: int, tree: PyTree) -> None:
        """Keep a tree of arrays in place of what was saved at steps before."""
        with self._manager(chunk) as manager:
            # Orbax stores no empty arrays.
            manager.save(step, args=ocp.args.StandardSave([leaf for leaf in jax.tree.leaves(tree) if leaf.size]))

    def clear(self) -> None:
        """Delete all of this sweep, and what is then empty."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._folder.parent.exists() and not any(self._folder.parent.iterdir()):
            self._folder.parent.rmdir()

    def _manager(self, chunk: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self._folder / str(chunk), options=options)
