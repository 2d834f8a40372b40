"""Leaves outside the graph, masks, and trees of all kinds."""

import functools
import re

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from pathspace import ReductionGraph, choose_skeleton, g_adam, g_sgd
from pathspace.trees import named_leaves
from tests.architectures import MLP, Mixture
from tests.compiled import choose
from tests.optimizers.cases import OPTIMIZERS, assert_trees_close, float32, optimizers, steps

WITH_INNER = {
    "g_sgd": (g_sgd, optax.sgd(0.1)),
    "g_sgd, momentum": (functools.partial(g_sgd, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
    "g_sgd, Nesterov": (
        functools.partial(g_sgd, momentum=0.9, nesterov=True),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
    ),
    "g_sgd, weight decay": (
        functools.partial(g_sgd, weight_decay=0.1),
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    ),
    "g_adam": (functools.partial(g_adam, b1=0.8, b2=0.9, eps=1e-3), optax.adam(0.1, 0.8, 0.9, 1e-3)),
    "g_adam, weight decay": (functools.partial(g_adam, weight_decay=0.1), optax.adamw(0.1, weight_decay=0.1)),
}
with_inner = pytest.mark.parametrize(("make", "inner"), WITH_INNER.values(), ids=WITH_INNER)


@with_inner
def test_with_an_empty_graph_all_leaves_get_the_plain_transformation(make, inner):
    """Updates are differences of new and old parameters, so compare those."""
    params = float32(Mixture().parameters(0))
    graph = ReductionGraph.from_edges(params, {})
    for ours, plain in zip(steps(make(0.1, choose_skeleton(graph, params)), params), steps(inner, params), strict=True):
        assert_trees_close(ours, plain, 1e-6)


@with_inner
def test_leaves_outside_get_the_plain_transformation(make, inner):
    network = Mixture()
    params = float32(network.parameters(0))
    pairs = zip(steps(make(0.1, choose(network.graph, params)), params), steps(inner, params), strict=True)
    for ours, plain in pairs:
        ours, plain = named_leaves(ours), named_leaves(plain)
        for name in network.graph.outside:
            assert_allclose(ours[name], plain[name], rtol=1e-5, atol=1e-6)
        assert any(not np.allclose(ours[leaf.name], plain[leaf.name]) for leaf in network.graph.leaves)


@optimizers
def test_missing_params(make):
    network = MLP((2, 3, 2))
    params = float32(network.parameters(0))
    optimizer = make(0.1, choose(network.graph, params))
    with pytest.raises(
        ValueError, match="You are using a transformation that requires the current value of parameters"
    ):
        optimizer.update(params, optimizer.init(params))


TWO_BRANCHES = {"a": (None, "h"), "b": ("h", None), "c": (None, "g"), "d": ("g", None)}


def two_branches():
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=(2, 2)), jnp.float32) for name in TWO_BRANCHES}
    return params, choose(ReductionGraph.from_edges(params, TWO_BRANCHES), params)


@optimizers
def test_whole_groups_can_be_masked(make):
    params, skeleton = two_branches()
    masked = optax.masked(make(0.1, skeleton), {"a": True, "b": True, "c": False, "d": False})
    for ours, whole in zip(steps(masked, params), steps(make(0.1, skeleton), params), strict=True):
        for name in ("a", "b"):
            assert_allclose(ours[name], whole[name], rtol=1e-6)
        for name in ("c", "d"):  # optax.masked passes on the gradients of what it masks
            assert not np.allclose(ours[name], whole[name])


@pytest.mark.parametrize("left_out", TWO_BRANCHES)
def test_half_a_group_cannot_be_masked(left_out):
    params, skeleton = two_branches()
    optimizer = optax.masked(g_sgd(0.1, skeleton), {name: name != left_out for name in params})
    state = optimizer.init(params)
    group = "h" if left_out in "ab" else "g"
    with pytest.raises(ValueError, match=re.escape(f"group '{group}' has the leaves") + f".*'{left_out}'.* masked"):
        optimizer.update(params, state, params)


class Model(nnx.Module):
    def __init__(self):
        self.hidden = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(3, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.out(jax.nn.relu(self.hidden(x)))


MODEL_EDGES = {"hidden/kernel": (None, "h"), "hidden/bias": (None, "h"), "out/kernel": ("h", None)}


@pytest.mark.parametrize("make", [OPTIMIZERS["g_sgd, momentum"], OPTIMIZERS["g_adam, weight decay"]])
def test_trees_of_all_kinds_get_the_same_updates(make):
    state = nnx.state(Model(), nnx.Param)
    plain = nnx.to_pure_dict(state)
    graph = ReductionGraph.from_edges(plain, MODEL_EDGES)
    expected = [named_leaves(updates) for updates in steps(make(0.1, choose(graph, plain)), plain)]
    for tree in (state, flax.core.freeze(plain), jax.tree.map(nnx.Param, plain)):
        for updates, same in zip(steps(make(0.1, choose(graph, tree)), tree), expected, strict=True):
            assert jax.tree.structure(updates) == jax.tree.structure(tree)
            for name, leaf in named_leaves(updates).items():
                assert_allclose(leaf, same[name], rtol=1e-5, atol=1e-7)


@optimizers
def test_nnx_optimizer(make):
    model, x = Model(), jnp.array([[1.0, -2.0], [0.5, 3.0]])
    params = nnx.state(model, nnx.Param)
    graph = ReductionGraph.from_edges(params, MODEL_EDGES)
    optimizer = nnx.Optimizer(model, make(1e-2, choose(graph, params)), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(train(model, optimizer)) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert np.all(np.isfinite(losses))
