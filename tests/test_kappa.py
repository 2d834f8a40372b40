"""kappa against the second derivatives of the path-regulariser."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from pathspace import path_kappa
from pathspace.models import ReluRNN

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
    "recurrent, last": (*recurrent("last"), {"w": (2, 3), "u": (3, 3), "b": (3,), "v": (3, 2)}, (4, 2)),
    "recurrent, every": (*recurrent("every"), {"w": (2, 3), "u": (3, 3), "b": (3,), "v": (3, 2)}, (4, 2)),
    "convolution": (convolution, regulariser_of_convolution, {"k": (2, 1, 2), "v": (4, 1)}, (1, 5, 1)),
    "tied residual": (tied_residual, regulariser_of_tied_residual, {"w": (2, 2), "v": (2, 1)}, (1, 2)),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_kappa_is_half_the_second_derivative(name):
    fn, regulariser, shapes, size = SUBJECTS[name]
    params, x = normal(0, **shapes), jnp.zeros(size)
    hessian = jax.hessian(regulariser)(params)
    squares = jax.tree.map(jnp.square, params)

    def of_squares(squares):
        return regulariser(jax.tree.map(jnp.sqrt, squares))

    first, both = path_kappa(fn, params, x), path_kappa(fn, params, x, second_term=True)
    for leaf, gradient in jax.grad(of_squares)(squares).items():
        count = params[leaf].size
        diagonal = np.diag(np.reshape(hessian[leaf][leaf], (count, count))).reshape(params[leaf].shape)
        assert_allclose(first[leaf], gradient, rtol=1e-10)
        assert_allclose(both[leaf], diagonal / 2, rtol=1e-10)


def test_weights_that_no_path_passes_have_none():
    params = normal(1, a=(2, 3), b=(3,), c=(3, 2))
    params["c"] = params["c"].at[1].set(0)
    kappa = path_kappa(mlp, params, jnp.zeros((1, 2)), second_term=True)
    assert not kappa["a"][:, 1].any() and kappa["b"][1] == 0
    assert all(np.isfinite(leaf).all() for leaf in kappa.values())


def test_tree_and_dtype():
    graphdef, params = nnx.split(ReluRNN(3, [4], 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), nnx.Param)
    kappa = path_kappa(lambda params, x: nnx.merge(graphdef, params)(x), params, jnp.zeros((1, 5, 3), jnp.bfloat16))
    assert jax.tree.structure(kappa) == jax.tree.structure(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(kappa)} == {jnp.dtype(jnp.float32)}


def test_leaves_that_are_no_weights():
    params = {**normal(2, a=(2, 3), b=(3,), c=(3, 2)), "count": jnp.zeros((), jnp.int32)}
    assert path_kappa(mlp, params, jnp.zeros((1, 2)))["count"] == 0
