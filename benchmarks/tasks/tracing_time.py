"""What finding the reduction graph of a large model costs."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pathspace


class _TransformerBlock(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        width = x.shape[-1]
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(width)(nn.relu(nn.Dense(4 * width)(nn.LayerNorm()(x))))


class _Transformer(nn.Module):
    vocabulary: int
    width: int
    heads: int
    layers: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch time vocabulary"]:
        embedding = nn.Embed(self.vocabulary, self.width)
        x = embedding(tokens) + nn.Embed(tokens.shape[1], self.width)(jnp.arange(tokens.shape[1]))
        for _ in range(self.layers):
            x = _TransformerBlock(self.heads)(x)
        return embedding.attend(nn.LayerNorm()(x))


class _Bottleneck(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width _"]) -> Float[Array, "batch _ _ features"]:
        y = nn.relu(_normalised(self.features, 1)(x))
        y = nn.relu(_normalised(self.features, 3, self.stride)(y))
        y = _normalised(4 * self.features, 1)(y)
        return nn.relu(y + (x if x.shape == y.shape else _normalised(4 * self.features, 1, self.stride)(x)))


class _ResNet(nn.Module):
    depths: Sequence[int]
    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        x = nn.max_pool(nn.relu(_normalised(64, 7, 2)(x)), (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                x = _Bottleneck(64 * 2**stage, 2 if stage > 0 and block == 0 else 1)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


def _apply(model: nn.Module, params: Any, variables: Any, x: Any) -> Any:
    return model.apply({"params": params, **variables}, x)


def _normalised(features: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv(features, (kernel, kernel), (stride, stride), use_bias=False)
    return nn.Sequential([convolution, nn.BatchNorm(use_running_average=True)])


@dataclasses.dataclass(frozen=True)
class TracingTime:
    """Time `reduction_graph` on a ResNet-50 and on transformers of GPT-2 small's sizes, at shape level.

    Seconds for JAX's own tracing, and for all of it; with the sizes that the time should grow with.
    """

    layers: tuple[int, ...] = (3, 6, 12, 24)
    """Layers of the transformers."""
    width: int = 768
    """Width of the transformers."""

    def run(self) -> None:
        """Measure, and print a table."""
        tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
        models: list[tuple[str, nn.Module, jax.ShapeDtypeStruct]] = [
            ("ResNet-50", _ResNet((3, 4, 6, 3), 1000), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
        ]
        for layers in self.layers:
            model = _Transformer(50257, self.width, heads=12, layers=layers)
            models.append((f"transformer, {layers} layers", model, tokens))
        table = Table(title="Seconds to find the reduction graph")
        table.add_column("model", no_wrap=True)
        for column in ("weights", "units", "equations", "JAX's tracing", "all"):
            table.add_column(column, justify="right")
        for name, each, x in track(models, description="Tracing"):
            variables = jax.eval_shape(each.init, jax.random.key(0), x)
            params = variables.pop("params")
            network = functools.partial(_apply, each)
            begin = time.perf_counter()
            jaxpr = jax.make_jaxpr(network)(params, variables, x)
            traced = time.perf_counter()
            graph = pathspace.reduction_graph(network, params, variables, x)
            end = time.perf_counter()
            weights = sum(leaf.size for leaf in jax.tree.leaves(params))
            numbers = (f"{n:,}" for n in (weights, graph.num_units, len(jaxpr.eqns)))
            table.add_row(name, *numbers, f"{traced - begin:.2f}", f"{end - traced:.2f}")
        Console().print(table)
