"""Normalisation layers: their scale and bias feed the units, whatever is before them is ground."""

import flax.linen as nn
from flax import nnx

from .building import EPSILON, case, floats, linen, of_nnx

LINEN = {
    "batch_norm": lambda **options: nn.BatchNorm(use_running_average=False, **options),
    "batch_norm_inference": lambda **options: nn.BatchNorm(use_running_average=True, **options),
    "layer_norm": nn.LayerNorm,
    "rms_norm": nn.RMSNorm,
    "group_norm": lambda **options: nn.GroupNorm(num_groups=2, **options),
}
NNX = {
    "batch_norm": lambda **options: nnx.BatchNorm(4, use_running_average=False, **options),
    "batch_norm_inference": lambda **options: nnx.BatchNorm(4, use_running_average=True, **options),
    "layer_norm": lambda **options: nnx.LayerNorm(4, **options),
    "rms_norm": lambda **options: nnx.RMSNorm(4, **options),
    "group_norm": lambda **options: nnx.GroupNorm(4, num_groups=2, **options),
}
# A bias before the mean over the batch is taken has no effect: no path runs through it.
DEAD_BIAS = {"nullity": 4 + 4, "reason": "the mean of the batch takes the bias of the dense layer away"}

for _name, _norm in LINEN.items():
    _options = DEAD_BIAS if _name == "batch_norm" else {}

    @case(units=4, name=f"linen_{_name}_before_relu", **_options)
    def _(norm=_norm):
        return linen(lambda x: nn.Dense(2)(nn.relu(norm(epsilon=EPSILON)(nn.Dense(4)(x)))), floats(4, 2))

    @case(units=4, name=f"linen_{_name}_after_relu")
    def _(norm=_norm):
        return linen(lambda x: nn.Dense(2)(norm(epsilon=EPSILON)(nn.relu(nn.Dense(4)(x)))), floats(4, 2))


for _name, _norm in NNX.items():
    _options = DEAD_BIAS if _name == "batch_norm" else {}

    @case(units=4, name=f"nnx_{_name}_before_relu", **_options)
    def _(norm=_norm):
        return of_nnx(
            lambda rngs: {
                "a": nnx.Linear(2, 4, rngs=rngs),
                "norm": norm(epsilon=EPSILON, rngs=rngs),
                "b": nnx.Linear(4, 2, rngs=rngs),
            },
            lambda m, x: m.b(nnx.relu(m.norm(m.a(x)))),
            floats(4, 2),
        )

    @case(units=4, name=f"nnx_{_name}_after_relu")
    def _(norm=_norm):
        return of_nnx(
            lambda rngs: {
                "a": nnx.Linear(2, 4, rngs=rngs),
                "norm": norm(epsilon=EPSILON, rngs=rngs),
                "b": nnx.Linear(4, 2, rngs=rngs),
            },
            lambda m, x: m.b(m.norm(nnx.relu(m.a(x)))),
            floats(4, 2),
        )


@case(units=4)
def linen_batch_norm_without_dead_bias():
    def body(x):
        x = nn.BatchNorm(use_running_average=False, epsilon=EPSILON)(nn.Dense(4, use_bias=False)(x))
        return nn.Dense(2)(nn.relu(x))

    return linen(body, floats(4, 2))


@case(units=4)
def linen_batch_norm_of_feature_maps():
    def body(x):
        x = nn.BatchNorm(use_running_average=False, epsilon=EPSILON)(nn.Conv(4, (2,), use_bias=False)(x))
        return nn.Dense(2)(nn.max_pool(nn.relu(x), (2,), (2,)).reshape(len(x), -1))

    return linen(body, floats(4, 4, 2))


@case(units=4)
def linen_instance_norm():
    def body(x):
        x = nn.InstanceNorm(epsilon=EPSILON)(nn.Conv(4, (2,), use_bias=False)(x))
        return nn.Dense(2)(nn.relu(x).mean(-2))

    return linen(body, floats(2, 4, 2))


@case(units=4)
def nnx_instance_norm():
    return of_nnx(
        lambda rngs: {
            "a": nnx.Conv(2, 4, (2,), use_bias=False, rngs=rngs),
            "norm": nnx.InstanceNorm(4, epsilon=EPSILON, rngs=rngs),
            "b": nnx.Linear(4, 2, rngs=rngs),
        },
        lambda m, x: m.b(nnx.relu(m.norm(m.a(x))).mean(-2)),
        floats(2, 4, 2),
    )


@case(units=4, nullity=4 + 4, reason="without an epsilon the scale of each column of the kernel is absorbed")
def linen_batch_norm_without_epsilon():
    def body(x):
        x = nn.BatchNorm(use_running_average=False, epsilon=0)(nn.Dense(4, use_bias=False)(x))
        return nn.Dense(2)(nn.relu(x))

    return linen(body, floats(4, 2))


# The weights behind a layer that normalises them cannot make up for the scale of what they read.
@case(units=4)
def linen_weight_norm():
    return linen(lambda x: nn.Dense(2)(nn.relu(nn.WeightNorm(nn.Dense(4), epsilon=EPSILON)(x))), floats(3, 2))


TRAINED = nnx.Any(nnx.Param, nnx.PathContains("scales"))


@case(units=4)
def nnx_weight_norm():
    return of_nnx(
        lambda rngs: {
            "a": nnx.WeightNorm(nnx.Linear(2, 4, rngs=rngs), epsilon=EPSILON, rngs=rngs),
            "b": nnx.Linear(4, 2, rngs=rngs),
        },
        lambda m, x: m.b(nnx.relu(m.a(x))),
        floats(3, 2),
        train=TRAINED,
        concrete=True,
    )


# The second layer normalises the kernel that reads the outputs of the first. These have one scale in common, a unit:
# the first layer's scales and biases feed it, the second layer's scales read it.
@case(units=1 + 3)
def linen_weight_norm_in_two_layers():
    def body(x):
        x = nn.relu(nn.WeightNorm(nn.Dense(4), epsilon=EPSILON)(x))
        x = nn.relu(nn.WeightNorm(nn.Dense(3), epsilon=EPSILON)(x))
        return nn.Dense(2)(x)

    return linen(body, floats(3, 2))


@case(units=4, nullity=4 + 4, reason="the default epsilon, 1e-12, is below what float64 resolves")
def linen_weight_norm_by_default():
    return linen(lambda x: nn.Dense(2)(nn.relu(nn.WeightNorm(nn.Dense(4))(x))), floats(3, 2))


# A normalised layer with affine parameters, read directly: its outputs are units like others.
@case(units=3 + 4)
def linen_layer_norm_between_linear_layers():
    def body(x):
        x = nn.LayerNorm(epsilon=EPSILON)(nn.Dense(3)(x))
        return nn.Dense(2)(nn.relu(nn.Dense(4)(x)))

    return linen(body, floats(3, 2))
