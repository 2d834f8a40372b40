"""Path-norms against the enumeration of all paths."""

import collections
import itertools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from pathspace import basis_path_norm, path_network, path_norm, random_scales, reduction_graph
from tests.compiled import choose, norm_of, rescaled
from tests.edges import basis_paths_by_loops, skeleton_by_loops, weight_of
from tests.examples import NETWORKS, random_scales_by_numpy
from tests.tracing.cases import CASES

pytestmark = pytest.mark.usefixtures("x64")
powers = pytest.mark.parametrize("p", [1, 2, 4])


def normal(seed, **shapes):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


# --- enumeration: a network unrolled into nodes, with a list of (source, weight) for each ---


class Unrolled:
    """Nodes and the edges into each; a node without any is an input, or the 1 behind biases."""

    def __init__(self):
        self.edges = collections.defaultdict(list)

    def connect(self, source, target, weight):
        self.edges[target].append((source, float(weight)))

    def products(self, node):
        """The product of the weights along each path that ends at the node."""
        if not self.edges[node]:
            return [1.0]
        return [weight * product for source, weight in self.edges[node] for product in self.products(source)]

    def norm(self, outputs, p):
        return sum(abs(product) ** p for node in outputs for product in self.products(node)) ** (1 / p)


def connect_dense(net, sources, targets, kernel, bias=None):
    for (i, source), (j, target) in itertools.product(enumerate(sources), enumerate(targets)):
        net.connect(source, target, kernel[i, j])
    if bias is not None:
        for j, target in enumerate(targets):
            net.connect("one", target, bias[j])


def nodes(name, count):
    return [(name, i) for i in range(count)]


def mlp(params, x):
    h = jax.nn.relu(x @ params["a"] + params["b"])
    h = jax.nn.leaky_relu(h @ params["c"] + params["d"])
    return h @ params["e"] + params["f"]


MLP_SHAPES = {"a": (2, 3), "b": (3,), "c": (3, 2), "d": (2,), "e": (2, 2), "f": (2,)}


@powers
def test_mlp(p):
    params = normal(0, **MLP_SHAPES)
    net = Unrolled()
    connect_dense(net, nodes("x", 2), nodes("h", 3), params["a"], params["b"])
    connect_dense(net, nodes("h", 3), nodes("g", 2), params["c"], params["d"])
    connect_dense(net, nodes("g", 2), nodes("y", 2), params["e"], params["f"])
    assert_allclose(norm_of(mlp, params, jnp.zeros((1, 2)), p=p), net.norm(nodes("y", 2), p), rtol=1e-12)


@powers
@pytest.mark.parametrize("every", [False, True])
def test_recurrent_network(p, every):
    params = normal(1, w=(2, 3), u=(3, 3), b=(3,), v=(3, 2))

    def fn(params, x):
        def step(h, x):
            h = jax.nn.relu(x @ params["w"] + h @ params["u"] + params["b"])
            return h, h

        last, states = jax.lax.scan(step, jnp.zeros(3), x)
        return (states if every else last) @ params["v"]

    net, steps = Unrolled(), 4
    for t in range(steps):
        connect_dense(net, nodes(f"x{t}", 2), nodes(f"h{t}", 3), params["w"], params["b"])
        if t > 0:
            connect_dense(net, nodes(f"h{t - 1}", 3), nodes(f"h{t}", 3), params["u"])
        connect_dense(net, nodes(f"h{t}", 3), nodes(f"y{t}", 2), params["v"])
    outputs = [node for t in (range(steps) if every else [steps - 1]) for node in nodes(f"y{t}", 2)]
    assert_allclose(norm_of(fn, params, jnp.zeros((steps, 2)), p=p), net.norm(outputs, p), rtol=1e-12)


@powers
@pytest.mark.parametrize("pool", ["max", "average"])
def test_convolutions_and_pooling(p, pool):
    """Five pixels of one channel, two taps, two channels; pools of two pixels; a linear readout."""
    params = normal(2, kernel=(2, 1, 2), bias=(2,), out=(4, 1))

    def fn(params, x):
        x = jax.lax.conv_general_dilated(x, params["kernel"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        x = jax.nn.relu(x + params["bias"])
        x = nn.max_pool(x, (2,), (2,)) if pool == "max" else nn.avg_pool(x, (2,), (2,))
        return x.reshape(1, -1) @ params["out"]

    net = Unrolled()
    for pixel, channel in itertools.product(range(4), range(2)):
        for tap in range(2):
            net.connect(("x", pixel + tap), ("h", pixel, channel), params["kernel"][tap, 0, channel])
        net.connect("one", ("h", pixel, channel), params["bias"][channel])
        net.connect(("h", pixel, channel), ("pool", pixel // 2, channel), 1 if pool == "max" else 0.5)
    for pixel, channel in itertools.product(range(2), range(2)):
        net.connect(("pool", pixel, channel), "y", params["out"][2 * pixel + channel, 0])
    assert_allclose(norm_of(fn, params, jnp.zeros((1, 5, 1)), p=p), net.norm(["y"], p), rtol=1e-12)


@powers
def test_residual_and_concatenated_streams(p):
    params = normal(3, w=(2, 2), u=(2, 3), v=(5, 1))

    def fn(params, x):
        x = x + jax.nn.relu(x @ params["w"])
        return jnp.concatenate([x, jax.nn.relu(x @ params["u"])], -1) @ params["v"]

    net = Unrolled()
    connect_dense(net, nodes("x", 2), nodes("h", 2), params["w"])
    for i in range(2):
        net.connect(("x", i), ("s", i), 1)
        net.connect(("h", i), ("s", i), 1)
    connect_dense(net, nodes("s", 2), nodes("g", 3), params["u"])
    connect_dense(net, [*nodes("s", 2), *nodes("g", 3)], ["y"], params["v"])
    assert_allclose(norm_of(fn, params, jnp.zeros((1, 2)), p=p), net.norm(["y"], p), rtol=1e-12)


@powers
def test_embedding_meets_all_rows(p):
    params = normal(4, table=(4, 3), v=(3, 2))
    expected = sum(
        abs(params["table"][row, i] * params["v"][i, j]) ** p
        for row, i, j in itertools.product(range(4), range(3), range(2))
    ) ** (1 / p)
    norm = norm_of(lambda params, i: params["table"][i] @ params["v"], params, jnp.zeros(1, int), p=p)
    assert_allclose(norm, expected, rtol=1e-12)


@powers
def test_frozen_batch_norm_is_the_merged_affine_map(p):
    model = nn.BatchNorm(use_running_average=True, epsilon=0.25)
    params = normal(5, w=(2, 3), b=(3,), scale=(3,), bias=(3,), v=(3, 1))
    statistics = {"mean": normal(6, m=(3,))["m"], "var": normal(7, m=(3,))["m"] ** 2}

    def fn(params, x):
        x = x @ params["w"] + params["b"]
        x = model.apply({"params": {name: params[name] for name in ("scale", "bias")}, "batch_stats": statistics}, x)
        return jax.nn.relu(x) @ params["v"]

    gain = params["scale"] / jnp.sqrt(statistics["var"] + 0.25)
    net = Unrolled()
    connect_dense(net, nodes("x", 2), nodes("h", 3), params["w"], params["b"])
    for i in range(3):
        net.connect(("h", i), ("n", i), gain[i])
        net.connect("one", ("n", i), params["bias"][i] - statistics["mean"][i] * gain[i])
    connect_dense(net, nodes("n", 3), ["y"], params["v"])
    assert_allclose(norm_of(fn, params, jnp.zeros((1, 2)), p=p), net.norm(["y"], p), rtol=1e-12)


@powers
def test_norms_of_single_outputs(p):
    params = normal(10, **MLP_SHAPES)

    def fn(params, x):
        return {"logits": mlp(params, x), "hidden": x @ params["a"]}

    norms = norm_of(fn, params, jnp.zeros((1, 2)), p=p, per_output=True)
    assert {name: norm.shape for name, norm in norms.items()} == {"logits": (1, 2), "hidden": (1, 3)}
    assert_allclose(norms["hidden"][0], np.sum(np.abs(params["a"]) ** p, 0) ** (1 / p), rtol=1e-12)
    total = sum(jnp.sum(norm**p) for norm in norms.values()) ** (1 / p)
    assert_allclose(total, norm_of(fn, params, jnp.zeros((1, 2)), p=p), rtol=1e-12)
    logarithms = norm_of(fn, params, jnp.zeros((1, 2)), p=p, per_output=True, log=True)
    assert_allclose(jnp.exp(logarithms["logits"]), norms["logits"], rtol=1e-12)


def test_path_network_is_a_polynomial_to_differentiate():
    params = jax.tree.map(jnp.square, normal(8, **MLP_SHAPES))

    def polynomial(params):
        h = jnp.ones(2) @ params["a"] + params["b"]
        return jnp.sum((h @ params["c"] + params["d"]) @ params["e"] + params["f"])

    network = jax.jit(path_network(mlp))
    x = jnp.zeros((1, 2))
    expected_value = jax.jit(polynomial)(params)
    assert_allclose(network(params, x), expected_value, rtol=1e-12)
    expected = jax.jit(jax.grad(polynomial))(params)
    for name, gradient in jax.jit(jax.grad(network))(params, x).items():
        assert_allclose(gradient, expected[name], rtol=1e-12)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    assert_allclose(jax.vmap(network, (0, None))(several, x)[0], expected_value, rtol=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "out"),
    [
        ("ij", "jk", "ik"),
        ("bij", "bjk", "bik"),
        ("ij", "kl", "ijkl"),
        ("bi", "bij", "bj"),
        ("ij", "ij", ""),
        ("ijk", "kj", "i"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_products_that_outputs_are_made_of(first, second, out, swapped):
    """Their sums are computed from sums of the factors."""
    sizes = dict(zip("bijkl", (2, 3, 4, 5, 6), strict=True))
    x, w, bias = (jnp.ones([sizes[axis] for axis in axes]) for axes in (first, second, out))
    keys = jax.random.split(jax.random.key(0))
    params = {"w": jax.random.uniform(keys[0], w.shape), "bias": jax.random.uniform(keys[1], bias.shape)}

    def fn(params, x):
        if swapped:
            return jnp.einsum(f"{second},{first}->{out}", params["w"], x) + params["bias"]
        return params["bias"] + jnp.einsum(f"{first},{second}->{out}", x, params["w"])

    def total(params):
        return jnp.sum(jnp.einsum(f"{first},{second}->{out}", x, params["w"]) + params["bias"])

    got = jax.value_and_grad(path_network(fn))(params, x)
    for ours, expected in zip(*map(jax.tree.leaves, (got, jax.value_and_grad(total)(params))), strict=True):
        assert_allclose(ours, expected, rtol=1e-12)


def test_products_in_a_wider_dtype_are_added_up_in_it():
    def fn(params, x):
        return jax.lax.dot_general(x, params, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    params = jnp.full((3, 300), 1 + 2**-7, jnp.bfloat16)
    total = path_network(fn, p=1)(params, jnp.zeros((1, 3), jnp.bfloat16))
    assert total.dtype == jnp.result_type(float)
    assert total == 900 * (1 + 2**-7)


def test_gradients_where_signs_matter():
    def fn(params, x):
        return jax.nn.relu(x @ params["w"] - 0.5 + (params["b"] + params["c"]))

    params = {"w": jnp.array([[2.0], [-1.0]]), "b": jnp.array([-3.0]), "c": jnp.array([2.0])}
    check_grads(lambda params: norm_of(fn, params, jnp.zeros((1, 2))), (params,), order=1, modes=["rev"])


def test_states_that_no_input_has_reached():
    """The first state is a constant, and so is what a product with weights makes of it."""

    def fn(params, x):
        def step(h, x):
            h = jax.nn.relu(h @ params["u"]) + x @ params["w"]
            return h, h

        return jax.lax.scan(step, jnp.zeros(2), x)[1]

    params = {"u": jnp.array([[2.0, 1.0], [0.0, 3.0]]), "w": jnp.array([[1.0, 5.0]])}
    first = np.array([1.0, 5.0])
    second = first @ np.array([[2.0, 1.0], [0.0, 3.0]]) + first
    assert_allclose(norm_of(fn, params, jnp.zeros((2, 1)), p=1), first.sum() + second.sum())


def test_stacks():
    def fn(params, x):
        first, second = jnp.stack([x @ params, 2 * x @ params])
        return first + second

    assert_allclose(norm_of(fn, jnp.full((2, 1), -3.0), jnp.zeros((1, 2)), p=1), 2 * 3 * 3)


def test_zero_weights_leave_no_path():
    params = jax.tree.map(jnp.zeros_like, normal(9, **MLP_SHAPES))
    assert norm_of(mlp, params, jnp.zeros((1, 2))) == 0
    assert norm_of(mlp, params, jnp.zeros((1, 2)), log=True) == -math.inf


@pytest.mark.parametrize("reference", [None, "initial"])
@pytest.mark.parametrize("network", NETWORKS[::3], ids=str)
def test_basis_path_norm(network, reference):
    params = jax.tree.map(jnp.asarray, network.parameters(0))
    point = network.parameters(1)
    skeleton = choose(network.graph, point, reference=reference)
    in_edges, out_edges = skeleton_by_loops(skeleton)
    all_skeleton, measured = set(in_edges.values()), {*in_edges.values(), *out_edges.values()} if reference else ()
    sizes = []
    for edge, path in basis_paths_by_loops(skeleton).items():
        value = abs(math.prod(weight_of(params, e) / (weight_of(point, e) if e in measured else 1) for e in path))
        sizes.append(abs(math.log(value)) if edge in all_skeleton else value)
    norm = jax.jit(basis_path_norm)
    assert_allclose(norm(params, skeleton), max(sizes), rtol=1e-12)
    equivalent = rescaled(params, network.graph, random_scales_by_numpy(network.graph, 1))
    assert_allclose(norm(equivalent, skeleton), max(sizes), rtol=1e-10)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(norm)(params, skeleton)))


# --- laws ---


def check_invariance(cases):
    """On networks of the table of traced functions; how many of them are positively homogeneous."""
    accepted = 0
    for case in (case for case in cases if case.units and case.dtype == jnp.float64):
        fn, params, inputs = case.built
        norm = jax.jit(lambda params, fn=fn, inputs=inputs: path_norm(fn, params, *inputs, log=True))
        try:
            expected = norm(params)
        except ValueError:
            continue
        accepted += 1
        graph = reduction_graph(fn, params, *inputs, validate=False)
        scaled = rescaled(params, graph, random_scales(jax.random.key(0), graph))
        assert_allclose(norm(scaled), expected, rtol=1e-9, err_msg=case.name)
    return accepted


def test_rescaling_changes_no_path_norm():
    assert check_invariance(CASES[::8]) >= 12


@pytest.mark.slow
def test_rescaling_changes_no_path_norm_of_any_network():
    assert check_invariance(CASES) >= 120


def test_a_deep_network_does_not_overflow_in_logarithms():
    layers, width = 152, 6
    rng = np.random.default_rng(0)
    kernels = 3 * rng.normal(size=(layers, width, width))

    def fn(kernels, x):
        for kernel in kernels:
            x = x + jax.nn.relu(x @ kernel)
        return x

    log_sum, path = 0.0, np.ones(width)
    for kernel in kernels:
        path = path + path @ kernel**2
        log_sum, path = log_sum + np.log(path.max()), path / path.max()
    expected = (log_sum + np.log(path.sum())) / 2
    singles = [jnp.asarray(kernel, jnp.float32) for kernel in kernels]
    x = jax.ShapeDtypeStruct((1, width), jnp.float32)
    assert expected > np.log(np.finfo(np.float32).max)
    assert_allclose(path_norm(fn, singles, x, log=True), expected, rtol=1e-6)
    assert path_norm(fn, singles, x) == math.inf


# --- errors ---


@pytest.mark.parametrize(
    ("activation", "primitive"), [(jnp.tanh, "tanh"), (jax.nn.softmax, "exp"), (lambda x: x * x, "mul")]
)
def test_what_is_not_positively_homogeneous_is_named(activation, primitive):
    def network(params, x):
        return activation(x @ params["a"]) @ params["c"]

    with pytest.raises(ValueError, match=rf"positively homogeneous, but {primitive} of activations is not") as caught:
        path_norm(network, normal(0, **MLP_SHAPES), jnp.zeros((1, 2)))
    assert re.search(r"\(.*:\d+.*\)|place unknown", str(caught.value))


def test_nonlinear_functions_of_parameters_are_named():
    def network(params, x):
        return x @ jnp.exp(params["a"])

    with pytest.raises(ValueError, match=r"but exp of parameters is not"):
        path_norm(network, normal(0, a=(2, 2)), jnp.zeros((1, 2)))
