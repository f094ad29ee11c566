"""The ledger: which samples made which step, as Arrow files that one polars query reads.

`<out>/ledger/steps-00000001.arrow` holds the rows of steps 1 to 1000, the next file those of 1001 to 2000.
Each save replaces the last file by an atomic write: its bytes follow from its steps alone, kills or not.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from janus.common.errors import UserError
from janus.common.files import write_file
from trainer.stream.feed import StepData

STEPS_PER_FILE = 1000
COLUMNS = pa.schema(
    {
        "step": pa.int32(),
        "task": pa.dictionary(pa.int8(), pa.string()),
        "sample_id": pa.dictionary(pa.int32(), pa.string()),
        "epoch": pa.int32(),  # earlier uses of the sample
        "micro_batch": pa.int32(),  # its number within the step, from 0
    }
)
_PLAIN = pa.schema([(f.name, getattr(f.type, "value_type", f.type)) for f in COLUMNS])


def step_rows(step: int, data: StepData) -> pa.Table:
    """The ledger's rows of one step, task after task."""
    rows: list[tuple[int, str, str, int, int]] = []
    before = 0  # micro-batches of earlier tasks
    for drawn in data.drawn:
        for i, (sample_id, epoch) in enumerate(zip(drawn.sample_ids, drawn.epochs, strict=True)):
            rows.append((step, drawn.task, sample_id, epoch, before + i // drawn.micro_batch))
        before = rows[-1][-1] + 1
    return pa.table(list(map(pa.array, zip(*rows, strict=True), _PLAIN.types)), _PLAIN)


class Ledger:
    """The ledger of a run: steps are added one by one, and written when the run saves."""

    def __init__(self, out: Path, steps_done: int) -> None:
        """Truncate to `steps_done` steps. Raises UserError if the last file cannot be read."""
        self._folder, self._step = out / "ledger", steps_done
        self._tables: list[pa.Table] = []
        resumed = self._folder.exists()  # a run resumes without a ledger that was moved away
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob("steps-*.arrow"):
            if int(path.stem.removeprefix("steps-")) > steps_done:
                path.unlink()
        if resumed and steps_done % STEPS_PER_FILE:
            path = self._path(steps_done)
            try:
                with pa.ipc.open_file(path) as file:
                    table = file.read_all().cast(_PLAIN)
            except (OSError, pa.ArrowException) as error:
                remedy = f"put it back, or move {self._folder} away to resume without it"
                raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
            self._tables = [table.filter(pc.less_equal(table["step"], steps_done))]
            self.save()

    def add(self, step: int, data: StepData) -> None:
        """Record the samples of one step; write the file when it is full."""
        self._tables.append(step_rows(step, data))
        self._step = step
        if step % STEPS_PER_FILE == 0:
            self.save()
            self._tables = []

    def save(self) -> None:
        """Write the rows of the last file. Raises OSError if the disk does not take them."""
        if self._tables:
            write_file(self._path(self._step), lambda path: write_rows(path, self._tables))

    def _path(self, step: int) -> Path:
        return self._folder / f"steps-{(step - 1) // STEPS_PER_FILE * STEPS_PER_FILE + 1:08d}.arrow"


def write_rows(path: Path, tables: Sequence[pa.Table]) -> None:
    """Write rows as a compressed Arrow file with dictionaries of ids."""
    table = pa.concat_tables(tables).combine_chunks().cast(COLUMNS)
    with pa.ipc.new_file(path, COLUMNS, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table)
