"""Fixtures shared by the suite."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import invoke


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--freeze`: write tests/house/frozen.json anew. `--disturbed`: kernels share their work otherwise."""
    parser.addoption("--freeze", action="store_true", help="freeze the numbers that test_frozen.py compares")
    parser.addoption("--disturbed", action="store_true", help="one thread a kernel: sums in other parts")


def pytest_configure(config: pytest.Config) -> None:
    """Disturbed: one thread for each kernel, here and in the commands that tests start."""
    if config.getoption("--disturbed"):
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        import mindspore

        mindspore.set_context(runtime_num_threads=1)


@pytest.fixture(scope="session")
def disturb(request: pytest.FixtureRequest) -> Callable[[np.ndarray], np.ndarray]:
    """Disturbed: gives the rows of an array in another order, always the same for a number of rows."""
    if not request.config.getoption("--disturbed"):
        return lambda rows: rows
    return lambda rows: rows[np.random.default_rng(1).permutation(len(rows))]


@pytest.fixture(scope="session", autouse=True)
def _graphs_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled graphs are kept for the session, its workers' together, not in the user's cache."""
    base = tmp_path_factory.getbasetemp()
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JANUS_CACHE", str(session / "graphs"))
        yield


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic data set as `pipelines sample` writes it, its tokenizer in `tokenizer/`."""
    from pipelines.cli import main

    data = tmp_path_factory.mktemp("sample") / "data"
    invoke(main, "sample", "--data", data)
    return data


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model and shards for runs; each has an `--out` of its own."""
    from runs import make_work

    return make_work(tmp_path_factory.mktemp("work"))
