"""The public functions as functions of one tree: the others that they take are right."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pathspace import (
    ReductionGraph,
    balance,
    basis_path_norm,
    basis_paths,
    choose_skeleton,
    conservation_error,
    from_basis_paths,
    g_adam,
    g_sgd,
    in_path_space,
    inverse_chain_rule,
    path_adam,
    path_kappa,
    path_network,
    path_norm,
    path_sgd,
    reduction_graph,
    rescale,
    scale_by_path_kappa,
    skeleton_masks,
    weight_allocation,
    with_unit_skeleton,
)
from tests.compiled import choose

EDGES = {"hidden/kernel": (None, "h"), "hidden/bias": (None, "h"), "out/kernel": ("h", None)}
INSIDE = list(EDGES)
NAMES = ["hidden/bias", "hidden/kernel", "out/bias", "out/kernel"]


def network(params, x):
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def parameters(inputs=2, units=3, outputs=2):
    rng = np.random.default_rng(0)
    shapes = {
        "hidden": {"kernel": (inputs, units), "bias": (units,)},
        "out": {"kernel": (units, outputs), "bias": (outputs,)},
    }

    def draw(shape):
        return jnp.asarray(rng.choice([-1, 1], shape) * rng.uniform(0.3, 1.7, shape), jnp.float32)

    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def with_leaf(tree, name, leaf):
    """The tree of dictionaries with one leaf replaced or added."""
    scope, _, key = name.rpartition("/")
    return tree | ({scope: with_leaf(tree.get(scope, {}), key, leaf)} if scope else {key: leaf})


def without(tree, name):
    scope, _, key = name.rpartition("/")
    return tree | {scope: {other: leaf for other, leaf in tree[scope].items() if other != key}}


def optimizers_of(skeleton, kappa_fn) -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Functions of the learning rate."""
    return {
        "in_path_space": lambda rate: in_path_space(optax.rmsprop(rate), skeleton),
        "g_sgd": lambda rate: g_sgd(rate, skeleton, momentum=0.9),
        "g_adam": lambda rate: g_adam(rate, skeleton, weight_decay=0.1),
        "path_sgd": lambda rate: path_sgd(rate, kappa_fn, max_norm=1.0, ratio="weights"),
        "path_adam": lambda rate: path_adam(rate, kappa_fn, every=2),
        "scale_by_path_kappa": lambda rate: scale_by_path_kappa(kappa_fn, ratio="initial"),
    }


@dataclasses.dataclass(frozen=True)
class Subjects:
    """The functions by what they do with the tree.

    Attributes:
      of_graph: they read the leaves of the graph.
      traced: they hand the tree to the network's function.
      alike: they compare it with another tree.
      updates: of optimisers, given the tree for parameters and for gradient.
      inits: of optimisers.
    """

    of_graph: dict[str, Callable[[Any], Any]]
    traced: dict[str, Callable[[Any], Any]]
    alike: dict[str, Callable[[Any], Any]]
    updates: dict[str, Callable[[Any], Any]]
    inits: dict[str, Callable[[Any], Any]]

    @property
    def finite(self) -> dict[str, Callable[[Any], Any]]:
        """Those to compute with a tree of the right kind under `jax.jit`; none that another one includes."""
        calls = self.of_graph | self.traced | self.alike | self.updates
        included = {name.replace("both", "params") for name in self.updates}
        return {name: call for name, call in calls.items() if name not in {"reduction_graph", *included}}


def subjects_of(params) -> Subjects:
    graph = ReductionGraph.from_edges(params, EDGES)
    skeleton = choose(graph, params)
    x = jax.ShapeDtypeStruct((1, params["hidden"]["kernel"].shape[0]), params["hidden"]["kernel"].dtype)
    optimizers = {
        name: make(1e-2)
        for name, make in optimizers_of(skeleton, lambda params: path_kappa(network, params, x)).items()
    }

    def update(name, updates, params, initial):
        return optimizers[name].update(updates, optimizers[name].init(initial), params)

    return Subjects(
        of_graph={
            "choose_skeleton": lambda tree: choose_skeleton(graph, tree),
            "skeleton_masks": lambda tree: skeleton_masks(skeleton, tree),
            "with_unit_skeleton": lambda tree: with_unit_skeleton(tree, skeleton),
            "basis_paths": lambda tree: basis_paths(tree, skeleton),
            "from_basis_paths": lambda tree: from_basis_paths(tree, skeleton),
            "inverse_chain_rule, grads": lambda tree: inverse_chain_rule(tree, params, skeleton),
            "inverse_chain_rule, params": lambda tree: inverse_chain_rule(params, tree, skeleton),
            "rescale": lambda tree: rescale(tree, graph, {"h": np.full(graph.num_units, 2.0)}),
            "balance": lambda tree: balance(tree, graph),
            "conservation_error, grads": lambda tree: conservation_error(tree, params, graph),
            "conservation_error, params": lambda tree: conservation_error(params, tree, graph),
            "basis_path_norm": lambda tree: basis_path_norm(tree, skeleton),
        },
        traced={
            "reduction_graph": lambda tree: reduction_graph(network, tree, x),
            "path_norm": lambda tree: path_norm(network, tree, x),
            "path_network": lambda tree: path_network(network)(tree, x),
            "path_kappa": lambda tree: path_kappa(network, tree, x, second_term=True),
        },
        alike={
            "weight_allocation, params": lambda tree: weight_allocation(tree, params, skeleton),
            "weight_allocation, updates": lambda tree: weight_allocation(params, tree, skeleton),
            "path_network, at": lambda tree: path_network(network, at=tree)(params, x),
            **{f"{name}, updates": lambda tree, name=name: update(name, tree, params, params) for name in optimizers},
            **{f"{name}, params": lambda tree, name=name: update(name, params, tree, params) for name in optimizers},
        },
        updates={f"{name}, both": lambda tree, name=name: update(name, tree, tree, tree) for name in optimizers},
        inits={f"{name}, init": optimizers[name].init for name in optimizers},
    )


PARAMS = parameters()
SUBJECTS = subjects_of(PARAMS)


FEW = (
    *(name for name in SUBJECTS.of_graph if name not in ("with_unit_skeleton", "inverse_chain_rule, params")),
    *("path_norm", "path_network", "path_kappa", "g_sgd, both", "path_sgd, both", "scale_by_path_kappa, both"),
)


@functools.cache
def compiled(names=tuple(SUBJECTS.finite), inputs=2, units=3, outputs=2):
    """Many functions at once, of a tree of these sizes: the results by name."""
    calls = SUBJECTS.finite if inputs == 2 else subjects_of(parameters(inputs, units, outputs)).finite
    return jax.jit(lambda tree: {name: calls[name](tree) for name in names})
