"""kappa of weights that loops pass many times, each step with its own weights to the inputs and to the outputs."""

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pathspace import path_kappa
from pathspace.models import ReluRNN
from pathspace.tracing.compat import scan_sizes
from tests.kappa.second_derivatives import check_second_term, half_second_derivatives, normal, with_second_term

pytestmark = pytest.mark.usefixtures("x64")


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
