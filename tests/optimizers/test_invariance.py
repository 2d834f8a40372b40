"""The function's trajectory does not depend on the parameters' scales."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from pathspace import Skeleton, choose_skeleton
from tests.architectures import CNN, MLP, RNN, Mixture
from tests.compiled import rescaled
from tests.composites import DenseNet, FlattenedCNN
from tests.examples import random_scales_by_numpy
from tests.optimizers.cases import OPTIMIZERS, x64


@functools.partial(jax.jit, static_argnums=(0, 1))
def trajectory(network, optimizer_of, params, inputs, learning_rate):
    """The outputs before each of 50 steps; skeleton, reference and optimiser built from the parameters given."""
    optimizer = optimizer_of(learning_rate, choose_skeleton(network.graph, params))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(network.loss)(params, inputs), state, params)
        return (optax.apply_updates(params, updates), state), network.outputs(params, inputs)

    return jax.lax.scan(step, (params, optimizer.init(params)), length=50)[1]


def plain_sgd(learning_rate, skeleton: Skeleton):
    return optax.sgd(learning_rate)


INVARIANT = {
    "g_sgd": (OPTIMIZERS["g_sgd"], 1e-3),
    "g_sgd, momentum": (OPTIMIZERS["g_sgd, momentum"], 1e-4),
    "g_adam": (OPTIMIZERS["g_adam"], 1e-2),
    "g_adam, weight decay": (OPTIMIZERS["g_adam, weight decay"], 1e-2),
}


TRAINED = {
    RNN((2, 3, 2, 2), bias=True): ["g_sgd", "g_adam, weight decay"],
    Mixture(): ["g_adam"],
    FlattenedCNN(): ["g_sgd, momentum"],
}
EVERY = [
    pytest.param(network, name, marks=() if name in TRAINED.get(network, ()) else pytest.mark.slow)
    for network in (*TRAINED, MLP((3, 4, 4, 2)), CNN((2, 3, 2)), DenseNet(), RNN((2, 5, 4, 3, 2)))
    for name in INVARIANT
]


def equivalent_starts(network):
    params = jax.tree.map(jnp.asarray, network.parameters(1))
    return params, rescaled(params, network.graph, random_scales_by_numpy(network.graph, 2))


@x64
@pytest.mark.parametrize(("network", "name"), EVERY, ids=str)
def test_equivalent_parameters_are_trained_alike(network, name):
    make, learning_rate = INVARIANT[name]
    params, equivalent = equivalent_starts(network)
    inputs = network.inputs(1)
    outputs = trajectory(network, make, params, inputs, learning_rate)
    assert np.max(np.abs(outputs[-1] - outputs[0])) > 1e-3
    others = trajectory(network, make, equivalent, inputs, learning_rate)
    assert_allclose(others, outputs, rtol=1e-6, atol=1e-6)


@x64
@pytest.mark.parametrize("network", [MLP((3, 4, 4, 2)), RNN((2, 3, 2, 2), bias=True)], ids=str)
def test_plain_sgd_depends_on_the_scales(network):
    params, equivalent = equivalent_starts(network)
    inputs = network.inputs(1)
    outputs = trajectory(network, plain_sgd, params, inputs, 1e-3)
    others = trajectory(network, plain_sgd, equivalent, inputs, 1e-3)
    assert_allclose(others[0], outputs[0], rtol=1e-9, atol=1e-9)
    assert not np.allclose(others, outputs, rtol=1e-2, atol=1e-2)
