"""Small networks whose unit maps `ReductionGraph.from_edges` cannot write down."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pathspace import ReductionGraph
from pathspace.graph import Leaf
from pathspace.trees import named_leaves
from pathspace.units import Group, UnitMap
from tests.architectures import Network, convolution, dense_shapes


class Composite(Network):
    """A network whose unit maps `from_edges` cannot write down."""

    @property
    def leaves(self) -> dict[str, tuple[UnitMap, UnitMap]]:
        """The source and target of each leaf by name."""
        raise NotImplementedError

    @property
    def graph(self):
        shapes = {name: struct.shape for name, struct in named_leaves(self.structs).items()}
        leaves = tuple(Leaf(name, shapes[name], *ends) for name, ends in self.leaves.items())
        groups = {group: None for leaf in leaves for end in (leaf.source, leaf.target) for group in end.groups}
        return ReductionGraph(tuple(groups), leaves, tuple(name for name in shapes if name not in self.leaves))


@dataclasses.dataclass(frozen=True)
class FlattenedCNN(Composite):
    """Convolution, ReLU, max-pool, flatten, dense: each row of the dense kernel belongs to a feature map."""

    @property
    def shapes(self):
        return {
            "conv": dense_shapes((3, 3, 2, 3), True),
            "dense": dense_shapes((2 * 2 * 3, 4), True),
            "out": dense_shapes((4, 2), True),
        }

    @property
    def leaves(self):
        maps, hidden = Group("maps", 3), Group("hidden", 4)
        flat = UnitMap((0,), np.tile(np.arange(3), 4), (maps,))
        return {
            "conv/kernel": (UnitMap.ground((2,), (2,)), UnitMap.along(3, maps)),
            "conv/bias": (UnitMap.ground(), UnitMap.along(0, maps)),
            "dense/kernel": (flat, UnitMap.along(1, hidden)),
            "dense/bias": (UnitMap.ground(), UnitMap.along(0, hidden)),
            "out/kernel": (UnitMap.along(0, hidden), UnitMap.ground((2,), (1,))),
        }

    @property
    def input_shape(self):
        return (4, 4, 2)

    def apply(self, params, x):
        x = jax.nn.relu(convolution(x, params["conv"]))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2, 1), (2, 2, 1), "VALID")
        x = jax.nn.relu(x.ravel() @ params["dense"]["kernel"] + params["dense"]["bias"])
        return x @ params["out"]["kernel"] + params["out"]["bias"]


@dataclasses.dataclass(frozen=True)
class DenseNet(Composite):
    """Each layer reads the inputs and all layers before it, concatenated."""

    @property
    def shapes(self):
        return {
            "first": dense_shapes((2, 3), True),
            "second": dense_shapes((2 + 3, 2), False),
            "out": dense_shapes((2 + 3 + 2, 2), True),
        }

    @property
    def leaves(self):
        a, b = Group("a", 3), Group("b", 2)
        return {
            "first/kernel": (UnitMap.ground((2,), (0,)), UnitMap.along(1, a)),
            "first/bias": (UnitMap.ground(), UnitMap.along(0, a)),
            "second/kernel": (UnitMap((0,), np.array([-1, -1, 0, 1, 2]), (a,)), UnitMap.along(1, b)),
            "out/kernel": (UnitMap((0,), np.array([3, 4, -1, -1, 0, 1, 2]), (a, b)), UnitMap.ground((2,), (1,))),
        }

    @property
    def input_shape(self):
        return (2,)

    def apply(self, params, x):
        a = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
        b = jax.nn.relu(jnp.concatenate([x, a]) @ params["second"]["kernel"])
        return jnp.concatenate([b, x, a]) @ params["out"]["kernel"] + params["out"]["bias"]


@dataclasses.dataclass(frozen=True)
class GroupedCNN(Composite):
    """A grouped convolution: its source units depend on the input and on the output channel."""

    @property
    def shapes(self):
        return {
            "conv": dense_shapes((3, 2, 4), False),
            "grouped": dense_shapes((3, 2, 6), True),
            "dense": dense_shapes((6, 2), False),
        }

    @property
    def leaves(self):
        maps, grouped = Group("maps", 4), Group("grouped", 6)
        source = UnitMap((1, 2), np.array([[0, 0, 0, 2, 2, 2], [1, 1, 1, 3, 3, 3]]), (maps,))
        return {
            "conv/kernel": (UnitMap.ground((2,), (1,)), UnitMap.along(2, maps)),
            "grouped/kernel": (source, UnitMap.along(2, grouped)),
            "grouped/bias": (UnitMap.ground(), UnitMap.along(0, grouped)),
            "dense/kernel": (UnitMap.along(0, grouped), UnitMap.ground((2,), (1,))),
        }

    @property
    def input_shape(self):
        return (5, 2)

    def apply(self, params, x):
        x = jax.nn.relu(convolution(x, params["conv"]))
        return jnp.mean(jax.nn.relu(convolution(x, params["grouped"], groups=2)), 0) @ params["dense"]["kernel"]


@dataclasses.dataclass(frozen=True)
class SplitHeads(Composite):
    """Units indexed by two axes together, in one leaf the other way round."""

    @property
    def shapes(self):
        return {"in": {"kernel": (3, 2, 3), "bias": (2, 3)}, "out": {"kernel": (3, 2, 2)}}

    @property
    def leaves(self):
        heads = Group("heads", 6)
        return {
            "in/kernel": (UnitMap.ground((3,), (0,)), UnitMap((1, 2), np.arange(6).reshape(2, 3), (heads,))),
            "in/bias": (UnitMap.ground(), UnitMap((0, 1), np.arange(6).reshape(2, 3), (heads,))),
            "out/kernel": (UnitMap((0, 1), np.arange(6).reshape(2, 3).T, (heads,)), UnitMap.ground((2,), (2,))),
        }

    @property
    def input_shape(self):
        return (3,)

    def apply(self, params, x):
        heads = jax.nn.relu(jnp.einsum("i,ihs->hs", x, params["in"]["kernel"]) + params["in"]["bias"])
        return jnp.einsum("hs,sho->o", heads, params["out"]["kernel"])


COMPOSITES = [FlattenedCNN(), DenseNet(), GroupedCNN(), SplitHeads()]
