"""Weights that paths pass several times: which they are, and what a recurrent layer does between two passes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import lax
from jaxtyping import Array

from .compat import Jaxpr, JaxprEqn, OpenJaxpr, Var, inner_call, open_jaxpr, scan_sizes, shape_of
from .interpreter import Interpreter, Rule
from .path_interpreter import PathNetwork, Step
from .path_rules import contracts
from .path_values import Constant, Signal, Value, Weight
from .statistics import Statistics
from .tables import PATH_RULES


class _Degrees(Interpreter[np.ndarray]):
    """For each argument of a jaxpr how often paths pass it at most, counted up to twice."""

    def __init__(self, num_args: int):
        super().__init__(_DEGREE_RULES)
        self.num_args = num_args

    def constant(self, value: Any) -> np.ndarray:
        return np.zeros(self.num_args, int)

    def unknown(self, eqn: JaxprEqn, values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [np.max([self.constant(None), *values], axis=0)] * len(eqn.outvars)


def _multiplies(degrees: _Degrees, eqn: JaxprEqn, first: np.ndarray, second: np.ndarray) -> Sequence[np.ndarray]:
    return [np.minimum(first + second, 2)]


def _scans(degrees: _Degrees, eqn: JaxprEqn, *values: np.ndarray) -> Sequence[np.ndarray]:
    num_consts, num_carry = scan_sizes(eqn)
    consts, carry, slices = values[:num_consts], values[num_consts:][:num_carry], values[num_consts + num_carry :]
    while True:
        outs = degrees.walk(eqn.params["jaxpr"], [*consts, *carry, *slices])
        following = [np.maximum(before, after) for before, after in zip(carry, outs, strict=False)]
        if np.array_equal(following, carry):
            return [*carry, *outs[num_carry:]]
        carry = tuple(following)


_DEGREE_RULES: Mapping[Any, Rule] = {
    **dict.fromkeys((lax.mul_p, lax.div_p, lax.dot_general_p, lax.conv_general_dilated_p), _multiplies),
    lax.scan_p: _scans,
}


def passed_repeatedly(jaxpr: OpenJaxpr) -> np.ndarray:
    """For each argument whether a path may pass one of its entries more than once."""
    num_args = len(jaxpr.jaxpr.invars)
    degrees = _Degrees(num_args)
    outs = degrees.walk(jaxpr, list(np.eye(num_args, dtype=int)))
    return np.max([degrees.constant(None), *outs], axis=0) > 1


class Recurrence(NamedTuple):
    """A matrix that is used once in each step of one loop, in a product with a vector.

    Attributes:
      length: the number of steps.
      from_rows: whether the product runs from the matrix's rows to its columns, or the other way.
    """

    length: int
    from_rows: bool


def recurrence(jaxpr: OpenJaxpr, place: int) -> Recurrence | None:
    """How an argument of a jaxpr is used, where that is as the matrix of a recurrence."""
    uses = list(_uses(jaxpr.jaxpr, jaxpr.jaxpr.invars[place], ()))
    if len(uses) != 1:
        return None
    eqn, position, loops = uses[0]
    if eqn.primitive is not lax.dot_general_p or len(loops) != 1 or not loops[0].params["length"]:
        return None
    contracted, batched = eqn.params["dimension_numbers"]
    shape, other = shape_of(eqn.invars[position]), shape_of(eqn.invars[1 - position])
    axes = contracted[position]
    if len(shape) != 2 or len(axes) != 1 or batched[0] or int(np.prod(other)) != shape[axes[0]]:
        return None
    return Recurrence(loops[0].params["length"], axes[0] == 0)


class _Use(NamedTuple):
    eqn: JaxprEqn
    position: int  # among the equation's inputs
    loops: tuple[JaxprEqn, ...]


def _uses(jaxpr: Jaxpr, var: Var, loops: tuple[JaxprEqn, ...]) -> Iterator[_Use]:
    for eqn in jaxpr.eqns:
        for position, used in enumerate(eqn.invars):
            if used is not var:
                continue
            if (inner := inner_call(eqn)) is not None:
                yield from _uses_in(inner, position, eqn, loops)
            elif eqn.primitive is lax.scan_p and position < scan_sizes(eqn)[0]:
                yield from _uses_in(open_jaxpr(eqn.params["jaxpr"]), position, eqn, (*loops, eqn))
            else:
                yield _Use(eqn, position, loops)


def _uses_in(inner: OpenJaxpr, position: int, eqn: JaxprEqn, loops: tuple[JaxprEqn, ...]) -> Iterator[_Use]:
    var = inner.jaxpr.invars[position]
    if any(out is var for out in inner.jaxpr.outvars):  # handed on under another name
        yield _Use(eqn, position, loops)
    yield from _uses(inner.jaxpr, var, loops)


class Exposure:
    """What goes into and comes out of the matrix of a recurrence.

    Attributes:
      matrix: the weight.
      perturbations: added to what comes out; the first axis is time.
      operands: after a walk, what goes in; None where that is no sum over paths.
      steps_are_alike: after a walk, whether steps differ by what the inputs add to them alone.
    """

    def __init__(self, matrix: Value, perturbations: Array):
        self.matrix = matrix
        self.perturbations = perturbations
        self.operands: Array | None = None
        self.steps_are_alike = False
        # Of the step under evaluation:
        self.is_open = False
        self.perturbation: Array | None = None
        self.operand: Array | None = None


class RecurrentNetwork(PathNetwork):
    """A path network that exposes what happens at some matrices of recurrences."""

    def __init__(self, exposures: Sequence[Exposure], statistics: Statistics | None):
        super().__init__(2, statistics=statistics, rules={**PATH_RULES, lax.dot_general_p: _exposed})
        self.exposures = exposures

    def loop(
        self, eqn: JaxprEqn, step: Step, consts: Sequence[Value], carry: Sequence[Value], slices: Sequence[Any]
    ) -> tuple[Sequence[Value], Sequence[Any]]:
        exposures = [each for each in self.exposures if any(const is each.matrix for const in consts)]
        slices = list(slices)
        inside: list[Array | None] = []
        for each in exposures:
            added = _added_slice(eqn, next(place for place, const in enumerate(consts) if const is each.matrix))
            # The slices take perturbations along. Of a product perturbed in its step the gradients are those of the
            # slice, stored a second time: that takes 1 % of a Path-SGD step of 100 units and 28 or 98 steps.
            if added is not None and isinstance(slices[added], Array):
                slices[added] += each.perturbations.reshape(slices[added].shape)
                inside.append(None)
            else:
                inside.append(each.perturbations)

        def exposed_step(carry: Sequence[Value], slices: Any) -> tuple[Sequence[Value], Any]:
            slices, perturbations = slices
            for each, perturbation in zip(exposures, perturbations, strict=True):
                each.is_open, each.perturbation, each.operand = True, perturbation, None
            carry, outs = step(carry, slices)
            for each in exposures:
                each.is_open = False
            return carry, (outs, [each.operand for each in exposures])

        last, (outs, operands) = super().loop(eqn, exposed_step, consts, carry, (slices, inside))
        for each, each_operands in zip(exposures, operands, strict=True):
            each.operands = each_operands
            each.steps_are_alike = not any(isinstance(value, Constant | Weight) for value in (*carry, *slices))
        return last, outs


def _exposed(network: RecurrentNetwork, eqn: JaxprEqn, first: Value, second: Value) -> Sequence[Value]:
    (product,) = contracts(network, eqn, first, second)
    for each in network.exposures:
        operand = second if first is each.matrix else first if second is each.matrix else None
        if each.is_open and isinstance(operand, Signal) and isinstance(product, Signal):
            each.operand = network.signal(operand).path.ravel()
            if each.perturbation is not None:
                product = Signal(product.path + each.perturbation.reshape(product.path.shape), product.shift)
    return [product]


def _added_slice(eqn: JaxprEqn, place: int) -> int | None:
    """The sequence of a scan whose slices are added to the product with a constant of it, and used for nothing else."""
    body = open_jaxpr(eqn.params["jaxpr"])
    ((product, _, _),) = _uses(body.jaxpr, body.jaxpr.invars[place], ())
    (out,) = product.outvars
    uses = list(_uses(body.jaxpr, out, ()))
    if len(uses) != 1 or uses[0].eqn.primitive is not lax.add_p or any(var is out for var in body.jaxpr.outvars):
        return None
    other = uses[0].eqn.invars[1 - uses[0].position]
    first = sum(scan_sizes(eqn))
    for index, var in enumerate(body.jaxpr.invars[first:]):
        if var is other and len(list(_uses_in(body, first + index, eqn, ()))) == 1:
            return index
    return None
