"""Shape checks, property-test profiles and fixtures shared by all tests."""

import os
from collections.abc import Iterator

import jax
import jaxtyping
import pytest
from hypothesis import settings

# The hook checks only modules imported after it.
jaxtyping.install_import_hook("pathspace", "beartype.beartype")

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs one test with float64 enabled."""
    with jax.enable_x64(True):
        yield
