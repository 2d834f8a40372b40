"""Parameter trees and the canonical names of their leaves."""

import collections
from collections.abc import Mapping
from typing import Any

import flax.core.meta
import jax
from flax import nnx
from jaxtyping import PyTree


def _is_box(node: Any) -> bool:
    return isinstance(node, nnx.Variable | flax.core.meta.AxisMetadata)


def leaf_names(tree: PyTree) -> list[str]:
    """The canonical name `a/b/kernel` of each leaf, in the order of `jax.tree.leaves`.

    Plain dicts, linen dicts, `FrozenDict`, `nnx.State`, trees of `nnx.Param` and boxed (partitioned) parameters
    give the same names: the box around an array is not part of its name.

    Raises:
      ValueError: two leaves have the same name.

    >>> leaf_names({"dense": {"kernel": 1.0, "bias": 2.0}})
    ['dense/bias', 'dense/kernel']
    """
    names = []
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)[0]:
        for inner, _ in jax.tree_util.tree_flatten_with_path(node)[0]:
            inside = inner[1:] if _is_box(node) else inner
            names.append(jax.tree_util.keystr((*path, *inside), simple=True, separator="/"))
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise ValueError(f"several leaves of the tree share the names {twice}: rename the keys that contain '/'.")
    return names


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by canonical name."""
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def replace_leaves(tree: PyTree, replacements: Mapping[str, Any]) -> PyTree:
    """The same tree, of the same type, with the named leaves replaced."""
    leaves, treedef = jax.tree.flatten(tree)
    names = leaf_names(tree)
    replaced = [replacements.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(treedef, replaced)
