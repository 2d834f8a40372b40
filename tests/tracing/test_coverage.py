"""The units of traced functions: rescaling changes nothing, and none is missing."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pathspace import ReductionGraph, random_scales, rescale
from pathspace.graph import GROUND
from pathspace.models import ReluRNN
from pathspace.tracing.reduction import reduction_graph
from pathspace.trees import leaf_names

from .building import Case, draw, floats, shapes
from .cases import CASES
from .dense_cases import MLP_SHAPES, mlp

WITH_UNITS = [case for case in CASES if case.units]
WITHOUT_UNITS = [case for case in CASES if not case.units]


def _ids(case: Case) -> str:
    return case.name


@functools.cache
def traced(case: Case) -> ReductionGraph:
    fn, params, inputs = case.built
    return reduction_graph(fn, params, *inputs)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", WITH_UNITS, ids=_ids)
def test_rescaling_changes_nothing(case):
    fn, params, inputs = case.built
    graph, exact = traced(case), case.dtype == jnp.float64
    scales = random_scales(jax.random.key(0), graph, sigma=1.0)
    if not exact:  # powers of two do not round
        scales = {name: 2.0 ** jnp.round(jnp.log2(scale)) for name, scale in scales.items()}
    scaled = rescale(params, graph, scales)
    assert not _close(params, scaled, 0.1)

    compiled = jax.jit(fn)
    outs, outs_of_scaled = compiled(params, *inputs), compiled(scaled, *inputs)
    assert all(np.any(np.asarray(out)) for out in jax.tree.leaves(outs))
    assert _close(outs, outs_of_scaled, case.resolution)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", WITH_UNITS, ids=_ids)
def test_units_are_those_expected(case):
    graph = traced(case)
    assert graph.num_units == case.units, f"\n{graph.describe()}"


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", [case for case in CASES if case.dtype == jnp.float64], ids=_ids)
def test_nullity_is_that_expected(case):
    # Tested is the theory behind `units`, not the library: it stays as it is while the table does.
    assert _nullity(case) == case.nullity


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", WITHOUT_UNITS, ids=_ids)
def test_functions_without_units_are_refused(case):
    fn, params, inputs = case.built
    with pytest.raises(ValueError, match="unit"):
        reduction_graph(fn, params, *inputs)


def _close(first, second, relative: float) -> bool:
    def close(a, b):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        return np.max(np.abs(a - b), initial=0) <= relative * np.max(np.abs(a), initial=0)

    return all(jax.tree.leaves(jax.tree.map(close, first, second)))


def _nullity(case: Case) -> int:
    """The number of independent ways to rescale entries that change no output.

    They are the null space of the matrix of theta_e df_k(x; theta) / d theta_e, with a column for each entry e and rows
    for random x, theta and outputs k. One theta alone would also count rotations, and dead units.
    """
    fn, params, inputs = case.built
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))

    def row(drawn):
        params, inputs, k = drawn

        def output(params):
            outs = jnp.concatenate([out.ravel() for out in jax.tree.leaves(fn(params, *inputs))])
            return outs[k % outs.size]

        gradient = case.gradient(output)(params)
        return jnp.concatenate(
            [(p * g).ravel() for p, g in zip(*map(jax.tree.leaves, (params, gradient)), strict=True)]
        )

    count = (8 * num_params,)
    drawn = draw(params, count, 4), draw(inputs, count, 5), jnp.arange(*count)
    # Mapped, not vectorised, and not optimised: compilation takes most of the time.
    matrix = jax.jit(lambda drawn: jax.lax.map(row, drawn), compiler_options={"xla_backend_optimization_level": 0})(
        drawn
    )
    matrix = np.asarray(matrix)[:, _columns(case, params, np.asarray(matrix))]
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    reached = lengths[:, 0] > 0
    assert np.sum(reached) >= 3 * num_params
    values = np.linalg.svd(matrix[reached] / lengths[reached], compute_uv=False)
    relative = values / values[0]
    assert not np.any((relative > case.resolution) & (relative < 100 * case.resolution)), f"no clear rank: {relative}"
    return int(np.sum(relative < case.resolution))


def _columns(case: Case, params, matrix: np.ndarray) -> np.ndarray:
    """All columns but those of entries that a hard-coded mask removes."""
    let_through = [
        np.ravel(case.masked.get(name, np.ones(leaf.shape))) != 0
        for name, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True)
    ]
    kept = np.concatenate(let_through)
    assert not matrix[:, ~kept].any()
    return kept


def _structure(graph: ReductionGraph):
    """The leaves by name, with groups numbered in the order in which the sorted leaves meet them."""
    numbers: dict[str, int] = collections.defaultdict(lambda: len(numbers))
    leaves = {}
    for leaf in sorted(graph.leaves, key=lambda leaf: leaf.name):
        ends = []
        for end in leaf.target, leaf.source:
            units = [(numbers[group.name], i) for group in end.groups for i in range(group.size)]
            flat = [None if index == GROUND else units[index] for index in end.index.ravel().tolist()]
            ends.append((end.axes, end.index.shape, flat))
        leaves[leaf.name] = (leaf.shape, *ends)
    sizes = {numbers[group.name]: group.size for group in graph.groups}
    return leaves, sizes, sorted(graph.outside)


@pytest.mark.usefixtures("x64")
def test_traced_mlp_is_the_one_written_by_hand():
    params = shapes(**MLP_SHAPES)
    edges = {"a": (None, "h"), "b": (None, "h"), "c": ("h", "g"), "d": (None, "g"), "e": ("g", None)}
    traced = reduction_graph(mlp, params, floats(3, 2))
    assert _structure(traced) == _structure(ReductionGraph.from_edges(params, edges))


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"output": "every", "unroll": 2}], ids=str)
def test_traced_relu_rnn_is_the_one_written_by_hand(options):
    model = ReluRNN(2, [3, 2, 4], 2, rngs=nnx.Rngs(0), **options)
    graph, params = nnx.split(model)
    traced = reduction_graph(lambda params, x: nnx.merge(graph, params)(x), params, floats(3, 5, 2))
    assert _structure(traced) == _structure(ReductionGraph.from_edges(params, model.edges()))
