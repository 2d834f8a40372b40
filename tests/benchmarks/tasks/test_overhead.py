"""The timing of training steps."""

import json

import pytest

from benchmarks.tasks import overhead
from benchmarks.tasks.overhead import Overhead
from benchmarks.timing import time_in_turns
from pathspace.models import ReluLanguageModel


def test_table_names_every_pair(tmp_path, capsys, monkeypatch):
    def language(rngs):
        return ReluLanguageModel(7, 3, (4, 3), rngs=rngs)

    monkeypatch.setitem(overhead._ROWS, "lm-ptb", overhead._Row(language, (2, 5), 7, words=True))
    Overhead(rows=("lm-ptb",), optimizers=("g_adam", "path_sgd_10"), turns=2, output=tmp_path).run()
    text = capsys.readouterr().out
    for pair in ("G-Adam / Adam", "Path-SGD every 10 / SGD"):
        assert text.count(pair) == 1
    lines = json.loads((tmp_path / "times.json").read_text())
    assert [(line["row"], line["optimizer"]) for line in lines] == [("lm-ptb", "g_adam"), ("lm-ptb", "path_sgd_10")]
    for line in lines:
        assert line["seconds"] > 0
        assert line["quartiles"][0] <= line["ratio"] <= line["quartiles"][1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": 0}, "expected turns"),
        ({"rows": ()}, "expected rows"),
        ({"steps": 15}, "expected steps to be a multiple of 10 for path_sgd_10, got 15"),
    ],
)
def test_impossible_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Overhead(**changes)


def test_programs_take_turns_until_the_time_is_over():
    called = []
    programs = [lambda: called.append("a"), lambda: called.append("b")]
    assert time_in_turns(programs, turns=3).shape == (3, 2)
    assert "".join(called) == "ab" + "ba" + "ab" + "ba"
    assert time_in_turns(programs, turns=9, seconds=0).shape == (2, 2)
