"""The timing of training steps."""

import collections
import functools
import itertools
import json

import pytest

from benchmarks.tasks import overhead
from benchmarks.tasks.overhead import Overhead
from benchmarks.timing import time_in_turns
from benchmarks.workloads import Language


def test_table_has_every_optimizer_and_its_counterpart(tmp_path, capsys, monkeypatch):
    workload = Language(7, embedding=3, hidden=(4, 3), time_steps=5, batch_size=2)
    monkeypatch.setitem(overhead.WORKLOADS, "lm-ptb", workload)
    monkeypatch.setattr(overhead, "product_rate", lambda: 1e9)
    monkeypatch.setattr(overhead.pytorch, "is_installed", lambda: True)
    monkeypatch.setattr(overhead.pytorch, "sgd_training", lambda workload, steps: lambda: None)
    Overhead(rows=("lm-ptb",), optimizers=("g_adam", "path_sgd_both", "path_sgd_10"), turns=2, output=tmp_path).run()
    text = capsys.readouterr().out
    for label in ("G-Adam", "Path-SGD, both terms", "Path-SGD every 10", "SGD in PyTorch"):
        assert text.count(label) == 1
    lines = {line["optimizer"]: line for line in json.loads((tmp_path / "times.json").read_text())}
    assert list(lines) == ["adam", "g_adam", "sgd", "path_sgd_both", "path_sgd_10", "pytorch_sgd"]
    for line in lines.values():
        assert line["row"] == "lm-ptb"
        assert line["seconds"] > 0
        assert line["quartiles"][0] <= line["ratio"] <= line["quartiles"][1]
    assert lines["sgd"]["ratio"] == lines["adam"]["ratio"] == 1
    assert lines["pytorch_sgd"]["floor"] is None
    assert 0 < lines["sgd"]["floor"] < lines["path_sgd_10"]["floor"] < lines["path_sgd_both"]["floor"]
    assert lines["g_adam"]["bytes"] > lines["adam"]["bytes"] > lines["sgd"]["bytes"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": 0}, "expected turns"),
        ({"rows": ()}, "expected rows"),
    ],
)
def test_impossible_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Overhead(**changes)


def test_programs_take_turns_until_the_time_is_over():
    called = []
    programs = [functools.partial(called.append, name) for name in "abc"]
    assert time_in_turns(programs, turns=90).shape == (90, 3)
    assert all(sorted(called[i : i + 3]) == ["a", "b", "c"] for i in range(0, len(called), 3))
    assert time_in_turns(programs, turns=9, seconds=0).shape == (2, 3)


def test_no_program_follows_itself_more_often_than_others():
    called = []
    time_in_turns([functools.partial(called.append, name) for name in "abc"], turns=900)
    repeated = collections.Counter(before for before, after in itertools.pairwise(called) if before == after)
    assert all(80 < repeated[name] < 120 for name in "abc")
