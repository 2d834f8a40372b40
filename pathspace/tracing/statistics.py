"""What normalisations compute from activations: frozen, these are constants of the path network."""

from collections.abc import Iterator, Sequence
from typing import Any

from jax import lax

from .compat import JaxprEqn, OpenJaxpr, apply, place, scopes
from .interpreter import Interpreter
from .tables import PATH_RULES

_SUMS = {lax.reduce_sum_p, lax.reduce_max_p, lax.reduce_min_p, lax.reduce_window_sum_p}
_PRODUCTS = {lax.mul_p, lax.div_p, lax.dot_general_p}


def is_statistic(eqn: JaxprEqn, are_signals: Sequence[bool]) -> bool:
    """Whether an equation of a normalisation computes a statistic of activations, and no part of its affine map."""
    if not any(are_signals):
        return False
    if eqn.primitive in _PRODUCTS:
        return sum(are_signals) > 1
    return eqn.primitive in _SUMS or eqn.primitive not in PATH_RULES


class Statistics:
    """The values of all equations inside scopes of these names, in the order in which a walk meets them.

    Attributes:
      names: of scopes (`jax.named_scope`; Flax linen gives one to each module), or parts of paths of them.
    """

    def __init__(self, names: Sequence[str], jaxpr: OpenJaxpr, args: Sequence[Any]):
        self.names = tuple(names)
        self._met: set[str] = set()
        self._scopes: set[str] = set()
        recorder = _Recorder(self)
        recorder.walk(jaxpr, args)
        self._values: Iterator[Sequence[Any]] = iter(recorder.values)
        if missing := [name for name in self.names if name not in self._met]:
            raise ValueError(
                f"frozen names scopes that the function does not have outside loops: {missing}; it has "
                f"{sorted(self._scopes)}. Flax linen modules give their names to scopes; elsewhere call the "
                "normalisation inside `jax.named_scope(name)`."
            )

    def includes(self, enclosing: Sequence[JaxprEqn]) -> bool:
        """Whether the last of these equations, each inside the one before it, lies in a named scope."""
        path = scopes(enclosing)
        self._scopes.add(path)
        found = [name for name in self.names if f"/{name}/" in f"/{path}/"]
        self._met.update(found)
        return bool(found)

    def next(self, enclosing: Sequence[JaxprEqn]) -> Sequence[Any]:
        """The outputs of the next equation in a named scope."""
        if any(eqn.primitive is lax.scan_p for eqn in enclosing):
            raise ValueError(
                f"a normalisation inside a loop has other statistics in each step and cannot be frozen "
                f"({place(enclosing[-1]) or 'place unknown'})."
            )
        return next(self._values)


class _Recorder(Interpreter[Any]):
    """Evaluates a jaxpr as it stands."""

    def __init__(self, statistics: Statistics):
        super().__init__({})
        self._statistics = statistics
        self.values: list[Sequence[Any]] = []

    def constant(self, value: Any) -> Any:
        return value

    def unknown(self, eqn: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
        outs = apply(eqn, *values)
        if self._statistics.includes(self.enclosing):
            self.values.append([lax.stop_gradient(out) for out in outs])
        return outs
