"""How two folders of shards differ, row by row: `shards diff`."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from shards.read import Rows, ShardSet


def differences(one: ShardSet, other: ShardSet) -> Iterator[str]:
    """A line for each row that `other` adds (+), lacks (-) or has with other fields (~), by sample_id."""
    before, now = _places(one), _places(other)
    for sample_id in sorted(before.keys() | now.keys()):
        if sample_id not in before:
            yield f"+ {sample_id}"
        elif sample_id not in now:
            yield f"- {sample_id}"
        elif changed := _changed(before[sample_id], now[sample_id]):
            yield f"~ {sample_id}: {', '.join(changed)}"


def _places(shards: ShardSet) -> dict[str, tuple[Rows, int]]:
    """Where each row lies, by sample_id."""
    files = shards.shards.values()
    named = ((rows, pa.chunked_array(rows.column("sample_id")).to_pylist()) for rows in files)
    return {name: (rows, i) for rows, names in named for i, name in enumerate(names)}


def _changed(one: tuple[Rows, int], other: tuple[Rows, int]) -> list[str]:
    """The columns in which two rows differ; with both values of the split."""
    places = [(rows, np.array([i])) for rows, i in (one, other)]
    if len({rows.stored_hashes(at)[0] for rows, at in places}) == 1:
        return []
    old, new = (rows.rows(at).sample(0, None) for rows, at in places)
    columns = {name: (getattr(old, name), getattr(new, name)) for name in old.__dataclass_fields__}
    changed = [
        name
        for name, (a, b) in columns.items()
        if not (np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b)
    ]
    return [f"split {old.split} → {new.split}" if name == "split" else name for name in changed]
