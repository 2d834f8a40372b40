"""Parameters of Flax, Equinox and Haiku, in all the trees that they come in, are traced and trained as they are."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from flax.training.train_state import TrainState
from numpy.testing import assert_allclose

from pathspace import choose_skeleton, g_sgd, random_scales, reduction_graph, rescale

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
Y = jnp.stack([X.sum(1), jnp.abs(X[:, 0])], axis=1)
KEY = jax.random.key(0)


class NnxNetwork(nnx.Module):
    def __init__(self, rngs, shared=False, **options):
        self.first = nnx.Linear(3, 8, **options, rngs=rngs)
        self.second = nnx.Linear(8, 8, rngs=rngs)
        self.third = self.second if shared else nnx.Linear(8, 8, rngs=rngs)
        self.readout = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        for layer in (self.first, self.second, self.third):
            x = nnx.relu(layer(x))
        return self.readout(x)


def merged(graphdef, *rest):
    return lambda params, x: nnx.merge(graphdef, params, *rest)(x)


def nnx_network(**options):
    graphdef, params = nnx.split(NnxNetwork(nnx.Rngs(0), **options), nnx.Param)
    return merged(graphdef), params


def nnx_partitioned():
    axes = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"), mesh=one_device())
    return nnx_network(kernel_init=axes)


def nnx_frozen_submodule():
    """Only the second half is trained; what the first half gives is constant."""
    trained = nnx.All(nnx.Param, nnx.Any(nnx.PathContains("third"), nnx.PathContains("readout")))
    graphdef, params, rest = nnx.split(NnxNetwork(nnx.Rngs(0)), trained, ...)
    return merged(graphdef, rest), params


def one_device():
    return jax.make_mesh((1,), ("model",), (jax.sharding.AxisType.Auto,))


class LinenNetwork(nn.Module):
    partitioned: bool = False

    @nn.compact
    def __call__(self, x):
        kernel_init = nn.initializers.lecun_normal()
        if self.partitioned:
            kernel_init = nn.with_partitioning(kernel_init, (None, "model"))
        x = nn.relu(nn.Dense(8, kernel_init=kernel_init, name="first")(x))
        return nn.Dense(2, name="readout")(nn.relu(nn.Dense(8, name="second")(x)))


def linen(convert=lambda params: params, **options):
    network = LinenNetwork(**options)
    return network.apply, convert(network.init(KEY, X))


def equinox():
    network = eqx.nn.MLP(3, 2, 8, 2, key=KEY)
    params, static = eqx.partition(network, eqx.is_inexact_array)
    return (lambda params, x: jax.vmap(eqx.combine(params, static))(x)), params


def haiku():
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 8, 2])(x)))
    return network.apply, network.init(KEY, X)


CASES = {
    "nnx": (nnx_network, 24),
    "nnx, a module used twice": (functools.partial(nnx_network, shared=True), 8),
    "nnx, partitioned": (nnx_partitioned, 24),
    "nnx, frozen submodule": (nnx_frozen_submodule, 8),
    "linen": (linen, 16),
    "linen, FrozenDict": (functools.partial(linen, freeze), 16),
    "linen, partitioned": (functools.partial(linen, partitioned=True), 16),
    "Equinox": (equinox, 16),
    "Haiku": (haiku, 16),
}


def loss_of(fn):
    return lambda params: jnp.mean(jnp.square(fn(params, X) - Y))


def course(fn, graph, params):
    """The parameters after 10 steps, and the outputs before each."""
    optimizer = g_sgd(0.02, choose_skeleton(graph, params), momentum=0.5)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_of(fn))(params), state, params)
        return (optax.apply_updates(params, updates), state), fn(params, X)

    (params, _), outputs = jax.lax.scan(step, (params, optimizer.init(params)), length=10)
    return params, outputs


@pytest.mark.parametrize(("make", "units"), CASES.values(), ids=CASES)
def test_trees_of_all_frameworks(make, units):
    fn, params = make()
    graph = reduction_graph(fn, params, X)
    assert graph.num_units == units
    train = jax.jit(functools.partial(course, fn, graph))
    trained, outputs = train(params)
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    assert loss_of(fn)(trained) < 0.9 * loss_of(fn)(params)
    _, others = train(rescale(params, graph, random_scales(jax.random.key(1), graph)))
    assert_allclose(others, outputs, rtol=1e-3, atol=1e-4)


def test_linen_train_state():
    network = LinenNetwork()
    params = network.init(KEY, X)["params"]
    graph = reduction_graph(lambda params, x: network.apply({"params": params}, x), params, X)
    state = TrainState.create(
        apply_fn=network.apply, params=params, tx=g_sgd(0.02, choose_skeleton(graph, params), momentum=0.5)
    )

    @jax.jit
    def train(state):
        loss, grads = jax.value_and_grad(lambda params: jnp.mean((state.apply_fn({"params": params}, X) - Y) ** 2))(
            state.params
        )
        return state.apply_gradients(grads=grads), loss

    losses = []
    for _ in range(10):
        state, loss = train(state)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]


def test_nnx_optimizer_of_a_part():
    """The frozen half stays, the rest is trained as by hand."""
    model = NnxNetwork(nnx.Rngs(0))
    trained = nnx.All(nnx.Param, nnx.Any(nnx.PathContains("third"), nnx.PathContains("readout")))
    graphdef, params, rest = nnx.split(model, trained, ...)
    graph = reduction_graph(merged(graphdef, rest), params, X)
    expected, _ = course(merged(graphdef, rest), graph, params)
    frozen = np.asarray(model.second.kernel[...])
    optimizer = nnx.Optimizer(model, g_sgd(0.02, choose_skeleton(graph, params), momentum=0.5), wrt=trained)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.mean((model(X) - Y) ** 2), argnums=nnx.DiffState(0, trained))(model)
        optimizer.update(model, grads)

    for _ in range(10):
        step(model, optimizer)
    np.testing.assert_array_equal(model.second.kernel[...], frozen)
    assert_allclose(model.third.kernel[...], expected["third"]["kernel"][...], rtol=1e-4, atol=1e-5)
