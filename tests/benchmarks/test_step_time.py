"""The timing of training steps."""

import pytest

from benchmarks.step_time import StepTime, time_in_turns


def test_table_names_every_pair(capsys):
    StepTime(shapes=("8x8",), optimizers=("g_adam", "path_sgd_10"), hidden=4, turns=2).run()
    text = capsys.readouterr().out
    for pair in ("G-Adam / Adam", "Path-SGD every 10 / SGD"):
        assert text.count(pair) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "expected hidden"),
        ({"turns": 0}, "expected turns"),
        ({"shapes": ()}, "expected shapes"),
        ({"steps": 15}, "expected steps to be a multiple of 10 for path_sgd_10, got 15"),
    ],
)
def test_impossible_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        StepTime(**changes)


def test_programs_take_turns_until_the_time_is_over():
    called = []
    programs = [lambda: called.append("a"), lambda: called.append("b")]
    assert time_in_turns(programs, turns=3, calls=2).shape == (3, 2)
    assert "".join(called) == "ab" + "bbaa" + "aabb" + "bbaa"
    assert time_in_turns(programs, turns=9, seconds=0).shape == (2, 2)
