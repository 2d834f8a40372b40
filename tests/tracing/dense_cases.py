"""Dense networks, their residual, concatenated, masked and vmapped forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .building import case, floats, linen, of_nnx, shapes

relu = jax.nn.relu
MLP_SHAPES = {"a": (2, 4), "b": (4,), "c": (4, 3), "d": (3,), "e": (3, 2), "f": (2,)}


def mlp(params, x):
    x = relu(x @ params["a"] + params["b"])
    x = relu(x @ params["c"] + params["d"])
    return x @ params["e"] + params["f"]


@case(units=4 + 3)
def plain_mlp():
    return mlp, shapes(**MLP_SHAPES), (floats(3, 2),)


@case(units=4 + 3)
def vmapped_mlp():
    return jax.vmap(mlp, in_axes=(None, 0)), shapes(**MLP_SHAPES), (floats(3, 2),)


@case(units=2 * 3)
def vmapped_ensemble():
    def member(params, x):
        return relu(x @ params["w"] + params["b"]) @ params["v"]

    params = shapes(w=(2, 2, 3), b=(2, 3), v=(2, 3, 2))
    return jax.vmap(member, in_axes=(0, None)), params, (floats(3, 2),)


@case(units=3)
def jitted_layers():
    @jax.jit
    def layer(kernel, bias, x):
        return jax.jit(jnp.dot)(x, kernel) + bias

    def fn(params, x):
        return layer(params["v"], params["c"], relu(layer(params["w"], params["b"], x)))

    return fn, shapes(w=(2, 3), b=(3,), v=(3, 2), c=(2,)), (floats(3, 2),)


@case(units=4)
def linen_dense():
    return linen(lambda x: nn.Dense(2)(nn.relu(nn.Dense(4)(x))), floats(3, 2))


@case(units=4)
def nnx_linear():
    return of_nnx(
        lambda rngs: {"a": nnx.Linear(2, 4, rngs=rngs), "b": nnx.Linear(4, 2, rngs=rngs)},
        lambda m, x: m.b(nnx.relu(m.a(x))),
        floats(3, 2),
    )


@case(units=3 + 4)
def nnx_sequential():
    return of_nnx(
        lambda rngs: {
            "net": nnx.Sequential(
                nnx.Linear(2, 3, rngs=rngs),
                nnx.relu,
                nnx.Linear(3, 4, rngs=rngs),
                nnx.relu,
                nnx.Linear(4, 1, rngs=rngs),
            )
        },
        lambda m, x: m.net(x),
        floats(3, 2),
    )


@case(units=2 * 3)
def linen_dense_general():
    return linen(lambda x: nn.DenseGeneral(2, axis=(-2, -1))(nn.relu(nn.DenseGeneral((2, 3))(x))), floats(3, 2))


@case(units=2 * 3)
def nnx_linear_general():
    return of_nnx(
        lambda rngs: {
            "a": nnx.LinearGeneral(2, (2, 3), rngs=rngs),
            "b": nnx.LinearGeneral((2, 3), 2, axis=(-2, -1), rngs=rngs),
        },
        lambda m, x: m.b(nnx.relu(m.a(x))),
        floats(3, 2),
    )


@case(units=2 * 3)
def linen_einsum():
    return linen(
        lambda x: nn.Einsum((2, 3, 2), "bhs,hso->bo", use_bias=False)(
            nn.relu(nn.Einsum((2, 2, 3), "bi,ihs->bhs", use_bias=False)(x))
        ),
        floats(3, 2),
    )


@case(units=2 * 3)
def nnx_einsum():
    return of_nnx(
        lambda rngs: {
            "a": nnx.Einsum("bi,ihs->bhs", (2, 2, 3), (2, 3), rngs=rngs),
            "b": nnx.Einsum("bhs,hso->bo", (2, 3, 2), (2,), rngs=rngs),
        },
        lambda m, x: m.b(nnx.relu(m.a(x))),
        floats(3, 2),
    )


@case(units=4, name="linen_dropout")
def _():
    # Each example has a mask of its own, so that no unit is off in all of them.
    def body(x):
        x = nn.Dropout(0.5, deterministic=False)(nn.relu(nn.Dense(4)(x)), rng=jax.random.key(0))
        return nn.Dense(2)(x)

    return linen(body, floats(12, 2))


@case(units=4)
def linen_dropout_deterministic():
    return linen(lambda x: nn.Dense(2)(nn.Dropout(0.5, deterministic=True)(nn.relu(nn.Dense(4)(x)))), floats(3, 2))


def _nnx_with_dropout(rngs):
    return {
        "a": nnx.Linear(2, 4, rngs=rngs),
        "dropout": nnx.Dropout(0.5, rngs=rngs),
        "b": nnx.Linear(4, 2, rngs=rngs),
    }


@case(units=4)
def nnx_dropout():
    return of_nnx(_nnx_with_dropout, lambda m, x: m.b(m.dropout(nnx.relu(m.a(x)))), floats(12, 2))


@case(units=4)
def nnx_dropout_deterministic():
    return of_nnx(_nnx_with_dropout, lambda m, x: m.b(m.dropout(nnx.relu(m.a(x)))), floats(3, 2), evaluate=True)


# The stream, and the units inside the block.
@case(units=2 + 4)
def linen_residual():
    def body(x):
        x = nn.Dense(2)(x)
        x = x + nn.Dense(2)(nn.relu(nn.Dense(4)(x)))
        return nn.Dense(2)(x)

    return linen(body, floats(3, 3))


@case(units=2 + 4)
def nnx_residual():
    return of_nnx(
        lambda rngs: {
            "embed": nnx.Linear(3, 2, rngs=rngs),
            "up": nnx.Linear(2, 4, rngs=rngs),
            "down": nnx.Linear(4, 2, rngs=rngs),
            "out": nnx.Linear(2, 2, rngs=rngs),
        },
        lambda m, x: m.out((x := m.embed(x)) + m.down(nnx.relu(m.up(x)))),
        floats(3, 3),
    )


# The stream before the block, the units inside it, the stream behind it.
@case(units=2 + 4 + 3)
def linen_residual_with_projection():
    def body(x):
        x = nn.relu(nn.Dense(2)(x))
        x = nn.Dense(3, use_bias=False)(x) + nn.Dense(3)(nn.relu(nn.Dense(4)(x)))
        return nn.Dense(2)(nn.relu(x))

    return linen(body, floats(3, 3))


@case(units=2 + 4 + 3)
def nnx_residual_with_projection():
    return of_nnx(
        lambda rngs: {
            "embed": nnx.Linear(3, 2, rngs=rngs),
            "up": nnx.Linear(2, 4, rngs=rngs),
            "down": nnx.Linear(4, 3, rngs=rngs),
            "project": nnx.Linear(2, 3, use_bias=False, rngs=rngs),
            "out": nnx.Linear(3, 2, rngs=rngs),
        },
        lambda m, x: m.out(nnx.relu(m.project(x := nnx.relu(m.embed(x))) + m.down(nnx.relu(m.up(x))))),
        floats(3, 3),
    )


@case(units=3 + 2)
def linen_concatenation():
    def body(x):
        a = nn.relu(nn.Dense(3)(x))
        b = nn.relu(nn.Dense(2)(jnp.concatenate([x, a], -1)))
        return nn.Dense(2)(jnp.concatenate([b, x, a], -1))

    return linen(body, floats(3, 2))


@case(units=3 + 2)
def nnx_concatenation():
    def body(m, x):
        x = jnp.concatenate([x, nnx.relu(m.a(x))], -1)
        x = jnp.concatenate([x, nnx.relu(m.b(x))], -1)
        return m.out(x)

    return of_nnx(
        lambda rngs: {
            "a": nnx.Linear(2, 3, rngs=rngs),
            "b": nnx.Linear(5, 2, rngs=rngs),
            "out": nnx.Linear(7, 2, rngs=rngs),
        },
        body,
        floats(3, 2),
    )


@case(units=2 + 3)
def split_in_two():
    # The two halves of one kernel go different ways.
    def fn(params, x):
        left, right = jnp.split(relu(x @ params["w"] + params["b"]), [2], -1)
        return left @ params["u"], right @ params["v"]

    return fn, shapes(w=(2, 5), b=(5,), u=(2, 2), v=(3, 2)), (floats(3, 2),)


MASKS = {"w": np.array([[1, 1, 0, 1], [0, 1, 1, 0]]), "v": np.array([[1, 0], [1, 1], [0, 1], [1, 1]])}


@case(units=4, masked=MASKS)
def masked_weights():
    def fn(params, x):
        return relu(x @ (params["w"] * MASKS["w"]) + params["b"]) @ jnp.where(MASKS["v"], params["v"], 0)

    return fn, shapes(w=(2, 4), b=(4,), v=(4, 2)), (floats(3, 2),)


@case(units=3, masked={"w": np.tril(np.ones((3, 3)))})
def triangular_weights():
    return lambda params, x: relu(x @ jnp.tril(params["w"])) @ params["v"], shapes(w=(3, 3), v=(3, 2)), (floats(3, 3),)


@case(units=4 + 3, dtype=jnp.bfloat16)
def bfloat16_mlp():
    return mlp, shapes(**MLP_SHAPES), (floats(3, 2),)


# One kernel mixes the tokens of each channel, one the channels of each token. What the first writes all channels read:
# tokens and channels have one scale, a unit of its own.
@case(units=4 + 3, nullity=4 + 1 + 3, reason="in the unknowns chosen an entry of b has two targets")
def mixer():
    def fn(params, x):
        x = params["d"].T @ relu(params["c"].T @ x + params["bias"][:, None])
        return relu(x @ params["a"]) @ params["b"]

    return fn, shapes(c=(2, 4), bias=(4,), d=(4, 2), a=(3, 3), b=(3, 2)), (floats(2, 3),)
