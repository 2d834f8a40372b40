"""The README's Python runs as printed."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:40])
def test_block_runs(block: str) -> None:
    exec(block, {})


def test_blocks_are_found() -> None:
    assert len(BLOCKS) == README.count("```python")
    assert BLOCKS


def test_what_is_linked_exists() -> None:
    linked = [path for path in re.findall(r"\]\(([^)]+)\)", README) if not path.startswith(("http", "#"))]
    assert len(linked) > 6
    for path in linked:
        assert (Path(__file__).parent.parent / path).is_file(), path
