"""Activations that are homogeneous, and others, which make their units ground; gains."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from .building import case, floats, linen, of_nnx, shapes

relu = jax.nn.relu

for _name, _activation in {
    "relu_by_maximum": lambda x: jnp.maximum(x, 0),
    "relu_by_where": lambda x: jnp.where(x > 0, x, 0),
    "relu_by_product": lambda x: x * (x > 0),
    "leaky_relu": jax.nn.leaky_relu,
    "absolute_value": jnp.abs,
    "hardtanh_free_side": lambda x: jnp.minimum(x, 0),
    "linear": lambda x: x,
    "squared_over_absolute": lambda x: x**2 / jnp.abs(x),
    "two_norm_of_pair": lambda x: jnp.sqrt(x**2 + relu(x) ** 2),
}.items():

    @case(units=4, name=_name)
    def _(activation=_activation):
        def fn(params, x):
            return activation(x @ params["w"] + params["b"]) @ params["v"]

        return fn, shapes(w=(2, 4), b=(4,), v=(4, 2)), (floats(3, 2),)


# The first layer has four units that are ground, the second three that are not.
for _name, _activation in {
    "plus_constant": lambda x: relu(x) + 0.1,
    "relu6": lambda x: jax.nn.relu6(4 * x),
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "softmax": jax.nn.softmax,
    "hard_tanh": jax.nn.hard_tanh,
    "shifted_relu": lambda x: relu(x - 0.5),
    "logarithm": lambda x: jnp.log(1 + relu(x)),
}.items():

    @case(units=3, name=_name)
    def _(activation=_activation):
        def fn(params, x):
            x = activation(x @ params["w"] + params["b"])
            return relu(x @ params["u"] + params["c"]) @ params["v"]

        return fn, shapes(w=(2, 4), b=(4,), u=(4, 3), c=(3,), v=(3, 2)), (floats(3, 2),)


@case(units=0)
def no_units():
    return lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"], shapes(w=(2, 3), v=(3, 2)), (floats(3, 2),)


@case(units=3, nullity=3 + 4, reason="the units of a squared ReLU have the exponent 2")
def squared_relu():
    def fn(params, x):
        return relu(relu(x @ params["w"]) ** 2 @ params["u"]) @ params["v"]

    return fn, shapes(w=(2, 4), u=(4, 3), v=(3, 2)), (floats(3, 2),)


@case(units=4)
def linen_prelu():
    return linen(lambda x: nn.Dense(2)(nn.PReLU()(nn.Dense(4)(x))), floats(3, 2))


@case(units=4)
def nnx_prelu():
    return of_nnx(
        lambda rngs: {
            "a": nnx.Linear(2, 4, rngs=rngs),
            "prelu": nnx.PReLU(negative_slope_init=0.1),
            "b": nnx.Linear(4, 2, rngs=rngs),
        },
        lambda m, x: m.b(m.prelu(m.a(x))),
        floats(3, 2),
    )


@case(units=4)
def prelu_with_a_slope_for_each_unit():
    def fn(params, x):
        x = x @ params["w"] + params["b"]
        return jnp.where(x >= 0, x, params["slope"] * x) @ params["v"]

    return fn, shapes(w=(2, 4), b=(4,), slope=(4,), v=(4, 2)), (floats(3, 2),)


# Three units of two pieces each.
@case(units=3)
def linen_maxout():
    return linen(lambda x: nn.Dense(2)(nn.Dense(6)(x).reshape(-1, 3, 2).max(-1)), floats(3, 2))


@case(units=3)
def nnx_maxout():
    return of_nnx(
        lambda rngs: {"a": nnx.LinearGeneral(2, (3, 2), rngs=rngs), "b": nnx.Linear(3, 2, rngs=rngs)},
        lambda m, x: m.b(m.a(x).max(-1)),
        floats(3, 2),
    )


@case(units=3 + 3)
def crelu():
    # The positive and the negative part of one unit share its scale.
    def fn(params, x):
        x = x @ params["w"] + params["b"]
        x = jnp.concatenate([relu(x), relu(-x)], -1)
        return relu(x @ params["u"]) @ params["v"]

    return fn, shapes(w=(2, 3), b=(3,), u=(6, 3), v=(3, 2)), (floats(3, 2),)


@case(units=3 + 1)
def scalar_gain_on_the_output():
    # The scalar reads one unit: all of v flows into it.
    def fn(params, x):
        return params["gain"] * (relu(x @ params["w"] + params["b"]) @ params["v"])

    return fn, shapes(w=(2, 3), b=(3,), v=(3, 2), gain=()), (floats(3, 2),)


@case(units=3 + 1)
def scalar_gain_on_the_input():
    # The scalar feeds one unit, which all of w reads.
    def fn(params, x):
        return relu((params["gain"] * x) @ params["w"] + params["b"]) @ params["v"]

    return fn, shapes(w=(2, 3), b=(3,), v=(3, 2), gain=()), (floats(3, 2),)


@case(units=2 + 3, nullity=2 + 3 + 1, reason="w or v would have a third end, at the unit of the scalar")
def scalar_gain_between_layers():
    def fn(params, x):
        x = relu(x @ params["u"])
        return relu(params["gain"] * (x @ params["w"])) @ params["v"]

    return fn, shapes(u=(2, 2), w=(2, 3), v=(3, 2), gain=()), (floats(3, 2),)


@case(units=2 * 4)
def gain_for_each_unit():
    # The gain lies between the units that w feeds and those that v reads.
    def fn(params, x):
        return relu(params["gain"] * (x @ params["w"])) @ params["v"]

    return fn, shapes(w=(2, 4), v=(4, 2), gain=(4,)), (floats(3, 2),)


# The stream, the units inside the block, and those between its last kernel and the gain.
@case(units=2 + 4 + 2)
def layer_scale():
    def fn(params, x):
        x = x @ params["embed"]
        x = x + params["gain"] * (relu(x @ params["up"]) @ params["down"])
        return x @ params["out"]

    return fn, shapes(embed=(3, 2), up=(2, 4), down=(4, 2), gain=(2,), out=(2, 2)), (floats(3, 3),)


@case(units=2 + 4)
def residual_scaled_by_a_constant():
    def fn(params, x):
        x = x @ params["embed"]
        x = 0.5 * x + relu(x @ params["up"]) @ params["down"]
        return x @ params["out"]

    return fn, shapes(embed=(3, 2), up=(2, 4), down=(4, 2), out=(2, 2)), (floats(3, 3),)


@case(units=2 + 4, nullity=2 + 4 + 1, reason="the scalar would be a third end of each entry of down")
def residual_scaled_by_a_scalar():
    def fn(params, x):
        x = x @ params["embed"]
        x = params["alpha"] * x + relu(x @ params["up"]) @ params["down"]
        return x @ params["out"]

    return fn, shapes(embed=(3, 2), up=(2, 4), down=(4, 2), alpha=(), out=(2, 2)), (floats(3, 3),)


@case(units=4 + 1)
def scaled_input_plus_branch():
    # The scalar and down feed one unit, which all of out reads.
    def fn(params, x):
        x = params["alpha"] * x + relu(x @ params["up"]) @ params["down"]
        return x @ params["out"]

    return fn, shapes(up=(2, 4), down=(4, 2), alpha=(), out=(2, 2)), (floats(3, 2),)
