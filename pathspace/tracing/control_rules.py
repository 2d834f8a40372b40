"""Scale rules of control flow: the steps of a loop are merged, as the reduction graph merges time steps."""

from collections.abc import Callable, Sequence

from jax import lax

from .compat import JaxprEqn, scan_sizes, shape_of
from .inference import Free, Fresh, ScaleInference, Value, renamed, without_axes
from .tables import in_shape, register_family, why


def _fixed_point(
    inference: ScaleInference,
    eqn: JaxprEqn,
    carry: Sequence[Value],
    shapes: Sequence[tuple[int, ...]],
    body: Callable[[Sequence[Value]], list[Value]],
) -> tuple[list[Value], list[Value]]:
    """Run the body until what it carries out has the scale of what it carries in."""
    carry = [inference.scale(value) if isinstance(inference.read(value), Fresh) else value for value in carry]
    while True:
        outs = body(carry)
        before = inference.equations.version
        joined = [
            inference.equal(pair, shape, why(eqn))
            for pair, shape in zip(zip(carry, outs, strict=False), shapes, strict=True)
        ]
        settled = inference.equations.version == before
        if settled and [isinstance(value, Free) for value in joined] == [isinstance(value, Free) for value in carry]:
            return joined, outs
        carry = joined


def _scans(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    num_consts, num_carry = scan_sizes(eqn)
    consts, carry = list(values[:num_consts]), list(values[num_consts : num_consts + num_carry])
    slices = []
    for index in range(num_consts + num_carry, len(values)):
        sizes = in_shape(eqn, index)
        value = inference.one_of(inference.read(values[index]), [0], sizes, why(eqn))
        slices.append(without_axes(value, [0], len(sizes)))
    shapes = [in_shape(eqn, num_consts + i) for i in range(num_carry)]

    def body(carry: Sequence[Value]) -> list[Value]:
        return inference.walk(eqn.params["jaxpr"], [*consts, *carry, *slices])

    joined, outs = _fixed_point(inference, eqn, carry, shapes, body)
    stacked = []
    for var, value in zip(eqn.outvars[num_carry:], outs[num_carry:], strict=True):
        rank = len(shape_of(var)) - 1
        stacked.append(renamed(inference.read(value), {axis: axis + 1 for axis in range(rank)}, rank + 1))
    return [*joined, *stacked]


def _loops(inference: ScaleInference, eqn: JaxprEqn, *values: Value) -> Sequence[Value]:
    num_test, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    first = num_test + num_body
    test_consts, body_consts = values[:num_test], values[num_test:first]
    shapes = [in_shape(eqn, index) for index in range(first, len(values))]

    def body(carry: Sequence[Value]) -> list[Value]:
        inference.walk(eqn.params["cond_jaxpr"], [*test_consts, *carry])
        return inference.walk(eqn.params["body_jaxpr"], [*body_consts, *carry])

    return _fixed_point(inference, eqn, values[first:], shapes, body)[0]


def _branches(inference: ScaleInference, eqn: JaxprEqn, which: Value, *values: Value) -> Sequence[Value]:
    inference.trivial(which, in_shape(eqn), why(eqn))
    outs = [inference.walk(branch, values) for branch in eqn.params["branches"]]
    return [
        inference.equal(cases, shape_of(var), why(eqn))
        for var, cases in zip(eqn.outvars, zip(*outs, strict=True), strict=True)
    ]


register_family(_scans, lax.scan_p)
register_family(_loops, lax.while_p)
register_family(_branches, lax.cond_p)
