"""The reduction graph of any function that JAX can trace."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..graph import ReductionGraph
from ..rescaling import rescale
from ..sharding import in_auto_mode
from ..trees import check_arrays, named_leaves
from . import contraction_rules, control_rules, elementwise_rules, shape_rules  # noqa: F401  they fill the table
from .compat import shape_of, trace
from .inference import Fresh, ScaleInference, Value
from .scales import TRIVIAL
from .structure import OUTPUT, build_graph
from .tables import SCALE_RULES


def reduction_graph(fn: Callable[..., Any], params: PyTree, *inputs: Any, validate: bool = True) -> ReductionGraph:
    """Find the hidden units of a network, and the weights that flow into and out of them, by tracing its function.

    Every array in the function's jaxpr has a scale: how it changes when units are rescaled. Each primitive sets up
    equations between the scales of what it reads and writes: additions want equal ones, matrix products want them to
    cancel along the contracted axes, nonlinearities that are not positively homogeneous want none, and outputs have
    none. What is left free are the units. Steps of a `lax.scan` are merged, weights used twice get one scale.

    Args:
      fn: called as `fn(params, *inputs)`: linen's `apply`, a function that merges an `nnx` model, or plain JAX.
        Switch dropout off, or give it a fixed key. What `fn` closes over counts as constant; zeros take any scale
        (a recurrent layer's first state), but not those of a closed-over `jax.Array`, which may be state.
      params: the parameters, or a tree of `jax.ShapeDtypeStruct` like them: tracing looks at shapes only.
      *inputs: further arguments, or `jax.ShapeDtypeStruct`s like them; they count as given, not as parameters.
      validate: also rescale all units at random and compare outputs, where params and inputs hold values.

    Returns:
      The graph. Its `describe()` tells what became ground and why. Units that flow nowhere (a normalisation behind
      them takes their scale away), units with exponents other than 1 and -1, and the lesser of two units that meet at
      one end of a weight are among that.

    Raises:
      ValueError: a parameter is no array; JAX cannot trace the function; its outputs are not floating point; it does
        not use `params`, or closes over one of their arrays; there are no units; a rescaling of the units changes the
        outputs.

    Source: the reduction graph is Definition 3 of path space for ReLU RNNs; that it is found by tracing is ours.

    >>> def mlp(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"]) @ params["out"]["kernel"]
    >>> params = {"hidden": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "out": {"kernel": jnp.ones((4, 2))}}
    >>> print(reduction_graph(mlp, params, jnp.ones((5, 3))).describe())
    group   units  fed by                       read by
    hidden      4  hidden/bias, hidden/kernel*  out/kernel*
    4 units, 24 weights, 20 basis paths; * holds the skeleton edges
    outside the graph: none
    """
    graph = build_graph(infer_scales(fn, params, *inputs))
    if not graph.groups:
        raise ValueError(f"the function has no units that can be rescaled.\n{graph.describe()}")
    if validate and not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((params, inputs))):
        _validate(graph, fn, params, inputs)
    return graph


def infer_scales(fn: Callable[..., Any], params: PyTree, *inputs: Any) -> ScaleInference:
    """The scales of the parameter leaves, from the jaxpr of the function. Raised errors as in `reduction_graph`."""
    check_arrays(params)
    leaves = named_leaves(params)
    try:
        jaxpr, out_shapes = trace(fn, params, *inputs)
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            "JAX cannot trace the function: what depends on values of params or inputs must be written with jax.numpy "
            "and jax.lax; options that are no arrays belong into the function (functools.partial). The error above "
            "has the place."
        ) from error
    for path, out in jax.tree_util.tree_leaves_with_path(out_shapes):
        if not jnp.issubdtype(out.dtype, jnp.inexact):
            raise ValueError(
                f"output{jax.tree_util.keystr(path)} has dtype {out.dtype}, expected floating point: return what "
                "comes before it (logits, not predictions), and no counters or keys."
            )
    if closed_over := [name for name, leaf in leaves.items() if any(const is leaf for const in jaxpr.consts)]:
        raise ValueError(
            f"the function closes over the parameters {closed_over}: it must read them from its first argument."
        )

    shapes = {name: tuple(jnp.shape(leaf)) for name, leaf in leaves.items()}
    inference = ScaleInference(SCALE_RULES, shapes)
    values: list[Value] = [
        Fresh(name, tuple(range(jnp.ndim(leaf)))) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else TRIVIAL
        for name, leaf in leaves.items()
    ]
    values += [TRIVIAL] * (len(jaxpr.jaxpr.invars) - len(values))
    outs = inference.walk(jaxpr, values)
    for out, var in zip(outs, jaxpr.jaxpr.outvars, strict=True):
        inference.trivial(out, shape_of(var), OUTPUT)
    if not inference.leaf_scales:
        raise ValueError(
            f"the function uses none of the floating-point leaves of params ({list(shapes)}): does it close over its "
            "parameters? It must read them from its first argument."
        )
    return inference


def _validate(graph: ReductionGraph, fn: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...]) -> None:
    generator = np.random.default_rng(0)
    # Powers of two: rescaling by them rounds nothing.
    scales = {
        group.name: np.exp2(generator.choice([-2.0, -1.0, 1.0, 2.0], group.size)).astype(np.float32)
        for group in graph.groups
    }
    function = jax.jit(fn)
    expected = function(params, *inputs)

    def change(scales: Mapping[str, np.ndarray]) -> float:
        got = function(rescale(params, graph, scales), *inputs)
        return max(float(each) for each in jax.tree.leaves(jax.tree.map(_relative_change, expected, got)))

    if change(scales) <= 1:
        return
    by_group = {name: change({name: scale}) for name, scale in scales.items()}
    wrong = [name for name, size in by_group.items() if size > 1] or list(by_group)
    raise ValueError(
        f"rescaling the units of the groups {wrong} changes the outputs, expected no change: a scale rule is wrong, or "
        "the function is not deterministic. Give it fixed keys; leave out rules that were registered for it; or write "
        f"the graph by hand with ReductionGraph.from_edges.\n{graph.describe()}"
    )


@in_auto_mode(like=None)
@jax.jit
def _relative_change(expected: Array, got: Array) -> Array:
    """The largest change of an output, in units of what rounding may cause."""
    wide = jnp.promote_types(expected.dtype, jnp.float32)
    before, after = expected.astype(wide), got.astype(wide)
    same = (before == after) | (jnp.isnan(before) & jnp.isnan(after))
    size = jnp.max(jnp.abs(before), where=jnp.isfinite(before), initial=jnp.finfo(wide).tiny)
    change = jnp.where(same, 0, jnp.nan_to_num(jnp.abs(before - after), nan=jnp.inf))
    return jnp.max(change, initial=0) / size / jnp.finfo(expected.dtype).eps ** 0.5
