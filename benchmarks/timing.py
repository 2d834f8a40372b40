"""Measuring of times where other work disturbs it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def time_in_turns(programs: Sequence[Callable[[], Any]], *, turns: int, seconds: float = float("inf")) -> np.ndarray:
    """Seconds a call, of shape (turns, programs): at most `turns`; after `seconds` none but the second begins."""
    for program in programs:
        jax.block_until_ready(program())
    times = np.empty((turns, len(programs)))
    order = np.random.default_rng(0)
    start = time.perf_counter()
    for turn in range(turns):
        if turn >= 2 and time.perf_counter() - start > seconds:
            return times[:turn]
        # Whoever comes later finds others' data in the caches. In one order and its reverse, those at the ends would
        # follow themselves, and be up to 1 % faster for it.
        for index in order.permutation(len(programs)):
            begin = time.perf_counter()
            jax.block_until_ready(programs[index]())
            times[turn, index] = time.perf_counter() - begin
    return times
