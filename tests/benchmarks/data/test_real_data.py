"""The data sets themselves, where they are on this machine."""

import numpy as np
import pytest

from benchmarks.data import images, locate, text


def skip_where_absent(dataset):
    if None in locate(dataset).values():
        pytest.skip(f"{dataset} is not on this machine: set PATHSPACE_DATA to the folder that has it")


@pytest.mark.parametrize(
    ("dataset", "shape", "first_labels", "notes"),
    [
        ("mnist", (28, 28), ([5, 0, 4, 1, 9], [7, 2, 1, 0, 4]), 0),
        ("fashion_mnist", (28, 28), ([9, 0, 0, 3, 0], [9, 2, 1, 1, 6]), 0),
        pytest.param("cifar-10", (32, 32, 3), ([6, 9, 9, 4, 1], [3, 8, 8, 0, 6]), 0, marks=pytest.mark.slow),
        pytest.param("cifar-100", (32, 32, 3), ([19, 29, 0, 11, 1], [49, 33, 72, 51, 71]), 0, marks=pytest.mark.slow),
        pytest.param("cifar10_jpeg", (32, 32, 3), ([0] * 5, [0] * 5), 1, marks=pytest.mark.slow),
    ],
)
def test_images(dataset, shape, first_labels, notes):
    skip_where_absent(dataset)
    data = images(dataset)
    train = 60_000 if shape == (28, 28) else 50_000
    assert (data.train_images.shape, data.test_images.shape) == ((train, *shape), (10_000, *shape))
    assert (data.train_labels[:5].tolist(), data.test_labels[:5].tolist()) == first_labels
    assert len(data.notes) == notes
    if dataset != "mnist":
        assert set(np.bincount(data.train_labels)) == {train // data.classes}


@pytest.mark.parametrize(
    ("dataset", "counts", "vocabulary", "first"),
    [
        ("ptb", (929_589, 73_760, 82_430), 10_000, "aer banknote berlitz"),
        ("ptb_char", (5_017_482, 393_042, 442_423), 50, "a e r _ b"),
        ("wikitext-2", (2_088_628, 217_646, 245_569), 33_278, "<eos> = Valkyria Chronicles III = <eos>"),
        pytest.param("text8", (90_000_000, 5_000_000, 5_000_000), 27, "", marks=pytest.mark.slow),
        pytest.param("enwik8", (90_000_000, 5_000_000, 5_000_000), 205, "", marks=pytest.mark.slow),
    ],
)
def test_texts(dataset, counts, vocabulary, first):
    skip_where_absent(dataset)
    data = text(dataset)
    assert tuple(map(len, data[:3])) == counts
    assert len(set(data.vocabulary)) == len(data.vocabulary) == vocabulary
    for part in data[:3]:
        assert part.dtype == np.int32
        assert 0 <= part.min() <= part.max() < vocabulary
    words = first.split()
    assert [data.vocabulary[number] for number in data.train[: len(words)]] == words
