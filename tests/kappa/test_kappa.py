"""kappa against the second derivatives of the path-regulariser."""

import functools
import math
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from pathspace import kappa, path_kappa, path_sgd
from pathspace.models import ReluRNN
from tests.compiled import kappa_of
from tests.kappa.second_derivatives import check_second_term, half_second_derivatives, normal, with_second_term

pytestmark = pytest.mark.usefixtures("x64")


def mlp(params, x):
    return jax.nn.relu(x @ params["a"] + params["b"]) @ params["c"]


def regulariser_of_mlp(params):
    squares = jax.tree.map(jnp.square, params)
    return jnp.sum((jnp.ones(2) @ squares["a"] + squares["b"]) @ squares["c"])


def recurrent(output):
    def fn(params, x):
        def step(h, x):
            h = jax.nn.relu(x @ params["w"] + h @ params["u"] + params["b"])
            return h, h

        last, states = jax.lax.scan(step, jnp.zeros(3), x)
        return (states if output == "every" else last) @ params["v"]

    def regulariser(params):
        squares = jax.tree.map(jnp.square, params)
        h, total = jnp.zeros(3), 0.0
        for _ in range(4):
            h = jnp.ones(2) @ squares["w"] + h @ squares["u"] + squares["b"]
            total = total + jnp.sum(h @ squares["v"])
        return total if output == "every" else jnp.sum(h @ squares["v"])

    return fn, regulariser


def convolution(params, x):
    x = jax.lax.conv_general_dilated(x, params["k"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    return nn.avg_pool(jax.nn.relu(x), (2,), (2,)).reshape(1, -1) @ params["v"]


def regulariser_of_convolution(params):
    squares = jax.tree.map(jnp.square, params)
    pixels = jnp.tile(squares["k"].sum((0, 1)), (4, 1)).reshape(2, 2, 2)
    return jnp.sum((pixels.sum(1) / 4).ravel() @ squares["v"])


def tied_residual(params, x):
    for _ in range(3):
        x = x + jax.nn.relu(x @ params["w"])
    return x @ params["v"]


def regulariser_of_tied_residual(params):
    squares = jax.tree.map(jnp.square, params)
    x = jnp.ones(2)
    for _ in range(3):
        x = x + x @ squares["w"]
    return jnp.sum(x @ squares["v"])


SUBJECTS = {
    "mlp": (mlp, regulariser_of_mlp, {"a": (2, 3), "b": (3,), "c": (3, 2)}, (1, 2)),
    "last": (*recurrent("last"), {"w": (2, 3), "u": (3, 3), "b": (3,), "v": (3, 2)}, (4, 2)),
    "every": (*recurrent("every"), {"w": (2, 3), "u": (3, 3), "b": (3,), "v": (3, 2)}, (4, 2)),
    "convolution": (convolution, regulariser_of_convolution, {"k": (2, 1, 2), "v": (4, 1)}, (1, 5, 1)),
    "tied residual": (tied_residual, regulariser_of_tied_residual, {"w": (2, 2), "v": (2, 1)}, (1, 2)),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_kappa_is_half_the_second_derivative(name, exact):
    fn, regulariser, shapes, size = SUBJECTS[name]
    params, x = normal(0, **shapes), jnp.zeros(size)
    squares = jax.tree.map(jnp.square, params)

    def of_squares(squares):
        return regulariser(jax.tree.map(jnp.sqrt, squares))

    first = jax.jit(lambda params: path_kappa(fn, params, x))(params)
    chex.assert_trees_all_close(first, jax.jit(jax.grad(of_squares))(squares), rtol=1e-10)
    check_second_term(fn, regulariser, params, x)
    assert [sorted(params)[place] for place in exact] == (["w"] if name == "tied residual" else [])


def test_estimates_are_right_on_average():
    params, x = normal(0, w=(2, 2), v=(2, 1)), jnp.zeros((1, 2))
    expected = half_second_derivatives(regulariser_of_tied_residual, params)

    def estimate(key, num_probes):
        return path_kappa(tied_residual, params, x, second_term=True, num_probes=num_probes, key=key)

    single = jax.jit(lambda key: estimate(key, 1))
    singles = jax.jit(jax.vmap(single))(jax.random.split(jax.random.key(1), 1000))["w"]
    spread = jnp.std(singles, 0)
    assert (spread > 0.01 * jnp.abs(expected["w"])).all()  # the Hessian is not diagonal
    mean = jax.jit(lambda key: estimate(key, 4000))(jax.random.key(0))
    assert (jnp.abs(mean["w"] - expected["w"]) < 5 * spread / math.sqrt(4000)).all()
    assert_allclose(mean["v"], expected["v"], rtol=1e-10)
    first, again, other = (single(jax.random.key(seed))["w"] for seed in (2, 2, 3))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("name", ["mlp", "every"])
def test_nothing_is_estimated_that_needs_no_hessian(name, exact, monkeypatch):
    def fail(*args):
        raise AssertionError

    monkeypatch.setattr(kappa, "_estimated_diagonal", fail)
    fn, _, shapes, size = SUBJECTS[name]
    with_second_term(fn, jnp.zeros(size), num_probes=1, key=jax.random.key(0))(normal(0, **shapes))
    assert not exact


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_probes": 0, "key": 0}, "num_probes to be 1 or more, or None for the exact second term, got 0"),
        ({"num_probes": 2}, "got num_probes without key"),
        ({"key": 0}, "got key without num_probes"),
        ({"num_probes": 2, "key": 0, "second_term": False}, "for the second term, got it with second_term=False"),
    ],
)
def test_what_estimates_need(options, message):
    options = {"second_term": True, **options}
    if "key" in options:
        options["key"] = jax.random.key(options["key"])
    with pytest.raises(ValueError, match=message):
        path_kappa(mlp, normal(0, a=(2, 3), b=(3,), c=(3, 2)), jnp.zeros((1, 2)), **options)


def test_outputs_that_are_only_added_up_are_not_computed():
    """For words of a language model they would take most of the time."""
    steps, words = 7, 1009
    model = ReluRNN(2, [3], words, output="every", rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)

    def logits(params, x):
        return nnx.merge(graphdef, params)(x)

    def compiled(second_term):
        kappa = functools.partial(path_kappa, logits, second_term=second_term)
        return jax.jit(lambda params: kappa(params, jnp.zeros((1, steps, 2)))).lower(params).compile().as_text()

    for second_term in (False, True):
        text = compiled(second_term)
        assert f",{words}]" in text
        assert not re.search(rf"\b{steps},{words}\]", text)


def test_weights_that_no_path_passes_have_none():
    params = normal(1, a=(2, 3), b=(3,), c=(3, 2))
    params["c"] = params["c"].at[1].set(0)
    kappa = kappa_of(mlp, params, jnp.zeros((1, 2)), second_term=True)
    assert not kappa["a"][:, 1].any() and kappa["b"][1] == 0
    assert all(np.isfinite(leaf).all() for leaf in kappa.values())


def test_overflow_is_infinite_and_leaves_weights_as_they_are():
    def deep(params, x):
        return functools.reduce(lambda x, w: jax.nn.relu(x @ w), params, x)

    params = [leaf.at[:, 1].set(0) for leaf in jnp.full((30, 4, 4), 100, jnp.float32)]

    def kappa_fn(params):
        return kappa_of(deep, params, jnp.zeros((1, 4), jnp.float32))

    kappas = jnp.stack(kappa_fn(params))
    assert jnp.isinf(kappas).any() and not jnp.isnan(kappas).any()
    optimizer = path_sgd(0.1, kappa_fn)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert not jnp.stack(updates)[jnp.isinf(kappas)].any()


def test_tree_and_dtype():
    graphdef, params = nnx.split(ReluRNN(3, [4], 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), nnx.Param)
    kappa = kappa_of(lambda params, x: nnx.merge(graphdef, params)(x), params, jnp.zeros((1, 5, 3), jnp.bfloat16))
    assert jax.tree.structure(kappa) == jax.tree.structure(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(kappa)} == {jnp.dtype(jnp.float32)}


def test_leaves_that_are_no_weights():
    params = {**normal(2, a=(2, 3), b=(3,), c=(3, 2)), "count": jnp.zeros((), jnp.int32)}
    assert path_kappa(mlp, params, jnp.zeros((1, 2)))["count"] == 0
