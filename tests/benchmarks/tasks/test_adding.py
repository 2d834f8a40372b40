"""The adding problem."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.tasks.adding import PRESETS, Adding, examples
from tests.benchmarks.recorded import recorded_runs


def test_targets_are_sums_of_two_marked_numbers_one_in_each_half():
    inputs, targets = examples(jax.random.key(0), count=200, length=7)
    numbers, marks = np.moveaxis(inputs, -1, 0)
    assert set(np.unique(marks)) == {0, 1}
    assert_allclose(marks[:, :3].sum(1), 1)
    assert_allclose(marks[:, 3:].sum(1), 1)
    assert_allclose([row[mark == 1].sum() for row, mark in zip(numbers, marks, strict=True)], targets, rtol=1e-6)
    assert_allclose(np.mean((targets - 1) ** 2), 1 / 6, atol=0.03)


def test_command_learns_and_leaves_its_results(tmp_path, capsys):
    rates = {"sgd_learning_rates": (0.3,), "path_sgd_learning_rates": (0.01,)}
    Adding(lengths=(4,), steps=2000, seeds=1, hidden=8, output=tmp_path, **rates).run()
    output = capsys.readouterr().out
    lines = recorded_runs(tmp_path / "4" / "runs.jsonl")
    assert {line["optimizer"] for line in lines} == {"clipped_sgd", "bounded_path_sgd"}
    for line in lines:
        assert line["settings"]["length"] == 4
        assert len(line["test_error"]) == 2
        assert line["test_error"][-1] < 1 / 6
        assert OPTIMIZERS[line["optimizer"]].label in output
    assert (tmp_path / "4" / "learning_curves.png").exists()


def test_options_override_the_preset():
    task = Adding(preset="paper", seeds=7)
    assert (task._settings().seeds, task._settings().lengths) == (7, PRESETS["paper"].lengths)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"hidden": 0}, {"lengths": ()}, {"optimizers": ()}])
def test_impossible_options_are_named(changes):
    with pytest.raises(ValueError, match=f"expected {next(iter(changes))}"):
        Adding(**changes)
