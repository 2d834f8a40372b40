"""Reads what a task has left behind."""

import json
from pathlib import Path
from typing import Any

from benchmarks.papers import PUBLISHED


def recorded_runs(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of runs, which must hold the settings that tell the papers' experiments apart."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for each in PUBLISHED:
            if each.task == line["experiment"]["task"]:
                assert {*each.where, *(each.protocol or {})} - {"epochs"} <= set(line["settings"])
    return lines
