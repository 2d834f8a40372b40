"""The networks whose steps are timed, and their counterparts in PyTorch."""

import math
import typing

import jax
import pytest
from flax import nnx

from benchmarks import pytorch
from benchmarks.tasks import overhead
from benchmarks.workloads import WORKLOADS, Convolutional, Language, Recurrent

SMALL = [
    Recurrent(3, 2, hidden=(4, 5), batch_size=2),
    Convolutional(4, size=8, batch_size=2),
    Language(7, embedding=3, hidden=(4, 3), time_steps=5, batch_size=2),
]


def weights(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("workload", SMALL)
def test_examples_fit_the_model(workload):
    inputs, labels = workload.examples(jax.random.key(0))
    logits = workload.logits(workload.make_model(nnx.Rngs(0)), inputs)
    assert len(inputs) == workload.batch_size
    assert logits.shape[:-1] == labels.shape
    assert logits.shape[-1] == (workload.vocabulary if isinstance(workload, Language) else workload.classes)


def test_networks_have_the_sizes_of_the_paper():
    sizes = {
        name: weights(nnx.eval_shape(lambda workload=workload: workload.make_model(nnx.Rngs(0))))
        for name, workload in WORKLOADS.items()
        if name.startswith("rcnn")
    }
    # The paper's count, with the biases of the first convolution and the readout.
    assert sizes == {"rcnn-96": 670_474, "rcnn-128": 1_188_874, "rcnn-160": 1_854_730}


def test_command_knows_every_workload():
    assert set(typing.get_args(overhead._Row)) == set(WORKLOADS)


@pytest.mark.parametrize("workload", SMALL)
def test_pytorch_trains_the_same_network(workload):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    network, inputs, labels = pytorch._made(workload)
    # PyTorch's recurrent layers have two biases where ours have one.
    second = 0 if isinstance(workload, Convolutional) else sum(workload.hidden)
    assert sum(each.numel() for each in network.parameters()) == weights(workload.make_model(nnx.Rngs(0))) + second
    assert network(inputs).shape[:-1] == labels.shape
    assert torch.isfinite(network(inputs)).all()
    pytorch.sgd_training(workload, 2)()


def test_unknown_workloads_are_named():
    pytest.importorskip("torch", reason="PyTorch is not installed")

    class Unknown:
        batch_size = 1

    with pytest.raises(TypeError, match="expected a workload that has a counterpart in PyTorch, got Unknown"):
        pytorch._made(Unknown())
