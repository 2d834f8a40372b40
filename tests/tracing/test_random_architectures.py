"""No network drawn from the building blocks of the field may get a graph whose rescalings change its outputs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings, strategies as st

from pathspace import reduction_graph

ACTIVATIONS = {
    "relu": nn.relu,
    "leaky relu": nn.leaky_relu,
    "relu6": nn.relu6,
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
    "absolute value": jnp.abs,
    "shifted": lambda x: nn.relu(x + 0.1),
    "normalised": lambda x: nn.relu(x) / (1e-3 + jnp.abs(x).max()),
    "square root": lambda x: jnp.sqrt(nn.relu(x)),
    "squared": lambda x: nn.relu(x) ** 2,
}
NORMALIZATIONS = {
    "none": lambda: lambda x: x,
    "layer": nn.LayerNorm,
    "root mean square": nn.RMSNorm,
    "batch": functools.partial(nn.BatchNorm, use_running_average=False),
    "batch, frozen": functools.partial(nn.BatchNorm, use_running_average=True),
    "group": functools.partial(nn.GroupNorm, num_groups=2),
}


def dense(network, x, act, norm, width, earlier):
    return act(norm(nn.Dense(width)(x)))


def tied(network, x, act, norm, width, earlier):
    layer = nn.Dense(width)
    return act(layer(norm(nn.Dense(x.shape[-1])(act(layer(x))))))


def residual(network, x, act, norm, width, earlier):
    return x + nn.Dense(x.shape[-1])(act(nn.Dense(width)(norm(x))))


def scaled_residual(network, x, act, norm, width, earlier):
    gain = network.param(f"gain_{len(earlier)}", nn.initializers.ones, ())
    return norm(act(gain * x + nn.Dense(x.shape[-1])(x)))


def skip(network, x, act, norm, width, earlier):
    return jnp.concatenate([act(nn.Dense(width)(x)), norm(x)], -1)


def skip_from_far(network, x, act, norm, width, earlier):
    first = earlier[len(earlier) // 2]
    first = first.reshape(len(x), -1)
    return act(norm(x + nn.Dense(x.shape[-1])(first).reshape((len(x),) + (1,) * (x.ndim - 2) + (-1,))))


def gated(network, x, act, norm, width, earlier):
    return nn.Dense(width)(norm(act(nn.Dense(width)(x)) * nn.Dense(width)(x)))


def low_rank(network, x, act, norm, width, earlier):
    return act(norm(nn.Dense(width)(nn.Dense(2, use_bias=False)(x))))


def attention(network, x, act, norm, width, earlier):
    y = norm(x).reshape(len(x), -1, x.shape[-1])
    y = nn.MultiHeadDotProductAttention(2, qkv_features=4, out_features=width)(y)
    return act(y).reshape(*x.shape[:-1], width)


def recurrent(network, x, act, norm, width, earlier):
    y = norm(x).reshape(len(x), -1, x.shape[-1])
    return nn.RNN(nn.SimpleCell(width, activation_fn=act))(y).reshape(*x.shape[:-1], width)


def maxout(network, x, act, norm, width, earlier):
    return act(norm(nn.Dense(2 * width)(x).reshape(*x.shape[:-1], width, 2).max(-1)))


def split(network, x, act, norm, width, earlier):
    first, second = jnp.split(nn.Dense(2 * width)(x), 2, -1)
    return norm(act(first) + second)


def reversed(network, x, act, norm, width, earlier):
    return act(norm(nn.Dense(width)(jnp.flip(x, -1)) + nn.Dense(width)(x)))


def convolution(network, x, act, norm, width, earlier):
    return norm(act(nn.Conv(width, (3,) * (x.ndim - 2))(x)))


def grouped_convolution(network, x, act, norm, width, earlier):
    return act(nn.Conv(2 * x.shape[-1], (2,) * (x.ndim - 2), feature_group_count=x.shape[-1])(norm(x)))


def pooled(network, x, act, norm, width, earlier):
    window = (2,) * (x.ndim - 2)
    return norm(nn.max_pool(act(nn.Dense(width)(x)), window, padding="SAME"))


def flat(network, x, act, norm, width, earlier):
    y = act(norm(x)).reshape(len(x), -1)
    return (x.reshape(len(x), -1, x.shape[-1])[:, :1] * nn.Dense(1)(y)[:, None]).reshape(
        (len(x),) + (1,) * (x.ndim - 2) + (-1,)
    )


KINDS = {
    block.__name__: block
    for block in (
        dense,
        tied,
        residual,
        scaled_residual,
        skip,
        skip_from_far,
        gated,
        low_rank,
        attention,
        recurrent,
        maxout,
        split,
        reversed,
        convolution,
        grouped_convolution,
        pooled,
        flat,
    )
}


class Network(nn.Module):
    """Blocks, each a kind with an activation, a normalisation and a width, on arrays whose last axis has features."""

    blocks: tuple[tuple[str, str, str, int], ...]

    @nn.compact
    def __call__(self, x):
        earlier = [x]
        for kind, activation, normalization, width in self.blocks:
            x = KINDS[kind](self, x, ACTIVATIONS[activation], NORMALIZATIONS[normalization](), width, earlier)
            earlier.append(x)
        x = nn.relu(nn.Dense(4)(x.reshape(len(x), -1)))
        return nn.Dense(2)(x)


blocks = st.tuples(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.sampled_from(sorted(NORMALIZATIONS)),
    st.just(4),
)
inputs = st.sampled_from([(2, 3, 4), (2, 3, 3, 2)])


def check(blocks, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    model = Network(tuple(blocks))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    params = variables.pop("params")

    def fn(params, x):
        return model.apply({"params": params, **variables}, x, mutable=["batch_stats"])[0]

    # Validation is on: a draw whose outputs change raises.
    graph = reduction_graph(fn, params, x)
    assert graph.num_units >= 4
    return fn, params, x, graph


@settings(max_examples=4)
@given(st.lists(blocks, min_size=1, max_size=3), inputs)
def test_few_random_architectures(blocks, shape):
    check(blocks, shape)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(blocks, min_size=1, max_size=5), inputs)
def test_many_random_architectures(blocks, shape):
    check(blocks, shape)
