"""What every task shows and leaves behind."""

import dataclasses
import json

import pytest

from benchmarks import plots, reporting
from benchmarks.options import Work
from benchmarks.reporting import train_and_show
from benchmarks.results import Experiment, Quantity, Run
from benchmarks.sweeps import Progress, grid

EXPERIMENT = Experiment(
    task="some", model="net", title="Some task", quantity=Quantity("error", "%", by_chance=0.9), notes=("mind this",)
)
CONFIGURATIONS = {"sgd": grid([0.1], [0.0], seeds=2)}
RUNS = [
    Run(
        optimizer="sgd",
        learning_rate=0.1,
        rescale=0.0,
        seed=seed,
        train_loss=[2.0, 1.0],
        validation_error=[0.5, 0.2],
        test_error=[0.5, float("nan")],
    )
    for seed in range(2)
]


def run(folder, monkeypatch, sweep, **work):
    monkeypatch.setattr(reporting, "sweep", sweep)
    train_and_show(EXPERIMENT, None, CONFIGURATIONS, 2, folder=folder, settings={"hidden": 3}, work=Work(**work))


def test_progress_tables_notes_and_files(tmp_path, monkeypatch, capsys):
    def sweep(*args, report, **options):
        report(Progress(chunk=1, chunks=2, epochs=1, validation_error=0.1234))
        return RUNS, 1.5

    run(tmp_path, monkeypatch, sweep)
    output = capsys.readouterr().out
    for text in ("Training 2 networks, part 2 of 2", "3/4", "best 12.3 %", "mind this", str(tmp_path / "runs.jsonl")):
        assert text in output
    first = json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[0])
    assert first["experiment"]["task"] == "some"
    assert first["experiment"]["quantity"] == {"name": "error", "unit": "%", "by_chance": 0.9}
    assert first["settings"] == {"hidden": 3}
    assert first["test_error"] == [0.5, None]
    assert {path.name for path in tmp_path.iterdir()} == {"runs.jsonl", "learning_curves.png"}


def test_curves_are_named_where_they_end():
    nan = float("nan")
    assert plots._labels("sgd", [1, 2, 3], [0.5, 0.25, nan], "right") == [("sgd", 2, 0.25, "right")]
    assert plots._labels("sgd", [1, 2, 3], [0.5, 0.25, nan], "left") == [("sgd", 1, 0.5, "left")]
    assert plots._labels("sgd", [1], [nan], "left") == []


def test_curve_of_diverged_runs_alone_is_drawn_without_warnings(tmp_path, monkeypatch, recwarn):
    diverged = [dataclasses.replace(run, test_error=[float("nan")] * 2) for run in RUNS]
    plots.learning_curves(diverged, EXPERIMENT.quantity, "Some task", tmp_path / "curves.png")
    plots.error_by_learning_rate(diverged, EXPERIMENT.quantity, "Some task", tmp_path / "rates.png")
    assert [str(each.message) for each in recwarn] == []


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def sweep(*args, **options):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, monkeypatch, sweep)
    assert stopped.value.code == 130
    assert "The same command goes on from the last checkpoint" in capsys.readouterr().out


def test_tensorboard_files_on_request(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, lambda *args, **options: (RUNS, 1.0), tensorboard=True)
    folders = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert folders == ["sgd lr=0.1 rescale=0 seed=0", "sgd lr=0.1 rescale=0 seed=1"]
    assert all(list(path.glob("events.*")) for path in (tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("options", [{"devices_per_run": 0}, {"checkpoint_every": 0}])
def test_impossible_options_are_named(options):
    with pytest.raises(ValueError, match=f"expected {next(iter(options))} to be 1 or more, got 0"):
        Work(**options)
