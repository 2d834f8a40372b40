"""The tables of rules, and what all rules read from an equation."""

from typing import Any

from .compat import JaxprEqn, place, shape_of
from .interpreter import Rule
from .scales import Why

SCALE_RULES: dict[Any, Rule] = {}
PATH_RULES: dict[Any, Rule] = {}


def register_scale_rule(primitive: Any, rule: Rule) -> None:
    """Teach `reduction_graph` a primitive of your own.

    A rule answers: when the inputs change with the scales of units, how do the outputs? It is called as
    `rule(inference, eqn, *scales)`, with the equation of the jaxpr and what is known of each input, and returns a list
    with the scale of each output. It may ask `inference` to make

      inference.equal(scales, shape, why)                all the scales equal; returns that scale;
      inference.constant_along(scale, axes, shape, why)  a scale equal along axes, as sums along them need; returns
                                                         what is left of it without those axes (`inference.scale`
                                                         first makes a scale of a value that has none yet);
      inference.trivial(scale, shape, why)               ground of what a scale carries,

    where `shape` is that of the array, and `why` a `pathspace.tracing.scales.Why` for `ReductionGraph.describe`. An
    output that changes with no unit has the scale `()`. Without a rule, what flows into the primitive becomes ground.

    Args:
      primitive: the `jax.extend.core.Primitive`.
      rule: see above.

    Raises:
      ValueError: the primitive has a rule already.

    Source: ours, after the rule tables of `jax.experimental.jet`.

    >>> import jax, jax.numpy as jnp
    >>> from pathspace import reduction_graph, register_scale_rule
    >>> leaky_p = jax.extend.core.Primitive("leaky")
    >>> shape_of_output = leaky_p.def_abstract_eval(lambda x: x)
    >>> register_scale_rule(leaky_p, lambda inference, eqn, scale: [scale])  # leaky(c * x) = c * leaky(x) for c > 0
    >>> params = {"first": jnp.ones((3, 4)), "second": jnp.ones((4, 2))}
    >>> def network(params, x):
    ...     return leaky_p.bind(x @ params["first"]) @ params["second"]
    >>> reduction_graph(network, params, jnp.ones((5, 3)), validate=False).num_units
    4
    """
    register_family(rule, primitive)


def register_in(table: dict[Any, Rule], kind: str, rule: Rule, *members: Any) -> None:
    """Give several primitives one rule in a table."""
    if clash := [str(primitive) for primitive in members if primitive in table]:
        raise ValueError(f"{kind} rules exist already for {clash}: a primitive has one rule.")
    table.update(dict.fromkeys(members, rule))


def register_family(rule: Rule, *members: Any) -> None:
    """Give several primitives one scale rule."""
    register_in(SCALE_RULES, "scale", rule, *members)


def why(eqn: JaxprEqn) -> Why:
    """The reason that an equation gives for what it makes ground."""
    return Why(str(eqn.primitive), place(eqn))


def in_shape(eqn: JaxprEqn, index: int = 0) -> tuple[int, ...]:
    """The shape of an input."""
    return shape_of(eqn.invars[index])


def out_shape(eqn: JaxprEqn) -> tuple[int, ...]:
    """The shape of the first output."""
    return shape_of(eqn.outvars[0])
