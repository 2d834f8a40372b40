"""From the scales of the parameter leaves to the reduction graph."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from ..graph import Grounded, Leaf, ReductionGraph, skeleton_chain
from ..units import GROUND, Group, UnitMap
from .inference import ScaleInference
from .scales import NONE, Scale, Term, Why, combined

OUTPUT = Why("an output of the function")
ABSORBED = Why("a later normalisation takes their scale away: nothing flows out of these units")
UNFED = Why("nothing flows into these units")
TWO_ENDS = Why("an entry lies between more than two units")
EXPONENT = Why("an exponent other than 1 or -1")
CYCLIC = Why("only cycles connect these units to ground")


@dataclasses.dataclass(frozen=True)
class _End:
    """The units at one end of the entries of a leaf: `unknowns` along `axes`, NONE for ground."""

    axes: tuple[int, ...]
    unknowns: np.ndarray


def build_graph(inference: ScaleInference) -> ReductionGraph:
    """The reduction graph of the scales that an inference has found.

    Unknowns that cannot be units of a graph are made ground, with the reason, until all that is left are.
    """
    before = -1
    while inference.equations.version != before:
        before = inference.equations.version
        scales = {name: combined(inference.read_leaf(name)) for name in inference.leaf_scales}
        _ground_exponents(inference, scales)
        _ground_crowded(inference, scales)
        if inference.equations.version != before:
            continue
        ends = {name: _ends(terms, inference.leaf_scales[name]) for name, terms in scales.items()}
        _ground_one_sided(inference, ends)
        if inference.equations.version != before:
            continue
        groups, leaves = _groups_and_leaves(inference, ends)
        for near, far in ("target", "source"), ("source", "target"):
            chain = skeleton_chain([group for group, _ in groups], leaves, near, far)
            for group, unknowns in groups:
                if group.name not in chain:
                    inference.equations.ground(unknowns.tolist(), CYCLIC)
    in_graph = {leaf.name for leaf in leaves}
    return ReductionGraph(
        tuple(group for group, _ in groups),
        tuple(leaves),
        tuple(name for name in inference.shapes if name not in in_graph),
        tuple(_grounded(inference)),
    )


def _ground_exponents(inference: ScaleInference, scales: dict[str, Scale]) -> None:
    for term in itertools.chain(*scales.values()):
        inference.equations.ground(term.unknowns[np.abs(term.coefficients) > 1].tolist(), EXPONENT)
        fractional = (term.coefficients != 0) & (np.abs(term.coefficients) < 1)
        inference.equations.ground(term.unknowns[fractional].tolist(), EXPONENT)


def _ground_crowded(inference: ScaleInference, scales: dict[str, Scale]) -> None:
    """Leave each entry one source and one target at the most.

    Of two, those go that no kernel feeds; then those that are fewer; then the later.
    """
    fed_by_kernel = {
        unknown
        for name, terms in scales.items()
        if len(inference.shapes[name]) > 1 and name not in inference.added
        for term in terms
        for unknown in np.unique(term.unknowns[term.coefficients > 0]).tolist()
    }
    for name, terms in scales.items():
        sizes = inference.shapes[name]
        for first, second in itertools.combinations(terms, 2):
            axes = sorted({*first.axes, *second.axes})
            for sign in 1, -1:
                sides = [np.where(term.coefficients == sign, term.unknowns, NONE) for term in (first, second)]
                if all((side != NONE).any() for side in sides):
                    if set(first.axes) & set(second.axes):
                        wide = [
                            Term(term.axes, side, term.coefficients).over({axis: sizes[axis] for axis in axes}).unknowns
                            for term, side in zip((first, second), sides, strict=True)
                        ]
                        both = (wide[0] != NONE) & (wide[1] != NONE)
                        sides = [side[both] for side in wide]
                    units = [set(np.unique(side[side != NONE]).tolist()) for side in sides]
                    if all(units):
                        gone = min(units, key=lambda unit: (bool(unit & fed_by_kernel), len(unit), -max(unit)))
                        inference.equations.ground(gone, TWO_ENDS)


def _ends(terms: Sequence[Term], raw: Scale) -> tuple[_End, _End]:
    """Source and target of the entries of a leaf."""
    ends = []
    for sign in -1, 1:
        with_units = [term for term in terms if (term.coefficients == sign).any()]
        ends.append(_merged(with_units, sign) if with_units else None)
    taken = {axis for end in ends if end for axis in end.axes}
    for side, sign in enumerate((-1, 1)):
        # Where a side is ground, its axes are those that the contraction gave it, for the papers' cyclic choice.
        if ends[side] is None:
            own = [term for term in raw if (term.coefficients == sign).all() and not taken & set(term.axes)]
            other = [term for term in raw if not taken & set(term.axes)]
            chosen = (own or other or [Term((), np.array(NONE), np.array(0.0))])[0]
            ends[side] = _End(chosen.axes, np.full(chosen.unknowns.shape, NONE))
            taken |= set(chosen.axes)
    source, target = ends
    assert source is not None and target is not None
    return source, target


def _merged(terms: Sequence[Term], sign: int) -> _End:
    sizes = {axis: size for term in terms for axis, size in zip(term.axes, term.unknowns.shape, strict=True)}
    wide = [term.over(sizes) for term in terms]
    unknowns = np.full(wide[0].unknowns.shape, NONE)
    for term in wide:
        unknowns = np.where(term.coefficients == sign, term.unknowns, unknowns)
    return _End(wide[0].axes, unknowns)


def _ground_one_sided(inference: ScaleInference, ends: dict[str, tuple[_End, _End]]) -> None:
    sources, targets = (_all_units(pair[side] for pair in ends.values()) for side in (0, 1))
    inference.equations.ground(targets - sources, ABSORBED)
    inference.equations.ground(sources - targets, UNFED)


def _all_units(ends: Iterable[_End]) -> set[int]:
    return {unknown for end in ends for unknown in np.unique(end.unknowns).tolist() if unknown != NONE}


def _groups_and_leaves(
    inference: ScaleInference, ends: dict[str, tuple[_End, _End]]
) -> tuple[list[tuple[Group, np.ndarray]], list[Leaf]]:
    """Units of one group flow into and out of the same leaves, along the same axes."""
    places: dict[int, list[tuple[str, int]]] = collections.defaultdict(list)
    for name, pair in ends.items():
        for side, end in enumerate(pair):
            for unknown in np.unique(end.unknowns).tolist():
                if unknown != NONE:
                    places[unknown].append((name, side))
    members: dict[tuple[tuple[str, int], ...], list[int]] = collections.defaultdict(list)
    for unknown in sorted(places):
        members[tuple(places[unknown])].append(unknown)

    groups: list[tuple[Group, np.ndarray]] = []
    taken: set[str] = set()
    for around, unknowns in members.items():
        fed_by = [name for name, side in around if side == 1]
        leaf = next((name for name in fed_by if name not in inference.added), fed_by[0])
        stem = leaf.rpartition("/")[0] or leaf
        name = next(name for n in itertools.count(1) if (name := stem if n == 1 else f"{stem}:{n}") not in taken)
        taken.add(name)
        groups.append((Group(name, len(unknowns)), np.array(unknowns)))

    group_of, rank = {}, {}
    for number, (_, unknowns_of_group) in enumerate(groups):
        for place, unknown in enumerate(unknowns_of_group.tolist()):
            group_of[unknown], rank[unknown] = number, place

    def unit_map(end: _End) -> UnitMap:
        present = sorted({group_of[unknown] for unknown in np.unique(end.unknowns).tolist() if unknown != NONE})
        offsets = dict(zip(present, np.cumsum([0, *(groups[i][0].size for i in present)]).tolist(), strict=False))
        distinct, inverse = np.unique(end.unknowns, return_inverse=True)
        index = [GROUND if u == NONE else offsets[group_of[u]] + rank[u] for u in distinct.tolist()]
        units = np.asarray(np.array(index, int)[inverse]).reshape(end.unknowns.shape)
        return UnitMap(end.axes, units, tuple(groups[i][0] for i in present))

    leaves = []
    for name in (name for name in inference.shapes if name in ends):
        source, target = (unit_map(end) for end in ends[name])
        if source.groups or target.groups:
            leaves.append(Leaf(name, inference.shapes[name], source, target, name in inference.added))
    return groups, leaves


def _grounded(inference: ScaleInference) -> Iterable[Grounded]:
    """What became ground in each leaf, by reason; that outputs are ground needs no mention."""
    for name, shape in inference.shapes.items():
        if name in inference.grounded:
            yield Grounded(name, tuple(range(len(shape))), math.prod(shape), str(inference.grounded[name]))
        elif name not in inference.leaf_scales:
            yield Grounded(name, tuple(range(len(shape))), math.prod(shape), "not used by the function")
        for term in inference.leaf_scales.get(name, ()):
            is_ground = (term.coefficients > 0) & (inference.equations.resolve(term).coefficients == 0)
            reasons = (inference.equations.why(unknown) for unknown in np.unique(term.unknowns[is_ground]).tolist())
            for why, count in collections.Counter(why for why in reasons if why not in (None, OUTPUT)).items():
                yield Grounded(name, term.axes, count, str(why))
