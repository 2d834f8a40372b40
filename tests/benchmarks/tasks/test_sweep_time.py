"""The timing of sweeps."""

import json

import pytest

from benchmarks.tasks.sweep_time import SweepTime


def test_table_and_file(tmp_path, capsys):
    SweepTime(problems=("digits",), optimizers=("g_sgd",), learning_rates=2, seeds=1, turns=2, output=tmp_path).run()
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "G-SGD" in line)
    (line,) = json.loads((tmp_path / "ratios.json").read_text())
    assert (line["problem"], line["optimizer"], line["runs"]) == ("digits", "g_sgd", 2)
    assert f"{line['ratio']:.2f} (" in row
    assert line["quartiles"][0] <= line["ratio"] <= line["quartiles"][1]


@pytest.mark.parametrize("changes", [{"seeds": 0}, {"problems": ()}, {"optimizers": ("sgd", "sgd")}])
def test_impossible_options_are_named(changes):
    with pytest.raises(ValueError, match=f"expected {next(iter(changes))}"):
        SweepTime(**changes)


def test_grid_that_devices_cannot_share_is_named(monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"expected a grid of runs that 2 devices share evenly, got 3 .* and 1 seeds"):
        SweepTime(learning_rates=3, seeds=1)
