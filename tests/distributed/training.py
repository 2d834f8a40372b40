"""Training a traced model over a mesh, as a program of its own: `python -m tests.distributed.training` prints JSON."""

import json
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from pathspace import choose_skeleton, g_adam, g_sgd, path_kappa, path_sgd, reduction_graph

STEPS = 5
SHAPES = {
    "first": {"kernel": (6, 16), "bias": (16,)},
    "second": {"kernel": (16, 8), "bias": (8,)},
    "readout": {"kernel": (8, 4)},
}
# The units of the first layer are split among the devices of the axis `model`.
SPECS = {
    "first": {"kernel": P(None, "model"), "bias": P("model")},
    "second": {"kernel": P("model", None), "bias": P(None)},
    "readout": {"kernel": P(None, None)},
}


def network(params, x):
    hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    # Over explicit axes, the sum over split units has to be told what becomes of it.
    mesh = jax.sharding.get_abstract_mesh()
    split = {"out_sharding": P(None, None)} if AxisType.Explicit in mesh.axis_types else {}
    hidden = jax.nn.relu(jnp.matmul(hidden, params["second"]["kernel"], **split) + params["second"]["bias"])
    return hidden @ params["readout"]["kernel"]


def kappa(params):
    return path_kappa(network, params, jnp.zeros((1, 6)))


OPTIMIZERS = {
    "g_sgd": lambda skeleton: g_sgd(0.05, skeleton, momentum=0.5),
    "g_adam": lambda skeleton: g_adam(0.01, skeleton),
    "path_sgd": lambda skeleton: path_sgd(0.01, kappa, momentum=0.5, every=2),
}


def examples_and_params():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: 0.5 * rng.normal(size=shape).astype(np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )
    return *(rng.normal(size=(16, width)).astype(np.float32) for width in (6, 4)), params


def train(name, place):
    """The losses of a few steps and the weights after them; `place(array, spec)` puts arrays onto devices."""
    inputs, targets, params = examples_and_params()
    inputs, targets = place(inputs, P("data")), place(targets, P("data"))
    params = jax.tree.map(place, params, SPECS)
    graph = reduction_graph(network, params, inputs)

    @jax.jit
    def start(params):
        skeleton = choose_skeleton(graph, params)
        return skeleton, OPTIMIZERS[name](skeleton).init(params)

    @jax.jit
    def step(params, state, skeleton, inputs, targets):
        value, grads = jax.value_and_grad(lambda params: jnp.mean((network(params, inputs) - targets) ** 2))(params)
        updates, state = OPTIMIZERS[name](skeleton).update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    skeleton, state = start(params)
    shardings = [leaf.sharding for leaf in jax.tree.leaves(params)]
    losses = []
    for _ in range(STEPS):
        params, state, value = step(params, state, skeleton, inputs, targets)
        losses.append(float(value))
    check_shardings(shardings, params, state)
    return {"losses": losses, "kernel": everywhere(params["second"]["kernel"]).tolist()}


def check_shardings(shardings, params, state):
    """Weights lie where they lay before, and what the state holds of their shapes lies with them."""
    leaves = jax.tree.leaves(params)
    expected = {leaf.shape: sharding for leaf, sharding in zip(leaves, shardings, strict=True)}
    for leaf in (*leaves, *(leaf for leaf in jax.tree.leaves(state) if leaf.ndim)):
        if not leaf.sharding.is_equivalent_to(expected[leaf.shape], leaf.ndim):
            raise AssertionError(f"expected {expected[leaf.shape]} for the shape {leaf.shape}, got {leaf.sharding}.")


def everywhere(array):
    """The whole array, parts that only another process can reach included."""
    if isinstance(array.sharding, NamedSharding):
        array = jax.jit(lambda x: x, out_shardings=NamedSharding(array.sharding.mesh, P()))(array)
    return np.asarray(array)


def main(
    *,
    data: int,
    model: int,
    axes: Literal["auto", "explicit"] = "auto",
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS),
    process: int | None = None,
    port: int = 0,
) -> None:
    processes = 1 if process is None else 2
    jax.config.update("jax_num_cpu_devices", data * model // processes)
    if process is not None:
        jax.distributed.initialize(f"localhost:{port}", num_processes=processes, process_id=process)
    kind = AxisType.Explicit if axes == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((data, model), ("data", "model"), (kind, kind))
    with jax.set_mesh(mesh):
        results = {
            name: train(name, lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec)))
            for name in optimizers
        }
    print(json.dumps(results))


if __name__ == "__main__":
    tyro.cli(main)
