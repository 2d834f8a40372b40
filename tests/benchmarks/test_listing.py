"""The list of the tasks."""

import pytest

from benchmarks.__main__ import TASKS
from benchmarks.data import DATASETS
from benchmarks.listing import ENTRIES, PAPERS, Listing, data_state


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    monkeypatch.delenv("PATHSPACE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def lay(folder, dataset, count):
    """Empty files in place of the first ones of a data set: nothing may read them."""
    (folder / dataset).mkdir()
    for file in DATASETS[dataset].files[:count]:
        (folder / dataset / file.name).touch()


def test_every_task_is_listed():
    names = [entry.name for entry in ENTRIES]
    assert set(TASKS) - {"list", "report"} <= set(names)
    assert len(names) == len(set(names))


def test_data_is_there_in_part_to_download_or_missing(tmp_path):
    lay(tmp_path, "mnist", 4)
    lay(tmp_path, "fashion_mnist", 3)
    states = {name: data_state(name, tmp_path) for name in ("mnist", "fashion_mnist", "text8", "cifar10_jpeg")}
    assert states == {
        "mnist": "there",
        "fashion_mnist": "3 of 4 files",
        "text8": "download",
        "cifar10_jpeg": "missing",
    }


def test_table_says_what_each_task_needs(tmp_path, capsys):
    lay(tmp_path, "ptb", 3)
    Listing(data_dir=tmp_path).run()
    text = capsys.readouterr().out
    for entry in ENTRIES:
        assert f"│ {entry.name} " in text
    for words in ("ptb: there", "enwik8: download", "cifar10_jpeg: missing", "none needed", "Table 1"):
        assert words in text
    assert all(f"{name}: " in text for name in PAPERS)
