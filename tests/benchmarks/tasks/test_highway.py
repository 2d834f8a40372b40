"""Highway networks, on small images made up here."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from benchmarks.data import Examples
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.tasks.highway import PRESETS, Highway, HighwayProblem, _model
from tests.benchmarks.recorded import recorded_runs


@pytest.mark.slow
def test_command_learns_and_leaves_its_results(images, tmp_path, capsys):
    Highway(
        matrices=("full",),
        optimizers=("g_adam",),
        hidden=16,
        rank=4,
        epochs=4,
        halving_epochs=2,
        seeds=1,
        learning_rates=(0.03,),
        batch_size=20,
        output=tmp_path,
    ).run()
    output = capsys.readouterr().out
    folder = tmp_path / "full"
    lines = recorded_runs(folder / "runs.jsonl")
    assert [line["optimizer"] for line in lines] == ["g_adam"]
    for line in lines:
        assert line["experiment"]["variant"] == "full matrices"
        assert line["experiment"]["notes"][0] == "made up"
        assert line["settings"]["matrices"] == "full"
        assert len(line["test_error"]) == 4
        assert line["train_loss"][-1] < line["train_loss"][0]
        assert line["test_error"][-1] < 0.5
        assert OPTIMIZERS[line["optimizer"]].label in output
    assert (folder / "learning_curves.png").exists()


def test_loss_is_the_squared_hinge_and_the_penalty_of_the_readout():
    class Fixed(nnx.Module):
        def __init__(self):
            self.readout = nnx.Linear(3, 10, kernel_init=nnx.initializers.constant(2.0), rngs=nnx.Rngs(0))

        def __call__(self, inputs):
            return jnp.tile(jnp.array([0.5, -0.5, *[-2.0] * 8]), (len(inputs), 1))

    examples = Examples(np.zeros((2, 4), np.uint8), np.array([0, 1], np.int32))
    problem = HighwayProblem(make_model=lambda rngs: Fixed(), data=(examples,) * 3, batch_size=2, steps_per_halving=1)
    # (1 - 0.5)^2 + (1 - 0.5)^2 for class 0, (1 + 0.5)^2 + (1 + 0.5)^2 for class 1.
    assert_allclose(problem.loss(Fixed(), problem.data, jnp.array([0, 1])), (0.5 + 4.5) / 2 + 1e-3 * 30 * 4, rtol=1e-6)


def test_learning_rate_is_halved_again_and_again():
    examples = Examples(np.zeros((2, 4), np.uint8), np.zeros(2, np.int32))
    problem = HighwayProblem(make_model=lambda rngs: None, data=(examples,) * 3, batch_size=1, steps_per_halving=10)
    schedule = problem.schedule(0.8)
    assert_allclose([schedule(step) for step in (0, 9, 10, 29)], [0.8, 0.8, 0.4, 0.2], rtol=1e-6)


def test_parts_of_the_model_are_those_of_the_paper():
    model = nnx.eval_shape(lambda: _model(nnx.Rngs(0), PRESETS["paper"], rank=256, diagonal=True))
    assert len(model.layers) == 5
    assert model.input.kernel.shape == (784, 1024)
    assert model.layers[0].transform.matrix.projection.kernel.shape == (1024, 256)
    assert model.layers[0].transform.matrix.diagonal.shape == (1024,)
    assert model.layers[0].transform.component_norm is not None


def test_options_override_the_preset():
    settings = Highway(preset="paper", seeds=7, hidden_dropout=0.0)._settings()
    assert (settings.seeds, settings.hidden_dropout, settings.hidden) == (7, 0.0, 1024)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": 0},
        {"rank": 0},
        {"rank": 129},
        {"epochs": 0},
        {"halving_epochs": 0},
        {"seeds": 0},
        {"batch_size": 0},
        {"matrices": ()},
        {"optimizers": ("adam", "adam")},
        {"learning_rates": ()},
        {"input_dropout": 1.0},
        {"hidden_dropout": -0.1},
    ],
)
def test_impossible_options_are_named(changes):
    with pytest.raises(ValueError, match=f"expected {next(iter(changes))}"):
        Highway(**changes)


@pytest.mark.slow
def test_real_images_are_learned(tmp_path):
    if "PATHSPACE_DATA" not in os.environ:
        pytest.skip("MNIST is not on this machine: set PATHSPACE_DATA to the folder that has it")
    options = {"matrices": ("low-rank",), "hidden": 32, "rank": 8, "epochs": 1, "seeds": 1}
    Highway(**options, optimizers=("adam",), output=tmp_path).run()
    line = json.loads((tmp_path / "low-rank" / "runs.jsonl").read_text())
    assert line["test_error"][-1] < 0.15
