"""The timing of training steps."""

from benchmarks.step_time import StepTime


def test_table_names_every_pair(capsys):
    StepTime(hidden=4, turns=2, steps=1).run()
    text = capsys.readouterr().out
    assert text.count("G-SGD / SGD") == text.count("G-Adam / Adam") == 2
