"""From a function and its parameters to the sums over its paths."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..trees import as_array, named_leaves
from . import path_rules  # noqa: F401  they fill the table
from .compat import trace
from .path_interpreter import PathNetwork
from .path_values import DATA, Constant, Signal, Value, Weight
from .statistics import Statistics

Powers = dict[int, Array]  # |theta|^p, by the place of a leaf among those of the parameters


class TracedPaths:
    """The paths of a function, to be summed up for any powers of the absolute values of its parameters.

    Attributes:
      jaxpr: of the function.
      out_structure: of its outputs.
      leaves: of the parameters, with their signs.
      p: the power.
    """

    def __init__(
        self, fn: Callable[..., Any], params: PyTree, inputs: Sequence[Any], p: float | int, frozen: Sequence[str]
    ):
        for name, leaf in named_leaves(params).items():
            if jnp.iscomplexobj(leaf):
                raise ValueError(
                    f"leaf {name!r} has dtype {leaf.dtype}, expected real parameters: make its real and its imaginary "
                    "part leaves of their own."
                )
        self.jaxpr, out_shapes = trace(fn, params, *inputs)
        self.out_structure = jax.tree.structure(out_shapes)
        if not jax.tree.leaves(out_shapes):
            raise ValueError("the function returns no arrays, expected the outputs that paths end at: return them.")
        self.leaves = jax.tree.leaves(params)
        self.p = p
        self._inputs = jax.tree.leaves(inputs)
        self._frozen = frozen

    def powers(self, leaves: Sequence[Any]) -> Powers:
        """|theta|^p."""
        return {place: jnp.abs(leaf) ** self.p for place, leaf in enumerate(leaves) if is_weight(leaf)}

    def arguments(self, powers: Powers) -> list[Value]:
        """What a path network is given."""
        weights: list[Value] = [
            Weight(leaf, powers[place]) if place in powers else Constant(leaf) for place, leaf in enumerate(self.leaves)
        ]
        ones = (
            Signal(jnp.ones(jnp.shape(leaf), jnp.result_type(leaf))) if is_weight(leaf) else DATA
            for leaf in self._inputs
        )
        return [*weights, *ones]

    def statistics(self) -> Statistics | None:
        """Of the frozen normalisations, for one walk."""
        if not self._frozen:
            return None
        inputs = [as_array(f"inputs/{place}", leaf) for place, leaf in enumerate(self._inputs)]
        return Statistics(self._frozen, self.jaxpr, [*self.leaves, *inputs])

    def network(self, *, of_powers: bool = True, rescales: bool = False) -> PathNetwork:
        """A path network, for one walk."""
        return PathNetwork(self.p, of_powers=of_powers, rescales=rescales, statistics=self.statistics())

    def outputs(self, network: PathNetwork, arguments: Sequence[Value]) -> list[Signal]:
        """The sums over the paths to each output."""
        return [network.signal(out) for out in network.walk(self.jaxpr, arguments)]

    def total(self, network: PathNetwork, arguments: Sequence[Value]) -> Array:
        """The sum over all paths, for a network that does not rescale."""
        outs = network.walk(self.jaxpr, arguments)
        return sum((_total(network, out) for out in outs), start=jnp.zeros(()))


def _total(network: PathNetwork, out: Value) -> Array:
    if isinstance(out, Signal) and out.total is not None:
        return out.total
    return network.signal(out).path.sum()


def is_weight(leaf: Any) -> bool:
    """Whether a leaf holds weights, or inputs that are not indices."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
