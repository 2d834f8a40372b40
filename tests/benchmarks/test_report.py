"""The report: what it says of hand-made runs, and that its page needs nothing else."""

import html.parser
import json
import math

import numpy as np
import pytest

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.papers import OVERHEADS, PUBLISHED, Figure, Published
from benchmarks.report import Report, ResultsError
from benchmarks.report.comparison import differences, rows, verdicts
from benchmarks.report.document import escape, slugs_of
from benchmarks.report.page import page
from benchmarks.report.reading import read_measurements, read_sweeps
from benchmarks.results import Experiment, Quantity, Run, write_json_lines

PERCENT = Quantity("test error", "%", by_chance=0.9)
PAPER = {"preset": "paper", "epochs": 400, "batch_size": 64, "length": 28, "order": "plain", "model": "relu:100"}


def runs(optimizer, finals, *, epochs=4, learning_rate=0.1, rescale=0.0):
    """Runs of seeds 0, 1, ..., whose errors fall to `finals`; those of None diverge."""
    made = []
    for seed, final in enumerate(finals):
        falling = np.linspace(0.9, 0.9 if final is None else final, epochs).tolist()
        losses = [*falling[:-1], math.nan] if final is None else falling
        made.append(
            Run(
                optimizer=optimizer,
                learning_rate=learning_rate,
                rescale=rescale,
                seed=seed,
                train_loss=losses,
                validation_error=falling,
                test_error=falling,
            )
        )
    return made


def write(folder, made, *, settings=None, task="smnist", title="Sequential MNIST", quantity=PERCENT, **changes):
    folder.mkdir(parents=True)
    experiment = Experiment(task=task, model="ReLU RNN", title=title, quantity=quantity, **changes)
    write_json_lines(made, folder / "runs.jsonl", experiment=experiment, settings=settings or {}, seconds=90.0)


def claim(finals, **changes):
    """What is said of G-SGD and SGD with these final errors."""
    published = Published(
        paper="",
        place="",
        task="",
        where={},
        figures={"g_sgd": Figure.parse("1.50 ± 0.03"), "sgd": Figure.parse("1.59 ± 0.06")},
        order=("g_sgd", "sgd"),
    )
    found = [run for name, each in finals.items() for run in runs(name, each)]
    return found, published


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Markdown, HTML and folder of the report on several experiments."""
    results = tmp_path_factory.mktemp("results")
    paper = runs("g_sgd", [0.0150, 0.0154], epochs=400) + runs("sgd", [0.031, 0.0316], epochs=400)
    write(results / "smnist" / "28", paper, settings=PAPER, variant="length 28, plain", title="Length 28")
    quick = runs("g_sgd", [0.05], epochs=2) + runs("sgd", [0.06], epochs=2) + runs("adam", [None], epochs=2)
    write(
        results / "smnist" / "quick",
        quick,
        settings=PAPER | {"preset": "quick", "epochs": 2},
        variant="length 28, plain",
        title="Length 28",
        notes=("<script>alert(1)</script>", "5,000 images | held out"),
    )
    started = runs("sgd", [0.2, None]) + runs("sgd", [0.3, 0.4], learning_rate=1e-3)
    for learning_rate in (0.1, 1e-3):
        started += runs("sgd", [None, None], learning_rate=learning_rate, rescale=2.0)
    write(results / "digits", started, task="digits", title="Starts")
    (results / "kappa").mkdir()
    ratios = [{"length": 10, "width": 100, "ratios": [0.5, 0.7]}, {"length": 20, "width": 400, "ratios": [0.25]}]
    (results / "kappa" / "ratios.json").write_text(json.dumps(ratios))
    (results / "overhead").mkdir()
    time = {"row": "smnist-28", "optimizer": "g_sgd", "label": "G-SGD", "seconds": 0.0025, "ratio": 1.07}
    time |= {"quartiles": [1.05, 1.1], "floor": 0.0004, "bytes": 1234567}
    times = [time, time | {"optimizer": "pytorch_sgd", "label": "SGD in PyTorch", "floor": None, "bytes": None}]
    (results / "overhead" / "times.json").write_text(json.dumps(times))
    (results / "sweep-time").mkdir()
    grid = {"problem": "digits", "optimizer": "sgd", "runs": 24, "ratio": 0.41, "quartiles": [0.4, 0.432]}
    (results / "sweep-time" / "ratios.json").write_text(json.dumps([grid]))
    output = results / "report"
    Report(results, output).run()
    return (output / "report.md").read_text(), (output / "report.html").read_text(), output


def section(text, heading, which=0):
    return text.split(f"\n## {heading}\n")[which + 1].partition("\n## ")[0]


def row(text, label):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_rows_show_ours_beside_the_paper(report):
    text = section(report[0], "Length 28")
    assert row(text, "**G-SGD**") == ["**G-SGD**", "1.52 ± 0.02", "2", "0.1", "2 trained", "1.50 ± 0.03 (Table 1)"]
    assert row(text, "SGD")[1::4] == ["3.13 ± 0.03", "1.59 ± 0.06 (Table 1)"]
    assert "G-SGD agrees with the paper's 1.50 ± 0.03." in text
    assert "**SGD disagrees** with the paper's 1.59 ± 0.06: 3.13 ± 0.03 %, 1.54 % more, 97% of it." in text
    assert "The paper has G-SGD before SGD, and so it is here, by 1.61 ± 0.04 %." in text
    assert "Table 7" not in text
    assert "G-Adam" not in text


def test_other_protocols_are_not_compared(report):
    text = section(report[0], "Length 28", which=1)
    assert "**Not comparable** with the paper's figures: preset quick; epochs 2 instead of 400." in text
    assert "disagree" not in text
    assert "before" not in text
    assert row(text, "**G-SGD**")[1:3] == ["5.00", "1"]
    assert row(text, "Adam")[4:] == ["1 diverged", "1.72 ± 0.07 (Table 7)"]


def test_learning_rate_is_that_of_least_validation_error_and_failures_are_counted(report):
    text = section(report[0], "Starts")
    lines = [line for line in text.splitlines() if line.startswith("| SGD ")]
    assert "| nothing | 35.00 ± 5.00 | 2 | 0.001 | 2 trained |" in lines[0]
    assert "| lognormal(0, 2) | \N{EN DASH} | 2 | 0.001 | 2 diverged |" in lines[1]
    assert "paper" not in text


def test_overview_has_a_line_for_each_experiment(report):
    text = section(report[0], "Overview")
    assert "| [Length 28](#length-28) | smnist | G-SGD: 1.52 ± 0.02 % | 1 of 3 statements differ |" in text
    assert "| [Length 28](#length-28-1) | smnist | G-SGD: 5.00 % | another protocol |" in text
    assert "| [Starts](#starts) | digits | SGD: 35.00 ± 5.00 % | no figure |" in text


def test_facts_of_the_runs_are_given(report):
    text = section(report[0], "Length 28")
    for fact in ("Runs: 4, 2 seeds, epochs: 400", "Wall time of all runs, with compilation: 90 s", "Device: ", "jax "):
        assert fact in text
    assert "Folder: smnist/28" in text
    assert "Runs: 3, 1 seed, epochs: 2" in section(report[0], "Length 28", which=1)


def test_measurements_are_tables(report):
    text = report[0]
    assert "| T = 10 | 0.6 ± 0.1 | \N{EN DASH} |" in text
    assert "| T = 20 | \N{EN DASH} | 0.25 |" in text
    assert "| smnist-28 | G-SGD | 2.500 | 0.400 | 1.2 | 1.070 (1.050 to 1.100) | 1.08 |" in text
    assert "| smnist-28 | SGD in PyTorch | 2.500 | \N{EN DASH} | \N{EN DASH} | 1.070" in text
    assert "| digits | SGD | 24 | 0.41 (0.40 to 0.43) |" in text


def test_pictures_are_drawn_named_and_inlined(report):
    text, page_text, folder = report
    names = {"smnist-28-learning-curves", "digits-learning-rates", "smnist-curves", "smnist-bars"}
    for name in names:
        assert f"]({name}.png)" in text
        assert (folder / f"{name}.png").stat().st_size > 10_000
    assert page_text.count("data:image/png;base64,") == text.count(".png)")


class Checker(html.parser.HTMLParser):
    """Collects addresses and anchors; fails where tags are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("href", "src")]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_refers_to_nothing_outside(report):
    text = report[1]
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    assert not {"script", "link"} & set(checker.tags)
    assert "@import" not in text
    assert "url(" not in text
    anchors = [address[1:] for address in checker.addresses if address.startswith("#")]
    assert set(anchors) <= set(checker.ids)
    assert len(anchors) == 3
    assert len(checker.ids) == len(set(checker.ids))
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in checker.addresses)
    assert checker.tags.count("table") == 7


def test_notes_are_shown_as_they_are(report):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in report[1]
    assert "5,000 images | held out" in report[1]


@pytest.mark.parametrize(
    ("finals", "sentence"),
    [
        ({"g_sgd": [0.02, 0.022], "sgd": [0.02, 0.021]}, "**here they differ by no more than the noise**: by 0.05 ±"),
        ({"g_sgd": [0.03, 0.031], "sgd": [0.02, 0.021]}, "**here it is the other way round**, by 1.00 ± 0.07 %."),
        ({"g_sgd": [0.03], "sgd": [0.02]}, "not compared here: one seed does not show the noise."),
        ({"g_sgd": [0.03, 0.03], "sgd": [0.02, None]}, "not compared here: 1 of 2 diverged with SGD."),
        ({"g_sgd": [0.02, 0.03], "sgd": [0.9, 0.9]}, "and so it is here, by 87.50 ± 0.50 %."),
        ({"sgd": [0.02, None]}, "SGD is not compared with the paper's 1.59 ± 0.06: 1 of 2 diverged."),
        ({"sgd": [0.02]}, "SGD is not compared with the paper's 1.59 ± 0.06: one seed does not show the noise."),
        ({"sgd": [0.01, 0.06]}, "SGD agrees with the paper's 1.59 ± 0.06."),
        ({"sgd": [0.0171, 0.0171]}, "SGD agrees with the paper's 1.59 ± 0.06."),
        ({"sgd": [0.9, 0.9]}, "**SGD disagrees** with the paper's 1.59 ± 0.06: 90.00 ± 0.00 %"),
        ({"sgd": [0.010, 0.011]}, "1.05 ± 0.05 %, 0.54 % less, 34% of it."),
    ],
)
def test_statements_name_what_differs(finals, sentence, tmp_path):
    found, published = claim(finals)
    write(tmp_path / "a", found)
    (sweep,) = read_sweeps(tmp_path)
    said = verdicts(rows(sweep), published, PERCENT)
    assert sum(sentence in each for each in said) == 1, said


@pytest.mark.parametrize(
    ("text", "finals", "agrees"),
    [
        ("< 0.1", [0.0005, 0.0007], True),
        ("< 0.1", [0.005, 0.0051], False),
        ("0", [0.004, 0.0041], True),
        ("0", [0.007, 0.0071], False),
    ],
)
def test_bounds_and_rounded_figures(text, finals, agrees, tmp_path):
    published = Published(paper="", place="", task="", where={}, figures={"sgd": Figure.parse(text)})
    write(tmp_path / "a", runs("sgd", finals))
    (sweep,) = read_sweeps(tmp_path)
    (sentence,) = verdicts(rows(sweep), published, PERCENT)
    assert ("disagrees" in sentence) != agrees


def test_published_figures_name_optimizers_and_experiments_once():
    keys = [
        (each.task, *sorted(each.where.items()), name, each.protocol is None)
        for each in PUBLISHED
        for name in each.figures
    ]
    assert len(keys) == len(set(keys))
    names = {name for each in PUBLISHED for name in (*each.figures, *each.order)}
    assert names | {name for _, name in OVERHEADS} <= set(OPTIMIZERS)
    for each in PUBLISHED:
        if each.figures and each.order:
            assert min(each.figures, key=lambda name: each.figures[name].value) == each.order[0]


@pytest.mark.parametrize(
    ("protocol", "settings", "said"),
    [
        ({"batch_size": 20}, {"batch_size": 20}, []),
        ({"batch_size": 20}, {}, ["batch_size not recorded, 20 in the paper"]),
        ({"train_tokens": None}, {"train_tokens": 9}, ["train_tokens 9 instead of no limit"]),
        (None, {}, ["the paper does not say how its figures came about"]),
    ],
)
def test_differences_of_the_protocol_are_named(protocol, settings, said, tmp_path):
    printed = Published(paper="", place="", task="", where={}, figures={}, protocol=protocol)
    write(tmp_path / "a", runs("sgd", [0.1]), settings=settings)
    (sweep,) = read_sweeps(tmp_path)
    assert differences(sweep, printed) == said


def line(**changes):
    """A line of a file, with other values."""
    experiment = {"task": "digits", "variant": "", "model": "", "title": "A", "notes": []}
    quantity = {"name": "test error", "unit": "%", "by_chance": 0.9}
    made = {
        "experiment": experiment | {"quantity": quantity},
        "settings": {},
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "rescale": 0.0,
        "seed": 0,
        "train_loss": [1.0],
        "validation_error": [0.1],
        "test_error": [0.1],
        "sweep_seconds": 1.0,
        "device": "cpu",
        "versions": {},
    }
    return json.dumps(made | changes)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "runs.jsonl: expected a line for each run, got an empty file"),
        (["not JSON"], "line 1: expected what the benchmarks write, got 'not JSON'...: JSON is malformed"),
        ([line(), line()[:-9]], "line 2: expected what the benchmarks write, got .*: Input data was truncated"),
        (["{}"], "line 1: .* missing required field `experiment`"),
        ([line(seed="a")], r"line 1: .* Expected `int`, got `str` - at `\$.seed`"),
        ([line(test_error=[])], r"line 1: .* Expected `array` of length >= 1 - at `\$.test_error`"),
        ([line(optimizer="lion")], "line 1: expected an optimizer of sgd, .*, got 'lion'"),
        ([line(test_error=[0.2, 0.1])], r"line 1: expected .* of as many epochs, got \(1, 1, 2\)"),
        ([line(), line(seed=1, device="gpu")], "line 2: expected the device of line 1, cpu, got gpu: keep each sweep"),
        ([line(), line()], "line 2: expected each run once, got that of line 1 again"),
    ],
)
def test_broken_files_are_named(lines, message, tmp_path):
    (tmp_path / "runs.jsonl").write_text("\n".join(lines))
    with pytest.raises(ResultsError, match=message):
        Report(tmp_path, tmp_path / "report").run()
    assert not (tmp_path / "report").exists()


def test_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(ResultsError, match=r"expected files runs.jsonl below .*, got none: train something first"):
        Report(tmp_path).run()


def test_broken_measurements_are_named(tmp_path):
    assert read_measurements(tmp_path) == ([], [], [])
    (tmp_path / "overhead").mkdir()
    (tmp_path / "overhead" / "times.json").write_text('[{"row": "a"}]')
    with pytest.raises(ResultsError, match=r"times.json: .* missing required field `optimizer`"):
        read_measurements(tmp_path)


def test_anchors_and_escapes():
    assert slugs_of(["A b, c-1", "A b c-1", "Ä"], taken=["Ä"]) == ["a-b-c-1", "a-b-c-1-1", "ä-1"]
    assert escape("a_b|<c>\nd") == r"a\_b\|\<c\> d"
    assert "<p>" in page("# A\n\n" + escape("1 * 2 * 3 [x](y) `z` &amp; #"), None)
    assert "1 * 2 * 3 [x](y) `z` &amp;amp; #</p>" in page("# A\n\n" + escape("1 * 2 * 3 [x](y) `z` &amp; #"), None)
