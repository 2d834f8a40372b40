"""Control flow and function transformations inside the traced function."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .building import case, floats, integers, linen, of_nnx, shapes

relu = jax.nn.relu
SHAPES = {"w": (2, 3), "b": (3,), "u": (3, 3), "v": (3, 2)}


@case(units=3 + 3)
def checkpoint():
    @jax.checkpoint
    def block(kernel, bias, x):
        return relu(x @ kernel + bias)

    def fn(params, x):
        return relu(block(params["w"], params["b"], x) @ params["u"]) @ params["v"]

    return fn, shapes(**SHAPES), (floats(3, 2),)


@case(units=4)
def linen_remat():
    return linen(lambda x: nn.Dense(2)(nn.relu(nn.remat(nn.Dense)(4)(x))), floats(3, 2))


@case(units=4)
def nnx_remat():
    return of_nnx(
        lambda rngs: {"a": nnx.Linear(2, 4, rngs=rngs), "b": nnx.Linear(4, 2, rngs=rngs)},
        lambda m, x: m.b(nnx.remat(lambda layer, x: nnx.relu(layer(x)))(m.a, x)),
        floats(3, 2),
    )


@case(units=3)
def scan_whose_outputs_nobody_reads():
    def fn(params, x):
        def step(h, z):
            h = relu(z @ params["w"] + h @ params["u"] + params["b"])
            return h, h

        return jax.lax.scan(step, jnp.zeros((3, 3)), x)[0] @ params["v"]

    return fn, shapes(**SHAPES), (floats(4, 3, 2),)


@case(units=3)
def scan_made_by_differentiation():
    def fn(params, x):
        def outputs(x):
            def step(h, z):
                h = relu(z @ params["w"] + h @ params["u"])
                return h, h

            return jnp.sum(jax.lax.scan(step, jnp.zeros((3, 3)), x)[1] @ params["v"])

        return jax.grad(outputs)(x)

    return fn, shapes(w=(2, 3), u=(3, 3), v=(3, 2)), (floats(4, 3, 2),)


@case(units=3)
def cond():
    def fn(params, x):
        h = x @ params["w"] + params["b"]
        h = jax.lax.cond(jnp.sum(x) > 0, lambda h: relu(h), lambda h: jax.nn.leaky_relu(h), h)
        return h @ params["v"]

    return fn, shapes(w=(2, 3), b=(3,), v=(3, 2)), (floats(3, 2),)


@case(units=3 + 3)
def cond_with_weights():
    # One branch reads its own kernel, the other none: their outputs share one scale.
    def fn(params, x):
        h = relu(x @ params["w"] + params["b"])
        h = jax.lax.cond(x[0, 0] > 0, lambda: h @ params["u"], lambda: x @ params["t"])
        return relu(h) @ params["v"]

    return fn, shapes(t=(2, 3), **SHAPES), (floats(3, 2),)


@case(units=3)
def cond_on_zero():
    def fn(params, x):
        h = x @ params["w"] + params["b"]
        return jax.lax.cond(x[0, 0] > 0, lambda: relu(h), lambda: jnp.zeros_like(h)) @ params["v"]

    return fn, shapes(w=(2, 3), b=(3,), v=(3, 2)), (floats(3, 2),)


@case(units=3)
def switch():
    def fn(params, x, which):
        h = x @ params["w"] + params["b"]
        return jax.lax.switch(which, [relu, jnp.abs, lambda h: -h], h) @ params["v"]

    return fn, shapes(w=(2, 3), b=(3,), v=(3, 2)), (floats(3, 2), integers(3))


@case(units=3, gradient=jax.jacfwd)
def while_loop():
    def fn(params, x):
        def step(state):
            count, h = state
            return count + 1, relu(x @ params["w"] + params["b"] + h @ params["u"])

        start = (0, jnp.zeros((3, 3), x.dtype))
        return jax.lax.while_loop(lambda state: state[0] < 3, step, start)[1] @ params["v"]

    return fn, shapes(**SHAPES), (floats(3, 2),)


# Whether to go on depends on the sign of a unit, which does not change.
@case(units=3, gradient=jax.jacfwd)
def while_loop_until_a_sign():
    def fn(params, x):
        def step(state):
            count, h = state
            return count + 1, relu(x @ params["w"] + params["b"] - h @ params["u"])

        start = (0, x @ params["w"] + params["b"])
        return jax.lax.while_loop(lambda state: (state[0] < 4) & (state[1][0] > 0), step, start)[1] @ params["v"]

    return fn, shapes(**SHAPES), (floats(2),)


@case(units=3)
def fori_loop():
    def fn(params, x):
        first = relu(x @ params["w"] + params["b"])
        return jax.lax.fori_loop(0, 3, lambda _, h: relu(h @ params["u"] + params["b"]), first) @ params["v"]

    return fn, shapes(**SHAPES), (floats(3, 2),)


@jax.custom_vjp
def _relu_by_custom_vjp(x):
    return jnp.maximum(x, 0)


_relu_by_custom_vjp.defvjp(
    lambda x: (_relu_by_custom_vjp(x), x > 0), lambda positive, cotangent: (jnp.where(positive, cotangent, 0),)
)


@jax.custom_jvp
def _relu_by_custom_jvp(x):
    return jnp.maximum(x, 0)


@_relu_by_custom_jvp.defjvp
def _(primals, tangents):
    return _relu_by_custom_jvp(*primals), jnp.where(primals[0] > 0, tangents[0], 0)


for _activation in _relu_by_custom_vjp, _relu_by_custom_jvp:

    @case(units=3, name=_activation.__name__.removeprefix("_relu_by_"))
    def _(activation=_activation):
        def fn(params, x):
            return activation(x @ params["w"] + params["b"]) @ params["v"]

        return fn, shapes(w=(2, 3), b=(3,), v=(3, 2)), (floats(3, 2),)


@case(units=3)
def custom_vjp_of_a_layer():
    @jax.custom_vjp
    def layer(kernel, x):
        return relu(x @ kernel)

    layer.defvjp(lambda kernel, x: jax.vjp(lambda *args: relu(args[1] @ args[0]), kernel, x), lambda vjp, g: vjp(g))
    return lambda params, x: layer(params["w"], x) @ params["v"], shapes(w=(2, 3), v=(3, 2)), (floats(3, 2),)


@case(units=3)
def gradient_is_stopped():
    # The skip carries values but no derivatives; the oracle is therefore given a function with the same values.
    def fn(params, x):
        h = x @ params["w"] + params["b"]
        return (h + jax.lax.stop_gradient(relu(h) - relu(h)) + relu(h)) @ params["v"]

    return fn, shapes(w=(2, 3), b=(3,), v=(3, 2)), (floats(3, 2),)


# The steps of a scan are merged, as the reduction graph merges time steps: the streams behind three layers are one.
@case(units=2, nullity=2 * 4, reason="the three layers of the scan have units of their own")
def scan_over_layers():
    def fn(params, x):
        def layer(h, kernel):
            return jax.nn.leaky_relu(h @ kernel), None

        return jax.lax.scan(layer, x @ params["w"], params["stack"])[0] @ params["v"]

    return fn, shapes(w=(2, 2), stack=(3, 2, 2), v=(2, 2)), (floats(3, 2),)


@case(units=2 + 3, nullity=2 + 3 * 3, reason="the three blocks of the scan have units of their own inside")
def scan_over_residual_blocks():
    def fn(params, x):
        def block(h, kernels):
            return h + relu(h @ kernels["up"] + kernels["bias"]) @ kernels["down"], None

        return jax.lax.scan(block, x @ params["w"], params["stack"])[0] @ params["v"]

    params = {**shapes(w=(2, 2), v=(2, 2)), "stack": shapes(up=(3, 2, 3), bias=(3, 3), down=(3, 3, 2))}
    return fn, params, (floats(3, 2),)


@case(units=2 + 3, nullity=2 + 2 * 3, reason="the two blocks of the scan have units of their own inside")
def linen_scan_over_residual_blocks():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(2)(nn.relu(nn.Dense(3)(x))), None

    def body(x):
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()
        return nn.Dense(2)(blocks(nn.Dense(2)(x), None)[0])

    return linen(body, floats(3, 2))


@case(units=3)
def map_over_examples():
    def fn(params, x):
        return jax.lax.map(lambda row: relu(row @ params["w"] + params["b"]) @ params["v"], x)

    return fn, shapes(w=(2, 3), b=(3,), v=(3, 2)), (floats(3, 2),)


@case(units=3)
def vmapped_layers():
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def layer(x, kernel, bias):
        return relu(x @ kernel + bias)

    def fn(params, x):
        return layer(x, params["w"], params["b"]) @ params["v"]

    return fn, shapes(w=(2, 3), b=(3,), v=(3, 2)), (floats(3, 2),)


# Each unit moves on to its neighbour's place: they have one scale in common.
@case(units=1)
def shift_register():
    def fn(params, x):
        def step(h, x):
            return relu(x @ params["w"] + jnp.pad(h[1:], (0, 1))), None

        return jax.lax.scan(step, jnp.zeros(3), x)[0] @ params["v"]

    return fn, shapes(w=(2, 3), v=(3, 2)), (floats(5, 2),)


PADDED = np.array([1, 1, 1, 0, 0])[:, None] * np.ones((5, 3))


@case(units=3 + 3, masked={"u": PADDED, "v": PADDED[:, :2]})
def one_padding_function_called_twice():
    pad = jax.jit(lambda h: jnp.pad(h, ((0, 0), (0, 2))))

    def fn(params, x):
        h = pad(relu(x @ params["w"]))
        return pad(relu(h @ params["u"])) @ params["v"]

    return fn, shapes(w=(2, 3), u=(5, 3), v=(5, 2)), (floats(3, 2),)
