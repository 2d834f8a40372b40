"""Traced graphs at work: each example trains in path space, and the way of its functions is rescaling-invariant."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import pathspace

STEPS = 10


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.second = nnx.Conv(4, 5, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Linear(5 * 4 * 4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.out(nnx.relu(self.second(x)).reshape(len(x), -1))


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.first = nnx.Conv(width, width + 1, (3, 3), rngs=rngs)
        self.second = nnx.Conv(width + 1, width, (3, 3), rngs=rngs)

    def __call__(self, x):
        return nnx.relu(x + self.second(nnx.relu(self.first(x))))


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Block(4, rngs), Block(4, rngs)])
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean((1, 2)))


class RCNN(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.forward = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.recurrent = nnx.Conv(4, 4, (3, 3), use_bias=False, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        drive = self.forward(nnx.max_pool(nnx.relu(self.stem(x)), (2, 2), (2, 2)))
        state = nnx.relu(drive)
        for _ in range(3):
            state = nnx.relu(drive + self.recurrent(state))
        return self.out(state.max((1, 2)))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(8, 6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(6, rngs=rngs) for _ in range(3)])
        self.gate, self.up = nnx.Linear(6, 7, rngs=rngs), nnx.Linear(6, 7, rngs=rngs)
        self.down = nnx.Linear(7, 6, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x[..., 0])
        x = x + self.attention(self.norms[0](x))
        y = self.norms[1](x)
        x = x + self.down(nnx.silu(self.gate(y)) * self.up(y))
        return self.out(self.norms[2](x).mean(1))


class AdaptedMLP(nnx.Module):
    def __init__(self, rngs):
        adapted = functools.partial(nnx.LoRALinear, lora_rank=2, rngs=rngs)
        # B starts away from 0: where all of it is 0 its components have no coordinates yet.
        start = nnx.initializers.normal(0.3)
        self.hidden = adapted(64, 8, b_initializer=start)
        self.out = adapted(8, 3, b_initializer=start)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


EXAMPLES = {
    "CNN with BatchNorm": (CNN, nnx.Param),
    "ResNet": (ResNet, nnx.Param),
    "RCNN": (RCNN, nnx.Param),
    "pre-norm transformer with SwiGLU": (Transformer, nnx.Param),
    "LoRA on a frozen MLP": (AdaptedMLP, nnx.LoRAParam),
}


# A transformer, a recurrence and low-rank factors stand for all in quick runs.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("CNN with BatchNorm", "ResNet") else [])
        for name in EXAMPLES
    ],
)
@pytest.mark.parametrize("make", [pathspace.g_sgd, pytest.param(pathspace.g_adam, marks=pytest.mark.slow)])
def test_training_through_a_traced_graph(name, make, x64):
    make_model, trained = EXAMPLES[name]
    model = make_model(nnx.Rngs(0))
    graphdef, *states = nnx.split(model, trained, ...)
    params, rest = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, states)
    images = np.random.default_rng(0).normal(size=(12, 8, 8, 1))
    labels = np.arange(12) % 3

    def logits(params, images):
        return nnx.merge(graphdef, params, rest, copy=True)(images)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()

    graph = pathspace.reduction_graph(logits, params, images)

    def train(params):
        skeleton = pathspace.choose_skeleton(graph, params)
        optimizer = make(0.01, skeleton)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), logits(params, images)

        return jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)[1]

    train = jax.jit(train)
    expected = train(params)
    rescaled = pathspace.rescale(params, graph, pathspace.random_scales(jax.random.key(1), graph, sigma=2.0))
    assert_allclose(train(rescaled), expected, rtol=1e-6, atol=1e-6)
    before, after = (optax.softmax_cross_entropy_with_integer_labels(expected[step], labels).mean() for step in (0, -1))
    assert after < before
