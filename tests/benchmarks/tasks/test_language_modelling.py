"""Language models."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks import language_models
from benchmarks.data import Text
from benchmarks.language_models import NETWORKS, Carrying
from benchmarks.tasks import language_modelling
from benchmarks.tasks.language_modelling import PRESETS, LanguageModelling, NextToken, quality, unigram_cross_entropy
from pathspace.models import ResetAfterGRUCell
from tests.benchmarks.recorded import recorded_runs

VOCABULARY = 5
TOYS = {
    "stacked": language_models._stacked("toy", 8, (8, 8), **language_models._UNDROPPED),
    "relu": language_models._relu(6),
    "gru": language_models._passthrough("toy", ResetAfterGRUCell, 6, 2),
    "full-gru": language_models._passthrough("toy", ResetAfterGRUCell, 6),
}


@pytest.fixture
def toy_text(monkeypatch):
    """Tokens that count up, one in ten of them at random."""
    rng = np.random.default_rng(0)
    noise = rng.integers(VOCABULARY, size=1400) * (rng.random(1400) < 0.1)
    tokens = ((np.arange(1400) + noise) % VOCABULARY).astype(np.int32)
    loaded = Text(tokens[:1000], tokens[1000:1200], tokens[1200:], tuple("abcde"), ("of letters",))
    monkeypatch.setattr(language_modelling, "text", lambda dataset, data_dir: loaded)
    for name, network in TOYS.items():
        monkeypatch.setitem(NETWORKS, name, network)
    return loaded


def next_token(name, batch_size=3, segment=4, length=41, of_words=False):
    tokens = np.arange(length, dtype=np.int32) ** 2 % VOCABULARY
    problem = NextToken(
        make_model=lambda rngs: Carrying(TOYS[name], VOCABULARY, batch_size, rngs),
        data=(tokens, tokens[:30], tokens[5:]),
        batch_size=batch_size,
        segment=segment,
        prepare=(lambda tokens: jax.nn.one_hot(tokens, VOCABULARY)) if TOYS[name].one_hot else lambda tokens: tokens,
        of_words=of_words,
        rescalable=TOYS[name].rescalable,
    )
    return problem, problem.make_model(nnx.Rngs(0))


def cross_entropies(problem, model, tokens):
    (logits,) = model(problem.prepare(jnp.asarray(tokens[:-1])[None]))
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])


@pytest.mark.parametrize(
    ("network", "optimizers", "of_words"),
    [
        ("stacked", ("g_sgd",), True),
        ("relu", ("path_adam",), False),
        pytest.param("gru", ("g_adam",), False, marks=pytest.mark.slow),
    ],
)
def test_command_learns_and_leaves_its_results(network, optimizers, of_words, toy_text, tmp_path, capsys):
    preset, dataset = ("g-sgd", "ptb") if of_words else ("path-sgd", "ptb_char")
    task = LanguageModelling(
        preset=preset,
        datasets=(dataset,),
        networks=(network,),
        optimizers=optimizers,
        epochs=10,
        batch_size=5,
        segment=10,
        sgd_learning_rates=(1.0,),
        adam_learning_rates=(0.03,),
        evaluated_tokens=150,
        output=tmp_path,
    )
    task.run()
    output = capsys.readouterr().out
    lines = recorded_runs(tmp_path / dataset / network / "runs.jsonl")
    assert [line["optimizer"] for line in lines] == list(optimizers)
    unit = "perplexity" if of_words else "bits per character"
    for line in lines:
        by_chance = line["experiment"]["quantity"]["by_chance"]
        assert_allclose(by_chance, (5 if of_words else np.log2(5)) / 100, rtol=0.02)
        assert line["test_error"][-1] < 0.9 * by_chance
        assert len(line["validation_error"]) == 10
        assert line["experiment"]["notes"][0] == "of letters"
        assert line["experiment"]["notes"][-1] == "test text: the first 150 of 200 tokens"
        assert (line["settings"]["dataset"], line["settings"]["network"]) == (dataset, network)
        assert line["settings"]["segment"] == 10
    assert unit in output
    assert (tmp_path / dataset / network / "learning_curves.png").exists()


def test_an_epoch_goes_through_all_streams_in_order():
    problem, _ = next_token("stacked")
    assert_array_equal(problem.batches(jax.random.key(0)), [[0, 13, 26], [4, 17, 30], [8, 21, 34]])


def test_state_is_carried_through_an_epoch_and_zeroed_at_its_beginning():
    problem, model = next_token("stacked")
    tokens = problem.data[0]
    whole = [cross_entropies(problem, model, tokens[first : first + 13]) for first in (0, 13, 26)]
    for _ in range(2):
        for step, batch in enumerate(problem.batches(jax.random.key(0))):
            expected = np.mean([each[4 * step : 4 * step + 4] for each in whole])
            assert_allclose(problem.loss(model, tuple(map(jnp.asarray, problem.data)), batch), expected, rtol=1e-5)


def test_errors_are_those_of_every_token_but_the_first():
    problem, model = next_token("relu", of_words=True)
    data = tuple(map(jnp.asarray, problem.data))
    # 29 and 35 tokens to predict: streams of 10 and 12, the last one shorter.
    for error, part, stream in zip(problem.errors(model, data), problem.data[1:], (10, 12), strict=True):
        starts = range(0, len(part) - 1, stream)
        losses = np.concatenate([cross_entropies(problem, model, part[at : at + stream + 1]) for at in starts])
        assert len(losses) == len(part) - 1
        assert_allclose(error, quality(losses.mean(), of_words=True), rtol=1e-5)


def test_quality_is_a_hundredth_of_perplexity_or_bits():
    assert_allclose(quality(jnp.log(8.0), of_words=True), 0.08, rtol=1e-5)
    assert_allclose(quality(jnp.log(8.0), of_words=False), 0.03, rtol=1e-5)


def test_guessing_knows_how_often_tokens_occur():
    train, test = np.array([0, 0, 0, 1]), np.array([2, 0, 1, 2])
    assert_allclose(unigram_cross_entropy(train, test, 3), -np.log([4 / 7, 2 / 7, 1 / 7]).mean())


def test_full_matrices_have_no_units_and_no_optimizers_in_path_space():
    problem, _ = next_token("full-gru")
    assert problem.graph.num_units == 0
    assert [name for name in ("adam", "g_adam", "path_adam") if TOYS["full-gru"].allows(name)] == ["adam"]


def test_stacked_layers_have_the_papers_graph():
    problem, model = next_token("stacked")
    assert {leaf.name for leaf in problem.graph.leaves} == {f"model/{name}" for name in model.model.edges()}
    assert problem.graph.num_units == 8


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_can_be_made(name):
    model = nnx.eval_shape(lambda: NETWORKS[name].make(50, nnx.Rngs(0)))
    assert [leaf.shape[0] for leaf in jax.tree.leaves(model.initial_state(3))]


@pytest.mark.parametrize(("name", "millions"), [("lstm-1000-dropout", 4.25), ("gru-1000-64-tied", 0.46)])
def test_networks_are_as_large_as_the_papers(name, millions):
    params = nnx.state(nnx.eval_shape(lambda: NETWORKS[name].make(50, nnx.Rngs(0))), nnx.Param)
    assert_allclose(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6, millions, atol=0.005)


def test_options_override_the_preset():
    task = LanguageModelling(preset="path-sgd", seeds=7)
    settings = task._settings()
    assert {name: each.seeds for name, each in settings.items()} == {"ptb_char": 7, "text8": 7}
    assert settings["text8"].segment == PRESETS["path-sgd"]["text8"].segment == 180


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"segment": 0},
        {"train_tokens": 0},
        {"optimizers": ()},
        {"datasets": ()},
        {"networks": ("gru-2",)},
        {"weight_decay": -1.0},
        {"max_gradient_norm": 0.0},
    ],
)
def test_impossible_options_are_named(changes):
    with pytest.raises(ValueError, match=f"expected {next(iter(changes))}"):
        LanguageModelling(**changes)


def test_text_of_another_preset_is_an_error():
    with pytest.raises(ValueError, match="preset path-sgd, ptb_char, text8, got ptb: take another preset"):
        LanguageModelling(preset="path-sgd", datasets=("ptb",))


def test_network_that_no_optimizer_can_train_is_an_error():
    with pytest.raises(ValueError, match=r"one that can train gru-1000, got \('g_adam',\): add one in weight space"):
        LanguageModelling(networks=("gru-1000",), optimizers=("g_adam",))


def test_text_shorter_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match="more than 3 x 4 tokens, got 12: take smaller batches or shorter segments"):
        next_token("relu", length=12)


@pytest.mark.slow
@pytest.mark.skipif("PATHSPACE_DATA" not in os.environ, reason="needs $PATHSPACE_DATA")
def test_real_characters_are_learnt(tmp_path):
    task = LanguageModelling(
        epochs=2, train_tokens=100_000, evaluated_tokens=10_000, sgd_learning_rates=(5.0,), output=tmp_path
    )
    task.run()
    lines = recorded_runs(tmp_path / "ptb_char/relu-2x200/runs.jsonl")
    for line in lines:
        assert line["test_error"][-1] < 0.9 * line["experiment"]["quantity"]["by_chance"]
