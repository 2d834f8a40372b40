"""The networks, seeds and scales that tests run on: fixed ones, and strategies for random ones."""

from collections.abc import Callable

import numpy as np
from hypothesis import example, given, settings, strategies as st

from pathspace import ReductionGraph
from tests.architectures import CNN, MLP, RNN, Mixture
from tests.composites import COMPOSITES, FlattenedCNN, SplitHeads

NETWORKS = [
    MLP((2, 4, 3, 2)),
    RNN((2, 3, 2, 2), bias=True),
    CNN((2, 3, 2), stride=2),
    Mixture(),
    *COMPOSITES,
]

_width = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)
mlps = st.builds(MLP, st.lists(_width, min_size=3, max_size=5).map(tuple), st.booleans())
rnns = st.builds(RNN, st.lists(_width, min_size=3, max_size=4).map(tuple), st.booleans())
cnns = st.builds(
    CNN,
    st.lists(_width, min_size=2, max_size=3).map(tuple),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 2),
    st.booleans(),
)
mixtures = st.builds(Mixture, _width, _width, _width, st.integers(1, 3))
networks = st.one_of(mlps, rnns, cnns, mixtures)


def over_networks(max_examples: int) -> Callable[[Callable], Callable]:
    """Runs a test of one network and one seed on the intricate networks and on random others."""

    def decorate(test: Callable) -> Callable:
        for network in [NETWORKS[1], Mixture(), FlattenedCNN(), SplitHeads()]:
            test = example(network=network, seed=0)(test)
        return settings(max_examples=max_examples)(given(network=networks, seed=seeds)(test))

    return decorate


def random_scales_by_numpy(graph: ReductionGraph, seed: int, decades: float = 3.0) -> dict[str, np.ndarray]:
    """Scales from 10^-decades to 10^decades, uniform in the logarithm."""
    rng = np.random.default_rng(seed)
    return {group.name: 10 ** rng.uniform(-decades, decades, group.size) for group in graph.groups}
