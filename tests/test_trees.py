import re

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pathspace import (
    ReductionGraph,
    balance,
    basis_paths,
    choose_skeleton,
    inverse_chain_rule,
    rescale,
    weight_allocation,
)
from pathspace.trees import leaf_names, named_leaves, replace_leaves

NAMES = ["hidden/bias", "hidden/kernel", "out/bias", "out/kernel"]
EDGES = {"hidden/bias": (None, "h"), "hidden/kernel": (None, "h"), "out/kernel": ("h", None)}


class Linen(nn.Module):
    box: bool = False

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        boxed = nn.with_partitioning(init, (None, "units")) if self.box else init
        x = nn.relu(nn.Dense(3, name="hidden", kernel_init=boxed)(x))
        return nn.Dense(2, name="out", kernel_init=init)(x)


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(2, 3, rngs=rngs)
        self.out = nnx.Linear(3, 2, rngs=rngs)


def linen_params(box=False):
    return Linen(box).init(jax.random.key(0), jnp.ones((1, 2)))["params"]


def pure_dict():
    return {
        "hidden": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "out": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    }


TREES = {
    "dict": pure_dict,
    "linen": linen_params,
    "FrozenDict": lambda: flax.core.freeze(linen_params()),
    "nnx.split": lambda: nnx.split(Nnx())[1],
    "nnx.state": lambda: nnx.state(Nnx(), nnx.Param),
    "tree of nnx.Param": lambda: jax.tree.map(nnx.Param, pure_dict()),
    "nn.Partitioned": lambda: linen_params(box=True),
}
trees = pytest.mark.parametrize("make", TREES.values(), ids=TREES)


@trees
def test_same_names(make):
    tree = make()
    assert leaf_names(tree) == NAMES
    assert list(named_leaves(tree)) == NAMES
    assert [leaf.shape for leaf in named_leaves(tree).values()] == [(3,), (2, 3), (2,), (3, 2)]


def test_boxes_are_there():
    """The boxed cases above would be plain dicts otherwise."""
    assert isinstance(linen_params(box=True)["hidden"]["kernel"], nn.Partitioned)
    assert isinstance(TREES["tree of nnx.Param"]()["hidden"]["kernel"], nnx.Param)


@trees
def test_same_graph(make):
    plain = ReductionGraph.from_edges(pure_dict(), EDGES)
    assert ReductionGraph.from_edges(make(), EDGES) == plain


@trees
def test_same_tree_back(make):
    tree = make()
    replaced = replace_leaves(tree, {"hidden/kernel": jnp.zeros((2, 3))})
    assert type(replaced) is type(tree)
    assert jax.tree.structure(replaced) == jax.tree.structure(tree)
    assert not np.any(named_leaves(replaced)["hidden/kernel"])
    for name in ("hidden/bias", "out/bias", "out/kernel"):
        assert named_leaves(replaced)[name] is named_leaves(tree)[name]


@trees
def test_transformations_return_the_tree_received(make):
    tree = make()
    graph = ReductionGraph.from_edges(tree, EDGES)

    @jax.jit
    def transform(tree):
        skeleton = choose_skeleton(graph, tree, reference="initial")
        return (
            basis_paths(tree, skeleton),
            inverse_chain_rule(tree, tree, skeleton),
            weight_allocation(tree, tree, skeleton),
            rescale(tree, graph, {"h": jnp.ones(3)}),
            balance(tree, graph),
        )

    for result in transform(tree):
        assert type(result) is type(tree)
        assert jax.tree.structure(result) == jax.tree.structure(tree)


def test_positions_in_lists_are_names_too():
    assert leaf_names({"layers": [{"kernel": 1.0}, (2.0,)]}) == ["layers/0/kernel", "layers/1/0"]


def test_clash_of_names():
    with pytest.raises(ValueError, match=re.escape("several leaves of the tree share the names ['a/b']")):
        leaf_names({"a": {"b": 1.0}, "a/b": 2.0})
