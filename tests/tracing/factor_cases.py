"""Products of parameters or of activations: low-rank factors, LoRA, gated units, mixtures of experts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .building import case, floats, linen, of_nnx, shapes

relu = jax.nn.relu


# The hidden units, and the components of the factored kernel.
@case(units=3 + 2)
def low_rank_kernel():
    def fn(params, x):
        return relu(x @ params["left"] @ params["right"] + params["b"]) @ params["v"]

    return fn, shapes(left=(3, 2), right=(2, 3), b=(3,), v=(3, 2)), (floats(3, 3),)


@case(units=3 + 2)
def low_rank_kernel_multiplied_first():
    def fn(params, x):
        return relu(x @ (params["left"] @ params["right"]) + params["b"]) @ params["v"]

    return fn, shapes(left=(3, 2), right=(2, 3), b=(3,), v=(3, 2)), (floats(3, 3),)


@case(units=3)
def outer_product_plus_diagonal():
    # h * d + (h L) R: only the two components and no hidden unit, which tanh makes ground.
    def fn(params, x):
        return jnp.tanh(x * params["d"] + x @ params["left"] @ params["right"]) @ params["v"]

    return fn, shapes(d=(4,), left=(4, 3), right=(3, 4), v=(4, 2)), (floats(3, 4),)


# Base weights are constants, or inputs: what they feed or read is ground.
@case(units=2)
def lora_on_inputs():
    def fn(params, x, base):
        return relu(x @ base + x @ params["a"] @ params["b"])

    return fn, shapes(a=(3, 2), b=(2, 4)), (floats(3, 3), floats(3, 4))


@case(units=2 + 1)
def nnx_lora_linear():
    return of_nnx(
        lambda rngs: {
            "a": nnx.LoRALinear(3, 4, lora_rank=2, rngs=rngs),
            "b": nnx.LoRALinear(4, 2, lora_rank=1, rngs=rngs),
        },
        lambda m, x: m.b(nnx.relu(m.a(x))),
        floats(3, 3),
        train=nnx.LoRAParam,
    )


@case(units=2)
def nnx_lora_on_frozen_linear():
    return of_nnx(
        lambda rngs: {"lora": nnx.LoRA(3, 2, 3, base_module=nnx.Linear(3, 3, rngs=rngs), rngs=rngs)},
        lambda m, x: nnx.relu(m.lora(x)),
        floats(3, 3),
        train=nnx.LoRAParam,
    )


# The base is trained as well: hidden units and components.
@case(units=4 + 2)
def nnx_lora_with_trained_base():
    return of_nnx(
        lambda rngs: {"a": nnx.LoRALinear(3, 4, lora_rank=2, rngs=rngs), "b": nnx.Linear(4, 2, rngs=rngs)},
        lambda m, x: m.b(nnx.relu(m.a(x))),
        floats(3, 3),
    )


@case(units=2)
def linen_lora_on_frozen_dense():
    frozen = np.random.default_rng(0).standard_normal((3, 4))

    def body(x):
        return nn.relu(x @ frozen + nn.Dense(4, use_bias=False)(nn.Dense(2, use_bias=False)(x)))

    return linen(body, floats(3, 3))


# The half of the kernel in front of the sigmoid is ground.
@case(units=3)
def linen_glu():
    return linen(lambda x: nn.Dense(2)(nn.glu(nn.Dense(6)(x))), floats(3, 2))


@case(units=3)
def nnx_glu():
    return of_nnx(
        lambda rngs: {"a": nnx.Linear(2, 6, rngs=rngs), "b": nnx.Linear(3, 2, rngs=rngs)},
        lambda m, x: m.b(nnx.glu(m.a(x))),
        floats(3, 2),
    )


@case(units=3)
def linen_swiglu():
    return linen(lambda x: nn.Dense(2)(nn.silu(nn.Dense(3)(x)) * nn.Dense(3)(x)), floats(3, 2))


@case(units=3)
def nnx_swiglu():
    return of_nnx(
        lambda rngs: {
            "gate": nnx.Linear(2, 3, rngs=rngs),
            "up": nnx.Linear(2, 3, rngs=rngs),
            "down": nnx.Linear(3, 2, rngs=rngs),
        },
        lambda m, x: m.down(nnx.silu(m.gate(x)) * m.up(x)),
        floats(3, 2),
    )


@case(units=3, nullity=3 + 3, reason="the kernel that reads the products would have two sources")
def linen_reglu():
    return linen(lambda x: nn.Dense(2)(nn.relu(nn.Dense(3)(x)) * nn.Dense(3)(x)), floats(3, 2))


# Two experts of three units each; the gate is ground.
@case(units=2 * 3)
def mixture_of_experts():
    def fn(params, x):
        gate = jax.nn.softmax(x @ params["gate"])
        hidden = relu(jnp.einsum("bi,eih->beh", x, params["up"]) + params["bias"])
        return jnp.einsum("be,beh,eho->bo", gate, hidden, params["down"])

    return fn, shapes(gate=(2, 2), up=(2, 2, 3), bias=(2, 3), down=(2, 3, 2)), (floats(3, 2),)


class Expert(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(3)(x)))


@case(units=2 * 3)
def linen_mixture_of_experts():
    def body(x):
        experts = nn.vmap(
            Expert, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, out_axes=1, axis_size=2
        )
        return jnp.sum(nn.softmax(nn.Dense(2)(x))[..., None] * experts()(x), 1)

    return linen(body, floats(3, 2))


@case(units=2 * 3)
def nnx_mixture_of_experts():
    def layers(rngs):
        return {
            "gate": nnx.Linear(2, 2, rngs=rngs),
            "up": nnx.vmap(lambda rngs: nnx.Linear(2, 3, rngs=rngs))(rngs.split(2)),
            "down": nnx.vmap(lambda rngs: nnx.Linear(3, 2, rngs=rngs))(rngs.split(2)),
        }

    def body(m, x):
        each = nnx.vmap(lambda up, down, x: down(nnx.relu(up(x))), in_axes=(0, 0, None), out_axes=1)(m.up, m.down, x)
        return jnp.sum(nnx.softmax(m.gate(x))[..., None] * each, 1)

    return of_nnx(layers, body, floats(3, 2))


# The best expert alone: what is chosen depends on the gate, which is ground.
@case(units=2 * 3)
def top_expert():
    def fn(params, x):
        weights, chosen = jax.lax.top_k(jax.nn.softmax(x @ params["gate"]), 1)
        hidden = relu(jnp.einsum("bi,eih->beh", x, params["up"]))
        outs = jnp.einsum("beh,eho->beo", hidden, params["down"])
        return weights * jnp.take_along_axis(outs, chosen[..., None], 1)[:, 0]

    return fn, shapes(gate=(2, 2), up=(2, 2, 3), down=(2, 3, 2)), (floats(4, 2),)


# A factor of two parameters in front of the units: w = g v / |v| by hand, without an epsilon.
@case(units=4, nullity=4 + 4, reason="the length of each direction is absorbed: nothing reads it")
def weight_norm_by_hand():
    def fn(params, x):
        kernel = params["g"] * params["v"] / jnp.linalg.norm(params["v"], axis=0)
        return relu(x @ kernel + params["b"]) @ params["out"]

    return fn, shapes(v=(2, 4), g=(4,), b=(4,), out=(4, 2)), (floats(3, 2),)


# CP factors: three matrices meet in each component, two scales are free.
@case(units=2, nullity=2 * 2, reason="the middle factor would have two targets, or one of the others a second end")
def trilinear_factors():
    def fn(params, x, y):
        return (x @ params["a"]) * (y @ params["b"]) @ params["c"]

    return fn, shapes(a=(3, 2), b=(3, 2), c=(2, 2)), (floats(3, 3), floats(3, 3))
