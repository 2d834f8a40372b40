"""Data that several tasks are tested on."""

import numpy as np
import pytest

from benchmarks import mnist
from benchmarks.data import Images


@pytest.fixture
def images(monkeypatch):
    """Noisy images of ten classes, whose bright rows differ, in place of MNIST's."""
    random = np.random.default_rng(0)

    def part(count):
        labels = np.arange(count, dtype=np.int32) % 10
        pixels = random.integers(0, 100, (count, 28, 28), np.uint8)
        pixels[np.arange(count), 15 + labels] += 155
        return pixels, labels

    made = Images(*part(480), *part(100), classes=10, notes=("made up",))
    monkeypatch.setattr(mnist, "images", lambda dataset, data_dir: {"mnist": made}[dataset])
    return made
