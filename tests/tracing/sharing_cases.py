"""Weights that are used more than once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from .building import case, floats, integers, linen, of_nnx, shapes

relu = jax.nn.relu


@case(units=3)
def siamese():
    def fn(params, x, y):
        branches = [relu(z @ params["w"] + params["b"]) for z in (x, y)]
        return jnp.concatenate(branches, -1) @ params["v"]

    return fn, shapes(w=(2, 3), b=(3,), v=(6, 2)), (floats(3, 2), floats(3, 2))


@case(units=3)
def tied_hidden_layers():
    def fn(params, x):
        x = relu(x @ params["w"])
        for _ in range(2):
            x = relu(x @ params["u"] + params["b"])
        return x @ params["v"]

    return fn, shapes(w=(2, 3), u=(3, 3), b=(3,), v=(3, 2)), (floats(3, 2),)


# The kernel reads the inputs, so that its rows are ground; where it reads its own outputs these are ground, too.
@case(units=2)
def conflicting_uses():
    def fn(params, x):
        x = relu(relu(x @ params["w"]) @ params["w"])
        return x, relu(x @ params["u"]) @ params["v"]

    return fn, shapes(w=(3, 3), u=(3, 2), v=(2, 2)), (floats(3, 3),)


SQUARE = "the outputs of the second use have the square of the scale of the kernel: exponent 2"


@case(units=2, nullity=2 + 1, reason=SQUARE)
def conflicting_uses_read_by_another_kernel():
    def fn(params, x):
        return relu(relu(relu(x @ params["w"]) @ params["w"]) @ params["u"]) @ params["v"]

    return fn, shapes(w=(3, 3), u=(3, 2), v=(2, 2)), (floats(3, 3),)


# The code would be multiplied twice by its scale.
@case(units=2)
def tied_autoencoder():
    def fn(params, x):
        x = relu(x @ params["w"] + params["b"]) @ params["w"].T
        return x, relu(x @ params["u"]) @ params["v"]

    return fn, shapes(w=(3, 4), b=(4,), u=(3, 2), v=(2, 2)), (floats(3, 3),)


@case(units=2, nullity=2 + 1, reason=SQUARE)
def tied_autoencoder_read_by_another_kernel():
    def fn(params, x):
        return relu(relu(x @ params["w"]) @ params["w"].T @ params["u"]) @ params["v"]

    return fn, shapes(w=(3, 4), u=(3, 2), v=(2, 2)), (floats(3, 3),)


# What u feeds has one scale in common, which a reads: it was set equal to the units of w before those became ground.
@case(units=2, nullity=2 + 1 + 3, reason="entries of u would run between two sources")
def tied_autoencoder_with_a_layer_between():
    def fn(params, x):
        x = relu(relu(x @ params["w"]) @ params["u"]) @ params["w"].T
        return jax.nn.leaky_relu(x @ params["a"]) @ params["b"]

    return fn, shapes(w=(2, 3), u=(3, 3), a=(2, 2), b=(2, 2)), (floats(8, 2),)


# An embedding may be read by a linear layer at once: its columns are units like others.
@case(units=3 + 4)
def linen_embed():
    return linen(lambda i: nn.Dense(2)(nn.relu(nn.Dense(4)(nn.Embed(5, 3)(i)))), integers(5, 6))


@case(units=3 + 4)
def nnx_embed():
    return of_nnx(
        lambda rngs: {
            "embed": nnx.Embed(5, 3, param_dtype=jnp.float64, rngs=rngs),
            "a": nnx.Linear(3, 4, rngs=rngs),
            "b": nnx.Linear(4, 2, rngs=rngs),
        },
        lambda m, i: m.b(nnx.relu(m.a(m.embed(i)))),
        integers(5, 6),
    )


# Token and position embeddings are summed: one scale.
@case(units=3)
def linen_embed_with_positions():
    def body(i):
        positions = nn.Embed(3, 3)(jnp.arange(3))
        return nn.Dense(2)(nn.relu(nn.Embed(5, 3)(i) + positions))

    return linen(body, integers(5, 4, 3))


# Logits h E^T: the scale of h is the inverse of the scale of the embedding. Hidden units in between are ordinary; they
# come later than the embedding's and give way where a kernel would have two sources.
@case(units=3, nullity=3 + 2, reason="the kernel in front of the tied embedding would have two sources")
def linen_tied_embed():
    def body(i):
        embed = nn.Embed(4, 3)
        return embed.attend(nn.Dense(3)(nn.relu(nn.Dense(2)(embed(i)))))

    return linen(body, integers(4, 6))


@case(units=3, nullity=3 + 2, reason="the kernel in front of the tied embedding would have two sources")
def nnx_tied_embed():
    return of_nnx(
        lambda rngs: {
            "embed": nnx.Embed(4, 3, param_dtype=jnp.float64, rngs=rngs),
            "a": nnx.Linear(3, 2, rngs=rngs),
            "b": nnx.Linear(2, 3, rngs=rngs),
        },
        lambda m, i: m.embed.attend(m.b(nnx.relu(m.a(m.embed(i))))),
        integers(4, 6),
    )


@case(units=0, nullity=3, reason="entries of the kernel would run between two sources")
def linen_tied_embed_with_one_layer():
    def body(i):
        embed = nn.Embed(4, 3)
        return embed.attend(nn.relu(nn.Dense(3)(embed(i))))

    return linen(body, integers(4, 6))


@case(units=2)
def linen_tied_embed_on_a_stream():
    # The stream is read by the embedding and written by it: conflicting, only the units inside the block are left.
    def body(i):
        embed = nn.Embed(4, 3)
        x = embed(i)
        return embed.attend(x + nn.Dense(3)(nn.relu(nn.Dense(2)(x))))

    return linen(body, integers(4, 6))


# Only an embedding that reads: no unit in it, those of the layer before it are ordinary.
@case(units=3 + 2)
def linen_attend_only():
    return linen(lambda x: nn.Embed(4, 3).attend(nn.Dense(3)(nn.relu(nn.Dense(2)(x)))), floats(3, 2))


# Convolution with one kernel for two scales of the image.
@case(units=3)
def shared_convolution():
    def body(x):
        conv = nn.Conv(3, (2,))
        fine, coarse = conv(x), conv(nn.avg_pool(x, (2,), (2,)))
        return nn.Dense(2)(jnp.concatenate([nn.relu(fine), nn.relu(coarse)], -2).mean(-2))

    return linen(body, floats(2, 4, 2))


# The units of w, those between gain and v, and those between v and u.
@case(units=4 + 4 + 2)
def gain_with_an_axis_of_length_one_in_two_shapes():
    def fn(params, x):
        first = relu(x @ params["w"]) * params["gain"]
        return relu(first + 2 * relu(x @ params["w"]) * params["gain"][0]) @ params["v"] @ params["u"]

    return fn, shapes(w=(2, 4), gain=(1, 4), v=(4, 2), u=(2, 2)), (floats(3, 2),)


@case(units=3)
def table_read_whole_before_its_rows():
    def fn(params, i):
        rows = params["table"][i]
        means = jnp.mean(params["table"] @ params["w"], 0)
        return means + relu(rows @ params["w"]) @ params["v"]

    return fn, shapes(table=(4, 3), w=(3, 2), v=(2, 2)), (integers(4, 6),)
