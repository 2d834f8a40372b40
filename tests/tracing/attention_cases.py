"""Attention and transformer blocks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from .building import EPSILON, case, floats, linen, of_nnx, shapes

relu = jax.nn.relu
# `jax.nn.dot_product_attention` computes the softmax in float32.
SINGLE = 1e-5
# Adding one vector to all keys adds one number to all logits of a query.
DEAD_KEY_BIAS = "the softmax takes the bias of the keys away: no path runs through it"


# Two heads of two: pairs of a query and a key component, pairs of a value and an output component.
@case(units=4 + 4)
def linen_attention():
    return linen(nn.MultiHeadDotProductAttention(2, qkv_features=4, use_bias=False), floats(2, 3, 3))


@case(units=4 + 4, resolution=SINGLE)
def nnx_attention():
    return of_nnx(
        lambda rngs: {"attend": nnx.MultiHeadAttention(2, 3, 4, use_bias=False, decode=False, rngs=rngs)},
        lambda m, x: m.attend(x),
        floats(2, 3, 3),
    )


@case(units=4 + 4, nullity=4 + 4 + 4, reason=DEAD_KEY_BIAS)
def linen_attention_with_bias():
    return linen(nn.MultiHeadDotProductAttention(2, qkv_features=4), floats(2, 3, 3))


@case(units=4 + 4, nullity=4 + 4 + 4, reason=DEAD_KEY_BIAS, resolution=SINGLE)
def nnx_attention_with_bias():
    return of_nnx(
        lambda rngs: {"attend": nnx.MultiHeadAttention(2, 3, 4, decode=False, rngs=rngs)},
        lambda m, x: m.attend(x),
        floats(2, 3, 3),
    )


@case(units=4 + 4)
def linen_causal_attention():
    def body(x):
        mask = nn.make_causal_mask(x[..., 0])
        return nn.MultiHeadDotProductAttention(2, qkv_features=4, use_bias=False)(x, mask=mask)

    return linen(body, floats(2, 3, 3))


@case(units=2 + 2)
def linen_cross_attention():
    return linen(
        lambda x, y: nn.MultiHeadDotProductAttention(1, qkv_features=2, use_bias=False)(x, y),
        floats(2, 2, 3),
        floats(2, 4, 2),
    )


# All heads share one key and one value: their components are shared, too.
@case(units=2 + 3)
def multi_query_attention():
    def fn(params, x):
        q = jnp.einsum("ti,ihs->ths", x, params["q"])
        weights = jax.nn.softmax(jnp.einsum("ths,us->htu", q, x @ params["k"]))
        return jnp.einsum("htu,us,hso->to", weights, x @ params["v"], params["o"])

    return fn, shapes(q=(3, 2, 2), k=(3, 2), v=(3, 3), o=(2, 3, 2)), (floats(3, 3),)


# One kernel for queries, keys and values, as many implementations have it.
@case(units=4 + 4)
def fused_attention():
    def fn(params, x):
        q, k, v = (z.reshape(3, 2, 2) for z in jnp.split(x @ params["qkv"], 3, -1))
        weights = jax.nn.softmax(jnp.einsum("ths,uhs->htu", q, k))
        return jnp.einsum("htu,uhs->ths", weights, v).reshape(3, 4) @ params["o"]

    return fn, shapes(qkv=(3, 12), o=(4, 2)), (floats(3, 3),)


@case(units=4 + 4, resolution=SINGLE)
def attention_by_jax():
    def fn(params, x):
        q, k, v = (jnp.einsum("bti,ihs->bths", x, params[name]) for name in "qkv")
        return jnp.einsum("bths,hso->bto", jax.nn.dot_product_attention(q, k, v), params["o"])

    return fn, shapes(q=(3, 2, 2), k=(3, 2, 2), v=(3, 2, 2), o=(2, 2, 2)), (floats(2, 3, 3),)


# Rotary positions turn pairs of components into one another: each pair has one scale.
@case(units=2 + 3)
def rotary_attention():
    def rotated(x):
        angles = jnp.arange(3)[:, None] * jnp.array([1.0, 0.3])
        left, right = jnp.split(x, 2, -1)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], -1)

    def fn(params, x):
        weights = jax.nn.softmax(rotated(x @ params["q"]) @ rotated(x @ params["k"]).T)
        return weights @ (x @ params["v"]) @ params["o"]

    return fn, shapes(q=(3, 4), k=(3, 4), v=(3, 3), o=(3, 2)), (floats(3, 3),)


# The units of a learned embedding would be a second source of the entries of the query kernel. They come first.
@case(units=2 + 3, nullity=2 + 2 + 3, reason="the query kernel would have two sources")
def attention_on_learned_features():
    def fn(params, x):
        x = x @ params["embed"]
        weights = jax.nn.softmax(x @ params["q"] @ (x @ params["k"]).T)
        return weights @ (x @ params["v"]) @ params["o"]

    return fn, shapes(embed=(3, 2), q=(2, 2), k=(2, 2), v=(2, 3), o=(3, 2)), (floats(3, 3),)


# In a pre-norm block of width 3 with one head of size 2 the stream is ground, as every reader normalises it. Left are
# the pairs of queries and keys (2), of values and outputs (2), the outputs of the norm in front of the MLP (3), the
# units in the MLP (4) and the outputs of the last norm (3). Those of the norm in front of the attention would be a
# second source of the entries of the query kernel, or a second target of the key kernel's.
BLOCK = {
    "units": 2 + 2 + 3 + 4 + 3,
    "nullity": 2 + 2 + 3 + 4 + 3 + 3,
    "reason": "the outputs of the norm in front of the attention would give the query kernel two sources",
}


@case(**BLOCK)
def linen_transformer_with_relu():
    def body(x):
        x = nn.Dense(3)(x)
        y = nn.LayerNorm(epsilon=EPSILON)(x)
        x = x + nn.MultiHeadDotProductAttention(1, qkv_features=2, use_bias=False)(y)
        y = nn.LayerNorm(epsilon=EPSILON)(x)
        x = x + nn.Dense(3)(nn.relu(nn.Dense(4)(y)))
        return nn.Dense(2)(nn.LayerNorm(epsilon=EPSILON)(x))

    return linen(body, floats(2, 3, 2))


@case(**BLOCK)
def linen_transformer_with_swiglu():
    def body(x):
        x = nn.Dense(3)(x)
        y = nn.LayerNorm(epsilon=EPSILON)(x)
        x = x + nn.MultiHeadDotProductAttention(1, qkv_features=2, use_bias=False)(y)
        y = nn.LayerNorm(epsilon=EPSILON)(x)
        x = x + nn.Dense(3)(nn.silu(nn.Dense(4)(y)) * nn.Dense(4)(y))
        return nn.Dense(2)(nn.LayerNorm(epsilon=EPSILON)(x))

    return linen(body, floats(2, 3, 2))


def _nnx_transformer(swiglu):
    def layers(rngs):
        return {
            "embed": nnx.Linear(2, 3, rngs=rngs),
            "norm1": nnx.LayerNorm(3, epsilon=EPSILON, rngs=rngs),
            "attend": nnx.MultiHeadAttention(1, 3, 2, use_bias=False, decode=False, rngs=rngs),
            "norm2": nnx.LayerNorm(3, epsilon=EPSILON, rngs=rngs),
            "up": nnx.Linear(3, 4, rngs=rngs),
            **({"gate": nnx.Linear(3, 4, rngs=rngs)} if swiglu else {}),
            "down": nnx.Linear(4, 3, rngs=rngs),
            "norm3": nnx.LayerNorm(3, epsilon=EPSILON, rngs=rngs),
            "head": nnx.Linear(3, 2, rngs=rngs),
        }

    def body(m, x):
        x = m.embed(x)
        x = x + m.attend(m.norm1(x))
        y = m.norm2(x)
        x = x + m.down(nnx.silu(m.gate(y)) * m.up(y) if swiglu else nnx.relu(m.up(y)))
        return m.head(m.norm3(x))

    return of_nnx(layers, body, floats(2, 3, 2))


@case(**BLOCK, resolution=SINGLE)
def nnx_transformer_with_relu():
    return _nnx_transformer(swiglu=False)


@case(**BLOCK, resolution=SINGLE)
def nnx_transformer_with_swiglu():
    return _nnx_transformer(swiglu=True)
