"""kappa against the second derivatives of the path-regulariser."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from pathspace import kappa, path_kappa, path_sgd
from pathspace.models import ReluRNN
from pathspace.tracing.compat import scan_sizes
from tests.compiled import kappa_of

pytestmark = pytest.mark.usefixtures("x64")


def normal(seed, **shapes):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


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


@pytest.fixture
def exact(monkeypatch):
    """The places of the leaves that have had their Hessian diagonal computed entry by entry."""
    places, original = [], kappa._hessian_diagonal

    def recording(gradients, squares, place):
        places.append(place)
        return original(gradients, squares, place)

    monkeypatch.setattr(kappa, "_hessian_diagonal", recording)
    return places


def half_second_derivatives(regulariser, params):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda flat: regulariser(unravel(flat))))(flat)
    return unravel(jnp.diag(hessian) / 2)


def with_second_term(fn, x, **options):
    return jax.jit(lambda params: path_kappa(fn, params, x, second_term=True, **options))


def check_second_term(fn, regulariser, params, x):
    chex.assert_trees_all_close(
        with_second_term(fn, x)(params), half_second_derivatives(regulariser, params), rtol=1e-10
    )


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


# --- recurrences: each step has its own weights to the inputs and to the outputs ---


def scanned(product, start=(2,), **options):
    def fn(params, x):
        def step(h, x):
            h = jax.nn.relu(product(h, params) + x)
            return h, h

        return jax.lax.scan(step, jnp.zeros(start), x * params["w"], **options)[1] * params["v"]

    return fn


def by_rows(h, params):
    return h @ params["u"]


def residual(params, x):
    def step(h, x):
        h = h + jax.nn.relu(by_rows(h, params) + x)
        return h, h

    return jax.lax.scan(step, jnp.zeros(2), x * params["w"])[1] * params["v"]


def slices_used_twice(params, x):
    def step(h, x):
        h = jax.nn.relu(by_rows(h, params) + x) + x
        return h, h

    return jax.lax.scan(step, jnp.zeros(2), x * params["w"])[1] * params["v"]


def products_used_twice(params, x):
    def step(h, x):
        product = by_rows(h, params)
        h = jax.nn.relu(x + product)
        return h, (h, product)

    states, products = jax.lax.scan(step, jnp.zeros(2), x * params["w"])[1]
    return states * params["v"] + products


@jax.jit
def layer(u, x):
    return scanned(by_rows)({"u": u, "w": 1, "v": 1}, x)


def two_scans(first, second):
    """Two calls of the same jaxpr."""
    return lambda params, x: layer(params[second], layer(params[first], x * params["w"])) * params["v"]


def two_carries(params, x):
    def step(carry, x):
        h = jax.nn.relu(carry[0] @ params["u"] + x)
        g = jax.nn.relu(carry[1] @ params["z"] + h)
        return (h, g), g

    return jax.lax.scan(step, (jnp.zeros(2), jnp.zeros(2)), x * params["w"])[1] * params["v"]


def python_loop(params, x):
    h, drives, out = jnp.zeros(2), x * params["w"], 0
    for t in range(4):
        h = jax.nn.relu(by_rows(h, params) + drives[t])
        out = out + h * params["v"][t]
    return out


def nested(params, x):
    def segment(h, x):
        return jax.lax.scan(lambda h, x: (jax.nn.relu(by_rows(h, params) + x),) * 2, h, x)

    _, states = jax.lax.scan(segment, jnp.zeros(2), (x * params["w"]).reshape(4, 1, 2))
    return states.reshape(4, 2) * params["v"]


def inputs_inside(params, x):
    def step(h, slices):
        x, w = slices
        h = jax.nn.relu(by_rows(h, params) + x * w)
        return h, h

    return jax.lax.scan(step, jnp.zeros(2), (x, params["w"]))[1] * params["v"]


def handed_on(params, x):
    def step(h, x):
        h = jax.nn.relu(by_rows(h, params) + x)
        return h, (h, params["u"])

    _, (states, matrices) = jax.lax.scan(step, jnp.zeros(2), x * params["w"])
    return jnp.einsum("ti,tij->tj", states * params["v"], matrices)


def counter(params, x):
    def step(carry, x):
        h, count = carry
        h = jax.nn.relu(by_rows(h, params) + x)
        return (h, count + 1), h * params["v"][count]

    return jax.lax.scan(step, (jnp.zeros(2), 0), x * params["w"])[1]


def factors(power):
    constants = np.array([0.5, 2.0, 3.0, 1.5]) ** power

    def fn(params, x):
        def step(h, slices):
            factor, x = slices
            h = jax.nn.relu((h * factor) @ params["u"] + x)
            return h, h

        return jax.lax.scan(step, jnp.zeros(2), (constants, x * params["w"]))[1] * params["v"]

    return fn


ONE = {"w": (4, 2), "u": (2, 2), "v": (4, 2)}
TWO = {**ONE, "z": (2, 2)}
PAIR = {"w": (4, 2), "a": (2, 3), "b": (3, 2), "v": (4, 2)}
PAIR_LEFT = {**PAIR, "a": (3, 2), "b": (2, 3)}
ROW = {**ONE, "w": (4, 1, 2), "v": (4, 1, 2)}
BATCH = {**ONE, "w": (4, 2, 2), "v": (4, 2, 2)}

# The network, the shapes of its parameters, and the matrices without a closed form.
RECURRENCES = {
    "backwards": (scanned(by_rows, reverse=True), ONE, []),
    "unrolled scan": (scanned(by_rows, unroll=2), ONE, []),
    "states of one row": (scanned(by_rows, (1, 2)), ROW, []),
    "two matrices on the right": (scanned(lambda h, params: h @ params["a"] @ params["b"]), PAIR, []),
    "two matrices on the left": (scanned(lambda h, params: params["b"] @ (params["a"] @ h)), PAIR_LEFT, []),
    "residual": (residual, ONE, []),
    "slices used twice": (slices_used_twice, ONE, []),
    "products used twice": (products_used_twice, ONE, []),
    "two scans": (two_scans("u", "z"), TWO, []),
    "two carries": (two_carries, TWO, []),
    "Python loop": (python_loop, ONE, ["u"]),
    "nested scans": (nested, ONE, ["u"]),
    "twice in each step": (scanned(lambda h, params: by_rows(by_rows(h, params), params)), ONE, ["u"]),
    "transposed": (scanned(lambda h, params: h @ params["u"].T), ONE, ["u"]),
    "two examples": (scanned(by_rows, (2, 2)), BATCH, ["u"]),
    "weights of inputs inside": (inputs_inside, ONE, ["u"]),
    "matrix handed on by the loop": (handed_on, ONE, ["u"]),
    "counter": (counter, ONE, ["u"]),
    "factors": (factors(1), ONE, ["u"]),
    "the same matrix in two scans": (two_scans("u", "u"), ONE, ["u"]),
    "readout by the same matrix": (lambda params, x: scanned(by_rows)(params, x) @ params["u"], ONE, ["u"]),
}


def regulariser_at_ones(fn, x):
    """Where all weights are positive and all inputs ones, every ReLU is the identity."""
    return lambda params: jnp.sum(fn(jax.tree.map(jnp.square, params), jnp.ones_like(x)))


@pytest.mark.parametrize("name", RECURRENCES)
def test_second_term_of_recurrences(name, exact):
    fn, shapes, expected = RECURRENCES[name]
    params = normal(0, **shapes)
    x = jnp.zeros_like(params["w"])
    # Constants are weights too.
    check_second_term(fn, regulariser_at_ones(factors(2) if name == "factors" else fn, x), params, x)
    assert [sorted(params)[place] for place in exact] == expected


def test_second_term_of_the_layers_of_a_model_is_in_closed_form(exact):
    graphdef, params = nnx.split(ReluRNN(1, [2, 3], 1, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), nnx.Param)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    params, x = unravel(normal(0, flat=flat.shape)["flat"]), jnp.zeros((1, 4, 1))

    def fn(params, x):
        return nnx.merge(graphdef, params)(x)

    check_second_term(fn, regulariser_at_ones(fn, x), params, x)
    assert not exact


@pytest.mark.parametrize(("name", "arrays"), [("backwards", 1), ("slices used twice", 2), ("products used twice", 2)])
def test_gradients_of_inputs_and_of_products_are_stored_once_where_they_are_equal(name, arrays):
    fn, shapes, _ = RECURRENCES[name]
    params = normal(0, **shapes)
    jaxpr = jax.make_jaxpr(lambda params: path_kappa(fn, params, jnp.zeros_like(params["w"])))(params).jaxpr
    backwards = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"][-1]
    assert len(backwards.outvars) - scan_sizes(backwards)[1] == arrays


@pytest.mark.parametrize("name", ["two scans", "Python loop"])
def test_second_term_of_several_parameters_at_once(name):
    fn, shapes, _ = RECURRENCES[name]
    several = [normal(seed, **shapes) for seed in range(2)]
    x = jnp.zeros_like(several[0]["w"])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    kappas = jax.jit(jax.vmap(with_second_term(fn, x)))(stacked)
    for i, params in enumerate(several):
        one = half_second_derivatives(regulariser_at_ones(fn, x), params)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], kappas), one, rtol=1e-10)


# --- estimates ---


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
