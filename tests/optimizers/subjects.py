"""Optimisers, bare and inside Optax's wrappers, for the tests of what Optax asks of them all."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from optax import contrib

from pathspace import g_adam, g_sgd, in_path_space, path_adam, path_kappa, path_sgd
from tests.architectures import MLP

NETWORK = MLP((3, 5, 2))


def kappa_of_network(params):
    """The curvature of the path-norm along the network's weights, 0 along everything else."""
    inputs = jnp.zeros((1, 3), jnp.float32)
    if "network" not in params:
        return path_kappa(NETWORK.outputs, params, inputs)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    return zeros | {"network": path_kappa(NETWORK.outputs, params["network"], inputs)}


def _in_path_space(learning_rate, skeleton, max_ratio=1.1):
    return in_path_space(optax.rmsprop(learning_rate), skeleton, max_ratio=max_ratio)


def _path_sgd(learning_rate, skeleton):
    return path_sgd(learning_rate, kappa_of_network, momentum=0.5, every=2)


def _bounded_path_sgd(learning_rate, skeleton):
    return path_sgd(learning_rate, kappa_of_network, max_norm=1.0, ratio="weights")


def _path_adam(learning_rate, skeleton):
    return path_adam(learning_rate, kappa_of_network, ratio="initial")


class Optimizer(NamedTuple):
    """How it is made from a learning rate and a skeleton, and whether it trains leaves outside the network."""

    make: Callable[..., optax.GradientTransformation]
    trains_all: bool = True


OPTIMIZERS = {
    "g_sgd": Optimizer(g_sgd),
    "g_sgd, momentum": Optimizer(functools.partial(g_sgd, momentum=0.5, nesterov=True)),
    "g_adam": Optimizer(g_adam),
    "in_path_space": Optimizer(_in_path_space),
    "path_sgd": Optimizer(_path_sgd, trains_all=False),
    "path_sgd, bounded": Optimizer(_bounded_path_sgd, trains_all=False),
    "path_adam": Optimizer(_path_adam, trains_all=False),
}


def _everywhere(label, params):
    return jax.tree.map(lambda leaf: label, params)


def _same(value):
    return value


def _last(state, params):
    return params


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A wrapper, the parameters that it works on, the weights in them, and those to evaluate in the end."""

    wrap: Callable[[optax.GradientTransformation], optax.GradientTransformation]
    start: Callable[[Any], Any] = _same
    weights: Callable[[Any], Any] = _same
    evaluated: Callable[[optax.OptState, Any], Any] = _last


def _chain(optimizer):
    return optax.chain(optax.scale(0.5), optimizer, optax.identity())


def _partition(optimizer):
    return optax.partition(
        {"trained": optimizer, "frozen": optax.set_to_zero()}, functools.partial(_everywhere, "trained")
    )


WRAPPERS = {
    "bare": Wrapper(_same),
    "chain": Wrapper(_chain),
    "masked": Wrapper(lambda optimizer: optax.masked(optimizer, functools.partial(_everywhere, True))),
    "partition": Wrapper(_partition),
    "apply_if_finite": Wrapper(lambda optimizer: optax.apply_if_finite(optimizer, 3)),
    "MultiSteps": Wrapper(lambda optimizer: optax.MultiSteps(optimizer, 2).gradient_transformation()),
    "lookahead": Wrapper(
        lambda optimizer: optax.with_extra_args_support(optax.lookahead(optimizer, 5, 0.5)),
        start=optax.LookaheadParams.init_synced,
        weights=lambda params: params.fast,
        evaluated=lambda state, params: params.slow,
    ),
    "schedule_free": Wrapper(
        lambda optimizer: contrib.schedule_free(optimizer, learning_rate=1.0),
        evaluated=contrib.schedule_free_eval_params,
    ),
    "reduce_on_plateau": Wrapper(lambda optimizer: optax.chain(optimizer, contrib.reduce_on_plateau(patience=50))),
}


class Subject(NamedTuple):
    """An optimiser in a wrapper, both by name."""

    optimizer: str
    wrapper: str = "bare"

    def __str__(self):
        return f"{self.optimizer} in {self.wrapper}"

    def make(self, learning_rate, skeleton):
        return WRAPPERS[self.wrapper].wrap(OPTIMIZERS[self.optimizer].make(learning_rate, skeleton))


BARE = [Subject(name) for name in OPTIMIZERS]
# One optimiser goes through the wrappers in every run, all others in slow ones.
_QUICK = "g_sgd, momentum"
SUBJECTS = [
    pytest.param(
        Subject(optimizer, wrapper), marks=() if wrapper == "bare" or optimizer == _QUICK else pytest.mark.slow
    )
    for wrapper in WRAPPERS
    for optimizer in OPTIMIZERS
]


def one_step(subject, optimizer, loss):
    """From parameters and state to the same after an update; wrappers that want it get the loss."""
    wrapper = WRAPPERS[subject.wrapper]

    def step(params, state):
        value, grads = jax.value_and_grad(loss)(wrapper.weights(params))
        updates, state = optimizer.update(grads, state, params, value=value, not_asked_for=1.0)
        return optax.apply_updates(params, updates), state

    return step
