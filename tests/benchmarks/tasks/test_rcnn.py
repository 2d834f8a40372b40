"""Recurrent convolutional networks on images."""

import functools
import os

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.data import Images
from benchmarks.tasks import rcnn
from benchmarks.tasks.rcnn import PRESETS, ImageClassification, Rcnn, load
from pathspace.models import RCNN
from tests.benchmarks.recorded import recorded_runs


@pytest.fixture
def toy_images(monkeypatch):
    """Images of noise on the left or on the right side."""
    rng = np.random.default_rng(0)

    def part(count):
        labels = np.arange(count, dtype=np.int32) % 2
        pixels = rng.integers(256, size=(count, 8, 8), dtype=np.uint8)
        pixels[labels == 0, :, :4] = 0
        pixels[labels == 1, :, 4:] = 0
        return pixels, labels

    loaded = Images(*part(240), *part(50), 2, ("of noise",))
    monkeypatch.setattr(rcnn, "images", lambda dataset, data_dir: loaded)
    return loaded


@pytest.fixture
def small_networks(monkeypatch):
    """One recurrent layer of one iteration."""
    monkeypatch.setattr(rcnn, "RCNN", functools.partial(RCNN, layers=1, iterations=1))


@pytest.mark.parametrize(
    ("graph", "optimizers"),
    [("exact", ("g_momentum",)), pytest.param("paper", ("momentum", "g_momentum"), marks=pytest.mark.slow)],
)
def test_command_learns_and_leaves_its_results(graph, optimizers, toy_images, small_networks, tmp_path, capsys):
    task = Rcnn(
        maps=(4,),
        epochs=8,
        batch_size=20,
        train_examples=200,
        momentum_learning_rates=(0.02,),
        optimizers=optimizers,
        graph=graph,
        output=tmp_path,
    )
    task.run()
    output = capsys.readouterr().out
    lines = recorded_runs(tmp_path / "mnist" / "4" / "runs.jsonl")
    assert [line["optimizer"] for line in lines] == list(optimizers)
    for line in lines:
        assert line["test_error"][-1] < 0.2
        assert line["train_loss"][-1] < line["train_loss"][0]
        assert len(line["validation_error"]) == 8
        assert line["experiment"]["quantity"]["by_chance"] == 0.5
        assert line["experiment"]["notes"][:2] == ["of noise", "trained on 200 images; 20 are held out to validate"]
        assert (line["settings"]["dataset"], line["settings"]["maps"], line["settings"]["graph"]) == ("mnist", 4, graph)
    assert "of noise" in output
    assert (tmp_path / "mnist" / "4" / "learning_curves.png").exists()


def test_validation_images_are_stratified_and_not_trained_on(toy_images):
    for count in (None, 100):
        data = load("mnist", None, count)
        assert [len(part.labels) for part in data[:3]] == [count or 220, 20, 50]
        assert np.bincount(data.train.labels).tolist() == [(count or 220) // 2] * 2
        assert np.bincount(data.validation.labels).tolist() == [10, 10]
        trained, held_out = ({image.tobytes() for image in part.inputs} for part in data[:2])
        assert not trained & held_out


def test_each_channel_is_standardised_by_the_training_images(monkeypatch):
    colours = np.random.default_rng(0).normal([50, 120, 200], [5, 10, 20], size=(48, 4, 4, 3)).astype(np.uint8)
    labels = np.arange(48, dtype=np.int32) % 2
    monkeypatch.setattr(rcnn, "images", lambda *_: Images(colours, labels, colours, labels, 2, ()))
    data = load("cifar-10", None, None)
    pixels = data.standardize(jnp.asarray(data.train.inputs))
    assert pixels.dtype == jnp.float32
    assert_allclose(pixels.mean((0, 1, 2)), 0, atol=1e-4)
    assert_allclose(pixels.std((0, 1, 2)), 1, rtol=1e-4)


def test_more_training_examples_than_there_are_is_an_error(toy_images):
    with pytest.raises(
        ValueError, match="up to the 220 images of mnist that are left to train on, got 221: take fewer"
    ):
        load("mnist", None, 221)


def problem_of(data, edges=None):
    return ImageClassification(
        make_model=lambda rngs: rcnn.RCNN(1, 4, 2, variant="cited", rngs=rngs),
        data=data[:3],
        prepare=data.standardize,
        batch_size=20,
        epochs=8,
        edges=edges,
    )


def test_learning_rate_falls_to_a_tenth_at_the_papers_times(toy_images):
    schedule = problem_of(load("mnist", None, 200)).schedule(0.5)
    rates = [schedule(step) for step in (0, 39, 40, 59, 60, 69, 70, 79)]
    assert_allclose(rates, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005], rtol=1e-5)


def test_graphs_are_the_traced_one_and_the_papers_chain(toy_images, small_networks):
    data = load("mnist", None, None)
    exact, paper = problem_of(data).graph, problem_of(data, edges=rcnn._chain(4)).graph
    assert {leaf.name for leaf in exact.leaves} >= {"first_norm/scale", "layers/0/norms/0/bias"}
    chain = {"first/kernel", "layers/0/feed_forward/kernel", "layers/0/recurrent/kernel", "readout/kernel"}
    assert {leaf.name for leaf in paper.leaves} == chain
    assert paper.num_units == 8


def test_options_override_the_preset():
    settings = Rcnn(preset="paper", seeds=7)._settings()
    assert (settings.seeds, settings.epochs, settings.datasets) == (7, 200, PRESETS["paper"].datasets)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"seeds": 0},
        {"batch_size": 0},
        {"train_examples": 0},
        {"dropout": 1.0},
        {"weight_decay": -1.0},
        {"maps": ()},
        {"datasets": ()},
        {"optimizers": ()},
        {"momentum_learning_rates": (0.1, 0.1)},
    ],
)
def test_impossible_options_are_named(changes):
    with pytest.raises(ValueError, match=f"expected {next(iter(changes))}"):
        Rcnn(**changes)


@pytest.mark.slow
@pytest.mark.skipif("PATHSPACE_DATA" not in os.environ, reason="needs $PATHSPACE_DATA")
def test_real_digits_are_learnt(tmp_path):
    Rcnn(train_examples=3000, maps=(8,), momentum_learning_rates=(0.015,), epochs=2, output=tmp_path).run()
    lines = recorded_runs(tmp_path / "mnist" / "8" / "runs.jsonl")
    for line in lines:
        assert line["test_error"][-1] < 0.3
