import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from pathspace.units import GROUND, Group, UnitMap
from tests.edges import unit_at

pytestmark = pytest.mark.usefixtures("x64")

A, B, C = Group("a", 2), Group("b", 3), Group("c", 2)
# Each map with the shape of a leaf that it fits.
MAPS = {
    "last axis": (UnitMap.along(1, B), (4, 3)),
    "first axis": (UnitMap.along(0, B), (3, 4)),
    "middle axis": (UnitMap.along(1, A), (2, 2, 3)),
    "vector": (UnitMap.along(0, A), (2,)),
    "ground": (UnitMap.ground((3,), (1,)), (2, 3)),
    "ground behind a bias": (UnitMap.ground(), (3,)),
    "flattened feature maps": (UnitMap((0,), np.tile(np.arange(2), 6), (A,)), (12, 4)),
    "two axes": (UnitMap((0, 1), np.arange(2).reshape(2, 1), (A,)), (2, 1, 3)),
    "two axes, permuted": (UnitMap((0, 2), np.array([[2, 0], [1, 2]]), (B,)), (2, 3, 2)),
    "concatenated": (UnitMap((0,), np.arange(5), (A, B)), (5, 2)),
    "concatenated with ground": (UnitMap((0,), np.array([4, GROUND, 0, 1, 2, GROUND, 3]), (A, B)), (7, 2)),
    "concatenated, the other way round": (UnitMap((1,), np.array([2, 3, 4, 0, 1]), (A, B)), (2, 5)),
    "grouped convolution": (UnitMap((1, 2), np.array([[0, 0, 2, 2], [1, 1, 3, 3]]), (A, C)), (3, 2, 4)),
}
maps = pytest.mark.parametrize(("units", "shape"), MAPS.values(), ids=MAPS)


def values_for(units, seed=0):
    rng = np.random.default_rng(seed)
    return {group.name: jnp.asarray(rng.normal(size=group.size)) for group in units.groups}


@maps
def test_spread(units, shape):
    values = values_for(units)
    spread = np.broadcast_to(units.spread(values, len(shape), 7.0), shape)
    for index in np.ndindex(shape):
        unit = unit_at(units, index)
        assert spread[index] == (values[unit[0]][unit[1]] if unit else 7.0)


@maps
def test_spread_fills_groups_that_are_not_given(units, shape):
    values = values_for(units)
    values.pop("a", None)
    spread = np.broadcast_to(units.spread(values, len(shape), 7.0), shape)
    for index in np.ndindex(shape):
        unit = unit_at(units, index)
        assert spread[index] == (values[unit[0]][unit[1]] if unit and unit[0] in values else 7.0)


@maps
def test_take(units, shape):
    values = values_for(units)
    values.pop("a", None)
    index = np.append(np.random.default_rng(1).permutation(units.num_units), GROUND)
    taken = units.take(values, jnp.asarray(index), 7.0)
    assert taken.shape == index.shape
    flat = [(group.name, i) for group in units.groups for i in range(group.size)]
    for number, place in zip(taken, index, strict=True):
        name, i = (None, None) if place == GROUND else flat[place]
        assert number == (values[name][i] if name in values else 7.0)


@maps
@pytest.mark.parametrize(("reduction", "reduce"), [("sum", sum), ("max", max), ("min", min)])
def test_collect(units, shape, reduction, reduce):
    leaf = np.random.default_rng(0).normal(size=shape)
    collected = units.collect(jnp.asarray(leaf), reduction)
    assert list(collected) == [group.name for group in units.groups]
    for group in units.groups:
        for i in range(group.size):
            entries = [leaf[index] for index in np.ndindex(shape) if unit_at(units, index) == (group.name, i)]
            assert_allclose(collected[group.name][i], reduce(entries), rtol=1e-13, atol=1e-14)


@maps
def test_collect_is_the_transpose_of_spread(units, shape):
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    values = values_for(units, 1)
    inner = jnp.sum(leaf * units.spread(values, len(shape), 0.0))
    collected = units.collect(leaf)
    assert_allclose(inner, sum(jnp.sum(values[name] * collected[name]) for name in values), rtol=1e-12, atol=1e-14)


@maps
def test_spread_of_integers_stays_integer(units, shape):
    values = {group.name: jnp.arange(group.size, dtype=jnp.int32) for group in units.groups}
    spread = units.spread(values, len(shape), -1)
    assert jnp.issubdtype(spread.dtype, jnp.integer)
    for index in np.ndindex(shape):
        unit = unit_at(units, index)
        assert np.broadcast_to(spread, shape)[index] == (unit[1] if unit else -1)


@maps
def test_lies_in(units, shape):
    for names in ([], ["a"], ["b"], ["a", "b"]):
        inside = np.broadcast_to(units.along_axes(units.lies_in(names), len(shape)), shape)
        for index in np.ndindex(shape):
            unit = unit_at(units, index)
            assert inside[index] == (unit is not None and unit[0] in names)


@maps
def test_counts_and_identity(units, shape):
    assert units.num_units == sum(group.size for group in units.groups)
    same = UnitMap(units.axes, np.array(units.index, np.int32), units.groups)
    assert units == same
    assert hash(units) == hash(same)
    others = [other for other, _ in MAPS.values() if other is not units]
    assert all(units != other for other in others)
    assert units != "units"
    moved = UnitMap(tuple(axis + 1 for axis in units.axes), units.index, (*units.groups, Group("more", 1)))
    assert units != moved


def test_offsets():
    assert UnitMap((0,), np.arange(5), (A, B)).offsets == {"a": 0, "b": 2}


def test_whole_axes_need_no_gather():
    """An axis of one group, in order, is spread by reshaping alone; anything else has to look units up."""
    text = str(jax.make_jaxpr(lambda v: UnitMap.along(1, B).spread({"b": v}, 2, 1.0))(jnp.ones(3)))
    assert "gather" not in text
    flat = UnitMap((0,), np.tile(np.arange(3), 2), (B,))
    assert "gather" in str(jax.make_jaxpr(lambda v: flat.spread({"b": v}, 2, 1.0))(jnp.ones(3)))
