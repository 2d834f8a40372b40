"""The copying problem."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.tasks.copying import KINDS, PRESETS, Copying, CopyingProblem, _model, examples
from tests.benchmarks.recorded import recorded_runs

BLANK, RUN = 8, 9


def problem(model="gru", variant="fixed", lag=3):
    kind = KINDS[model]
    make = functools.partial(_model, hidden=6, rank=2 if kind.low_rank else None, kind=kind)
    return CopyingProblem(
        make_model=make, batch_size=4, rescalable=kind.rescalable, variant=variant, lag=lag, kind=kind
    )


@pytest.mark.parametrize("variant", ["fixed", "variable-length", "variable-lag"])
def test_data_are_due_after_the_command(variant):
    inputs, targets = map(np.asarray, examples(jax.random.key(0), 300, variant, lag=7))
    assert inputs.shape == targets.shape == (300, 27)
    lengths, lags = set(), set()
    for given, due in zip(inputs, targets, strict=True):
        (command,) = np.flatnonzero(given == RUN)
        length = np.sum(given < BLANK)
        assert (given[:length] < BLANK).all()
        assert_array_equal(np.delete(given, command)[length:], BLANK)
        assert_array_equal(due[: command + 1], BLANK)
        assert_array_equal(due[command + 1 :][:10], given[:10])
        assert_array_equal(due[command + 11 :], BLANK)
        lengths.add(int(length))
        lags.add(int(command) - 9)
    assert lengths == (set(range(1, 11)) if variant == "variable-length" else {10})
    assert lags == (set(range(1, 8)) if variant == "variable-lag" else {7})
    assert set(np.unique(inputs)) == set(range(10))


@pytest.mark.parametrize("variant", ["fixed", "variable-length", "variable-lag"])
def test_by_chance_is_the_error_of_who_knows_where_but_not_which(variant):
    made = problem(variant=variant, lag=30)
    _, targets = examples(jax.random.key(1), 4000, variant, 30)
    logits = jnp.where(
        targets[..., None] == BLANK, 1e3 * jax.nn.one_hot(BLANK, 10), jnp.where(jnp.arange(10) < 8, 0, -1e3)
    )
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
    assert_allclose(made.by_chance, losses.mean(), rtol=0.02)
    if variant == "fixed":
        assert_allclose(made.by_chance, 10 * math.log(8) / 50)


def test_normalised_matrices_have_limited_row_norms():
    params = {"kernel": jnp.full((4, 2), 100.0)}
    for model, expected in (("normalized-low-rank-diagonal-gru", 10.0), ("low-rank-diagonal-gru", 200.0)):
        transformation = problem(model).transformation(OPTIMIZERS["adam"], 0.0, None)
        updates, _ = transformation.update(jax.tree.map(jnp.zeros_like, params), transformation.init(params), params)
        assert_allclose(jnp.linalg.norm(params["kernel"] + updates["kernel"], axis=0), expected, rtol=1e-5)


@pytest.mark.parametrize("model", KINDS)
def test_units_are_inner_components_that_are_not_normalised(model):
    assert problem(model).graph.num_units == (6 if model == "low-rank-diagonal-gru" else 0)


def test_recurrent_parameters_are_as_many_as_in_the_paper():
    settings = PRESETS["paper"]
    kind = KINDS["low-rank-diagonal-gru"]
    make = functools.partial(_model, hidden=settings.hidden, rank=settings.rank, kind=kind)
    made = CopyingProblem(
        make_model=make, batch_size=20, rescalable=kind.rescalable, variant="fixed", lag=500, kind=kind
    )
    recurrent = [
        leaf.size
        for path, leaf in jax.tree.leaves_with_path(made._first[1])
        if "recurrent" in jax.tree_util.keystr(path)
    ]
    assert sum(recurrent) == 3 * (2 * 128 * 50 + 128)


@pytest.mark.slow
def test_command_learns_and_leaves_its_results(tmp_path, capsys):
    Copying(
        fixed=(1,),
        steps=500,
        seeds=1,
        learning_rates=(0.01,),
        hidden=8,
        rank=4,
        models=("low-rank-diagonal-gru",),
        output=tmp_path,
    ).run()
    output = capsys.readouterr().out
    folder = tmp_path / "fixed-1" / "low-rank-diagonal-gru"
    lines = recorded_runs(folder / "runs.jsonl")
    assert [line["optimizer"] for line in lines] == ["rmsprop", "g_rmsprop"]
    for line in lines:
        assert line["experiment"]["variant"] == "fixed, lag 1"
        assert line["settings"]["model"] == "low-rank-diagonal-gru"
        assert len(line["test_error"]) == 1
        assert line["test_error"][-1] < line["experiment"]["quantity"]["by_chance"]
        assert OPTIMIZERS[line["optimizer"]].label in output
    assert (folder / "learning_curves.png").exists()


def test_options_override_the_preset():
    settings = Copying(preset="paper", variable_lag=(7, 9), steps=500)._settings()
    assert settings == dataclasses.replace(PRESETS["paper"], variable_lag=(7, 9), steps=500)
    assert settings.variants == [("fixed", 500), ("variable-length", 100), ("variable-lag", 7), ("variable-lag", 9)]


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"seeds": 0},
        {"hidden": 0},
        {"rank": 0},
        {"batch_size": 0},
        {"rank": 65},
        {"learning_rates": ()},
        {"models": ()},
        {"optimizers": ("adam", "adam")},
        {"fixed": ()},
        {"fixed": (0,)},
        {"fixed": (3, 3)},
    ],
)
def test_impossible_options_are_named(changes):
    with pytest.raises(ValueError, match=f"expected {next(iter(changes))}"):
        Copying(**changes)


@pytest.mark.parametrize("model", ["gru", "normalized-low-rank-diagonal-gru"])
def test_model_that_no_optimiser_trains_is_an_error(model):
    with pytest.raises(
        ValueError, match=rf"expected optimizers .* {KINDS[model].title}, got \('g_adam',\): add one in"
    ):
        Copying(models=("low-rank-diagonal-gru", model), optimizers=("g_adam",))
