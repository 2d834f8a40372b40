"""What a jaxpr consists of."""

from jax.extend.core import jaxprs_in_params


def equations(jaxpr, closed=()):
    """The equations at all depths, but not those inside primitives of the names `closed`."""
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive.name not in closed:
            for inner in jaxprs_in_params(eqn.params):
                yield from equations(inner, closed)
