"""Trees that are not those the functions were made for: errors name the leaf, both sides and a remedy."""

import re

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from pathspace import ReductionGraph, g_sgd, path_kappa, path_network, path_norm, scale_by_path_kappa
from pathspace.trees import named_leaves
from tests.abuse.subjects import EDGES, INSIDE, NAMES, PARAMS, SUBJECTS, network, with_leaf, without
from tests.compiled import choose


def raises(call, tree, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(tree)
    assert str(caught.value).endswith("."), str(caught.value)


def parametrize(calls, cases):
    """Each function with each case."""
    return lambda test: pytest.mark.parametrize("case", cases.values(), ids=cases)(
        pytest.mark.parametrize("call", calls.values(), ids=calls)(test)
    )


# --- leaves that are missing, or somewhere else ---

MISSING = {
    "a leaf": lambda: without(PARAMS, "out/kernel"),
    "several": lambda: {"out": PARAMS["out"]},
    "other nesting": lambda: {"model": PARAMS},
    "a list": lambda: [PARAMS["hidden"], PARAMS["out"]],
    "nothing": lambda: {},
    "None": lambda: None,
    "a None": lambda: with_leaf(PARAMS, "hidden/kernel", None),
    "a bare array": lambda: jnp.ones((2, 3)),
    "lists of numbers": lambda: with_leaf(PARAMS, "out/kernel", np.ones((3, 2)).tolist()),
}


@parametrize(SUBJECTS.of_graph, MISSING)
def test_leaves_of_the_graph_are_missing(call, case):
    names = [name for name in INSIDE if name not in named_leaves(case())]
    raises(
        call, case(), re.escape(f"the tree lacks the leaves {names} of the graph; it has {[*named_leaves(case())]}: ")
    )


OUTSIDE = {
    "a leaf outside is missing": lambda: without(PARAMS, "out/bias"),
    "a None outside": lambda: with_leaf(PARAMS, "out/bias", None),
    "an extra leaf": lambda: with_leaf(PARAMS, "extra", jnp.ones(2)),
    "one missing, one extra": lambda: with_leaf(without(PARAMS, "out/bias"), "out/offset", jnp.ones(2)),
}
UNLIKE = {name: case for name, case in MISSING.items() if name != "None"} | OUTSIDE


@parametrize(SUBJECTS.alike, UNLIKE)
def test_trees_with_other_leaves(call, case):
    leaves = named_leaves(case())
    missing, extra = ([n for n in a if n not in b] for a, b in ((NAMES, leaves), (leaves, NAMES)))
    inside = [name for name in INSIDE if name not in leaves]
    # Which of two unlike trees is wrong depends on the argument; a graph comes before the comparison.
    texts = [f"the tree lacks the leaves {inside} of the graph; it has {list(leaves)}: "] * bool(inside)
    for lacks, has in (missing, extra), (extra, missing):
        parts = [f"lack the leaves {lacks} of params"] * bool(lacks)
        parts += [f"have the leaves {has} that params lack"] * bool(has)
        texts.append(f" {' and '.join(parts)}: both trees need the same leaves")
    raises(call, case(), "|".join(map(re.escape, texts)))


ABSENT = {name: call for name, call in SUBJECTS.alike.items() if re.search("(gd|adam|kappa|space), params", name)}


@pytest.mark.parametrize("call", ABSENT.values(), ids=ABSENT)
def test_no_params(call):
    raises(call, None, "you are not passing `params` when calling `update`")


@pytest.mark.parametrize("name", SUBJECTS.alike)
def test_containers_of_other_types(name):
    tree = flax.core.freeze(PARAMS)
    if name.startswith("path_network"):
        tree = PARAMS | {"out": flax.core.freeze(PARAMS["out"])}
    raises(
        SUBJECTS.alike[name],
        tree,
        r"leaves of params in other containers \((FrozenDict|dict), expected (FrozenDict|dict), or further down\): co",
    )


IN_PATH_SPACE = {name: call for name, call in SUBJECTS.updates.items() if re.match("in_path_space|g_", name)}


@parametrize(IN_PATH_SPACE, {name: MISSING[name] for name in ("other nesting", "a list", "nothing", "a bare array")})
def test_an_optimiser_does_not_silently_leave_path_space(call, case):
    names = [*named_leaves(case())]
    raises(call, case(), re.escape(f"the tree has none of the leaves {INSIDE} of the graph; it has {names}: build the"))


@pytest.mark.parametrize("call", IN_PATH_SPACE.values(), ids=IN_PATH_SPACE)
def test_an_optimiser_needs_all_leaves_around_a_group(call):
    raises(
        call, without(PARAMS, "out/kernel"), r"group 'h' has the leaves .*, but \['out/kernel'\] are masked or missing"
    )


@pytest.mark.parametrize("masked", [optax.MaskedNode(), None])
def test_an_optimiser_of_which_all_is_masked(masked):
    optimizer = g_sgd(0.1, choose(ReductionGraph.from_edges(PARAMS, EDGES), PARAMS))
    tree = {"hidden": masked, "out": {"kernel": masked, "bias": PARAMS["out"]["bias"]}}
    updates, _ = optimizer.update(tree, optimizer.init(tree), tree)
    np.testing.assert_allclose(updates["out"]["bias"], -0.1 * PARAMS["out"]["bias"], rtol=1e-5)


OWN_ERRORS = {
    "a leaf": (MISSING["a leaf"], KeyError, "kernel"),
    "other nesting": (MISSING["other nesting"], KeyError, "hidden"),
    "a list": (MISSING["a list"], TypeError, "list indices"),
    "a shape": (lambda: with_leaf(PARAMS, "out/kernel", jnp.ones((4, 2))), TypeError, "dot_general"),
}


@parametrize(SUBJECTS.traced, OWN_ERRORS)
def test_errors_of_the_function_itself_pass_through(call, case):
    make, kind, message = case
    with pytest.raises(kind, match=message) as caught:
        call(make())
    assert any(entry.name == network.__name__ for entry in caught.traceback)


# --- leaves outside the graph ---

ANYTHING = {
    "missing": lambda: without(PARAMS, "out/bias"),
    "None": lambda: with_leaf(PARAMS, "out/bias", None),
    "another shape": lambda: with_leaf(PARAMS, "out/bias", jnp.ones((5, 1))),
    "a string": lambda: with_leaf(PARAMS, "out/bias", "abc"),
    "a key": lambda: with_leaf(PARAMS, "key", jax.random.key(0)),
}


@pytest.mark.parametrize("call", SUBJECTS.of_graph.values(), ids=SUBJECTS.of_graph)
def test_leaves_outside_do_not_matter(call):
    def shapes(tree):
        outside = {*named_leaves(tree), *NAMES} - {*INSIDE}
        return jax.eval_shape(lambda: {n: leaf for n, leaf in named_leaves(call(tree)).items() if n not in outside})

    expected = shapes(PARAMS)
    assert expected
    for name, case in ANYTHING.items():
        assert shapes(case()) == expected, name


# --- leaves that are no arrays, or not of real numbers ---


class Junk:
    pass


NO_ARRAYS = {
    "a string": ("abc", "of type str"),
    "an object": (Junk(), "of type Junk"),
    "an array of objects": (np.ones((2, 3), object), "an array of dtype object"),
    "swapped bytes": (np.ones((2, 3), ">f4"), "an array of dtype >f4"),
    "a shape": (jax.ShapeDtypeStruct((2, 3), jnp.float32), "of type ShapeDtypeStruct"),
}
ALL = SUBJECTS.of_graph | SUBJECTS.traced | SUBJECTS.alike | SUBJECTS.updates | SUBJECTS.inits
# They look at shapes only.
ABSTRACT = {"reduction_graph", *SUBJECTS.inits}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_leaves_that_are_no_arrays(name, kind):
    leaf, text = NO_ARRAYS[kind]
    tree = with_leaf(PARAMS, "hidden/kernel", leaf)
    if kind == "a shape" and name in ABSTRACT:
        jax.eval_shape(lambda: jax.tree.leaves(ALL[name](tree)) and None)
        return
    raises(
        ALL[name], tree, f"leaf 'hidden/kernel' is {text}, expected an array of numbers: give it a value, or keep it"
    )


DTYPES = {
    "integers": (np.ones((2, 3), np.int32), "int32"),
    "truth values": (np.ones((2, 3), bool), "bool"),
    "complex numbers": (np.ones((2, 3), np.complex64), "complex64"),
    "keys": (jax.random.split(jax.random.key(0), (2, 3)), "key<fry>"),
}


@parametrize(SUBJECTS.of_graph, DTYPES)
def test_leaves_of_the_graph_are_real(call, case):
    leaf, dtype = case
    message = f"leaf 'hidden/kernel' has dtype {dtype}, expected a real floating-point dtype: leave it out of the graph"
    raises(call, with_leaf(PARAMS, "hidden/kernel", leaf), message)


@pytest.mark.parametrize("name", [*SUBJECTS.alike, *SUBJECTS.updates])
def test_no_optimiser_takes_complex_numbers_for_real_ones_or_keys_for_numbers(name):
    tree = with_leaf(PARAMS, "hidden/kernel", DTYPES["complex numbers"][0])
    in_graph = "has dtype complex64, expected a real floating-point dtype"
    beside = "has dtype complex64 in the (updates|parameters `at`), but float32 in params: take the real part"
    traced = "has dtype complex64, expected real parameters: make its real and its imaginary part leaves"
    raises(ALL[name], tree, f"leaf 'hidden/kernel' ({in_graph}|{beside}|{traced})")
    if not name.startswith("path_network"):
        tree = with_leaf(PARAMS, "out/bias", jax.random.split(jax.random.key(0)))
        raises(ALL[name], tree, r"leaf 'out/bias' is a key<fry>\[2\], expected numbers: mask it")


@pytest.mark.parametrize("name", ["path_norm", "path_network", "path_kappa"])
def test_path_norms_are_of_real_parameters(name):
    tree = with_leaf(PARAMS, "out/bias", np.ones(2, np.complex64))
    raises(ALL[name], tree, "leaf 'out/bias' has dtype complex64, expected real parameters: make its real and its im")


def test_a_complex_kernel_has_no_units():
    with pytest.raises(ValueError, match="no units that can be rescaled"):
        SUBJECTS.traced["reduction_graph"](with_leaf(PARAMS, "hidden/kernel", np.ones((2, 3), np.complex64)))


# --- shapes ---

shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@settings(max_examples=15)
@given(name=st.sampled_from(INSIDE), shape=shapes)
def test_leaves_of_any_other_shape(name, shape):
    expected = named_leaves(PARAMS)[name].shape
    if shape == expected:
        return
    tree = with_leaf(PARAMS, name, jnp.zeros(shape))
    in_graph = f"leaf {name!r} has shape {expected} in the graph, but {shape} in this tree: build the graph from"
    for call in SUBJECTS.of_graph.values():
        raises(call, tree, re.escape(in_graph))
    for call in SUBJECTS.alike.values():
        beside = "|".join(
            f"leaf {name!r} has shape {re.escape(str(a))} in the (updates|parameters `at`), but {re.escape(str(b))} in"
            for a, b in ((shape, expected), (expected, shape))
        )
        raises(call, tree, f"{re.escape(in_graph)}|{beside} params: both trees must be of the same model")


@pytest.mark.parametrize("name", SUBJECTS.alike)
def test_leaves_outside_of_another_shape(name):
    """That broadcasts: nothing else would notice."""
    tree = with_leaf(PARAMS, "out/bias", jnp.zeros((1,)))
    raises(
        SUBJECTS.alike[name],
        tree,
        r"leaf 'out/bias' has shape \([12],\) in .*, but \([12],\) in params: both trees must",
    )


# --- trees that functions return ---

KAPPAS = {
    "nothing": (lambda params: None, "lack the leaves .*'out/kernel'] of params: both trees need the same leaves"),
    "another tree": (
        lambda params: {"model": params},
        "and have the leaves .*'model/out/kernel'] that params lack: both",
    ),
    "a number": (
        lambda params: jax.tree.map(lambda leaf: 1.0, params),
        r"has shape \(\) in the kappas of kappa_fn, but",
    ),
    "no array": (lambda params: with_leaf(params, "out/bias", "abc"), "leaf 'out/bias' is of type str, expected an"),
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kind", KAPPAS)
def test_kappas_that_are_not_like_params(kind, every):
    kappa_fn, message = KAPPAS[kind]
    scale = scale_by_path_kappa(kappa_fn, every=every)
    raises(lambda params: scale.update(params, scale.init(params), params), PARAMS, message)


@pytest.mark.parametrize("every", [1, 2])
def test_kappas_of_any_real_dtype(every):
    scale = scale_by_path_kappa(lambda params: jax.tree.map(lambda leaf: jnp.full(leaf.shape, 2), params), every=every)
    updates, _ = scale.update(PARAMS, scale.init(PARAMS), PARAMS)
    jax.tree.map(lambda update, leaf: np.testing.assert_allclose(update, leaf / 2, rtol=1e-6), updates, PARAMS)


def test_functions_that_return_nothing():
    for name in "path_norm", "path_network", "path_kappa":
        call = {
            "path_norm": lambda tree: path_norm(lambda params, x: None, tree, jnp.ones(2)),
            "path_network": lambda tree: path_network(lambda params, x: {})(tree, jnp.ones(2)),
            "path_kappa": lambda tree: path_kappa(lambda params, x: [], tree, jnp.ones(2)),
        }[name]
        raises(call, PARAMS, "the function returns no arrays, expected the outputs that paths end at: return them")


def test_frozen_scopes_need_values():
    def fn(params, x):
        with jax.named_scope("norm"):
            return network(params, x)

    x = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    raises(lambda tree: path_norm(fn, tree, x, frozen=("norm",)), PARAMS, "leaf 'inputs/0' is of type ShapeDtypeStruct")
