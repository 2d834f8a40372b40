import pytest

from benchmarks.tasks.recurrence_time import RecurrenceTime


def test_table_names_every_cell_and_variant(capsys):
    toy = {"time_steps": 4, "in_features": 2, "hidden_features": 24, "batch_size": 2, "turns": 2}
    RecurrenceTime(cells=("gru_low_rank", "unitary"), unrolls=(2,), **toy).run()
    text = capsys.readouterr().out
    for name in ("gru_low_rank", "unitary", "unroll 2"):
        assert name in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"turns": 0}, "expected turns"), ({"cells": ()}, "expected cells"), ({"unrolls": (1, 1)}, "expected unrolls")],
)
def test_impossible_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        RecurrenceTime(**changes)
