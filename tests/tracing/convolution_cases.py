"""Convolutional networks: pooling, skips, residual blocks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from .building import EPSILON, case, floats, linen, of_nnx, shapes

relu = jax.nn.relu

# A convolution to four feature maps, the named one, and a dense layer behind global pooling.
CONVOLUTIONS = {
    "convolution": (3, {}),
    "strided_convolution": (3, {"strides": (2,)}),
    "dilated_convolution": (3, {"kernel_dilation": (2,)}),
    "input_dilated_convolution": (3, {"input_dilation": (2,), "padding": ((1, 1),)}),
    "valid_convolution": (3, {"padding": "VALID"}),
    "circular_convolution": (3, {"padding": "CIRCULAR"}),
    "grouped_convolution": (6, {"feature_group_count": 2}),
    "depthwise_convolution": (4, {"feature_group_count": 4}),
    "depthwise_convolution_with_multiplier": (8, {"feature_group_count": 4}),
}

for _name, (_maps, _options) in CONVOLUTIONS.items():

    @case(units=4 + _maps, name=f"linen_{_name}")
    def _(maps=_maps, options=_options):
        def body(x):
            x = nn.relu(nn.Conv(4, (2,))(x))
            x = nn.relu(nn.Conv(maps, (3,), **options)(x))
            return nn.Dense(2)(x.mean(-2))

        return linen(body, floats(2, 6, 2))

    @case(units=4 + _maps, name=f"nnx_{_name}")
    def _(maps=_maps, options=_options):
        return of_nnx(
            lambda rngs: {
                "a": nnx.Conv(2, 4, (2,), rngs=rngs),
                "b": nnx.Conv(4, maps, (3,), rngs=rngs, **options),
                "out": nnx.Linear(maps, 2, rngs=rngs),
            },
            lambda m, x: m.out(nnx.relu(m.b(nnx.relu(m.a(x)))).mean(-2)),
            floats(2, 6, 2),
        )


for _name, _options in {
    "": {},
    "_strided": {"strides": (2,)},
    "_with_transposed_kernel": {"transpose_kernel": True},
}.items():

    @case(units=4 + 3, name=f"linen_conv_transpose{_name}")
    def _(options=_options):
        def body(x):
            x = nn.relu(nn.Conv(4, (2,))(x))
            x = nn.relu(nn.ConvTranspose(3, (3,), **options)(x))
            return nn.Dense(2)(x.mean(-2))

        return linen(body, floats(2, 4, 2))

    @case(units=4 + 3, name=f"nnx_conv_transpose{_name}")
    def _(options=_options):
        return of_nnx(
            lambda rngs: {
                "a": nnx.Conv(2, 4, (2,), rngs=rngs),
                "b": nnx.ConvTranspose(4, 3, (3,), rngs=rngs, **options),
                "out": nnx.Linear(3, 2, rngs=rngs),
            },
            lambda m, x: m.out(nnx.relu(m.b(nnx.relu(m.a(x)))).mean(-2)),
            floats(2, 4, 2),
        )


POOLINGS = {
    "max_pool": lambda x: nn.max_pool(x, (2,), (2,)).mean(-2),
    "padded_max_pool": lambda x: nn.max_pool(x, (3,), (2,), "SAME").mean(-2),
    "avg_pool": lambda x: nn.avg_pool(x, (2,), (2,)).max(-2),
    "padded_avg_pool": lambda x: nn.avg_pool(x, (3,), (2,), "SAME", count_include_pad=False).max(-2),
    "global_average_pool": lambda x: x.mean(-2),
    "global_max_pool": lambda x: x.max(-2),
    "global_sum_pool": lambda x: x.sum(-2),
}
NNX_POOLINGS = {
    "max_pool": lambda x: nnx.max_pool(x, (2,), (2,)).mean(-2),
    "avg_pool": lambda x: nnx.avg_pool(x, (2,), (2,)).max(-2),
}

for _name, _pool in POOLINGS.items():

    @case(units=3, name=f"linen_{_name}")
    def _(pool=_pool):
        return linen(lambda x: nn.Dense(2)(pool(nn.relu(nn.Conv(3, (2,))(x)))), floats(2, 4, 2))


for _name, _pool in NNX_POOLINGS.items():

    @case(units=3, name=f"nnx_{_name}")
    def _(pool=_pool):
        return of_nnx(
            lambda rngs: {"conv": nnx.Conv(2, 3, (2,), rngs=rngs), "out": nnx.Linear(3, 2, rngs=rngs)},
            lambda m, x: m.out(pool(nnx.relu(m.conv(x)))),
            floats(2, 4, 2),
        )


# Each row of the dense kernel belongs to the feature map of its pixel.
@case(units=3 + 2)
def linen_flatten():
    def body(x):
        x = nn.max_pool(nn.relu(nn.Conv(3, (3, 2))(x)), (2, 2), (2, 2))
        return nn.Dense(2)(nn.relu(nn.Dense(2)(x.reshape(len(x), -1))))

    return linen(body, floats(2, 4, 4, 2))


@case(units=3 + 2)
def nnx_flatten():
    return of_nnx(
        lambda rngs: {
            "conv": nnx.Conv(2, 3, (3, 2), rngs=rngs),
            "dense": nnx.Linear(12, 2, rngs=rngs),
            "out": nnx.Linear(2, 2, rngs=rngs),
        },
        lambda m, x: m.out(nnx.relu(m.dense(nnx.max_pool(nnx.relu(m.conv(x)), (2, 2), (2, 2)).reshape(len(x), -1)))),
        floats(2, 4, 4, 2),
    )


@case(units=3 + 2)
def channels_first():
    def fn(params, x):
        x = relu(jax.lax.conv(x, params["conv"], (1, 1), "SAME") + params["bias"][:, None, None])
        return relu(x.reshape(len(x), -1) @ params["dense"]) @ params["out"]

    return fn, shapes(conv=(3, 2, 2, 2), bias=(3,), dense=(27, 2), out=(2, 2)), (floats(2, 2, 3, 3),)


# A convolution without shared weights has units at each pixel.
@case(units=3 * 2)
def linen_conv_local():
    return linen(
        lambda x: nn.Dense(2)(nn.relu(nn.ConvLocal(2, (2,), padding="VALID")(x)).reshape(len(x), -1)), floats(2, 4, 2)
    )


@case(units=2 + 2)
def linen_densenet():
    def body(x):
        for _ in range(2):
            x = jnp.concatenate([x, nn.relu(nn.Conv(2, (2,))(x))], -1)
        return nn.Dense(2)(x.mean(-2))

    return linen(body, floats(2, 4, 2))


@case(units=2 + 2)
def nnx_densenet():
    def body(m, x):
        for layer in (m.a, m.b):
            x = jnp.concatenate([nnx.relu(layer(x)), x], -1)
        return m.out(x.mean(-2))

    return of_nnx(
        lambda rngs: {
            "a": nnx.Conv(2, 2, (2,), rngs=rngs),
            "b": nnx.Conv(4, 2, (2,), rngs=rngs),
            "out": nnx.Linear(6, 2, rngs=rngs),
        },
        body,
        floats(2, 4, 2),
    )


# Down, bottom, up, and the convolution that reads the skip and what comes up.
@case(units=3 + 2 + 2 + 2)
def linen_unet():
    def body(x):
        skip = nn.relu(nn.Conv(3, (2,))(x))
        x = nn.relu(nn.Conv(2, (2,))(nn.max_pool(skip, (2,), (2,))))
        x = nn.relu(nn.ConvTranspose(2, (2,), (2,))(x))
        x = nn.relu(nn.Conv(2, (2,))(jnp.concatenate([skip, x], -1)))
        return nn.Conv(1, (1,))(x)

    return linen(body, floats(2, 4, 2))


@case(units=3 + 2 + 2 + 2)
def nnx_unet():
    def body(m, x):
        skip = nnx.relu(m.down(x))
        x = nnx.relu(m.bottom(nnx.max_pool(skip, (2,), (2,))))
        x = nnx.relu(m.up(x))
        return m.out(nnx.relu(m.merge(jnp.concatenate([x, skip], -1))))

    return of_nnx(
        lambda rngs: {
            "down": nnx.Conv(2, 3, (2,), rngs=rngs),
            "bottom": nnx.Conv(3, 2, (2,), rngs=rngs),
            "up": nnx.ConvTranspose(2, 2, (2,), (2,), rngs=rngs),
            "merge": nnx.Conv(5, 2, (2,), rngs=rngs),
            "out": nnx.Conv(2, 1, (1,), rngs=rngs),
        },
        body,
        floats(2, 4, 2),
    )


for _name, _upsample in {
    "nearest": lambda x: jax.image.resize(x, (len(x), 4, x.shape[-1]), "nearest"),
    "bilinear": lambda x: jax.image.resize(x, (len(x), 4, x.shape[-1]), "bilinear"),
    "repeat": lambda x: jnp.repeat(x, 2, 1),
}.items():

    @case(units=3 + 2 + 2, name=f"linen_unet_with_{_name}_upsampling")
    def _(upsample=_upsample):
        def body(x):
            skip = nn.relu(nn.Conv(3, (2,))(x))
            x = upsample(nn.relu(nn.Conv(2, (2,))(nn.avg_pool(skip, (2,), (2,)))))
            x = nn.relu(nn.Conv(2, (2,))(jnp.concatenate([skip, x], -1)))
            return nn.Conv(1, (1,))(x)

        return linen(body, floats(2, 4, 2))


# Two streams (before and behind the projection) and the units inside each block. The convolutions feed no unit:
# their scale is lost in the normalisation, whose scale and bias feed the units.
@case(units=2 + 2 + 3 + 3)
def linen_resnet():
    def convolution(features, width, x):
        x = nn.Conv(features, (width,), use_bias=False)(x)
        return nn.BatchNorm(use_running_average=False, epsilon=EPSILON)(x)

    def body(x):
        x = nn.relu(convolution(2, 2, x))
        x = nn.relu(x + convolution(2, 2, nn.relu(convolution(2, 2, x))))
        x = nn.relu(convolution(3, 1, x) + convolution(3, 2, nn.relu(convolution(3, 2, x))))
        return nn.Dense(2)(x.mean(-2))

    return linen(body, floats(3, 4, 2))


@case(units=2 + 2 + 3 + 3)
def nnx_resnet():
    def layers(rngs):
        widths = {
            "stem": (2, 2, 2),
            "a": (2, 2, 2),
            "b": (2, 2, 2),
            "project": (2, 3, 1),
            "c": (2, 3, 2),
            "d": (3, 3, 2),
        }
        convs = {
            name: nnx.Sequential(
                nnx.Conv(ins, outs, (taps,), use_bias=False, rngs=rngs), nnx.BatchNorm(outs, epsilon=EPSILON, rngs=rngs)
            )
            for name, (ins, outs, taps) in widths.items()
        }
        return convs | {"out": nnx.Linear(3, 2, rngs=rngs)}

    def body(m, x):
        x = nnx.relu(m.stem(x))
        x = nnx.relu(x + m.b(nnx.relu(m.a(x))))
        x = nnx.relu(m.project(x) + m.d(nnx.relu(m.c(x))))
        return m.out(x.mean(-2))

    return of_nnx(layers, body, floats(3, 4, 2))


# The maps are scaled by numbers that depend on themselves only through a sigmoid.
@case(units=3 + 2)
def linen_squeeze_and_excite():
    def body(x):
        x = nn.relu(nn.Conv(3, (2,))(x))
        x = x * nn.sigmoid(nn.Dense(3)(nn.relu(nn.Dense(2)(x.mean(-2)))))[:, None]
        return nn.Dense(2)(x.max(-2))

    return linen(body, floats(2, 4, 2))
