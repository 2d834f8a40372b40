"""The growth of cost with size."""

import json

import numpy as np
import pytest

from benchmarks.tasks import growth
from benchmarks.tasks.growth import Growth


def test_every_size_is_measured_and_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growth, "_SIZES", {"time_steps": 2, "units": 3, "batch": 2, "layers": 1, "runs": 1})
    sizes = {"time_steps": (2, 4), "units": (3,), "batch": (2,), "layers": (2,), "runs": (2,)}
    Growth(**sizes, optimizers=("g_sgd",), turns=2, output=tmp_path).run()
    assert "Exponents" in capsys.readouterr().out
    points = json.loads((tmp_path / "growth.json").read_text())
    expected = [(axis, size) for axis, each in sizes.items() for size in each]
    assert [(point["axis"], point["size"]) for point in points] == expected
    assert all(point["seconds"] > 0 and point["bytes"] > 0 for point in points)
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_exponents():
    sizes = np.array([2.0, 4.0, 8.0])
    assert growth._exponent(sizes, 3 * sizes**2) == pytest.approx(2)
    assert np.isnan(growth._exponent(sizes[:1], sizes[:1]))


@pytest.mark.slow
def test_memory_of_runs_side_by_side_grows_with_their_number(monkeypatch):
    monkeypatch.setattr(growth, "_SIZES", {"time_steps": 4, "units": 8, "batch": 4, "layers": 1, "runs": 1})
    measure = Growth(optimizers=("sgd",), turns=2)._measured
    (one,), (four,) = measure("runs", 1), measure("runs", 4)
    assert 2 < four.bytes / one.bytes <= 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": (0, 4)}, r"expected units to be 1 or more, got \(0, 4\)"),
        ({"turns": 0}, "expected turns"),
        ({"layers": (1, 1)}, "layers"),
    ],
)
def test_impossible_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Growth(**changes)
