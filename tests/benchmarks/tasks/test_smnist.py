"""Sequential MNIST, on small images made up here."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks.mnist import load_mnist
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.tasks.smnist import KINDS, PRESETS, ImageSequences, Model, SequentialMnist
from benchmarks.training import split
from tests.benchmarks.recorded import recorded_runs


def test_split_is_fixed_and_stratified_and_pixels_are_standardised(images):
    mnist = load_mnist(None)
    for again, part in zip(load_mnist(None)[:3], mnist[:3], strict=True):
        assert_array_equal(again.inputs, part.inputs)
        assert part.inputs.dtype == np.uint8
        assert_array_equal(np.bincount(part.labels), len(part.labels) // 10)
    assert [len(part.labels) for part in mnist[:3]] == [440, 40, 100]
    pixels = mnist.standardize(jnp.asarray(mnist.train.inputs))
    assert pixels.dtype == jnp.float32
    assert_allclose([pixels.mean(), pixels.std()], [0, 1], atol=1e-3)


def test_sequences_are_rows_of_the_image_in_one_order_for_all(images):
    mnist = load_mnist(None)
    plain, permuted = (mnist.sequences(98, permuted=choice) for choice in (False, True))
    assert plain[2].inputs.shape == permuted[2].inputs.shape == (100, 98, 8)
    assert_array_equal(plain[2].inputs.reshape(100, 28, 28), images.test_images)
    order = np.random.RandomState(0).permutation(784)
    for before, after in zip(plain, permuted, strict=True):
        assert_array_equal(after.inputs.reshape(-1, 784), before.inputs.reshape(-1, 784)[:, order])


def test_command_learns_and_leaves_its_results(images, tmp_path, capsys):
    SequentialMnist(
        models=("relu:16",),
        lengths=(28,),
        orders=("permuted",),
        optimizers=("path_sgd", "g_adam"),
        epochs=6,
        batch_size=16,
        seeds=1,
        path_sgd_learning_rates=(0.1,),
        adam_learning_rates=(0.03,),
        output=tmp_path,
    ).run()
    output = capsys.readouterr().out
    folder = tmp_path / "28-permuted" / "relu-16"
    lines = recorded_runs(folder / "runs.jsonl")
    assert [line["optimizer"] for line in lines] == ["path_sgd", "g_adam"]
    for line in lines:
        assert line["experiment"]["variant"] == "length 28, permuted"
        assert line["experiment"]["notes"] == ["made up", "40 training images are held out for validation"]
        assert line["settings"]["model"] == "relu:16"
        assert len(line["test_error"]) == 6
        assert line["train_loss"][-1] < line["train_loss"][0]
        assert OPTIMIZERS[line["optimizer"]].label in output
    assert lines[-1]["test_error"][-1] < 0.5
    assert (folder / "learning_curves.png").exists()


def test_model_without_units_is_trained_in_weight_space_alone(images, tmp_path):
    options = {"models": ("lstm:4",), "lengths": (14,), "epochs": 1, "batch_size": 64, "seeds": 1}
    rates = {"rmsprop_learning_rates": (0.001,)}
    SequentialMnist(**options, **rates, optimizers=("rmsprop", "g_rmsprop"), output=tmp_path).run()
    line = json.loads((tmp_path / "14-plain" / "lstm-4" / "runs.jsonl").read_text())
    assert line["optimizer"] == "rmsprop"


@pytest.mark.parametrize("name", KINDS)
def test_each_model_classifies_sequences_of_any_length(name):
    kind = Model.parse(f"{name}:6/2" if KINDS[name].low_rank else f"{name}:6").kind
    model = nnx.eval_shape(lambda: kind.make(8, 6, 2 if kind.low_rank else None, nnx.Rngs(0)))
    graphdef, variables = nnx.split(model)
    outputs = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), variables, jnp.ones((3, 5, 8)))
    assert outputs.shape == (3, 10)


def test_parameters_are_those_of_the_table_in_the_paper():
    counts = {}
    for text in PRESETS["low-rank-paper"].models:
        model = Model.parse(text)
        shapes = nnx.eval_shape(lambda model=model: model.kind.make(1, model.units, model.rank, nnx.Rngs(0)))
        # All of the paper's numbers are those of its equations less twice the units.
        counts[text] = sum(leaf.size for leaf in jax.tree.leaves(split(shapes)[1])) - 2 * model.units
    assert_allclose(list(counts.values()), [51.0e3, 20.2e3, 19.5e3, 10.3e3, 20.6e3, 41.2e3], atol=50)


def test_gradients_of_gated_units_are_clipped_in_each_component(images):
    kind = KINDS["low-rank-gru"]
    mnist = load_mnist(None)
    problem = ImageSequences(
        make_model=lambda rngs: kind.make(28, 4, 2, rngs),
        data=mnist.sequences(28, permuted=False),
        prepare=mnist.standardize,
        batch_size=1,
        rescalable=kind.rescalable,
        max_gradient_component=kind.max_gradient_component,
    )
    transformation = problem.transformation(OPTIMIZERS["sgd"], 1.0, None)
    gradients = {"kernel": jnp.array([[-3.0, 0.5, 2.0]])}
    updates, _ = transformation.update(gradients, transformation.init(gradients), gradients)
    assert_allclose(optax.tree.scale(-1.0, updates)["kernel"], [[-1, 0.5, 1]])


def test_options_override_the_preset():
    task = SequentialMnist(preset="low-rank-paper", seeds=7, adam_learning_rates=(0.5,))
    settings = task._settings()
    assert (settings.seeds, settings.adam_learning_rates, settings.epochs) == (7, (0.5,), 182)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"seeds": 0},
        {"orders": ("plain", "plain")},
        {"sgd_learning_rates": ()},
        {"rmsprop_learning_rates": ()},
        {"optimizers": ()},
    ],
)
def test_impossible_options_are_named(changes):
    with pytest.raises(ValueError, match=f"expected {next(iter(changes))}"):
        SequentialMnist(**changes)


@pytest.mark.parametrize("text", ["relu", "relu:0", "relu:100/4", "low-rank-gru:128", "transformer:8"])
def test_unknown_models_are_named_beside_the_known(text):
    with pytest.raises(ValueError, match=r"expected models to be some of relu:UNITS.*low-rank-gru:UNITS/RANK") as error:
        SequentialMnist(models=(text,))
    assert str(error.value).endswith(f"got {text!r}")


def test_rank_above_the_units_is_an_error():
    with pytest.raises(ValueError, match="expected models of a rank up to their 4 units, got 'low-rank-gru:4/8'"):
        SequentialMnist(models=("low-rank-gru:4/8",))


@pytest.mark.parametrize("length", [0, 30])
def test_length_must_divide_the_pixels(length):
    with pytest.raises(ValueError, match=f"expected lengths that divide the 784 pixels of an image, got {length}"):
        SequentialMnist(lengths=(28, length))


@pytest.mark.parametrize(
    ("model", "optimizer"), [("lstm:4", "g_adam"), ("gru:4", "g_rmsprop"), ("low-rank-gru:4/2", "path_sgd")]
)
def test_model_that_no_optimiser_trains_is_an_error(model, optimizer):
    with pytest.raises(
        ValueError, match=rf"expected optimizers .* {KINDS[model.split(':')[0]].title}, got .*{optimizer}"
    ):
        SequentialMnist(models=("relu:4", model), optimizers=(optimizer,))


@pytest.mark.slow
def test_real_images_are_learned(tmp_path):
    if "PATHSPACE_DATA" not in os.environ:
        pytest.skip("MNIST is not on this machine: set PATHSPACE_DATA to the folder that has it")
    rates = {"adam_learning_rates": (0.003,)}
    SequentialMnist(models=("relu:32",), optimizers=("adam",), epochs=1, seeds=1, **rates, output=tmp_path).run()
    line = json.loads((tmp_path / "28-plain" / "relu-32" / "runs.jsonl").read_text())
    assert line["test_error"][-1] < 0.3
