"""Small ReLU networks as plain functions on dicts of arrays.

Networks are frozen dataclasses, so that they can be static arguments of `jax.jit`: equal networks compile once.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pathspace import ReductionGraph

relu = jax.nn.relu


class Network:
    """A network: its parameter shapes, its edges, the function that it computes and the shape of one input."""

    @property
    def shapes(self) -> dict:
        raise NotImplementedError

    @property
    def edges(self) -> dict[str, tuple[str | None, str | None]]:
        raise NotImplementedError

    @property
    def input_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def apply(self, params: dict, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    @property
    def graph(self) -> ReductionGraph:
        return ReductionGraph.from_edges(self.structs, self.edges)

    @property
    def structs(self) -> dict:
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, np.float64), self.shapes, is_leaf=lambda x: isinstance(x, tuple)
        )

    def parameters(self, seed: int) -> dict:
        """Random parameters, float64, of the size of standard initialisations; never 0, biases positive."""
        rng = np.random.default_rng(seed)

        def draw(struct):
            size = 1 / math.sqrt(max(1, math.prod(struct.shape[:-1])))
            signs = rng.choice([-1.0, 1.0], struct.shape) if len(struct.shape) > 1 else 1
            return signs * rng.uniform(0.3, 1.7, struct.shape) * size

        return jax.tree.map(draw, self.structs)

    def inputs(self, seed: int, batch: int = 4) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(batch, *self.input_shape))

    def outputs(self, params: dict, inputs: jax.Array) -> jax.Array:
        return jax.vmap(self.apply, in_axes=(None, 0))(params, inputs)

    def loss(self, params: dict, inputs: jax.Array) -> jax.Array:
        """Mean squared distance to the targets 1, 2, 3, ..."""
        outputs = self.outputs(params, inputs)
        return jnp.mean((outputs - 1 - jnp.arange(outputs.size).reshape(outputs.shape)) ** 2)


def dense_shapes(shape: tuple[int, ...], bias: bool) -> dict:
    return {"kernel": shape, "bias": shape[-1:]} if bias else {"kernel": shape}


def _edges(ends: dict[str, tuple[str | None, str | None]], shapes: dict) -> dict:
    """The kernels' edges, and the biases' from ground to the same target."""
    biases = {f"{name}/bias": (None, target) for name, (_, target) in ends.items() if "bias" in shapes[name] and target}
    return {f"{name}/kernel": end for name, end in ends.items()} | biases


@dataclasses.dataclass(frozen=True)
class MLP(Network):
    widths: tuple[int, ...]
    bias: bool = True

    @property
    def shapes(self):
        return {f"dense{i}": dense_shapes(pair, self.bias) for i, pair in enumerate(itertools.pairwise(self.widths))}

    @property
    def edges(self):
        groups = [None, *(f"h{i}" for i in range(1, len(self.widths) - 1)), None]
        return _edges({f"dense{i}": ends for i, ends in enumerate(itertools.pairwise(groups))}, self.shapes)

    @property
    def input_shape(self):
        return self.widths[:1]

    def apply(self, params, x):
        for i in range(len(self.widths) - 1):
            x = relu(x) if i else x
            x = x @ params[f"dense{i}"]["kernel"] + params[f"dense{i}"].get("bias", 0)
        return x


@dataclasses.dataclass(frozen=True)
class RNN(Network):
    """Stacked ReLU RNN that reads out the last step; the first width is that of the inputs."""

    widths: tuple[int, ...]
    bias: bool = False
    length: int = 3

    @property
    def shapes(self):
        shapes = {}
        for i, (fan_in, width) in enumerate(itertools.pairwise(self.widths[:-1])):
            shapes |= {
                f"input{i}": dense_shapes((fan_in, width), self.bias),
                f"recurrent{i}": {"kernel": (width, width)},
            }
        return shapes | {"readout": dense_shapes(self.widths[-2:], self.bias)}

    @property
    def edges(self):
        groups = [None, *(f"h{i}" for i in range(len(self.widths) - 2))]
        ends = {f"input{i}": ends for i, ends in enumerate(itertools.pairwise(groups))}
        ends |= {f"recurrent{i}": (group, group) for i, group in enumerate(groups[1:])}
        return _edges(ends | {"readout": (groups[-1], None)}, self.shapes)

    @property
    def input_shape(self):
        return (self.length, self.widths[0])

    def apply(self, params, x):
        steps = list(x)
        for i, width in enumerate(self.widths[1:-1]):
            h = jnp.zeros(width)
            inputs, steps = steps, []
            for step in inputs:
                h = relu(
                    step @ params[f"input{i}"]["kernel"]
                    + h @ params[f"recurrent{i}"]["kernel"]
                    + params[f"input{i}"].get("bias", 0)
                )
                steps.append(h)
        return steps[-1] @ params["readout"]["kernel"] + params["readout"].get("bias", 0)


def convolution(x, layer, stride=1, groups=1):
    y = jax.lax.conv_general_dilated(
        x[None],
        layer["kernel"],
        (stride,) * (x.ndim - 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC") if x.ndim == 3 else ("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )
    return y[0] + layer.get("bias", 0)


@dataclasses.dataclass(frozen=True)
class CNN(Network):
    """Convolutions with ReLU, the mean over the pixels, a dense layer."""

    channels: tuple[int, ...]
    taps: tuple[int, int] = (3, 2)
    stride: int = 1
    bias: bool = True
    outputs_: int = 2

    @property
    def shapes(self):
        pairs = enumerate(itertools.pairwise(self.channels))
        convs = {f"conv{i}": dense_shapes((*self.taps, *pair), self.bias) for i, pair in pairs}
        return convs | {"dense": dense_shapes((self.channels[-1], self.outputs_), self.bias)}

    @property
    def edges(self):
        groups = [None, *(f"map{i}" for i in range(len(self.channels) - 1))]
        ends = {f"conv{i}": ends for i, ends in enumerate(itertools.pairwise(groups))}
        return _edges(ends | {"dense": (groups[-1], None)}, self.shapes)

    @property
    def input_shape(self):
        return (4, 3, self.channels[0])

    def apply(self, params, x):
        for i in range(len(self.channels) - 1):
            x = relu(convolution(x, params[f"conv{i}"], self.stride))
        return jnp.mean(x, (0, 1)) @ params["dense"]["kernel"] + params["dense"].get("bias", 0)


@dataclasses.dataclass(frozen=True)
class Mixture(Network):
    """A convolution of each frame, an RNN over the frames, a residual block; some leaves outside the graph."""

    channels: int = 2
    width: int = 3
    inner: int = 2
    length: int = 2

    @property
    def shapes(self):
        return {
            "shift": (2,),
            "conv": dense_shapes((3, 2, self.channels), True),
            "input": dense_shapes((self.channels, self.width), True),
            "recurrent": {"kernel": (self.width, self.width)},
            "up": dense_shapes((self.width, self.inner), True),
            "down": dense_shapes((self.inner, self.width), False),
            "readout": dense_shapes((self.width, 2), True),
            "head": (2, 2),
        }

    @property
    def edges(self):
        ends = {
            "conv": (None, "map"),
            "input": ("map", "h"),
            "recurrent": ("h", "h"),
            "up": ("h", "inner"),
            "down": ("inner", "h"),
            "readout": ("h", None),
        }
        return _edges(ends, self.shapes)

    @property
    def input_shape(self):
        return (self.length, 4, 2)

    def apply(self, params, x):
        h = jnp.zeros(self.width)
        for frame in x:
            pooled = jnp.mean(relu(convolution(frame + params["shift"], params["conv"])), 0)
            current = pooled @ params["input"]["kernel"] + params["input"]["bias"]
            h = relu(current + h @ params["recurrent"]["kernel"])
        inner = relu(h @ params["up"]["kernel"] + params["up"]["bias"])
        h = h + inner @ params["down"]["kernel"]
        # Far from zero the derivative of arctan keeps its digits; tanh's, 1 - tanh^2, cancels to rounding.
        return jnp.arctan(h @ params["readout"]["kernel"] + params["readout"]["bias"]) @ params["head"]
