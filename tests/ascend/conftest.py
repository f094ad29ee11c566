"""What the tests of the Ascend kernels share."""

import cann
import pytest


@pytest.fixture
def on_cann(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Ascend kernels are in use, and CANN's operations run in NumPy."""
    cann.install(monkeypatch)
