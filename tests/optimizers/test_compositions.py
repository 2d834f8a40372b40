"""What may stand before, inside and behind an optimiser in path space."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathspace import choose_skeleton, conservation_error, g_sgd, in_path_space, invariance_error
from tests.architectures import MLP
from tests.compiled import balanced, loss_gradient, outputs, rescaled
from tests.examples import random_scales_by_numpy
from tests.optimizers.cases import x64

NETWORK = MLP((3, 5, 2))


def inside(*transformations):
    return lambda skeleton: in_path_space(optax.chain(*transformations, optax.sgd(1e-3)), skeleton)


def before(*transformations):
    return lambda skeleton: optax.chain(*transformations, g_sgd(1e-3, skeleton))


def behind(*transformations):
    return lambda skeleton: optax.chain(g_sgd(1e-3, skeleton), *transformations)


INVARIANT = {
    "alone": inside(),
    "norm clipped inside": inside(optax.clip_by_global_norm(0.1)),
    "values clipped inside": inside(optax.clip(0.1)),
    "decay inside": inside(optax.add_decayed_weights(0.1)),
    "Adam inside": inside(optax.scale_by_adam()),
    "scaled before": before(optax.scale(0.5)),
    "NaN, of which there is none, set to zero before": before(optax.zero_nans()),
    "scaled behind": behind(optax.scale(0.5)),
    "decay behind": behind(optax.add_decayed_weights(-0.1)),
}
DEPENDENT = {
    "norm clipped before": before(optax.clip_by_global_norm(0.1)),
    "values clipped before": before(optax.clip(0.1)),
    "decay before": before(optax.add_decayed_weights(0.1)),
    "Adam before": before(optax.scale_by_adam()),
    "values clipped behind": behind(optax.clip(1e-3)),
    "norm clipped behind": behind(optax.clip_by_global_norm(1e-3)),
    "plain SGD": lambda skeleton: optax.sgd(1e-3),
}


QUICK = {"norm clipped inside", "Adam inside", "scaled behind", "norm clipped before", "decay before", "plain SGD"}


def cases(table):
    return pytest.mark.parametrize(
        "make", [pytest.param(table[name], id=name, marks=() if name in QUICK else pytest.mark.slow) for name in table]
    )


@functools.partial(jax.jit, static_argnums=0)
def error(make, params, inputs):
    return invariance_error(
        lambda params: make(choose_skeleton(NETWORK.graph, params)),
        lambda params: NETWORK.loss(params, inputs),
        params,
        NETWORK.graph,
        jax.random.key(0),
    )


@x64
@cases(INVARIANT)
def test_invariant(make):
    assert error(make, NETWORK.parameters(0), NETWORK.inputs(0)) < 1e-9


@x64
@cases(DEPENDENT)
def test_dependent(make):
    assert error(make, NETWORK.parameters(0), NETWORK.inputs(0)) > 1e-2


@x64
def test_a_clipped_norm_conserves_and_still_depends_on_the_scales():
    """The conservation law alone does not make an invariant course: the norm that is compared is that of weights."""
    params = NETWORK.parameters(0)
    clip = optax.clip_by_global_norm(0.1)
    grads, _ = clip.update(loss_gradient(NETWORK, params, NETWORK.inputs(0)), clip.init(params))
    np.testing.assert_allclose(conservation_error(grads, params, NETWORK.graph)["h1"], 0, atol=1e-12)
    assert error(before(clip), params, NETWORK.inputs(0)) > 1e-2


@x64
def test_averages_of_equal_networks():
    params, inputs = NETWORK.parameters(0), NETWORK.inputs(0)
    equivalent = rescaled(params, NETWORK.graph, random_scales_by_numpy(NETWORK.graph, 0))

    def average(a, b):
        return jax.tree.map(lambda a, b: (a + b) / 2, a, b)

    expected = outputs(NETWORK, params, inputs)
    assert not np.allclose(outputs(NETWORK, average(params, equivalent), inputs), expected, rtol=0.1)
    balanced_first = average(*(balanced(each, NETWORK.graph) for each in (params, equivalent)))
    np.testing.assert_allclose(outputs(NETWORK, balanced_first, inputs), expected, rtol=1e-9)


def test_at_least_one_step():
    with pytest.raises(ValueError, match="expected 1 step or more, got 0"):
        invariance_error(lambda params: optax.sgd(0.1), jnp.sum, {}, NETWORK.graph, jax.random.key(0), steps=0)
