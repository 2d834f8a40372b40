"""The notebooks run from top to bottom, and are stored as they ran."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# They train in loops that take long without the compiler's optimisations.
TRAINING = {"low_rank", "path_norm", "training"}


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in TRAINING else ()) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs(path):
    NotebookClient(
        read(path), timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()


@notebooks
def test_is_stored_as_it_ran(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


@notebooks
def test_links_lead_to_the_other_notebooks(path):
    text = "".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    linked = {other.name for other in NOTEBOOKS if f"({other.name})" in text}
    assert linked == {other.name for other in NOTEBOOKS} - {path.name}
