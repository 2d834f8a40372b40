"""Optimisers' states, skeletons and graphs can be stored, and gone on with elsewhere."""

import json
import os
import pickle
import subprocess
import sys

import chex
import jax
import orbax.checkpoint as ocp
import pytest

from pathspace import reduction_graph
from tests.architectures import MLP, RNN, Mixture
from tests.compiled import choose
from tests.composites import COMPOSITES
from tests.optimizers.cases import float32
from tests.optimizers.continuing import numbers, start, trained
from tests.optimizers.subjects import OPTIMIZERS, Subject


@pytest.mark.parametrize(
    "name", [name if name == "g_adam" else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS]
)
def test_a_fresh_process_goes_on_from_a_checkpoint_with_the_same_bits(name, tmp_path):
    subject, folder = Subject(name), tmp_path / "checkpoint"
    begun = trained(subject, start(subject), 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, begun)
    command = [sys.executable, "-m", "tests.optimizers.continuing", str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(done.stdout) == numbers(trained(subject, begun, 3))


@pytest.mark.parametrize("network", [MLP((2, 3, 2)), RNN((2, 3, 2, 2)), Mixture(), *COMPOSITES], ids=str)
def test_graphs_and_skeletons_can_be_pickled(network):
    params = float32(network.parameters(0))
    graph, skeleton = network.graph, choose(network.graph, params)
    again, skeleton_again = pickle.loads(pickle.dumps((graph, skeleton)))
    assert (again, hash(again), again.describe()) == (graph, hash(graph), graph.describe())
    assert jax.tree.structure(skeleton_again) == jax.tree.structure(skeleton)
    chex.assert_trees_all_equal(skeleton_again, skeleton)


def test_traced_graphs_can_be_pickled():
    """Reports of what became ground included."""

    def network(params, x):
        return jax.numpy.tanh(jax.nn.relu(x @ params["a"]) @ params["b"]) @ params["c"]

    params = {name: jax.numpy.ones((2, 2)) for name in "abc"}
    graph = reduction_graph(network, params, jax.numpy.ones((1, 2)))
    again = pickle.loads(pickle.dumps(graph))
    assert graph.grounded
    assert (again, again.grounded) == (graph, graph.grounded)
