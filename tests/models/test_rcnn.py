import math
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pathspace import ReductionGraph, random_scales, reduction_graph, rescale
from pathspace.models import RCNN

from .test_relu_rnn import parameters, with_random_parameters
from .training import train_two_steps

VARIANTS = ["canonical", "cited"]
EPSILON = 1e-5  # Flax's, of its batch normalisation
MOMENTUM = 0.9


def rcnn(rngs=None, **options):
    options = {"layers": 2, "iterations": 2} | options
    return RCNN(3, 2, 4, **options, rngs=nnx.Rngs(0) if rngs is None else rngs)


def random_rcnn(**options):
    """With parameters and running averages in float64."""
    model = with_random_parameters(rcnn(param_dtype=float, **options))
    rng = np.random.default_rng(5)
    for path, average in nnx.to_flat_state(nnx.state(model, nnx.BatchStat)):
        values = rng.normal(size=average.shape)
        average.set_value(jnp.asarray(np.exp(values) if path[-1] == "var" else values))
    return model


def images(*batch, size=6):
    return jax.random.normal(jax.random.key(1), (*(batch or (3,)), size, size, 3))


def function_and_parameters(model):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return jax.jit(lambda params, inputs: nnx.merge(graphdef, params, rest, copy=True)(inputs)), params


def averages(model):
    """Running averages by name, as numpy arrays."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    return {"/".join(map(str, path)): np.array(average[...]) for path, average in flat}


def convolution_by_loops(inputs, kernel, bias=0.0):
    batch, height, width, _ = inputs.shape
    outputs = np.zeros((batch, height, width, kernel.shape[-1]))
    for n, y, x, target in np.ndindex(outputs.shape):
        for dy, dx, source in np.ndindex(kernel.shape[:-1]):
            above, left = y + dy - 1, x + dx - 1
            if 0 <= above < height and 0 <= left < width:
                outputs[n, y, x, target] += inputs[n, above, left, source] * kernel[dy, dx, source, target]
    return outputs + bias


def max_pool_by_loops(inputs):
    batch, height, width, maps = inputs.shape
    outputs = np.zeros((batch, (height + 1) // 2, (width + 1) // 2, maps))
    for n, y, x, k in np.ndindex(outputs.shape):
        outputs[n, y, x, k] = inputs[n, max(2 * y - 1, 0) : 2 * y + 2, max(2 * x - 1, 0) : 2 * x + 2, k].max()
    return outputs


class ByLoops:
    """The definition; in training, new running averages by name in `averages`."""

    def __init__(self, model, training):
        self.values = parameters(model)
        self.averages = averages(model)
        self.variant = model.variant
        self.training = training

    def norm(self, name, inputs):
        if f"{name}/scale" not in self.values:
            return inputs
        outputs = np.zeros_like(inputs)
        for k in range(inputs.shape[-1]):
            mean, var = self.averages[f"{name}/mean"][k], self.averages[f"{name}/var"][k]
            if self.training:
                pixels = inputs[..., k]
                new_mean, new_var = np.sum(pixels) / pixels.size, np.sum((pixels - pixels.mean()) ** 2) / pixels.size
                self.averages[f"{name}/mean"][k] = MOMENTUM * mean + (1 - MOMENTUM) * new_mean
                self.averages[f"{name}/var"][k] = MOMENTUM * var + (1 - MOMENTUM) * new_var
                mean, var = new_mean, new_var
            normalized = (inputs[..., k] - mean) / np.sqrt(var + EPSILON)
            outputs[..., k] = normalized * self.values[f"{name}/scale"][k] + self.values[f"{name}/bias"][k]
        return outputs

    def activation(self, name, inputs):
        if self.variant == "canonical":
            return np.maximum(self.norm(name, inputs), 0)
        return self.norm(name, np.maximum(inputs, 0))

    def convolution(self, name, inputs):
        return convolution_by_loops(inputs, self.values[f"{name}/kernel"], self.values.get(f"{name}/bias", 0.0))

    def outputs(self, inputs, layers, iterations):
        x = max_pool_by_loops(self.activation("first_norm", self.convolution("first", inputs)))
        for i in range(layers):
            name = f"layers/{i}"
            fed = self.convolution(f"{name}/feed_forward", x)
            start = fed if self.variant == "canonical" else self.convolution(f"{name}/recurrent", x)
            h = self.activation(f"{name}/norms/0", start)
            for t in range(1, iterations + 1):
                h = self.activation(f"{name}/norms/{t}", fed + self.convolution(f"{name}/recurrent", h))
            x = max_pool_by_loops(h) if i == 1 else h
        return x.max((1, 2)) @ self.values["readout/kernel"] + self.values["readout/bias"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("use_batch_norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_running_averages_equal_loops(x64, variant, use_batch_norm, training):
    model = random_rcnn(variant=variant, use_batch_norm=use_batch_norm, dropout=0.0)
    model.train() if training else model.eval()
    by_loops = ByLoops(model, training)
    before = averages(model)
    outputs = nnx.jit(lambda model, inputs: model(inputs))(model, images())
    assert outputs.dtype == np.float64
    assert_allclose(outputs, by_loops.outputs(np.asarray(images()), 2, 2), rtol=1e-9, atol=1e-12)

    after = averages(model)
    assert set(after) == set(by_loops.averages)
    for name, average in after.items():
        assert_allclose(average, by_loops.averages[name], rtol=1e-9)
        assert np.array_equal(average, before[name]) != training


# One layer, so without the second pooling; three, so with a layer behind it; sizes that pooling does not halve.
@pytest.mark.parametrize(("layers", "iterations", "size"), [(1, 1, 5), (3, 1, 7), (1, 4, 1)])
def test_other_depths_and_sizes(x64, layers, iterations, size):
    model = random_rcnn(layers=layers, iterations=iterations)
    model.eval()
    inputs = images(2, size=size)
    expected = ByLoops(model, False).outputs(np.asarray(inputs), layers, iterations)
    outputs = nnx.jit(lambda model, inputs: model(inputs))(model, inputs)
    assert_allclose(outputs, expected, rtol=1e-9, atol=1e-12)


def test_any_number_of_batch_axes():
    model = rcnn(layers=1, iterations=1)
    model.eval()
    function, params = function_and_parameters(model)
    expected = function(params, images(2, 3))
    assert_allclose(function(params, images(2, 3)[1]), expected[1], rtol=1e-5, atol=1e-6)
    assert_allclose(function(params, images(2, 3)[1, 2]), expected[1, 2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_batch_norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(x64, variant, use_batch_norm):
    model = random_rcnn(variant=variant, use_batch_norm=use_batch_norm, layers=1, dropout=0.0)
    function, params = function_and_parameters(model)
    check_grads(lambda params: function(params, images(2)), (params,), order=1, modes=["rev"])


@pytest.mark.parametrize(("maps", "count"), [(96, 670_474), (128, 1_188_874), (160, 1_854_730)])
def test_parameter_counts_of_the_paper(maps, count):
    model = nnx.eval_shape(lambda: RCNN(3, maps, 10, variant="cited", rngs=nnx.Rngs(0)))
    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert sum(map(math.prod, shapes)) == count == 8 * 9 * maps**2 + 72 * maps + 10


@pytest.mark.parametrize("use_batch_norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_names_and_shapes(variant, use_batch_norm):
    expected = {"first/kernel": (3, 3, 3, 2), "readout/kernel": (2, 4), "readout/bias": (4,)}
    if variant == "cited" or not use_batch_norm:
        expected["first/bias"] = (2,)
    norms = ["first_norm"]
    for i in range(2):
        expected[f"layers/{i}/feed_forward/kernel"] = expected[f"layers/{i}/recurrent/kernel"] = (3, 3, 2, 2)
        if not use_batch_norm:
            expected[f"layers/{i}/feed_forward/bias"] = (2,)
        norms += [f"layers/{i}/norms/{t}" for t in range(3)]
    if use_batch_norm:
        expected |= {f"{norm}/{leaf}": (2,) for norm in norms for leaf in ("scale", "bias")}
    model = rcnn(variant=variant, use_batch_norm=use_batch_norm)
    assert {name: leaf.shape for name, leaf in parameters(model).items()} == expected


def test_convolutions_start_with_the_variance_of_he():
    model = RCNN(3, 64, 4, layers=1, rngs=nnx.Rngs(0))
    for name in ("first", "layers/0/feed_forward", "layers/0/recurrent"):
        kernel = parameters(model)[f"{name}/kernel"]
        assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.05)
        assert_allclose(np.mean(kernel), 0, atol=0.005)


def test_kernel_init_starts_the_convolutions_alone():
    values = parameters(rcnn(kernel_init=nnx.initializers.constant(0.25)))
    started = {name for name, value in values.items() if np.all(value == 0.25)}
    layers = {f"layers/{i}/{kernel}/kernel" for i in range(2) for kernel in ("feed_forward", "recurrent")}
    assert started == {"first/kernel"} | layers


def test_dropout_is_active_in_training_alone():
    run = nnx.jit(lambda model: model(images()))
    options = {"layers": 1, "iterations": 1, "use_batch_norm": False}
    model = rcnn(dropout=0.5, **options)
    assert not np.array_equal(run(model), run(model))
    model.eval()
    assert_allclose(run(model), run(rcnn(dropout=0.0, **options)), rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_edges(variant):
    model = rcnn(variant=variant, use_batch_norm=False)
    first, second = ("layers/0", "layers/1") if variant == "canonical" else ("first", "first")
    assert model.edges() == {
        "first/kernel": (None, "first"),
        "first/bias": (None, "first"),
        "layers/0/feed_forward/kernel": ("first", first),
        "layers/0/feed_forward/bias": (None, first),
        "layers/0/recurrent/kernel": (first, first),
        "layers/1/feed_forward/kernel": (first, second),
        "layers/1/feed_forward/bias": (None, second),
        "layers/1/recurrent/kernel": (second, second),
        "readout/kernel": (second, None),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_edges_take_no_notice_of_batch_norm(variant):
    model = rcnn(variant=variant)
    without = rcnn(variant=variant, use_batch_norm=False).edges()
    assert model.edges() == {name: ends for name, ends in without.items() if name in parameters(model)}


# The cited variant has the maps of one number as one unit, as its recurrent kernels read the inputs of the layers too.
@pytest.mark.parametrize(("variant", "units"), [("canonical", 3 * 2), ("cited", 2)])
def test_edges_are_the_exact_graph_without_batch_norm(x64, variant, units):
    model = random_rcnn(variant=variant, use_batch_norm=False)
    model.eval()
    function, params = function_and_parameters(model)
    graph = ReductionGraph.from_edges(params, model.edges())
    traced = reduction_graph(function, params, images())
    assert graph.num_units == traced.num_units == units
    assert graph.num_basis_paths == traced.num_basis_paths
    assert graph.outside == traced.outside == ("readout/bias",)

    def rescaling_changes_nothing(graph):
        rescaled = rescale(params, graph, random_scales(jax.random.key(3), graph))
        return np.allclose(function(rescaled, images()), function(params, images()), rtol=1e-9)

    assert rescaling_changes_nothing(graph)
    chain = ReductionGraph.from_edges(params, rcnn(use_batch_norm=False).edges())
    assert rescaling_changes_nothing(chain) == (variant == "canonical")


# What a norm reads is ground, so the kernels have sources alone. Canonical: the maps of the first convolution, and in
# each layer one group that the recurrent kernel reads, of all states but the last, and the last state, which the next
# layer alone reads. Cited: a recurrent kernel reads the last state of the layer before too, which are one group with
# its own; the readout reads the last of all.
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("variant", "groups"), [("canonical", 1 + 2 * 2), ("cited", 1 + 2)])
def test_exact_graph_with_batch_norm(x64, variant, groups, training):
    model = random_rcnn(variant=variant, dropout=0.0)
    model.train() if training else model.eval()
    function, params = function_and_parameters(model)
    graph = reduction_graph(function, params, images())
    assert [group.size for group in graph.groups] == [2] * groups
    fed = {leaf.name for leaf in graph.leaves if leaf.target.groups}
    read = {leaf.name for leaf in graph.leaves if leaf.source.groups}
    names = set(parameters(model))
    assert fed == {name for name in names if "norm" in name}
    assert read == {name for name in names if name.endswith("kernel")} - {"first/kernel"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_for_many_seeds_compiles_once(variant):
    train_two_steps(lambda rngs: rcnn(rngs, variant=variant, layers=1), images(16))


@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        ({"dtype": jnp.bfloat16}, jnp.bfloat16),
        ({"param_dtype": jnp.bfloat16}, jnp.float32),  # that of the running averages
        ({"param_dtype": jnp.bfloat16, "use_batch_norm": False}, jnp.bfloat16),
    ],
    ids=str,
)
def test_dtypes(options, outputs):
    def run():
        model = rcnn(layers=1, **options)
        return nnx.state(model, nnx.Param), model(images().astype(jnp.bfloat16))

    params, out = nnx.eval_shape(run)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(options.get("param_dtype", jnp.float32))}
    assert out.dtype == outputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "other"}, r"expected variant to be one of \('canonical', 'cited'\), got 'other'"),
        ({"iterations": 0}, r"expected .*iterations of 1 or more, got .*'iterations': 0"),
        ({"layers": 0}, r"expected .*layers, .* of 1 or more, got .*'layers': 0"),
        ({"dropout": 1.0}, "expected a dropout rate from 0 to below 1, got 1.0"),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        rcnn(**options)


@pytest.mark.parametrize("shape", [(5, 6, 6, 2), (6, 3)], ids=str)
def test_inputs_of_another_shape(monkeypatch, shape):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    message = f"expected inputs of shape (*batch, height, width, 3), got {shape}: the last axis holds the channels"
    with pytest.raises(ValueError, match=re.escape(message)):
        rcnn(layers=1)(jnp.ones(shape))
