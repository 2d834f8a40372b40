"""The report as Markdown."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.papers import OVERHEADS, PATH_SGD, PATH_SPACE
from benchmarks.report.comparison import Row, best_row, differences, mean_ratio, published, rows, verdicts, with_unit
from benchmarks.report.reading import GridTime, Measurements, Ratios, StepTime, Sweep

_INTRODUCTION = """\
Test errors are those after the last epoch, as mean ± standard error over the seeds, at the learning rate (lr) with the
least mean validation error; test data play no part in that choice. A run has diverged when its training loss or its
validation error is not finite; it is at chance when its validation error is 0.9 of guessing's or more.

Ours and a paper's figure disagree where they differ by more than two standard errors, the paper's ± counted as one, and
by more than a tenth of the paper's figure. Of two optimisers neither is better where they differ by two standard errors
or less. Where the protocol is not the paper's, its figures are shown, but not compared."""
_NOTHING = "\N{EN DASH}"


class Picture(NamedTuple):
    """A picture in the report.

    Attributes:
      path: of the file.
      text: what it shows, for those who do not see it.
    """

    path: Path
    text: str


class PaperPicture(NamedTuple):
    """A figure of a paper, drawn with our runs."""

    title: str
    paper: str
    picture: Picture


def markdown(
    sweeps: Sequence[Sweep],
    pictures: Mapping[Path, Sequence[Picture]],
    redrawn: Sequence[PaperPicture],
    measurements: Measurements,
) -> str:
    """The whole report; `pictures` are by the folders of the sweeps."""
    slugs = slugs_of([sweep.experiment.title for sweep in sweeps], taken=["Benchmark report", "Overview"])
    parts = ["# Benchmark report", _INTRODUCTION, "## Overview", _overview(sweeps, slugs)]
    for sweep in sweeps:
        parts += _section(sweep, pictures[sweep.folder])
    if redrawn:
        parts.append("## Figures of the papers, drawn with these runs")
    for each in redrawn:
        parts += [f"### {escape(each.title)}", f"After: *{escape(each.paper)}*.", _image(each.picture)]
    if measurements.kappa_ratios:
        parts += _kappa(measurements.kappa_ratios)
    if measurements.step_times:
        parts += _step_times(measurements.step_times)
    if measurements.grid_times:
        parts += _grid_times(measurements.grid_times)
    return "\n\n".join(parts) + "\n"


def slugs_of(titles: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The anchors that headings have on GitHub: repeated ones are numbered."""
    counts: dict[str, int] = {}
    slugs = []
    before = list(taken)
    for title in (*before, *titles):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        slugs.append(f"{slug}-{counts[slug]}" if slug in counts else slug)
        counts[slug] = counts.get(slug, 0) + 1
    return slugs[len(before) :]


def escape(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", text).replace("\n", " ")


def _overview(sweeps: Sequence[Sweep], slugs: Sequence[str]) -> str:
    lines = []
    for sweep, slug in zip(sweeps, slugs, strict=True):
        best = best_row(rows(sweep))
        lines.append(
            [
                f"[{escape(sweep.experiment.title)}](#{slug})",
                f"{sweep.experiment.task}",
                f"{best.label}: {with_unit(best.result, sweep.experiment.quantity)}" if best else "all diverged",
                _standing(sweep),
            ]
        )
    return _table(["experiment", "task", "least test error", "beside the papers"], lines, numbers=0)


def _standing(sweep: Sweep) -> str:
    reported = published(sweep)
    if not reported:
        return "no figure"
    judged = [each for each in reported if not differences(sweep, each)]
    if not judged:
        return "another protocol"
    sentences = [sentence for each in judged for sentence in verdicts(rows(sweep), each, sweep.experiment.quantity)]
    differing = sum("**" in sentence for sentence in sentences)
    return f"{differing} of {len(sentences)} statements differ" if differing else "nothing differs"


def _section(sweep: Sweep, pictures: Sequence[Picture]) -> list[str]:
    experiment = sweep.experiment
    facts = {"Task": experiment.task, "Variant": experiment.variant, "Model": experiment.model}
    found = rows(sweep)
    parts = [
        f"## {escape(experiment.title)}",
        " · ".join(f"{name}: {escape(value)}" for name, value in facts.items() if value),
        _results(sweep, found),
        *_beside_papers(sweep, found),
        *map(_image, pictures),
    ]
    if experiment.notes:
        parts += ["Notes:", _list(map(escape, experiment.notes))]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(sweep.versions.items()))
    settings = ", ".join(f"{name} = {value}" for name, value in sweep.settings.items())
    seeds = len({run.seed for run in sweep.runs})
    parts += [
        "How it was run:",
        _list(
            [
                f"Runs: {len(sweep.runs)}, {seeds} {'seed' if seeds == 1 else 'seeds'}, epochs: {sweep.epochs}",
                f"Wall time of all runs, with compilation: {_duration(sweep.seconds)}",
                f"Device: {escape(sweep.device)}",
                f"Versions: {escape(versions)}",
                f"Settings: {escape(settings)}",
                f"Folder: {escape(sweep.folder.as_posix())}",
            ]
        ),
    ]
    return parts


def _results(sweep: Sweep, found: Sequence[Row]) -> str:
    reported = published(sweep)
    printed = {name: f"{figure.text} ({each.place})" for each in reported for name, figure in each.figures.items()}
    rescaled = len({row.rescale for row in found}) > 1
    quantity = sweep.experiment.quantity
    header = ["optimiser", *(["rescaled by"] if rescaled else [])]
    header += [", ".join(filter(None, (quantity.name, quantity.unit))), "seeds", "lr", "outcomes"]
    lines = []
    for row in found:
        name = f"**{row.label}**" if OPTIMIZERS[row.optimizer].respects_rescaling else row.label
        scaling = [f"lognormal(0, {row.rescale:g})" if row.rescale else "nothing"] if rescaled else []
        paper = [printed.get(row.optimizer, _NOTHING) if row.rescale == 0 else _NOTHING] if printed else []
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in row.outcomes.items())
        lines.append(
            [name, *scaling, row.result or _NOTHING, f"{row.seeds}", f"{row.learning_rate:g}", outcomes, *paper]
        )
    return _table([*map(escape, header), *(["paper"] if printed else [])], lines, numbers=1 + rescaled)


def _beside_papers(sweep: Sweep, found: Sequence[Row]) -> list[str]:
    parts = []
    for each in published(sweep):
        source = " ".join(filter(None, (f"Paper: *{each.paper}*, {each.place}.", escape(each.remark))))
        if different := differences(sweep, each):
            sentences = [f"**Not comparable** with the paper's figures: {escape('; '.join(different))}."]
        else:
            sentences = verdicts(found, each, sweep.experiment.quantity)
        parts += [source, _list(sentences)] if sentences else [source]
    return parts


def _kappa(ratios: Sequence[Ratios]) -> list[str]:
    lengths = sorted({each.length for each in ratios})
    widths = sorted({each.width for each in ratios})
    cells = {(each.length, each.width): mean_ratio(each.ratios) for each in ratios}
    lines = [[f"T = {length}", *(cells.get((length, width), _NOTHING) for width in widths)] for length in lengths]
    return [
        "## The second term of kappa",
        "|kappa2| / |kappa1|, the ratio of the norms over all weights of a one-layer ReLU RNN of H hidden units for "
        f"sequences of T steps, mean ± standard error over initial weights. After: *{PATH_SGD}*, Figure 2, left: "
        "there the second term contributes more where T is larger and H is smaller.".replace("|", "\\|"),
        _table(["", *(f"H = {width}" for width in widths)], lines, numbers=1),
    ]


def _step_times(step_times: Sequence[StepTime]) -> list[str]:
    lines = []
    for each in step_times:
        lower, upper = each.quartiles
        paper = OVERHEADS.get((each.row, each.optimizer))
        lines.append(
            [
                escape(each.row),
                escape(each.label),
                f"{1000 * each.seconds:.3f}",
                _NOTHING if each.floor is None else f"{1000 * each.floor:.3f}",
                _NOTHING if each.bytes is None else f"{each.bytes / 1e6:.1f}",
                f"{each.ratio:.3f} ({lower:.3f} to {upper:.3f})",
                f"{paper:.2f}" if paper else _NOTHING,
            ]
        )
    return [
        "## What a training step costs",
        "Ratios are to the step of the optimiser's counterpart in weight space, with quartiles over turns; the floor "
        "is the time of its matrix products and convolutions at the rate of one large product. "
        f"The paper's are ratios to SGD of the times of an epoch on a GPU: *{PATH_SPACE}*, Table 6. "
        "On other devices they are not comparable.",
        _table(["network", "optimiser", "ms a step", "floor", "MB", "ratio", "paper"], lines, numbers=2),
    ]


def _grid_times(grid_times: Sequence[GridTime]) -> list[str]:
    lines = []
    for each in grid_times:
        lower, upper = each.quartiles
        name, ratio = OPTIMIZERS[each.optimizer].label, f"{each.ratio:.2f} ({lower:.2f} to {upper:.2f})"
        lines.append([escape(each.problem), name, f"{each.runs}", ratio])
    return [
        "## What a grid of runs costs in one program",
        "Ratios are of the time of an epoch of all runs in one program to that of one run after the other, "
        "with quartiles over turns.",
        _table(["problem", "optimiser", "runs", "ratio"], lines, numbers=2),
    ]


def _table(header: Sequence[str], lines: Iterable[Sequence[str]], *, numbers: int) -> str:
    """A table, its columns from that of index `numbers` on flush right; flush left if it is 0."""
    rule = ["---" if numbers == 0 or index < numbers else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _image(picture: Picture) -> str:
    return f"![{escape(picture.text)}]({picture.path.name})"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
