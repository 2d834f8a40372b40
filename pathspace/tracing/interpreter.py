"""The walk over a jaxpr, shared by all interpretations of it."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from .compat import JaxprEqn, Literal, OpenJaxpr, inner_call, open_jaxpr

Value = TypeVar("Value")
Rule = Callable[..., Sequence[Any]]


class Interpreter(abc.ABC, Generic[Value]):
    """Evaluates jaxprs on values of its own kind by a table of rules.

    A rule is called as `rule(interpreter, eqn, *values)` and returns one value for each output of the equation.
    Equations that only call another jaxpr (jit, checkpoint, custom derivatives) are walked into.

    Attributes:
      enclosing: the equations under evaluation, each inside the one before it.
    """

    def __init__(self, rules: Mapping[Any, Rule]):
        self._rules = rules
        self.enclosing: list[JaxprEqn] = []

    @abc.abstractmethod
    def constant(self, value: Any) -> Value:
        """The value of a literal or of a constant that the jaxpr holds."""

    @abc.abstractmethod
    def unknown(self, eqn: JaxprEqn, values: Sequence[Value]) -> Sequence[Value]:
        """The outputs of a primitive that has no rule."""

    def evaluate(self, eqn: JaxprEqn, values: Sequence[Value]) -> Sequence[Value]:
        """The outputs of an equation."""
        rule = self._rules.get(eqn.primitive)
        return self.unknown(eqn, values) if rule is None else rule(self, eqn, *values)

    def walk(self, jaxpr: OpenJaxpr | Any, args: Sequence[Value]) -> list[Value]:
        """The outputs of a jaxpr for the arguments."""
        jaxpr, consts = jaxpr if isinstance(jaxpr, OpenJaxpr) else open_jaxpr(jaxpr)
        values: dict[Any, Value] = {}

        def read(var: Any) -> Value:
            return self.constant(var.val) if isinstance(var, Literal) else values[var]

        values.update(zip(jaxpr.constvars, map(self.constant, consts), strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            ins = [read(var) for var in eqn.invars]
            self.enclosing.append(eqn)
            outs: Sequence[Value]
            if eqn.primitive not in self._rules and (inner := inner_call(eqn)) is not None:
                outs = self.walk(inner, ins)
            else:
                outs = self.evaluate(eqn, ins)
            self.enclosing.pop()
            values.update(zip(eqn.outvars, outs, strict=True))
        return [read(var) for var in jaxpr.outvars]
