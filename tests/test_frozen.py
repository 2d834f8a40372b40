"""Frozen normalisations are affine maps; the signs of constants that merge with parameters count."""

import functools

import chex
import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from pathspace import path_kappa, path_network, path_norm

pytestmark = pytest.mark.usefixtures("x64")

PIXELS, CHANNELS, EPSILON = 3, 4, 0.25
X = jnp.asarray(np.random.default_rng(0).normal(size=(1, PIXELS, 2)))


class Normalised(nn.Module):
    norm: functools.partial

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.norm(name="norm")(nn.Dense(CHANNELS)(x)))
        return nn.Dense(1)(x)


def linen(norm):
    model = Normalised(functools.partial(norm, epsilon=EPSILON))

    def fn(params, x):
        return model.apply({"params": params, "batch_stats": STATISTICS}, x, mutable="batch_stats")[0]

    return fn


STATISTICS = {"norm": {"mean": np.zeros(CHANNELS), "var": np.ones(CHANNELS)}}


def with_nnx_layer_norm(params, x):
    norm = nnx.LayerNorm(CHANNELS, epsilon=EPSILON, rngs=nnx.Rngs(0))
    nnx.update(norm, params["norm"])
    x = nn.Dense(CHANNELS).apply({"params": params["Dense_0"]}, x)
    with jax.named_scope("norm"):
        x = norm(x)
    return nn.Dense(1).apply({"params": params["Dense_1"]}, jax.nn.relu(x))


def with_rms_norm_by_hand(params, x):
    x = nn.Dense(CHANNELS).apply({"params": params["Dense_0"]}, x)
    with jax.named_scope("norm"):
        x = x * params["norm"]["scale"] / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON)
    return nn.Dense(1).apply({"params": params["Dense_1"]}, jax.nn.relu(x))


# The network, the axes of its statistics with channels in two groups, and whether it subtracts a mean.
SUBJECTS = {
    "LayerNorm": (linen(nn.LayerNorm), (2, 3), True),
    "RMSNorm": (linen(nn.RMSNorm), (2, 3), False),
    "GroupNorm": (linen(functools.partial(nn.GroupNorm, num_groups=2)), (1, 3), True),
    "BatchNorm": (linen(functools.partial(nn.BatchNorm, use_running_average=False)), (0, 1), True),
    "RMSNorm by hand": (with_rms_norm_by_hand, (2, 3), False),
    "nnx.LayerNorm": (with_nnx_layer_norm, (2, 3), True),
}


def parameters(name):
    rng = np.random.default_rng(1)
    shapes = {
        "Dense_0": {"kernel": (2, CHANNELS), "bias": (CHANNELS,)},
        "norm": {"scale": (CHANNELS,), "bias": (CHANNELS,)},
        "Dense_1": {"kernel": (CHANNELS, 1), "bias": (1,)},
    }
    if name.startswith("RMSNorm"):
        del shapes["norm"]["bias"]
    return jax.tree.map(lambda size: jnp.asarray(rng.normal(size=size)), shapes, is_leaf=lambda x: isinstance(x, tuple))


def statistics(params, axes, has_mean):
    """Mean and standard deviation of what the normalisation is given."""
    hidden = np.asarray(X) @ np.asarray(params["Dense_0"]["kernel"]) + np.asarray(params["Dense_0"]["bias"])
    hidden = hidden.reshape(1, PIXELS, 2, CHANNELS // 2)
    mean = hidden.mean(axes, keepdims=True) if has_mean else np.zeros((1, 1, 1, 1))
    sigma = np.sqrt(((hidden - mean) ** 2).mean(axes, keepdims=True) + EPSILON)
    return [np.broadcast_to(value, hidden.shape).reshape(PIXELS, CHANNELS) for value in (mean, sigma)]


def norm_of_affine_map(params, mean, sigma, p):
    """The p-th power of the norm with x -> gain x + shift in place of the normalisation."""
    first, norm, second = params["Dense_0"], params["norm"], params["Dense_1"]
    gain = norm["scale"] / sigma
    shift = norm.get("bias", 0) - mean * gain
    hidden = jnp.sum(jnp.abs(first["kernel"]) ** p, 0) + jnp.abs(first["bias"]) ** p
    hidden = hidden * jnp.abs(gain) ** p + jnp.abs(shift) ** p
    return jnp.sum(hidden @ jnp.abs(second["kernel"]) ** p + jnp.abs(second["bias"]) ** p)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("name", SUBJECTS)
def test_frozen_normalisations_are_affine_maps(name, p):
    fn, axes, has_mean = SUBJECTS[name]
    params = parameters(name)
    norm = jax.jit(lambda params: path_norm(fn, params, X, p=p, frozen=("norm",)))(params)
    expected = norm_of_affine_map(params, *statistics(params, axes, has_mean), p) ** (1 / p)
    assert_allclose(norm, expected, rtol=1e-10)


def test_gradients_of_the_norm_hold_statistics_fixed():
    fn, axes, has_mean = SUBJECTS["RMSNorm"]
    params = parameters("RMSNorm")
    mean, sigma = statistics(params, axes, has_mean)
    gradient = jax.jit(jax.grad(lambda params: path_norm(fn, params, X, p=2, frozen=("norm",)) ** 2))(params)
    expected = jax.jit(jax.grad(lambda params: norm_of_affine_map(params, mean, sigma, 2)))(params)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_kappa_is_half_the_second_derivative_for_frozen_statistics(name):
    fn, axes, has_mean = SUBJECTS[name]
    params = parameters(name)
    mean, sigma = statistics(params, axes, has_mean)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda flat: norm_of_affine_map(unravel(flat), mean, sigma, 2)))(flat)
    expected = unravel(jnp.diag(hessian) / 2)

    kappa = jax.jit(lambda params: path_kappa(fn, params, X, second_term=True, frozen=("norm",)))(params)
    chex.assert_trees_all_close(kappa, expected, rtol=1e-10)
    network = jax.grad(path_network(fn, p=2, at=params, frozen=("norm",)))
    chex.assert_trees_all_close(jax.jit(network)(jax.tree.map(jnp.square, params), X), expected, rtol=1e-10)


# --- scopes ---


class Blocks(nn.Module):
    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.LayerNorm(name="norm")(nn.Dense(2)(x))

        return Block()(Block()(x))


def norm_of_blocks(*frozen):
    model, x = Blocks(), jnp.ones((1, 2))
    params = model.init(jax.random.key(0), x)
    return path_norm(model.apply, params, x, frozen=frozen)


def test_a_path_of_scopes_names_one_of_several():
    with pytest.raises(ValueError, match="not known to be"):
        norm_of_blocks("Block_0/norm")
    assert norm_of_blocks("Block_0/norm", "Block_1/norm") == norm_of_blocks("norm")


def test_what_is_not_frozen_is_named_with_a_way_out():
    with pytest.raises(ValueError, match=r"of activations is not, .*in the scope '.*/norm'\)\. Name .* in `frozen`"):
        norm_of_blocks()
    with pytest.raises(ValueError, match=r"tanh of activations is not, .*in no named scope\)\. Name"):
        path_norm(lambda params, x: jnp.tanh(x @ params["w"]), {"w": jnp.ones((2, 2))}, jnp.ones((1, 2)))


@pytest.mark.parametrize("name", ["other", "orm", "norm/Block_0"])
def test_frozen_scopes_that_do_not_exist_are_named(name):
    with pytest.raises(ValueError, match=rf"outside loops: \['{name}'\]; it has .*Block_0/norm"):
        norm_of_blocks("norm", name)


def normalised(x):
    with jax.named_scope("norm"):
        return x / jnp.sqrt(jnp.mean(x**2) + EPSILON)


@pytest.mark.parametrize(
    ("outside", "message"), [(normalised, "inside a loop has other statistics"), (jax.nn.relu, "outside loops")]
)
def test_normalisations_in_loops_cannot_be_frozen(outside, message):
    def fn(kernel, x):
        states, _ = jax.lax.scan(lambda h, x: (normalised(h @ kernel + x), None), jnp.zeros(2), x)
        return outside(states)

    with pytest.raises(ValueError, match=message):
        path_norm(fn, jnp.ones((2, 2)), jnp.ones((3, 2)), frozen=("norm",))


# --- signs of parameters ---


def test_signs_count_where_constants_merge_with_parameters():
    params = {"w": jnp.array([[2.0], [-1.0]]), "b": jnp.array([-3.0])}
    x, mean = jnp.zeros((1, 2)), 0.5

    def fn(params, x):
        return jax.nn.relu(x @ params["w"] - mean + params["b"])

    squares = jax.tree.map(jnp.square, params)
    assert_allclose(path_network(fn, p=2, at=params)(squares, x), 5 + (-3 - mean) ** 2, rtol=1e-12)
    assert_allclose(path_norm(fn, params, x) ** 2, 5 + (-3 - mean) ** 2, rtol=1e-12)
    assert_allclose(path_network(fn, p=2)(squares, x), 5 + (3 - mean) ** 2, rtol=1e-12)
