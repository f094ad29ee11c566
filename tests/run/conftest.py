"""One model and one folder of shards for all runs of these tests; each has an `--out` of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import make_work


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="session", autouse=True)
def _no_reports() -> Iterator[None]:
    """Drawing a page takes longer than the runs; those in a process of their own draw theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.report.page.write_report", lambda runs: "not drawn")
        yield
