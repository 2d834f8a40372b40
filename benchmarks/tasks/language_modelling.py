"""Language models of words and of characters: the protocols of the three papers."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, Int, PyTree

import pathspace
from benchmarks.data import text
from benchmarks.language_models import LOW_RANK, NETWORKS, Carrying
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.options import Work, check_distinct, check_positive, resolved, settings_of
from benchmarks.reporting import train_and_show
from benchmarks.results import Experiment, Quantity
from benchmarks.sweeps import grid
from benchmarks.training import Configuration, Problem
from pathspace.models import ReluLanguageModel

_WORDS = ("ptb", "wikitext-2")
_FAMILIES = ("sgd", "adam")

_Dataset = Literal["ptb", "wikitext-2", "ptb_char", "text8", "enwik8"]
_Name = Literal["sgd", "g_sgd", "adam", "g_adam", "path_adam"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """What the options of a name set, for one text; those that are None there have no limit."""

    networks: tuple[str, ...]
    optimizers: tuple[str, ...]
    epochs: int
    batch_size: int
    segment: int
    seeds: int = 1
    sgd_learning_rates: tuple[float, ...] = (10.0, 7.5, 5.0, 2.5, 1.0, 0.75, 0.5, 0.1)
    adam_learning_rates: tuple[float, ...] = (1e-3, 5e-4, 1e-4)
    weight_decay: float = 0.0
    max_gradient_norm: float | None = None
    train_tokens: int | None = None
    evaluated_tokens: int | None = None

    def __post_init__(self) -> None:
        limits = [name for name in ("train_tokens", "evaluated_tokens") if getattr(self, name) is not None]
        check_positive(self, "epochs", "batch_size", "segment", "seeds", *limits)
        check_distinct(self, "networks", "optimizers", *(f"{family}_learning_rates" for family in _FAMILIES))
        if self.weight_decay < 0:
            raise ValueError(f"expected weight_decay of 0 or more, got {self.weight_decay}")
        if self.max_gradient_norm is not None and self.max_gradient_norm <= 0:
            raise ValueError(f"expected max_gradient_norm above 0, got {self.max_gradient_norm}")
        for name in self.networks:
            if name not in NETWORKS:
                raise ValueError(f"expected networks to be some of {', '.join(NETWORKS)}, got {name!r}")
            if not any(map(NETWORKS[name].allows, self.optimizers)):
                raise ValueError(
                    f"expected optimizers with one that can train {name}, got {self.optimizers}: "
                    "add one in weight space"
                )


_QUICK = Preset(
    networks=("relu-2x200",),
    optimizers=("sgd", "g_sgd"),
    epochs=2,
    batch_size=32,
    segment=50,
    sgd_learning_rates=(2.5, 5.0, 10.0),
    max_gradient_norm=0.25,
    train_tokens=300_000,
    evaluated_tokens=100_000,
)
_G_SGD = Preset(
    networks=("relu-4x1550",),
    optimizers=("sgd", "g_sgd"),
    epochs=750,
    batch_size=40,
    segment=70,
    weight_decay=1e-6,
    max_gradient_norm=0.25,
)
_PATH_SGD = Preset(networks=("relu-2048",), optimizers=("adam", "path_adam"), epochs=20, batch_size=32, segment=50)
PRESETS = {
    "quick": {"ptb_char": _QUICK},
    "g-sgd": {
        "ptb": _G_SGD,
        "wikitext-2": _G_SGD,
        "ptb_char": dataclasses.replace(_G_SGD, batch_size=128),
        "enwik8": dataclasses.replace(_G_SGD, batch_size=128, epochs=100),
    },
    "path-sgd": {"ptb_char": _PATH_SGD, "text8": dataclasses.replace(_PATH_SGD, segment=180)},
    "low-rank": {
        "ptb_char": Preset(
            networks=tuple(LOW_RANK),
            optimizers=("adam", "g_adam"),
            epochs=20,
            batch_size=20,
            segment=100,
            # The paper's rates of GRUs and of LSTMs.
            adam_learning_rates=(1e-3, 2e-4),
        )
    },
}
_NOTES = {
    "quick": (),
    "g-sgd": (
        "segments all have one length, and activations are not regularised",
        "the paper chooses the weight decay from 1e-5, 1e-6 and 1e-7",
    ),
    "path-sgd": ("batch size, epochs and the state carried between segments are ours: the paper does not name them",),
    "low-rank": (
        "the state is carried from sentence to sentence; the paper starts each anew",
        "batch size, length of segments, epochs and dropout rate are ours: the paper does not name them",
    ),
}


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """Train language models of words or characters with optimisers in weight space, in path space, or both.

    The training text is cut into streams, as many as a batch has; an epoch goes through all of them side by side in
    segments, and the state is carried from one to the next, from zero at its beginning. What does not fill a segment
    is left out. Validation and test text are cut into streams in the same way, and nothing is left out but the first
    token, which nothing predicts. The quality is perplexity for words and bits per character for characters, bytes
    too. The files hold a hundredth of it, since tables show errors in hundredths. Guessing is to know how often each
    token occurs in the training text. Learning rates are chosen on the validation text.

    The preset g-sgd has the protocol of "Path Space for Recurrent Neural Networks with ReLU Activations" (2020),
    appendix A.2; path-sgd that of "Path-Normalized Optimization of Recurrent Neural Networks with ReLU Activations"
    (2016), section 5.3; low-rank that of "Low-rank passthrough neural networks" (2016), table 2. Optimisers that
    cannot train a network, or would not differ there from those in weight space, are left out for it.
    """

    preset: Literal["quick", "g-sgd", "path-sgd", "low-rank"] = "quick"
    """Sets what is not set below: some minutes on two cores, or the protocols of the papers, for accelerators."""
    datasets: tuple[_Dataset, ...] | None = None
    """Texts, of those of the preset; None for all of them."""
    networks: tuple[str, ...] | None = None
    """Networks: relu-2x200, relu-4x1550, relu-2048, and gru-1000, gru-1000-64 and the others of the preset low-rank."""
    optimizers: tuple[_Name, ...] | None = None
    """Optimisers to compare; those with g_ run in path space, path_adam is Adam on gradients divided by kappa."""
    epochs: int | None = None
    """Passes over the training text."""
    batch_size: int | None = None
    """Streams that a text is cut into."""
    segment: int | None = None
    """Tokens of a stream that gradients flow through."""
    seeds: int | None = None
    """Runs of each setting; a seed sets the initial weights and dropout."""
    sgd_learning_rates: tuple[float, ...] | None = None
    """Learning rates of SGD and G-SGD."""
    adam_learning_rates: tuple[float, ...] | None = None
    """Learning rates of Adam, G-Adam and Path-Adam."""
    weight_decay: float | None = None
    """L2 penalty, of weights or of the values of basis paths."""
    max_gradient_norm: float | None = None
    """Norm that gradients are clipped to."""
    train_tokens: int | None = None
    """Tokens of the training text to train on, from its beginning."""
    evaluated_tokens: int | None = None
    """Tokens of the validation text and of the test text to evaluate on, from their beginnings."""
    data_dir: Path | None = None
    """Folder with the data files; None for $PATHSPACE_DATA, or what was downloaded before."""
    output: Path = Path("results/lm")
    """Folder for the pictures and results, with one inside it for each text and network."""
    work: tyro.conf.OmitArgPrefixes[Work] = dataclasses.field(default_factory=Work)

    def __post_init__(self) -> None:
        self._settings()

    def run(self) -> None:
        """Train each network on each text, print the tables, and write pictures and results."""
        for dataset, settings in self._settings().items():
            whole = text(dataset, self.data_dir)
            evaluated = settings.evaluated_tokens
            data = whole.train[: settings.train_tokens], whole.validation[:evaluated], whole.test[:evaluated]
            kept = zip(("training", "validation", "test"), data, whole[:3], strict=True)
            parts = [f"{name} text: the first {len(part):,} of {len(all_):,} tokens" for name, part, all_ in kept]
            limited = settings.train_tokens is not None or evaluated is not None
            notes = (*whole.notes, *_NOTES[self.preset], *(parts if limited else ()))
            for name in settings.networks:
                self._train(dataset, name, data, len(whole.vocabulary), settings, notes)

    def _train(
        self,
        dataset: str,
        name: str,
        data: tuple[np.ndarray, np.ndarray, np.ndarray],
        vocabulary: int,
        settings: Preset,
        notes: tuple[str, ...],
    ) -> None:
        network, of_words = NETWORKS[name], dataset in _WORDS
        problem = NextToken(
            make_model=functools.partial(Carrying, network, vocabulary, settings.batch_size),
            data=data,
            batch_size=settings.batch_size,
            segment=settings.segment,
            prepare=functools.partial(jax.nn.one_hot, num_classes=vocabulary) if network.one_hot else _tokens,
            of_words=of_words,
            rescalable=network.rescalable,
            weight_decay=settings.weight_decay,
            max_gradient_norm=settings.max_gradient_norm,
        )
        configurations: dict[str, Configuration] = {
            optimizer: grid(getattr(settings, f"{OPTIMIZERS[optimizer].family}_learning_rates"), (0.0,), settings.seeds)
            for optimizer in settings.optimizers
            if network.allows(optimizer)
        }
        unit = "perplexity" if of_words else "bits per character"
        by_chance = float(quality(jnp.float32(unigram_cross_entropy(data[0], data[2], vocabulary)), of_words))
        train_and_show(
            Experiment(
                task="lm",
                variant=dataset,
                model=network.title,
                title=f"{dataset}: {network.title}",
                quantity=Quantity("test error", unit, by_chance),
                notes=notes,
            ),
            problem,
            configurations,
            settings.epochs,
            folder=self.output / dataset / name,
            settings=settings_of(self) | dataclasses.asdict(settings) | {"dataset": dataset, "network": name},
            work=self.work,
        )

    def _settings(self) -> dict[str, Preset]:
        known = PRESETS[self.preset]
        if self.datasets is not None:
            check_distinct(self, "datasets")
            if unknown := [name for name in self.datasets if name not in known]:
                raise ValueError(
                    f"expected datasets of the preset {self.preset}, {', '.join(known)}, got {', '.join(unknown)}: "
                    "take another preset"
                )
        return {name: resolved(self, known[name]) for name in self.datasets or known}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken(Problem):
    """Prediction of each token of a text from those before it.

    Attributes:
      data: training, validation and test text, int32.
      segment: tokens of a stream in a step.
      prepare: makes the model's inputs of tokens.
      of_words: whether errors are perplexities, not bits per token.
    """

    data: tuple[np.ndarray, np.ndarray, np.ndarray]
    segment: int
    prepare: Callable[[Array], Array]
    of_words: bool

    def __post_init__(self) -> None:
        if self._stream < self.segment:
            raise ValueError(
                f"expected a training text of more than {self.batch_size} x {self.segment} tokens, got "
                f"{len(self.data[0]):,}: take smaller batches or shorter segments"
            )

    @property
    def _stream(self) -> int:
        return (len(self.data[0]) - 1) // self.batch_size

    @functools.cached_property
    def graph(self) -> pathspace.ReductionGraph:
        """The model's reduction graph; of stacked ReLU layers the paper's, without embedding and readout."""
        _, params, variables = self._first
        model = self.merge(params, variables, training=False).model
        if isinstance(model, ReluLanguageModel):
            edges = {f"model/{name}": ends for name, ends in model.edges().items()}
            return pathspace.ReductionGraph.from_edges(params, edges)
        return super().graph

    def batches(self, key: Array) -> Int[Array, "steps batch"]:
        """Where the segments begin in the text, always in order."""
        first = jnp.arange(self.batch_size) * self._stream
        return first + self.segment * jnp.arange(self._stream // self.segment)[:, None]

    def loss(self, model: Carrying, data: PyTree, batch: Int[Array, " batch"]) -> Float[Array, ""]:
        """Mean cross-entropy in nats."""
        begins = batch % self._stream == 0
        state = jax.tree.map(lambda leaf: jnp.where(begins[:, None], 0, leaf), model.state.get_value())
        losses, state = self._losses(model.model, data[0], batch, state)
        model.state.set_value(state)
        return losses.mean()

    def errors(self, model: Carrying, data: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Hundredths of the perplexity, or of the bits per token."""
        validation, test = (quality(self._cross_entropy(model.model, part), self.of_words) for part in data[1:])
        return validation, test

    def one_input(self) -> Array:
        return self.prepare(jnp.zeros((1, self.segment), jnp.int32))

    def _losses(
        self, model: Any, tokens: Int[Array, " tokens"], first: Int[Array, " batch"], state: PyTree
    ) -> tuple[Float[Array, "batch segment"], PyTree]:
        positions = first[:, None] + jnp.arange(self.segment)
        logits, state = model(self.prepare(jnp.take(tokens, positions, mode="clip")), state)
        targets = jnp.take(tokens, positions + 1, mode="clip")
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets), state

    def _cross_entropy(self, model: Any, tokens: Int[Array, " tokens"]) -> Float[Array, ""]:
        predicted = len(tokens) - 1
        stream = math.ceil(predicted / self.batch_size)
        first = jnp.arange(self.batch_size) * stream

        def add(carry: tuple[PyTree, Array], begin: Array) -> tuple[tuple[PyTree, Array], None]:
            state, total = carry
            losses, state = self._losses(model, tokens, first + begin, state)
            steps = begin + jnp.arange(self.segment)
            counts = (steps < stream) & (first[:, None] + steps < predicted)
            return (state, total + jnp.sum(losses, where=counts)), None

        begins = jnp.arange(0, stream, self.segment)
        (_, total), _ = jax.lax.scan(add, (model.initial_state(self.batch_size), jnp.zeros(())), begins)
        return total / predicted


def quality(cross_entropy: Float[Array, ""], of_words: bool) -> Float[Array, ""]:
    """A hundredth of the perplexity, for words, or else of the bits per token."""
    return (jnp.exp(cross_entropy) if of_words else cross_entropy / math.log(2)) / 100


def unigram_cross_entropy(train: np.ndarray, test: np.ndarray, vocabulary: int) -> float:
    """Of the tokens of `test` but the first, given how often each occurs in `train`, plus one; in nats."""
    counts = np.bincount(train, minlength=vocabulary) + 1
    return float(-np.log(counts / counts.sum())[test[1:]].mean())


def _tokens(tokens: Array) -> Array:
    return tokens
