"""One step is that of the papers' algorithm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from numpy.testing import assert_allclose

from pathspace import basis_paths, g_sgd, in_path_space, inverse_chain_rule, weight_allocation
from tests.architectures import MLP, RNN
from tests.compiled import choose, loss_gradient, unit_skeleton
from tests.examples import seeds
from tests.optimizers.cases import assert_trees_close, float32, x64


def algorithm_2(w_i, w_r, w_o, gradients, learning_rate, steps):
    """Algorithm 2 of the paper for skeleton weights of 1 in Wo, matrices of shape (outputs, inputs).

    Errata: line 6 sums only the entries of Wo outside the skeleton; the mask of Wo is Mo[j % n_out][j].
    """
    n = len(w_r)
    m_i, m_o = np.zeros_like(w_i), np.zeros_like(w_o)
    for j in range(n):
        m_i[j][j % w_i.shape[1]] = 1
        m_o[j % w_o.shape[0]][j] = 1
    trajectory = []
    for _ in range(steps):
        g_i, g_r, g_o = gradients(w_i, w_r, w_o)
        special = (w_i * m_i).sum(1)
        g_skeleton = (g_i * m_i).sum(1) - ((w_r * g_r).sum(0) + (w_o * g_o * (1 - m_o)).sum(0)) / special
        g_path_o, g_path_r = g_o / special, g_r / special
        ratio = 1 - learning_rate * g_skeleton / special
        w_i = w_i * m_i * ratio[:, None] + (w_i - learning_rate * g_i) * (1 - m_i)
        w_o = w_o * m_o + (w_o - learning_rate * g_path_o / special) / ratio * (1 - m_o)
        w_r = (w_r - learning_rate * g_path_r / special) / ratio
        trajectory.append((w_i, w_r, w_o))
    return trajectory


@jax.jit
def g_sgd_step(params, state, grads, skeleton, learning_rate):
    updates, state = g_sgd(learning_rate, skeleton).update(grads, state, params)
    return optax.apply_updates(params, updates), state


@x64
@given(seed=seeds)
@settings(max_examples=10)
def test_g_sgd_is_algorithm_2(seed):
    network = RNN((3, 3, 3))
    start = network.parameters(seed)
    skeleton = choose(network.graph, start, method="cyclic", reference=None)
    params = unit_skeleton(start, skeleton)
    inputs, learning_rate = network.inputs(seed), 1e-3
    gradient = functools.partial(loss_gradient, network)

    def gradients(w_i, w_r, w_o):
        weights = {name: {"kernel": w.T} for name, w in (("input0", w_i), ("recurrent0", w_r), ("readout", w_o))}
        grads = gradient(weights, inputs)
        return tuple(np.asarray(grads[name]["kernel"]).T for name in ("input0", "recurrent0", "readout"))

    matrices = (np.asarray(params[name]["kernel"]).T for name in ("input0", "recurrent0", "readout"))
    state = g_sgd(learning_rate, skeleton).init(params)
    for w_i, w_r, w_o in algorithm_2(*matrices, gradients, learning_rate, steps=5):
        params, state = g_sgd_step(params, state, gradient(params, inputs), skeleton, learning_rate)
        assert state.limited_units == 0
        assert_allclose(params["input0"]["kernel"], w_i.T, rtol=1e-10, atol=1e-12)
        assert_allclose(params["recurrent0"]["kernel"], w_r.T, rtol=1e-10, atol=1e-12)
        assert_allclose(params["readout"]["kernel"], w_o.T, rtol=1e-10, atol=1e-12)


def test_the_three_steps_make_the_update():
    network = RNN((2, 3, 2))
    params = float32(network.parameters(0))
    skeleton = choose(network.graph, params)
    grads = jax.tree.map(jnp.cos, params)
    inner = optax.adamw(1e-2)
    optimizer = in_path_space(inner, skeleton)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)

    @jax.jit
    def by_steps(params, grads):
        path_grads, paths = inverse_chain_rule(grads, params, skeleton), basis_paths(params, skeleton)
        path_updates, _ = inner.update(path_grads, inner.init(params), paths)
        return weight_allocation(params, path_updates, skeleton)

    assert_trees_close(updates, jax.tree.map(jnp.subtract, by_steps(params, grads), params), 1e-6)


def test_extra_arguments_reach_the_inner_transformation():
    network = MLP((2, 3, 2))
    params = float32(network.parameters(0))

    def scale_by_value():
        return optax.GradientTransformationExtraArgs(
            lambda params: optax.EmptyState(),
            lambda updates, state, params=None, *, value: (jax.tree.map(lambda u: -value * u, updates), state),
        )

    skeleton = choose(network.graph, params)
    ours = in_path_space(scale_by_value(), skeleton)
    updates, _ = jax.jit(ours.update)(params, ours.init(params), params, value=0.01)
    plain = g_sgd(0.01, skeleton)
    assert_trees_close(updates, jax.jit(plain.update)(params, plain.init(params), params)[0], 1e-6)
