"""One model and one folder of shards for all runs of these tests; each has an `--out` of its own."""

from pathlib import Path

import pytest
from runs import make_work


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("work"))
