"""Scales: how the entries of an array change when units are rescaled, in logarithms, and the equations between them.

The scale of an array of shape (n_1, ..., n_k) is a sum of terms. A term lies along some axes; at each position along
them it is a coefficient times the logarithm of one unknown. A weight matrix from the units i to the units j has the
terms -x_i along its first axis and +x_j along its second. Nothing here is of the size of a weight matrix.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

NONE = -1  # the unknown of a position that has no scale; its coefficient is 0


@dataclasses.dataclass(frozen=True)
class Term:
    """`coefficients * x[unknowns]`, both of the shape that the array has along `axes` (ascending)."""

    axes: tuple[int, ...]
    unknowns: np.ndarray
    coefficients: np.ndarray

    def on(self, axes: Sequence[int]) -> "Term":
        """The same term with its axes renamed in order; the new names may be in any order."""
        order = np.argsort(axes)
        return Term(tuple(axes[i] for i in order), self.unknowns.transpose(order), self.coefficients.transpose(order))

    def times(self, factor: float | int) -> "Term":
        return Term(self.axes, self.unknowns, np.asarray(self.coefficients * factor))

    def rearranged(self, change: Callable[[np.ndarray], np.ndarray], axes: tuple[int, ...]) -> "Term":
        """The term whose arrays are changed by the same reordering or selection."""
        return Term(axes, np.asarray(change(self.unknowns)), np.asarray(change(self.coefficients)))

    def over(self, sizes: dict[int, int]) -> "Term":
        """Broadcast along further axes: `sizes` gives the length of each axis of the result."""
        axes = tuple(sorted(sizes))
        shape = [sizes[axis] if axis in self.axes else 1 for axis in axes]
        full = [sizes[axis] for axis in axes]
        return self.rearranged(lambda a: np.broadcast_to(a.reshape(shape), full), axes)

    def picked(self, picks: Mapping[int, slice]) -> "Term":
        """Only the picked positions along axes."""
        where = tuple(picks.get(axis, slice(None)) for axis in self.axes)
        return self.rearranged(lambda array: array[where], self.axes)

    def flipped(self, axes: Iterable[int]) -> "Term":
        """Reversed along axes."""
        return self.picked(dict.fromkeys(axes, slice(None, None, -1)))

    def first_along(self, axes: Sequence[int]) -> "Term":
        """Only the first position along axes, without those axes."""
        where = tuple(0 if axis in axes else slice(None) for axis in self.axes)
        return self.rearranged(lambda array: array[where], tuple(axis for axis in self.axes if axis not in axes))

    def without_constant_axes(self) -> "Term":
        """Without the axes along which nothing changes."""
        term, sizes = self, dict(zip(self.axes, self.unknowns.shape, strict=True))
        if not term.unknowns.size:
            return term
        for axis in self.axes:
            first = term.first_along([axis])
            same = first.over({axis: sizes[axis] for axis in term.axes})
            if np.array_equal(term.unknowns, same.unknowns) and np.array_equal(term.coefficients, same.coefficients):
                term = first
        return term


Scale = tuple[Term, ...]
TRIVIAL: Scale = ()


def combined(scale: Iterable[Term]) -> Scale:
    """The same scale with the coefficients of equal unknowns added up, and without what cancels."""
    terms: list[Term] = []
    for term in scale:
        for place, other in enumerate(terms):
            if other.axes == term.axes:
                same = (other.unknowns == term.unknowns) & (term.coefficients != 0)
                total = np.where(same, other.coefficients + term.coefficients, other.coefficients)
                terms[place] = Term(other.axes, np.where(total == 0, NONE, other.unknowns), total)
                term = Term(term.axes, np.where(same, NONE, term.unknowns), np.where(same, 0, term.coefficients))
        terms.append(term)
    return tuple(term for term in terms if term.coefficients.any())


@dataclasses.dataclass(frozen=True)
class Why:
    """What made an unknown ground: shown by `ReductionGraph.describe`."""

    reason: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.reason} ({self.place})" if self.place else self.reason


class Equations:
    """Unknowns and the equations found between them: each is free, or equal to plus or minus another, or 0 (ground).

    An equation with more unknowns, or with unequal coefficients, cannot be kept in this form. Unknowns of it then
    become ground, first those that stand in most of the equations set up together (a scalar in front of many units),
    then the newest: this loses units but never makes a wrong one.
    """

    def __init__(self) -> None:
        self._root = np.zeros(0, np.int64)
        self._sign = np.zeros(0, np.int64)
        self._is_ground = np.zeros(0, bool)
        self._why: dict[int, Why] = {}
        self.version = 0

    def new(self, shape: Sequence[int], axes: tuple[int, ...]) -> Term:
        """A term of new unknowns."""
        size = int(np.prod(shape, dtype=np.int64))
        first = len(self._root)
        fresh = np.arange(first, first + size)
        self._root = np.append(self._root, fresh)
        self._sign = np.append(self._sign, np.ones(size, np.int64))
        self._is_ground = np.append(self._is_ground, np.zeros(size, bool))
        return Term(axes, fresh.reshape(shape), np.ones(shape))

    def why(self, unknown: int) -> Why | None:
        """Why an unknown became ground."""
        return self._why.get(self._find(unknown)[0])

    def resolve(self, term: Term) -> Term:
        """The term in free unknowns; ground has the unknown -1 and the coefficient 0."""
        present = term.unknowns != NONE
        if not present.any():
            return term.times(0)
        unknowns, coefficients = np.where(present, term.unknowns, term.unknowns.max()), term.coefficients
        while (moved := self._root[unknowns] != unknowns).any():
            coefficients = np.where(moved, coefficients * self._sign[unknowns], coefficients)
            unknowns = self._root[unknowns]
        free = present & ~self._is_ground[unknowns] & (coefficients != 0)
        return Term(term.axes, np.where(free, unknowns, NONE), np.where(free, coefficients, 0))

    def impose_zero(self, terms: Sequence[Term], why: Why) -> None:
        """At each position along the common axes of the terms their sum is 0."""
        resolved = [self.resolve(term) for term in terms]
        if not resolved:
            return
        columns = [array.ravel() for term in resolved for array in (term.unknowns, term.coefficients)]
        rows = np.stack(columns, 1)
        if len(resolved) == 2:
            same = (rows[:, 0] == rows[:, 2]) & (rows[:, 1] == -rows[:, 3])
            rows = rows[~same]
        rows = np.unique(rows[(rows[:, 1::2] != 0).any(1)], axis=0)
        frequency: dict[int, int] = {}
        if len(resolved) > 2:
            unknowns, counts = np.unique(rows[:, 0::2][rows[:, 1::2] != 0].astype(np.int64), return_counts=True)
            frequency = dict(zip(unknowns.tolist(), counts.tolist(), strict=True))
        for row in rows:
            self._impose(row[0::2].astype(np.int64), row[1::2], frequency, why)

    def ground(self, unknowns: Iterable[int], why: Why) -> None:
        """Make unknowns 0."""
        for unknown in unknowns:
            if unknown != NONE:
                root, _ = self._find(int(unknown))
                if not self._is_ground[root]:
                    self._is_ground[root] = True
                    self._why[root] = why
                    self.version += 1

    def _find(self, unknown: int) -> tuple[int, int]:
        sign = 1
        while (root := int(self._root[unknown])) != unknown:
            sign *= int(self._sign[unknown])
            unknown = root
        return unknown, sign

    def _impose(self, unknowns: np.ndarray, coefficients: np.ndarray, frequency: Mapping[int, int], why: Why) -> None:
        total: dict[int, float] = {}
        for unknown, coefficient in zip(unknowns.tolist(), coefficients.tolist(), strict=True):
            if unknown != NONE and coefficient:
                root, sign = self._find(unknown)
                if not self._is_ground[root]:
                    total[root] = total.get(root, 0) + sign * coefficient
        left = sorted((root, value) for root, value in total.items() if value)
        while len(left) > 2:
            root, _ = left.pop(max(range(len(left)), key=lambda place: (frequency.get(left[place][0], 0), place)))
            self.ground([root], Why(f"{why.reason}: more than two groups of units meet in one equation", why.place))
        if len(left) == 2 and abs(left[0][1]) == abs(left[1][1]):
            (kept, kept_value), (moved, moved_value) = left
            self._root[moved], self._sign[moved] = kept, -1 if kept_value * moved_value > 0 else 1
            self.version += 1
        else:
            self.ground([root for root, _ in left], why)
