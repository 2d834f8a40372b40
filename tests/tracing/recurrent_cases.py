"""Recurrent networks: time steps are merged."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from pathspace.models import ReluRNN

from .building import case, floats, integers, linen, of_nnx, shapes

relu = jax.nn.relu


def relu_layer(params, x, start=None):
    """The states of a layer at all time steps, which are the first axis of x."""

    def step(h, x):
        h = relu(x @ params["in"] + h @ params["rec"] + params["bias"])
        return h, h

    start = jnp.zeros((*x.shape[1:-1], params["in"].shape[1]), x.dtype) if start is None else start
    return jax.lax.scan(step, start, x)[1]


def layer_shapes(ins, units):
    return {"in": floats(ins, units), "rec": floats(units, units), "bias": floats(units)}


# Two layers; both start from zeros, which have any scale.
@case(units=3 + 4)
def stacked_relu_rnn():
    def fn(params, x):
        return relu_layer(params["b"], relu_layer(params["a"], x))[-1] @ params["out"]

    return fn, {"a": layer_shapes(2, 3), "b": layer_shapes(3, 4), "out": floats(4, 2)}, (floats(4, 2, 2),)


@case(units=3 + 4, dtype=jnp.bfloat16)
def bfloat16_rnn():
    return stacked_relu_rnn()


@case(units=3)
def rnn_from_a_learned_start():
    def fn(params, x):
        return relu_layer(params["a"], x, params["start"])[-1] @ params["out"]

    return fn, {"a": layer_shapes(2, 3), "start": floats(3), "out": floats(3, 2)}, (floats(4, 2),)


@case(units=0)
def rnn_from_a_given_start():
    # The start is an input: it cannot be rescaled.
    def fn(params, x, start):
        return relu_layer(params["a"], x, start)[-1] @ params["out"]

    return fn, {"a": layer_shapes(2, 3), "out": floats(3, 2)}, (floats(4, 2), floats(3))


@case(units=3)
def unrolled_rnn():
    def fn(params, x):
        h = jnp.zeros(3)
        for row in x:
            h = relu(row @ params["in"] + h @ params["rec"] + params["bias"])
        return h @ params["out"]

    return fn, layer_shapes(2, 3) | {"out": floats(3, 2)}, (floats(4, 2),)


@case(units=3 + 2)
def embedded_rnn():
    def fn(params, i):
        return relu_layer(params["a"], params["embed"][i])[-1] @ params["out"]

    return fn, {"embed": floats(4, 2), "a": layer_shapes(2, 3), "out": floats(3, 2)}, (integers(4, 5),)


@case(units=3 + 2)
def relu_rnn_of_the_library():
    return of_nnx(lambda rngs: {"model": ReluRNN(2, [3, 2], 2, rngs=rngs)}, lambda m, x: m.model(x), floats(2, 4, 2))


@case(units=3 + 2)
def relu_rnn_with_every_output():
    return of_nnx(
        lambda rngs: {"model": ReluRNN(2, [3, 2], 2, output="every", unroll=2, rngs=rngs)},
        lambda m, x: m.model(x),
        floats(2, 4, 2),
    )


def nnx_rnn(cell, ins, units, rngs, **options):
    double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return nnx.RNN(cell(ins, units, rngs=rngs, **double, **options))


@case(units=3)
def linen_simple_cell():
    return linen(
        lambda x: nn.Dense(2)(nn.RNN(nn.SimpleCell(3, activation_fn=nn.relu, param_dtype=jnp.float64))(x)[:, -1]),
        floats(2, 4, 2),
    )


@case(units=3)
def nnx_simple_cell():
    return of_nnx(
        lambda rngs: {
            "rnn": nnx_rnn(nnx.SimpleCell, 2, 3, rngs, activation_fn=nnx.relu),
            "out": nnx.Linear(3, 2, rngs=rngs),
        },
        lambda m, x: m.out(m.rnn(x)[:, -1]),
        floats(2, 4, 2),
    )


@case(units=3)
def linen_simple_cell_with_residual():
    def body(x):
        return nn.Dense(2)(
            nn.RNN(nn.SimpleCell(3, activation_fn=nn.relu, param_dtype=jnp.float64, residual=True))(x)[:, -1]
        )

    return linen(body, floats(2, 4, 2))


@case(units=3 + 2)
def linen_bidirectional():
    def body(x):
        forward, backward = (
            nn.RNN(nn.SimpleCell(units, activation_fn=nn.relu, param_dtype=jnp.float64)) for units in (3, 2)
        )
        return nn.Dense(2)(nn.Bidirectional(forward, backward)(x))

    return linen(body, floats(2, 4, 2))


@case(units=3 + 2)
def nnx_bidirectional():
    return of_nnx(
        lambda rngs: {
            "both": nnx.Bidirectional(
                nnx_rnn(nnx.SimpleCell, 2, 3, rngs, activation_fn=nnx.relu),
                nnx_rnn(nnx.SimpleCell, 2, 2, rngs, activation_fn=nnx.relu),
            ),
            "out": nnx.Linear(5, 2, rngs=rngs),
        },
        lambda m, x: m.out(m.both(x)),
        floats(2, 4, 2),
    )


# Gates and tanh leave no unit.
for _name, _cell in {"lstm": nn.LSTMCell, "optimized_lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}.items():

    @case(units=0, name=f"linen_{_name}")
    def _(cell=_cell):
        return linen(lambda x: nn.Dense(2)(nn.RNN(cell(2, param_dtype=jnp.float64))(x)), floats(2, 3, 2))


for _name, _cell in {"lstm": nnx.LSTMCell, "optimized_lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}.items():

    @case(units=0, name=f"nnx_{_name}")
    def _(cell=_cell):
        return of_nnx(
            lambda rngs: {"rnn": nnx_rnn(cell, 2, 2, rngs), "out": nnx.Linear(2, 2, rngs=rngs)},
            lambda m, x: m.out(m.rnn(x)),
            floats(2, 3, 2),
        )


def gru(params, x, recurrent):
    """A GRU whose recurrent products h U of the update gate, the reset gate and the candidate are functions."""

    def step(h, x):
        update, reset, candidate = jnp.split(x @ params["in"] + params["bias"], 3, -1)
        update = jax.nn.sigmoid(update + recurrent["update"](h))
        reset = jax.nn.sigmoid(reset + recurrent["reset"](h))
        candidate = jnp.tanh(candidate + recurrent["candidate"](reset * h))
        h = update * h + (1 - update) * candidate
        return h, None

    return jax.lax.scan(step, jnp.zeros(3), x)[0] @ params["out"]


GRU_SHAPES = {"in": (2, 9), "bias": (9,), "out": (3, 2)}
GATES = ("update", "reset", "candidate")


# Two components in each of three kernels.
@case(units=3 * 2)
def low_rank_gru():
    def fn(params, x):
        kernels = {gate: lambda h, gate=gate: h @ params["left"][gate] @ params["right"][gate] for gate in GATES}
        return gru(params, x, kernels)

    params = {side: {gate: floats(*shape) for gate in GATES} for side, shape in (("left", (3, 2)), ("right", (2, 3)))}
    return fn, shapes(**GRU_SHAPES) | params, (floats(4, 2),)


@case(units=2)
def gru_with_shared_left_factor():
    def fn(params, x):
        kernels = {gate: lambda h, gate=gate: h @ params["left"] @ params["right"][gate] for gate in GATES}
        return gru(params, x, kernels)

    right = {gate: floats(2, 3) for gate in GATES}
    return fn, shapes(**GRU_SHAPES, left=(3, 2)) | {"right": right}, (floats(4, 2),)


@case(units=2)
def gru_with_shared_right_factor():
    def fn(params, x):
        kernels = {gate: lambda h, gate=gate: h @ params["left"][gate] @ params["right"] for gate in GATES}
        return gru(params, x, kernels)

    left = {gate: floats(3, 2) for gate in GATES}
    return fn, shapes(**GRU_SHAPES, right=(2, 3)) | {"left": left}, (floats(4, 2),)


# One left factor for the four gates, whose right factors are one kernel.
@case(units=2)
def low_rank_lstm():
    def fn(params, x):
        def step(state, x):
            h, c = state
            i, f, g, o = jnp.split(x @ params["in"] + h @ params["left"] @ params["right"] + params["bias"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        return jax.lax.scan(step, (jnp.zeros(3), jnp.zeros(3)), x)[1] @ params["out"]

    params = {"in": (2, 12), "left": (3, 2), "right": (2, 12), "bias": (12,), "out": (3, 2)}
    return fn, shapes(**params), (floats(4, 2),)


# A ReLU RNN with a factored recurrent kernel and a diagonal: hidden units and components.
@case(units=3 + 2)
def low_rank_relu_rnn():
    def fn(params, x):
        def step(h, x):
            h = relu(x @ params["in"] + h * params["diagonal"] + h @ params["left"] @ params["right"])
            return h, None

        return jax.lax.scan(step, jnp.zeros(3), x)[0] @ params["out"]

    params = {"in": (2, 3), "diagonal": (3,), "left": (3, 2), "right": (2, 3), "out": (3, 2)}
    return fn, shapes(**params), (floats(4, 2),)
