"""Settings and fixtures of all tests."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import jax.experimental
import pytest

# A [B] array that meets a [B, D] array by mistake must not broadcast in silence.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes first examples slow; x64 is the same for every example.
hypothesis.settings.register_profile(
    "pcjax",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("pcjax")


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs a test in double precision."""
    # Newer versions of jax have one name, older ones the other.
    new = hasattr(jax, "enable_x64")
    enable = jax.enable_x64 if new else jax.experimental.enable_x64
    with enable(True):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository, where there is one."""
    checkout = Path(__file__).resolve().parents[1]
    folders = [base / "shared" / "data" for base in checkout.parents[:2]]
    for folder in folders:
        if folder.is_dir():
            return folder
    pytest.skip(
        "the real images are not there: no folder " + " or ".join(map(str, folders))
    )
