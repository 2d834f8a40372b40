"""What the papers report: figures as they are printed, in the unit of our tables, and where they stand."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

PATH_SPACE = "Path Space for Recurrent Neural Networks with ReLU Activations (2020)"
PATH_SGD = "Path-Normalized Optimization of Recurrent Neural Networks with ReLU Activations (2016)"
LOW_RANK = "Low-rank passthrough neural networks (2016)"


class Figure(NamedTuple):
    """A number as it is printed.

    Attributes:
      text: the characters; "< 0.1" is a bound, "1.50 ± 0.03" a mean and its deviation or error.
      value: the number, or the bound.
      error: what stands after ±; 0 where there is none.
      resolution: half a unit of the last digit.
      is_bound: whether the number is below the value.
    """

    text: str
    value: float
    error: float
    resolution: float
    is_bound: bool

    @classmethod
    def parse(cls, text: str) -> "Figure":
        """Read the printed characters."""
        value, _, error = text.removeprefix("<").replace(" ", "").partition("±")
        digits = len(value.partition(".")[2])
        return cls(text, float(value), float(error or 0), 0.5 * 10.0**-digits, text.startswith("<"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper reports of one experiment.

    Attributes:
      paper: its title and year.
      place: table, figure or section.
      task: the task's name on the command line.
      where: the settings that say which of the task's experiments it is.
      figures: by the name of our optimiser.
      order: the first of these optimisers is reported to be better than each of the others.
      protocol: settings that the figures belong to; None if the paper does not say.
      remark: what else a reader of the figures has to know.
    """

    paper: str
    place: str
    task: str
    where: Mapping[str, Any]
    figures: Mapping[str, Figure]
    order: tuple[str, ...] = ()
    protocol: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    remark: str = ""


class Redrawn(NamedTuple):
    """A figure of a paper that the report draws with our runs.

    Attributes:
      task: whose runs.
      kind: test error by epoch, or after the last epoch.
      paper: its title and year.
      place: table or figure.
    """

    task: str
    kind: Literal["curves", "bars"]
    paper: str
    place: str


REDRAWN = (
    Redrawn("smnist", "curves", PATH_SPACE, "Figure 6"),
    Redrawn("smnist", "bars", PATH_SPACE, "Table 1"),
    Redrawn("lm", "bars", PATH_SPACE, "Figure 4"),
    Redrawn("rcnn", "curves", PATH_SPACE, "Figure 7"),
    Redrawn("adding", "curves", PATH_SGD, "Figure 3"),
    Redrawn("copying", "curves", LOW_RANK, "Figure 2"),
)

# Seconds of an epoch of Path-SGD, SGD and G-SGD, by rows of the task overhead: path space, Table 6.
_EPOCHS: dict[str, tuple[float | None, float, float]] = {
    "lm-ptb": (53.9, 31.4, 33.9),
    "lm-wikitext-2": (90.2, 66.0, 68.8),
    "lm-ptb-char": (79.8, 61.5, 63.8),
    "lm-enwik8": (1407, 1054, 1103),
    "smnist-28": (10.2, 8.5, 9.2),
    "smnist-98": (13.5, 10.9, 11.5),
    "rcnn-96": (None, 56.0, 60.9),
    "rcnn-128": (None, 74.0, 79.8),
    "rcnn-160": (None, 125.5, 134.9),
}

# Ratios to SGD of these, by row and optimiser.
OVERHEADS = {
    (row, optimizer): seconds / sgd
    for row, (path_sgd, sgd, g_sgd) in _EPOCHS.items()
    for optimizer, seconds in (("path_sgd", path_sgd), ("g_sgd", g_sgd))
    if seconds is not None
}


def published_of(task: str, settings: Mapping[str, Any], optimizers: Iterable[str]) -> list[Published]:
    """What the papers report of these optimisers in the experiment with these settings."""
    names = set(optimizers)
    return [
        each
        for each in PUBLISHED
        if each.task == task
        and all(settings.get(name) == value for name, value in each.where.items())
        and names & {*each.figures, *each.order}
    ]


def _figures(**texts: str) -> dict[str, Figure]:
    return {optimizer: Figure.parse(text) for optimizer, text in texts.items()}


def _sequential_mnist(order: str, length: int, sgd: Sequence[str], adam: Sequence[str]) -> list[Published]:
    where = {"length": length, "order": order, "model": "relu:100"}
    protocol = {"epochs": 400, "batch_size": 64}
    remark = "Means over 3 runs."
    return [
        Published(
            paper=PATH_SPACE,
            place=place,
            task="smnist",
            where=where,
            figures=_figures(**dict(zip(names, texts, strict=True))),
            order=names,
            protocol=protocol,
            remark=remark,
        )
        for place, names, texts in (
            ("Table 1", ("g_sgd", "sgd", "path_sgd"), sgd),
            ("Table 7", ("g_adam", "adam"), adam),
        )
    ]


def _pixel_by_pixel(model: str, remark: str, order: tuple[str, ...] = (), **texts: str) -> Published:
    return Published(
        paper=PATH_SGD,
        place="Table 2",
        task="smnist",
        where={"length": 784, "order": "plain", "model": model},
        figures=_figures(**texts),
        order=order,
        protocol={} if order else None,
        remark=remark,
    )


def _permuted(model: str, accuracy: float) -> Published:
    return Published(
        paper=LOW_RANK,
        place="Table 1",
        task="smnist",
        where={"length": 784, "order": "permuted", "model": model},
        figures=_figures(rmsprop=f"{100 - accuracy:.1f}"),
        protocol={"batch_size": 20, "rmsprop_learning_rates": [0.0005]},
        remark=f"Printed as an accuracy of {accuracy} %.",
    )


def _adding(length: int, sgd: str, path_sgd: str) -> Published:
    return Published(
        paper=PATH_SGD,
        place="Table 2",
        task="adding",
        where={"length": length},
        figures=_figures(clipped_sgd=sgd, bounded_path_sgd=path_sgd),
        order=("bounded_path_sgd", "clipped_sgd") if sgd != path_sgd else (),
        protocol={"hidden": 100},
        remark="For SGD the one of ten initial networks that did not diverge; how often Path-SGD ran is not said.",
    )


def _copying(variant: str, lag: int, updates: int) -> Published:
    return Published(
        paper=LOW_RANK,
        place="Section 3.0.1",
        task="copying",
        where={"variant": variant, "lag": lag, "model": "low-rank-diagonal-gru"},
        figures=_figures(rmsprop="< 0.1"),
        protocol={"hidden": 128, "rank": 50, "batch_size": 20},
        remark=f"In less than {updates:,} updates.",
    )


def _highway(matrices: str, accuracy: float) -> Published:
    return Published(
        paper=LOW_RANK,
        place="Appendix A.1",
        task="highway",
        where={"matrices": matrices},
        figures=_figures(adam=f"{100 - accuracy:.2f}"),
        protocol={"hidden": 1024, "rank": 256, "batch_size": 100},
        remark=f"Printed as an accuracy of {accuracy} %.",
    )


def _recurrent_convolutions(dataset: str, maps: int, g_momentum: str, momentum: str, remark: str = "") -> Published:
    return Published(
        paper=PATH_SPACE,
        place="Table 2",
        task="rcnn",
        where={"dataset": dataset, "maps": maps},
        figures=_figures(g_momentum=g_momentum, momentum=momentum),
        order=("g_momentum", "momentum"),
        protocol={"epochs": 200, "batch_size": 64, "weight_decay": 1e-4, "train_examples": None},
        remark=f"SGD with momentum 0.9 in both spaces. {remark}".strip(),
    )


def _language(dataset: str, epochs: int, batch_size: int) -> Published:
    return Published(
        paper=PATH_SPACE,
        place="Figure 4",
        task="lm",
        where={"dataset": dataset},
        figures={},
        order=("g_sgd", "sgd", "path_sgd"),
        protocol={"network": "relu-4x1550", "train_tokens": None, "epochs": epochs, "batch_size": batch_size},
        remark="The paper shows bars without numbers that can be read.",
    )


def _characters(dataset: str, adam: str, path_adam: str) -> Published:
    return Published(
        paper=PATH_SGD,
        place="Table 3",
        task="lm",
        where={"dataset": dataset, "network": "relu-2048"},
        figures=_figures(adam=adam, path_adam=path_adam),
        order=("path_adam", "adam"),
        protocol={"train_tokens": None},
    )


def _low_rank_characters(network: str, perplexity: float) -> Published:
    return Published(
        paper=LOW_RANK,
        place="Table 2",
        task="lm",
        where={"dataset": "ptb_char", "network": network},
        figures=_figures(adam=f"{math.log2(perplexity):.3f}"),
        protocol={"train_tokens": None},
        remark=f"Printed as a perplexity of {perplexity} per character.",
    )


PUBLISHED: tuple[Published, ...] = (
    *_sequential_mnist("plain", 28, ("1.50 ± 0.03", "1.59 ± 0.06", "1.75 ± 0.03"), ("1.50 ± 0.07", "1.72 ± 0.07")),
    *_sequential_mnist("plain", 98, ("2.70 ± 0.09", "3.07 ± 0.18", "2.99 ± 0.08"), ("2.49 ± 0.08", "3.10 ± 0.10")),
    *_sequential_mnist("permuted", 28, ("3.80 ± 0.09", "4.19 ± 0.13", "4.12 ± 0.24"), ("3.73 ± 0.05", "4.06 ± 0.1")),
    *_sequential_mnist("permuted", 98, ("5.42 ± 0.05", "5.70 ± 0.16", "5.47 ± 0.03"), ("5.42 ± 0.1", "5.57 ± 0.09")),
    _pixel_by_pixel(
        "irnn:100",
        "For SGD the one of ten initial networks that did not diverge.",
        ("path_sgd", "sgd"),
        sgd="7.1",
        path_sgd="3.1",
    ),
    _pixel_by_pixel("lstm:128", "Quoted there from Arjovsky et al. (2016).", rmsprop="1.8"),
    _pixel_by_pixel("urnn:512", "Quoted there from Arjovsky et al. (2016).", rmsprop="4.9"),
    _permuted("gru:128", 92.8),
    _permuted("low-rank-gru:128/24", 91.8),
    _permuted("low-rank-gru:512/4", 91.3),
    _permuted("low-rank-diagonal-gru:64/24", 91.9),
    _permuted("low-rank-diagonal-gru:128/24", 93.5),
    _permuted("low-rank-diagonal-gru:256/24", 94.7),
    _adding(100, "0", "0"),
    _adding(400, "0", "0"),
    _adding(750, "16.7", "0"),
    _copying("fixed", 500, 35_000),
    _copying("variable-length", 100, 30_000),
    _copying("variable-lag", 100, 38_000),
    _highway("low-rank", 98.83),
    _highway("low-rank-diagonal", 98.64),
    _recurrent_convolutions("mnist", 32, "0.36", "0.38"),
    _recurrent_convolutions("mnist", 64, "0.31", "0.37"),
    _recurrent_convolutions("mnist", 96, "0.31", "0.39"),
    _recurrent_convolutions("cifar-10", 96, "7.38", "7.47"),
    _recurrent_convolutions("cifar-10", 128, "6.61", "7.53"),
    _recurrent_convolutions("cifar-10", 160, "6.52", "7.54", "Table 4 has 196 maps for this column."),
    _recurrent_convolutions("cifar-100", 96, "31.52", "33.34", "Table 4 has 32.02 for G-SGD."),
    _recurrent_convolutions("cifar-100", 128, "29.64", "31.51"),
    _recurrent_convolutions("cifar-100", 160, "28.78", "29.67", "Table 4 has 196 maps for this column."),
    _language("ptb", 750, 40),
    _language("wikitext-2", 750, 40),
    _language("ptb_char", 750, 128),
    _language("enwik8", 100, 128),
    _characters("ptb_char", "1.55", "1.47"),
    _characters("text8", "1.65", "1.58"),
    _low_rank_characters("gru-1000", 2.96),
    _low_rank_characters("gru-1000-dropout", 2.92),
    _low_rank_characters("gru-3298-dropout", 2.77),
    _low_rank_characters("lstm-1000-dropout", 2.92),
    _low_rank_characters("gru-1000-64", 2.92),
    _low_rank_characters("gru-3298-128", 2.95),
    _low_rank_characters("gru-3298-128-dropout", 2.86),
    _low_rank_characters("gru-5459-64-dropout", 2.82),
    _low_rank_characters("gru-5459-64-tied-dropout", 2.81),
    _low_rank_characters("gru-1000-64-tied", 2.9),
    _low_rank_characters("gru-4480-128-tied-dropout", 2.86),
    _low_rank_characters("gru-6985-64-tied-dropout", 2.76),
    _low_rank_characters("lstm-1740-300-dropout", 2.86),
)
