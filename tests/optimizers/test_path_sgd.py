"""Path-SGD commutes with node-wise rescaling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from pathspace import path_adam, path_kappa, path_sgd, random_scales, reduction_graph, scale_by_path_kappa
from pathspace.models import ReluRNN
from tests.compiled import kappa_of, rescaled
from tests.optimizers.cases import x64


def normal(seed, **shapes):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def mlp():
    def fn(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params["a"] + params["b"]) @ params["c"]) @ params["d"]

    return fn, normal(0, a=(3, 4), b=(4,), c=(4, 3), d=(3, 2)), normal(1, x=(6, 3))["x"]


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def cnn():
    def fn(params, x):
        return jax.nn.relu(convolve(x, params["k"]) + params["b"]).max((1, 2)) @ params["v"]

    return fn, normal(2, k=(3, 3, 1, 4), b=(4,), v=(4, 2)), normal(3, x=(4, 4, 4, 1))["x"]


def rcnn():
    def fn(params, x):
        drive = convolve(jax.nn.relu(convolve(x, params["stem"])), params["forward"]) + params["bias"]
        state = jax.nn.relu(drive)
        for _ in range(2):
            state = jax.nn.relu(drive + convolve(state, params["recurrent"]))
        return state.mean((1, 2)) @ params["out"]

    shapes = {"stem": (3, 3, 1, 2), "forward": (3, 3, 2, 3), "bias": (3,), "recurrent": (3, 3, 3, 3), "out": (3, 2)}
    return fn, normal(4, **shapes), normal(5, x=(4, 4, 4, 1))["x"]


def stacked_rnn():
    graphdef, params = nnx.split(ReluRNN(2, [3, 4], 2, rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda leaf: leaf.astype(float), params)
    return (lambda params, x: nnx.merge(graphdef, params)(x)), params, normal(6, x=(5, 4, 2))["x"]


def one_of(x):
    return jnp.zeros((1, *x.shape[1:]), x.dtype)


@x64
@pytest.mark.parametrize(
    ("make", "second_term", "options"),
    [
        *((make, second_term, {}) for make in (mlp, cnn, rcnn, stacked_rnn) for second_term in (False, True)),
        *((make, False, {"max_norm": 0.3, "ratio": "weights"}) for make in (mlp, stacked_rnn)),
    ],
)
def test_steps_commute_with_rescaling(make, second_term, options):
    """Theorem 2."""
    fn, params, x = make()
    graph = reduction_graph(fn, params, x)
    optimizer = path_sgd(1e-3, lambda params: path_kappa(fn, params, one_of(x), second_term=second_term), **options)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda params: jnp.mean((fn(params, x) - 1) ** 2))(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), fn(params, x)

        return jax.lax.scan(step, (params, optimizer.init(params)), length=5)

    scales = random_scales(jax.random.key(1), graph)
    (trained, _), outputs = train(params)
    (trained_from_rescaled, _), same_outputs = train(rescaled(params, graph, scales))
    assert np.max(np.abs(outputs[-1] - outputs[0])) > 1e-6 * np.max(np.abs(outputs[0]))
    assert_allclose(same_outputs, outputs, rtol=1e-8, atol=1e-8)
    for a, b in zip(
        jax.tree.leaves(trained_from_rescaled), jax.tree.leaves(rescaled(trained, graph, scales)), strict=True
    ):
        assert_allclose(a, b, rtol=1e-8, atol=1e-8)


def kappa_at(fn, x):
    return lambda params: kappa_of(fn, params, one_of(x))


@x64
def test_update_is_the_gradient_over_kappa_and_0_where_no_path_passes():
    fn, params, x = mlp()
    params["d"] = params["d"].at[1].set(0)
    grads = normal(7, a=(3, 4), b=(4,), c=(4, 3), d=(3, 2))
    optimizer = path_sgd(0.5, kappa_at(fn, x))
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    kappa = kappa_of(fn, params, one_of(x))
    for name, update in updates.items():
        expected = np.where(kappa[name] > 0, -0.5 * grads[name] / np.where(kappa[name] > 0, kappa[name], 1), 0)
        assert_allclose(update, expected, rtol=1e-12)
    assert not updates["c"][:, 1].any()


@x64
def test_kappa_is_kept_for_several_updates():
    fn, params, x = mlp()
    calls = []

    def kappa(params):
        calls.append(jax.tree.map(jnp.copy, params))
        return kappa_at(fn, x)(params)

    scale = scale_by_path_kappa(kappa, every=3)
    state = scale.init(params)
    grads, updates = jax.tree.map(jnp.ones_like, params), []
    for step in range(4):
        moved = jax.tree.map(lambda leaf, step=step: leaf * (1 + step), params)
        update, state = jax.jit(scale.update)(grads, state, moved)
        updates.append(update["a"])
    assert_allclose(updates[1], updates[0])
    assert_allclose(updates[2], updates[0])
    assert_allclose(updates[3], 1 / kappa_at(fn, x)(jax.tree.map(lambda leaf: 4 * leaf, params))["a"])


@x64
def test_initial_ratio_gives_the_first_update_the_norm_of_the_gradient():
    fn, params, x = mlp()
    grads = normal(8, a=(3, 4), b=(4,), c=(4, 3), d=(3, 2))
    scale, plain = (scale_by_path_kappa(kappa_at(fn, x), ratio=ratio) for ratio in ("initial", None))
    first, state = jax.jit(scale.update)(grads, scale.init(params), params)
    assert_allclose(optax.tree.norm(first), optax.tree.norm(grads), rtol=1e-6)
    moved = jax.tree.map(lambda leaf: 2 * leaf, params)
    second, _ = jax.jit(scale.update)(grads, state, moved)
    unscaled, _ = jax.jit(plain.update)(grads, plain.init(params), moved)
    assert_allclose(second["a"], state.ratio * unscaled["a"], rtol=1e-6)


@x64
@pytest.mark.parametrize("size", [1, 1000])
def test_gradients_are_limited_and_updates_relative_in_the_norms_of_kappa(size):
    fn, params, x = mlp()
    grads = jax.tree.map(lambda grad: size * grad, normal(8, a=(3, 4), b=(4,), c=(4, 3), d=(3, 2)))
    kappa = kappa_of(fn, params, one_of(x))
    of_weights, of_grads = (
        np.sqrt(sum(np.sum(np.square(tree[name]) * kappa[name] ** power) for name in params))
        for tree, power in ((params, 1), (grads, -1))
    )
    assert (of_grads > 200) == (size == 1000)
    scale = scale_by_path_kappa(kappa_at(fn, x), max_norm=200.0, ratio="weights")
    updates, _ = jax.jit(scale.update)(grads, scale.init(params), params)
    for name, update in updates.items():
        expected = of_weights * min(1, 200 / of_grads) * grads[name] / kappa[name]
        assert_allclose(update, expected, rtol=1e-10)


@x64
def test_path_adam_is_adam_on_the_divided_gradient():
    fn, params, x = mlp()
    grads = normal(9, a=(3, 4), b=(4,), c=(4, 3), d=(3, 2))
    kappa = kappa_of(fn, params, one_of(x))
    adam, optimizer = optax.adam(1e-2), path_adam(1e-2, kappa_at(fn, x))
    expected, _ = jax.jit(adam.update)(jax.tree.map(jnp.divide, grads, kappa), adam.init(params), params)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for name, update in updates.items():
        assert_allclose(update, expected[name], rtol=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"every": 2}, {"momentum": 0.9, "ratio": "initial"}, {"max_norm": 1.0, "ratio": "weights"}]
)
def test_init_takes_shapes_and_updates_keep_dtypes(options):
    fn, params, x = mlp()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    optimizer = path_sgd(0.1, kappa_at(fn, x.astype(jnp.bfloat16)), **options)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    state = optimizer.init(params)
    assert jax.tree.structure(jax.eval_shape(optimizer.init, shapes)) == jax.tree.structure(state)
    updates, following = jax.jit(optimizer.update)(params, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(jnp.shape, following) == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (functools.partial(scale_by_path_kappa, every=0), "expected every to be 1 or more updates, got 0"),
        (functools.partial(scale_by_path_kappa, ratio="first"), "ratio is 'initial', 'weights' or None, got 'first'"),
        (
            lambda kappa: scale_by_path_kappa(kappa).update({}, scale_by_path_kappa(kappa).init({})),
            "not passing `params`",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(lambda params: params)
