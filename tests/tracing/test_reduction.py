import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pathspace import ReductionGraph, reduction_graph, register_scale_rule
from pathspace.tracing.tables import SCALE_RULES
from pathspace.units import UnitMap

X = jnp.linspace(-1, 1, 15).reshape(5, 3)


def mlp(params, x):
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


def mlp_params():
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "hidden": {"kernel": jax.random.normal(keys[0], (3, 4)), "bias": jax.random.normal(keys[1], (4,))},
        "out": {"kernel": jax.random.normal(keys[2], (4, 2)), "bias": jax.random.normal(keys[3], (2,))},
    }


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="out")(nn.relu(nn.Dense(4, name="hidden")(x)))


class NnxMLP(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def plain():
    return mlp, mlp_params()


def linen():
    model = LinenMLP()
    return (lambda params, x: model.apply({"params": params}, x)), model.init(jax.random.key(0), X)["params"]


def nnx_state():
    graphdef, params = nnx.split(NnxMLP(nnx.Rngs(0)), nnx.Param)
    return (lambda params, x: nnx.merge(graphdef, params)(x)), params


@pytest.mark.parametrize("make", [plain, linen, nnx_state])
def test_both_flax_apis_and_plain_trees_give_the_graph_written_by_hand(make):
    fn, params = make()
    graph = reduction_graph(fn, params, X)
    by_hand = ReductionGraph.from_edges(
        params, {"hidden/bias": (None, "hidden"), "hidden/kernel": (None, "hidden"), "out/kernel": ("hidden", None)}
    )
    assert graph.groups == by_hand.groups
    assert [(leaf.name, leaf.source, leaf.target) for leaf in graph.leaves] == [
        (leaf.name, leaf.source, leaf.target) for leaf in by_hand.leaves
    ]
    assert graph.outside == by_hand.outside == ("out/bias",)
    assert [leaf.name for leaf in graph.leaves if leaf.is_bias] == ["hidden/bias"]


def test_shapes_alone_are_enough():
    shapes = jax.eval_shape(lambda: (mlp_params(), X))
    assert reduction_graph(mlp, *shapes) == reduction_graph(mlp, mlp_params(), X)


@pytest.mark.slow
def test_tracing_allocates_nothing_of_the_size_of_the_weights():
    width = 1 << 16
    shapes = {
        "hidden": {"kernel": jax.ShapeDtypeStruct((width, width), jnp.float32)},
        "out": {"kernel": jax.ShapeDtypeStruct((width, width), jnp.float32)},
    }
    graph = reduction_graph(
        lambda params, x: jax.nn.relu(x @ params["hidden"]["kernel"]) @ params["out"]["kernel"],
        shapes,
        jax.ShapeDtypeStruct((1, width), jnp.float32),
    )
    assert graph.num_units == width


def test_a_graph_is_static():
    fn, params = plain()
    graph = reduction_graph(fn, params, X)
    assert hash(graph) == hash(reduction_graph(fn, params, X))
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def double(graph, x):
        traces.append(graph)
        return 2 * x

    double(graph, 1.0)
    double(reduction_graph(fn, params, X), 1.0)
    assert len(traces) == 1


def test_describe_tells_what_became_ground_and_why_and_where():
    def network(params, x):
        hidden = jax.nn.relu(x @ params["first"])
        return jnp.tanh(hidden @ params["second"]) @ params["third"]

    shapes = {"first": (3, 4), "second": (4, 5), "third": (5, 2), "spare": (7,)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    graph = reduction_graph(network, params, X)
    rows = [re.split(r"\s{2,}", line) for line in graph.describe().splitlines()]
    assert ["first", "4", "first*", "second*"] in rows
    assert ["spare", "0", "7", "not used by the function"] in rows
    (why,) = [row[3] for row in rows if row[:3] == ["second", "1", "5"]]
    assert re.fullmatch(r"tanh \(test_reduction\.py:\d+.*\(.*network\)\)", why)


# --- rules of one's own ---


@pytest.fixture
def leaky_p():
    primitive = jax.extend.core.Primitive("leaky")
    primitive.def_impl(lambda x: jnp.where(x > 0, x, 0.1 * x))
    primitive.def_abstract_eval(lambda x: x)
    jax.interpreters.mlir.register_lowering(
        primitive, jax.interpreters.mlir.lower_fun(lambda x: jnp.where(x > 0, x, 0.1 * x), multiple_results=False)
    )
    yield primitive
    SCALE_RULES.pop(primitive, None)


def with_activation(primitive):
    return lambda params, x: primitive.bind(x @ params["first"]) @ params["second"]


TWO_KERNELS = {"first": jnp.linspace(-1, 1, 12).reshape(3, 4), "second": jnp.linspace(-2, 1, 8).reshape(4, 2)}


def test_an_unknown_primitive_makes_ground_and_is_reported(leaky_p):
    with pytest.raises(ValueError, match=r"no units.*(?s:.)*no scale rule for leaky \(.*test_reduction\.py"):
        reduction_graph(with_activation(leaky_p), TWO_KERNELS, X)


def test_a_registered_rule_is_followed(leaky_p):
    register_scale_rule(leaky_p, lambda inference, eqn, scale: [scale])
    assert reduction_graph(with_activation(leaky_p), TWO_KERNELS, X).num_units == 4


def test_a_second_rule_for_a_primitive_is_an_error(leaky_p):
    register_scale_rule(leaky_p, lambda inference, eqn, scale: [scale])
    with pytest.raises(ValueError, match=r"scale rules exist already for \['leaky'\]"):
        register_scale_rule(leaky_p, lambda inference, eqn, scale: [scale])


def test_validation_finds_a_wrong_rule_and_names_the_group():
    shifted_p = jax.extend.core.Primitive("shifted")
    shifted_p.def_impl(lambda x: x + 1)
    shifted_p.def_abstract_eval(lambda x: x)
    jax.interpreters.mlir.register_lowering(
        shifted_p, jax.interpreters.mlir.lower_fun(lambda x: x + 1, multiple_results=False)
    )
    register_scale_rule(shifted_p, lambda inference, eqn, scale: [scale])
    params = {**TWO_KERNELS, "third": jnp.ones((2, 2))}

    def network(params, x):
        return jax.nn.relu(with_activation(shifted_p)(params, x)) @ params["third"]

    try:
        with pytest.raises(ValueError, match=r"groups \['first'\] changes the outputs, expected no change"):
            reduction_graph(network, params, X)
        assert reduction_graph(network, params, X, validate=False).num_units == 6
    finally:
        del SCALE_RULES[shifted_p]


# --- errors ---


def test_functions_that_cannot_be_traced():
    def branches_on_values(params, x):
        return mlp(params, x) if x.sum() > 0 else mlp(params, -x)

    with pytest.raises(ValueError, match=r"JAX cannot trace the function: .*functools\.partial"):
        reduction_graph(branches_on_values, mlp_params(), X)


def test_functions_that_ignore_their_params():
    params = mlp_params()
    with pytest.raises(ValueError, match=r"uses none of the floating-point leaves .*'hidden/bias'.* close over"):
        reduction_graph(lambda _, x: mlp(params, x), jax.tree.map(jnp.copy, params), X)


def test_functions_that_close_over_some_of_their_params():
    params = mlp_params()

    def network(given, x):
        return mlp({"hidden": given["hidden"], "out": params["out"]}, x)

    with pytest.raises(ValueError, match=r"closes over the parameters \['out/bias', 'out/kernel'\]"):
        reduction_graph(network, params, X)


def test_integer_outputs():
    with pytest.raises(ValueError, match=r"output\['class'\] has dtype int32, expected floating point: .*logits"):
        reduction_graph(lambda p, x: {"logits": mlp(p, x), "class": mlp(p, x).argmax(-1)}, mlp_params(), X)


def test_no_units():
    def network(params, x):
        return jnp.tanh(x @ params["first"]) @ params["second"]

    with pytest.raises(ValueError, match=r"no units that can be rescaled(?s:.)*first +1 +4 +tanh \("):
        reduction_graph(network, TWO_KERNELS, X)


def test_integer_and_key_leaves_lie_outside():
    params = {**mlp_params(), "count": jnp.zeros((), jnp.int32), "key": jax.random.key(0)}
    graph = reduction_graph(mlp, params, X)
    assert graph.num_units == 4
    assert graph.outside == ("count", "key", "out/bias")


def test_scalar_units():
    """A hidden layer of one unit, and a scalar in front of a kernel."""

    def network(params, x):
        return params["gain"] * jax.nn.relu(x @ params["first"]) @ params["second"]

    params = {"first": jnp.ones((3, 1)), "gain": jnp.array(2.0), "second": jnp.ones((1, 2))}
    graph = reduction_graph(network, params, X)
    (gain,) = (leaf for leaf in graph.leaves if leaf.name == "gain")
    assert gain.source == UnitMap((), np.array(0), graph.groups[:1])
    assert gain.target == UnitMap((), np.array(0), graph.groups[1:])


def test_zeros_that_are_written_down_take_any_scale_but_those_that_may_be_state_do_not():
    params = {"w": jnp.ones((3, 4)), "u": jnp.ones((4, 4)), "v": jnp.ones((4, 2))}

    def network(start):
        def fn(params, x):
            def step(h, x):
                return jax.nn.relu(x @ params["w"] + h @ params["u"]), None

            return jax.lax.scan(step, start(), x)[0] @ params["v"]

        return fn

    state = jnp.zeros(4)
    for start in (lambda: jnp.zeros(4)), (lambda: np.zeros(4, np.float32)):
        assert reduction_graph(network(start), params, X).num_units == 4
    with pytest.raises(ValueError, match=r"no units"):
        reduction_graph(network(lambda: state), params, X)


def test_a_normalisation_is_skeleton_capable_by_its_scale_not_its_bias():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))))

    model = Normalised()
    variables = model.init(jax.random.key(0), X)
    params = variables.pop("params")
    graph = reduction_graph(
        lambda params, x: model.apply({"params": params, **variables}, x, mutable=["batch_stats"])[0], params, X
    )
    assert [leaf.name for leaf in graph.in_chain.values()] == ["BatchNorm_0/scale"]
    assert [leaf.name for leaf in graph.out_chain.values()] == ["Dense_0/kernel"]
