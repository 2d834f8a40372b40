"""What the tables of traced functions are built from."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Large enough that a symmetry which it breaks shows in the singular values.
EPSILON = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A function, and what theory says about its units.

    Attributes:
      name: of the case.
      make: gives the function, and examples of its parameters and inputs (their values do not matter, apart from the
        largest value of integers, which bounds the random ones).
      units: how many the graph holds.
      nullity: of the matrix of the oracle.
      reason: why the graph holds fewer units than the nullity.
      masked: by leaf, where a hard-coded mask lets entries through; the other entries have no column in the matrix.
      gradient: how the function can be differentiated.
      dtype: of parameters and floating inputs; the oracle needs float64.
      resolution: relative differences and singular values below it are rounding errors.
    """

    name: str
    make: Callable[[], tuple[Callable[..., Any], Any, tuple[Any, ...]]]
    units: int
    nullity: int
    reason: str = ""
    masked: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    gradient: Callable[..., Any] = jax.grad
    dtype: Any = jnp.float64
    resolution: float = 1e-9

    def __post_init__(self):
        assert (self.nullity > self.units) == bool(self.reason)

    @functools.cached_property
    def built(self):
        """The function, random parameters and random inputs."""
        fn, params, inputs = self.make()
        return fn, draw(params, (), 1, self.dtype), draw(inputs, (), 2, self.dtype)


TABLE: dict[str, Case] = {}


def case(units: int, nullity: int | None = None, reason: str = "", name: str = "", **options: Any) -> Callable:
    """Enters the function that makes a case into the table."""

    def enter(make):
        key = name or make.__name__
        assert key not in TABLE
        TABLE[key] = Case(key, make, units, units if nullity is None else nullity, reason, **options)
        return make

    return enter


def draw(tree: Any, batch: tuple[int, ...], seed: int, dtype: Any = np.float64) -> Any:
    """Random values of the shapes of a tree: normal, or up to the largest of its integers."""
    rng = np.random.default_rng(seed)

    def leaf(example):
        shape = (*batch, *example.shape)
        if jnp.issubdtype(example.dtype, jnp.floating):
            return jnp.asarray(rng.standard_normal(shape), dtype)
        if jnp.issubdtype(example.dtype, jnp.integer):
            return jnp.asarray(rng.integers(0, np.max(example), shape, endpoint=True), example.dtype)
        raise ValueError(f"no random values of {example.dtype}")

    return jax.tree.map(leaf, tree)


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape)


def integers(below: int, *shape: int) -> np.ndarray:
    return np.full(shape, below - 1)


def shapes(**leaves: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.ones(shape) for name, shape in leaves.items()}


class Body(nn.Module):
    """A linen module of the layers that a function makes."""

    body: Callable[..., Any]

    @nn.compact
    def __call__(self, *inputs):
        return self.body(*inputs)


def linen(body: Callable[..., Any], *inputs: Any) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """A function of the parameters of the linen layers made in the body.

    Running averages, where the layers have some, are random inputs of the function, neither 0 nor constants.
    """
    module = Body(body)
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)

    def fn(params, statistics, *inputs):
        return module.apply({"params": params, **_positive(statistics)}, *inputs, mutable=["batch_stats"])[0]

    statistics = {name: value for name, value in variables.items() if name != "params"}
    return fn, variables["params"], (statistics, *inputs)


def of_nnx(
    layers: Callable[[nnx.Rngs], dict[str, Any]],
    body: Callable[..., Any],
    *inputs: Any,
    train: Any = nnx.Param,
    evaluate: bool = False,
    concrete: bool = False,
) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """A function of the parameters of nnx layers, by name in `layers`, that the body calls.

    Variables that are not trained are inputs if they are running averages, constants otherwise. Layers that hold arrays
    outside variables must be made concretely.
    """

    def make():
        return nnx.Dict(**layers(nnx.Rngs(0)))

    model = make() if concrete else nnx.eval_shape(make)
    if evaluate:
        model.eval()
    graph, params, statistics, rest = nnx.split(model, train, nnx.BatchStat, ...)
    rest = jax.tree.map(_constant, rest)

    def fn(params, statistics, *inputs):
        return body(nnx.merge(graph, params, _positive(statistics), rest, copy=True), *inputs)

    return fn, params, (statistics, *inputs)


def _positive(statistics: Any) -> Any:
    def leaf(path, value):
        return jnp.exp(value) if "var" in jax.tree_util.keystr(path) else value

    return jax.tree_util.tree_map_with_path(leaf, statistics)


def _constant(struct: Any) -> Any:
    if jnp.issubdtype(struct.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if jnp.issubdtype(struct.dtype, jnp.floating):
        return jnp.asarray(np.random.default_rng(3).standard_normal(struct.shape))
    return jnp.zeros(struct.shape, struct.dtype)
