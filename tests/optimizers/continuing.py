"""Goes on from a checkpoint in a process of its own: `python -m tests.optimizers.continuing DIR OPTIMIZER`."""

import json
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from pathspace import choose_skeleton
from tests.optimizers.cases import float32
from tests.optimizers.subjects import NETWORK, Subject, one_step


def start(subject):
    params = float32(NETWORK.parameters(0))
    skeleton = jax.jit(choose_skeleton, static_argnums=0)(NETWORK.graph, params)
    return {"params": params, "state": subject.make(0.1, skeleton).init(params), "skeleton": skeleton}


def trained(subject, parts, steps):
    inputs = jnp.asarray(NETWORK.inputs(0), jnp.float32)
    optimizer = subject.make(1e-3, parts["skeleton"])
    step = jax.jit(one_step(subject, optimizer, lambda params: NETWORK.loss(params, inputs)))
    params, state = parts["params"], parts["state"]
    for _ in range(steps):
        params, state = step(params, state)
    return parts | {"params": params, "state": state}


def numbers(parts):
    return [leaf.tolist() for leaf in jax.tree.leaves((parts["params"], parts["state"]))]


if __name__ == "__main__":
    folder, name = sys.argv[1:]
    subject = Subject(name)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder, jax.eval_shape(lambda: start(subject)))
    print(json.dumps(numbers(trained(subject, restored, 3))))
