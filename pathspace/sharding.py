"""Explicit sharding: inside the library the compiler decides where arrays lie; results lie where they are asked to."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def in_auto_mode(
    *, like: str | tuple[str | None, ...] | None
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Run a function with all axes of the mesh in auto mode, where some of them are explicit.

    Axes in explicit mode are part of an array's type, and operations refuse to combine arrays of different types. How
    the numbers of units lie beside the weights that they are laid along is not a question for the library's callers.

    Args:
      like: the argument that the result lies like, a tree with the same leaves; None for a result that is on all
        devices; a tuple for a function that returns one.
    """

    def decorate(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
                return function(*args, **kwargs)
            leaves, structure = jax.tree.flatten((args, kwargs))
            arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")}

            def inside(arrays: dict[int, Any]) -> _Result:
                args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
                return function(*args, **kwargs)

            named = signature.bind(*args, **kwargs).arguments
            specs = tuple(_specs(named, name) for name in like) if isinstance(like, tuple) else _specs(named, like)
            return jax.sharding.auto_axes(inside, out_sharding=specs)(arrays)

        return wrapped

    return decorate


def _specs(named: dict[str, Any], name: str | None) -> Any:
    if name is None:
        return PartitionSpec()
    return jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, named[name])
