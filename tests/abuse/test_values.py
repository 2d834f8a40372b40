"""Numbers of the right kind of tree: what is finite stays finite, and what is not stays where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from pathspace import (
    balance,
    basis_paths,
    choose_skeleton,
    g_sgd,
    path_kappa,
    path_network,
    path_norm,
    path_sgd,
    reduction_graph,
)
from pathspace.trees import named_leaves
from tests.abuse.subjects import FEW, PARAMS, SUBJECTS, compiled, network, parameters, with_leaf
from tests.examples import seeds

# Where numbers leave the range of float32 the results are not finite, and this is right.
OVERFLOWING = {
    "rescale": "there are no equivalent parameters in the dtype",
    "conservation_error, grads": "it sums products of weights and gradients",
    "conservation_error, params": "it sums products of weights and gradients",
    "path_norm": "it sums squares of weights",
    "path_network": "it sums products of weights",
    "path_kappa": "it is infinite where sums over paths overflow",
    "basis_path_norm": "it is infinite where an all-skeleton path underflows to 0",
}
# So it is with what computes in float32 and returns float16.
OVERFLOWING_EARLY = {"balance": "there are no equivalent parameters in the dtype"}
# Moments of Adam and RMSProp are squares of gradients; these states are Optax's, and updates stay finite.
OPTAX_STATES = ("in_path_space", "g_adam", "path_adam")

sizes = [0.0, 1e-45, 1.2e-38, 1e-20, 1.0, 1e20, 1e38, 3.4e38]
moderate = [1e-6, 1e-2, 1.0, 1e2, 1e6]


def tree_of(seed, sizes, dtype=np.float32, like=PARAMS):
    """Each entry is one of the sizes, with a random sign."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return jnp.asarray(rng.choice([-1.0, 1.0], leaf.shape) * rng.choice(sizes, leaf.shape), dtype)

    return jax.tree.map(draw, like)


def not_finite(name, result):
    """The leaves of a result that are not finite, without states that are none of ours."""
    if name.startswith(OPTAX_STATES):
        result = result[0]
    return [leaf for leaf, value in named_leaves(result).items() if not np.all(np.isfinite(value))]


@settings(max_examples=50)
@given(seed=seeds, number=st.integers(1, len(sizes)))
@example(seed=0, number=1)
def test_finite_numbers_give_finite_results(seed, number):
    rng = np.random.default_rng(seed)
    for name, result in compiled()(tree_of(seed, rng.choice(sizes, number))).items():
        assert name in OVERFLOWING or not not_finite(name, result), name


@settings(max_examples=30)
@given(seed=seeds)
def test_numbers_of_moderate_size_give_finite_results(seed):
    for name, result in compiled()(tree_of(seed, moderate)).items():
        assert not not_finite(name, result), name


@pytest.mark.parametrize("name", OVERFLOWING)
def test_what_overflows(name):
    """Otherwise it should not be in the table above."""
    assert any(
        not_finite(name, compiled()(tree)[name])
        for tree in (tree_of(seed, [size]) for seed in range(3) for size in (0.0, 3.4e38))
    )


def test_one_unit_without_inputs():
    params = parameters(0, 1, 2)
    for name, result in compiled(FEW, 0, 1, 2)(params).items():
        assert not not_finite(name, result), name
    assert reduction_graph(network, params, jnp.ones((1, 0))).num_units == 1


def test_half_precision():
    largest = float(jnp.finfo(jnp.float16).max)
    tiny = float(jnp.finfo(jnp.float16).smallest_subnormal)
    for seed, sizes in enumerate(([1.0], [0.0, tiny, 1.0, largest], [largest])):
        tree = tree_of(seed, sizes, jnp.float16)
        results = compiled(FEW)(tree)
        for name, result in results.items():
            assert name in OVERFLOWING | OVERFLOWING_EARLY or not not_finite(name, result), name
    for name in ("basis_paths", "from_basis_paths", "balance", "rescale", "inverse_chain_rule, grads"):
        assert {leaf.dtype for leaf in jax.tree.leaves(results[name])} == {jnp.dtype(jnp.float16)}, name


# --- gradients that are not finite ---

GRADIENTS = [
    "inverse_chain_rule, grads",
    "weight_allocation, updates",
    *(name for name in SUBJECTS.alike if name.endswith(", updates") and not name.startswith("weight")),
]


@settings(max_examples=30)
@given(seed=seeds, kinds=st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1, max_size=3, unique=True))
@example(seed=0, kinds=[np.nan])
def test_only_what_has_no_finite_gradient_gets_none(seed, kinds):
    rng = np.random.default_rng(seed)
    gradient = jax.tree.map(
        lambda leaf: np.where(rng.random(leaf.shape) < 0.2, rng.choice(kinds, leaf.shape), leaf).astype(np.float32),
        PARAMS,
    )
    results = compiled()(gradient)
    for name in GRADIENTS:
        result = results[name] if name in GRADIENTS[:2] else results[name][0]
        for leaf, value in named_leaves(result).items():
            given = named_leaves(gradient)[leaf]
            assert not np.any(np.isfinite(given) & ~np.isfinite(value)), (name, leaf)
            assert not np.any(np.isfinite(value) & ~np.isfinite(given)), (name, leaf)


def test_a_gradient_that_is_no_number_does_not_conserve():
    gradient = with_leaf(PARAMS, "hidden/bias", jnp.array([1.0, jnp.nan, 1.0]))
    assert np.isnan(compiled()(gradient)["conservation_error, grads"]["h"])


# --- memory layouts ---


def frozen(array):
    array.flags.writeable = False
    return array


def apart(array):
    wide = np.zeros([2 * size for size in array.shape], array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "read-only": frozen,
    "not contiguous": apart,
    "reversed": lambda array: np.flip(np.flip(array).copy()),
    "float64": lambda array: array.astype(np.float64),
}
EAGER = ("basis_paths", "rescale", "path_kappa", "path_sgd, both")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_numpy_arrays(layout):
    tree = jax.tree.map(lambda leaf: layout(np.array(leaf)), PARAMS)
    before = jax.tree.map(np.copy, tree)
    expected = compiled()(PARAMS)
    for name in EAGER:
        result = SUBJECTS.finite[name](tree)
        for actual, leaf in zip(jax.tree.leaves(result), jax.tree.leaves(expected[name]), strict=True):
            assert_allclose(actual, leaf, rtol=1e-5, atol=1e-6, err_msg=name)
    jax.tree.map(assert_array_equal, tree, before)


# --- Python numbers ---


def gained(params, x):
    return params["gain"] * network(params, x)


def test_python_numbers_as_leaves():
    """In the graph, as `gain` is, and outside, as `temperature` is."""
    params = PARAMS | {"gain": 2.0, "temperature": 3}
    arrays = jax.tree.map(jnp.asarray, params)
    x = jnp.ones((1, 2))
    graph = reduction_graph(gained, params, x)
    assert "gain" in {leaf.name for leaf in graph.leaves}
    skeleton = choose_skeleton(graph, params)

    def kappa_fn(params):
        return path_kappa(gained, params, x)

    def update(optimizer):
        return lambda tree: optimizer.update(tree, optimizer.init(tree), tree)[0]

    calls = {
        "balance": lambda tree: balance(tree, graph),
        "basis_paths": lambda tree: basis_paths(tree, skeleton),
        "path_norm": lambda tree: path_norm(gained, tree, x),
        "path_network": lambda tree: path_network(gained, at=tree)(tree, x),
        "path_kappa": kappa_fn,
        "g_sgd": update(g_sgd(0.1, skeleton)),
        "path_sgd": update(path_sgd(0.1, kappa_fn, every=2, max_norm=1.0, ratio="weights")),
    }
    for name, call in calls.items():
        assert jax.eval_shape(lambda call=call: call(params)) == jax.eval_shape(call, arrays), name
    assert_allclose(path_norm(gained, params, x), 2 * path_norm(network, PARAMS, x), rtol=1e-6)


def test_python_numbers_as_inputs():
    def fn(params, x):
        return x * params["w"]

    params = {"w": jnp.array([3.0, -4.0])}
    assert_allclose(path_norm(fn, params, 2.0), 5, rtol=1e-6)
    assert_allclose(path_kappa(fn, params, 2.0)["w"], 1)
