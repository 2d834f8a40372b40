"""Parameter trees and the canonical names of their leaves."""

import collections
from collections.abc import Mapping
from typing import Any

import flax.core.meta
import jax
import jax.numpy as jnp
import numpy as np
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


def as_array(name: str, leaf: Any, *, numbers: bool = False) -> jax.Array:
    """The leaf of that name as a JAX array.

    Raises:
      ValueError: JAX cannot make an array of it; with `numbers`, it holds something else, such as PRNG keys.
    """
    _check_array(name, leaf, numbers)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise _no_array(name, leaf)
    return jnp.asarray(leaf)


def as_arrays(tree: PyTree, *, numbers: bool = False) -> PyTree:
    """The tree with JAX arrays for leaves. Raised errors as in `as_array`."""
    return replace_leaves(
        tree, {name: as_array(name, leaf, numbers=numbers) for name, leaf in named_leaves(tree).items()}
    )


def check_arrays(tree: PyTree, *, numbers: bool = False) -> None:
    """Raised errors as in `as_array`; leaves may also be `jax.ShapeDtypeStruct`s."""
    for name, leaf in named_leaves(tree).items():
        _check_array(name, leaf, numbers)


def check_alike(tree: PyTree, params: PyTree, what: str) -> None:
    """Raises an error unless a tree of arrays has the structure of `params`, another one, and the shapes of its leaves.

    Args:
      tree: the tree.
      params: what it should be like.
      what: the tree's name in errors.

    Raises:
      ValueError: the leaves that one of the trees lacks; containers of other types; a leaf of another shape, or a
        complex one where that of `params` is real.
    """
    leaves, expected = named_leaves(tree), named_leaves(params)
    missing, further = ([name for name in a if name not in b] for a, b in ((expected, leaves), (leaves, expected)))
    differences = [f"lack the leaves {missing} of params"] * bool(missing)
    differences += [f"have the leaves {further} that params lack"] * bool(further)
    if differences:
        raise ValueError(f"{what} {' and '.join(differences)}: both trees need the same leaves.")
    structures: list[Any] = [jax.tree.structure(each) for each in (tree, params)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"{what} have the leaves of params in other containers ({type(tree).__name__}, expected "
            f"{type(params).__name__}, or further down): convert one of the trees to the other's types."
        )
    for name, leaf in leaves.items():
        if leaf.shape != expected[name].shape:
            raise ValueError(
                f"leaf {name!r} has shape {leaf.shape} in {what}, but {expected[name].shape} in params: "
                "both trees must be of the same model."
            )
        if jnp.iscomplexobj(leaf) and not jnp.iscomplexobj(expected[name]):
            raise ValueError(
                f"leaf {name!r} has dtype {leaf.dtype} in {what}, but {expected[name].dtype} in params: "
                "take the real part."
            )


def _check_array(name: str, leaf: Any, numbers: bool) -> None:
    try:
        kind = jax.typeof(leaf)
    except (TypeError, OverflowError) as error:
        raise _no_array(name, leaf) from error
    if numbers and not (jnp.issubdtype(kind.dtype, np.number) or kind.dtype == bool):
        raise ValueError(f"leaf {name!r} is a {kind}, expected numbers: mask it (optax.masked).")


def _no_array(name: str, leaf: Any) -> ValueError:
    kind = f"an array of dtype {leaf.dtype}" if isinstance(leaf, np.ndarray) else f"of type {type(leaf).__name__}"
    return ValueError(
        f"leaf {name!r} is {kind}, expected an array of numbers: give it a value, or keep it out of the tree."
    )
