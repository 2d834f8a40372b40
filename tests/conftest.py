"""Shape checks, property-test profiles and fixtures shared by all tests."""

import importlib.metadata
import os
from collections.abc import Iterator

# The tests spend their time compiling small programs, not running them. XLA reads the flags once, when JAX starts it,
# and one that its version does not know ends the process.
_FAST_COMPILATION = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FAST_COMPILATION.append("--xla_cpu_use_fusion_emitters=false")
# Of a flag given twice the later counts: what the environment asks for stays.
os.environ["XLA_FLAGS"] = " ".join([*_FAST_COMPILATION, os.environ.get("XLA_FLAGS", "")])

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

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


@pytest.fixture
def lowered_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces see the branches that CPUs compute, alone."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: cpu(*args))
