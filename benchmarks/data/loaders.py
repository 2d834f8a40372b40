"""The data sets as arrays, as they are published: no scaling, no validation images."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from benchmarks.data.files import read
from benchmarks.data.image_formats import Labelled, cifar_batch, idx, jpeg_archive
from benchmarks.data.text_formats import (
    characters,
    number_bytes,
    number_words,
    single_bytes,
    spaced_characters,
    split_text,
    words,
)


class Images(NamedTuple):
    """Labelled images.

    Attributes:
      train_images: for training.
      train_labels: their classes, from 0.
      test_images: for testing.
      test_labels: their classes.
      classes: how many there are.
      notes: what sets these files apart from the official ones; reports print it.
    """

    train_images: UInt8[np.ndarray, "train height width *channels"]
    train_labels: Int32[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test height width *channels"]
    test_labels: Int32[np.ndarray, " test"]
    classes: int
    notes: tuple[str, ...]


class Text(NamedTuple):
    """A text in three parts, its symbols (words, characters or bytes) given by their numbers in the vocabulary.

    Attributes:
      train: for training.
      validation: for choices.
      test: for testing.
      vocabulary: the symbols of all three parts, sorted; bytes for enwik8.
      notes: what sets these files apart from the official ones; reports print it.
    """

    train: Int32[np.ndarray, " train"]
    validation: Int32[np.ndarray, " validation"]
    test: Int32[np.ndarray, " test"]
    vocabulary: tuple[str, ...] | tuple[bytes, ...]
    notes: tuple[str, ...]


def images(dataset: str, data_dir: Path | None = None) -> Images:
    """Load labelled images.

    `mnist` and `fashion_mnist` have images of 28x28 pixels; `cifar-10`, `cifar-100` (with its 100 fine classes) and
    `cifar10_jpeg` have images of 32x32 pixels in 3 channels, red, green and blue.

    Args:
      dataset: one of these names.
      data_dir: a folder to look through first for the files; see `locate`.

    Raises:
      ValueError: no data set of images has this name, or a file is not in its format.
      MissingDataError: a file is not found and cannot be downloaded.
      CorruptDataError: a file is not what the registry says.

    Source: LeCun et al., "Gradient-based learning applied to document recognition" (1998); Xiao et al.,
      "Fashion-MNIST" (2017); Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
    """
    if dataset not in _IMAGES:
        raise ValueError(f"expected a data set of images, one of {', '.join(_IMAGES)}, got {dataset!r}")
    parse, classes = _IMAGES[dataset]
    contents = read(dataset, data_dir)
    train, test = parse(contents.files)
    for part, each in (("training", train), ("test", test)):
        if len(each.images) != len(each.labels) or not 0 <= each.labels.min() <= each.labels.max() < classes:
            raise ValueError(
                f"expected a label from 0 to {classes - 1} for each of the {len(each.images)} {part} images of "
                f"{dataset}, got {len(each.labels)} labels from {each.labels.min()} to {each.labels.max()}"
            )
    return Images(*train, *test, classes, contents.notes)


def text(dataset: str, data_dir: Path | None = None) -> Text:
    """Load a text.

    `ptb` and `wikitext-2` are texts of words, with `<eos>` for the end of each line; `ptb_char` (with `_` for a blank)
    and `text8` of characters; `enwik8` of bytes. The last two are split into 90 %, 5 % and 5 %.

    Args:
      dataset: one of these names.
      data_dir: a folder to look through first for the files; see `locate`.

    Raises:
      ValueError: no text has this name, or a file is not in its format.
      MissingDataError: a file is not found and cannot be downloaded.
      CorruptDataError: a file is not what the registry says.

    Source: Mikolov et al., "Recurrent neural network based language model" (2010); Merity et al., "Pointer Sentinel
      Mixture Models" (2017); Mahoney, "Large Text Compression Benchmark" (2006).
    """
    if dataset not in _TEXTS:
        raise ValueError(f"expected a text, one of {', '.join(_TEXTS)}, got {dataset!r}")
    contents = read(dataset, data_dir)
    (train, validation, test), vocabulary = _TEXTS[dataset](contents.files)
    return Text(train, validation, test, vocabulary, contents.notes)


_Files = Mapping[str, bytes]


def _idx(files: _Files) -> tuple[Labelled, Labelled]:
    def array(name: str, dimensions: int) -> UInt8[np.ndarray, "..."]:
        return idx(gzip.decompress(files[name]), name, dimensions)

    def part(name: str) -> Labelled:
        pixels, labels = array(f"{name}-images-idx3-ubyte.gz", 3), array(f"{name}-labels-idx1-ubyte.gz", 1)
        if pixels.shape[1:] != (28, 28):
            raise ValueError(f"expected images of 28x28 pixels in {name}-images-idx3-ubyte.gz, got {pixels.shape}")
        return Labelled(pixels, labels.astype(np.int32))

    return part("train"), part("t10k")


def _cifar_10(files: _Files) -> tuple[Labelled, Labelled]:
    *train, test = (cifar_batch(content, name, "labels") for name, content in files.items())
    images, labels = zip(*train, strict=True)
    return Labelled(np.concatenate(images), np.concatenate(labels)), test


def _cifar_100(files: _Files) -> tuple[Labelled, Labelled]:
    train, test = (cifar_batch(files[name], name, "fine_labels") for name in ("train", "test"))
    return train, test


def _cifar_10_jpeg(files: _Files) -> tuple[Labelled, Labelled]:
    ((name, content),) = files.items()
    return jpeg_archive(content, name)


_IMAGES: dict[str, tuple[Callable[[_Files], tuple[Labelled, Labelled]], int]] = {
    "mnist": (_idx, 10),
    "fashion_mnist": (_idx, 10),
    "cifar-10": (_cifar_10, 10),
    "cifar-100": (_cifar_100, 100),
    "cifar10_jpeg": (_cifar_10_jpeg, 10),
}

_Numbered = tuple[Sequence[Int32[np.ndarray, " _"]], tuple[str, ...] | tuple[bytes, ...]]


def _words(files: _Files) -> _Numbered:
    return number_words([words(content, name) for name, content in files.items()])


def _ptb_char(files: _Files) -> _Numbered:
    parts, vocabulary = number_bytes([spaced_characters(content, name) for name, content in files.items()])
    return parts, tuple(symbol.decode() for symbol in vocabulary)


def _text8(files: _Files) -> _Numbered:
    parts, vocabulary = number_bytes(split_text(characters(files["text8"], "text8")))
    return parts, tuple(symbol.decode() for symbol in vocabulary)


def _enwik8(files: _Files) -> _Numbered:
    return number_bytes(split_text(single_bytes(files["enwik8"], "enwik8")))


_TEXTS: dict[str, Callable[[_Files], _Numbered]] = {
    "ptb": _words,
    "wikitext-2": _words,
    "ptb_char": _ptb_char,
    "text8": _text8,
    "enwik8": _enwik8,
}
