"""What `make own-data` asks and takes for a proof: only pictures that changed as told count."""

import json
from pathlib import Path

import numpy as np
import pytest
from raw_data import run_well

from bench.demo.own_data import TRAINED, all_edits, figures, judge, write_edits, write_sources
from bench.demo.proof import CHANCES
from janus.generate.chat import read_chats
from janus.generate.pictures import save_picture
from pipelines.sample.scenes import COLOURS, SHAPES


def test_held_out_edits_show_and_draw_what_no_trained_one_does() -> None:
    trained, held_out = all_edits(0)
    scenes = [
        {scene for edit in edits for scene in (edit.before, edit.after)} for edits in (trained, held_out)
    ]
    assert not scenes[0] & scenes[1]
    places = [{(scene.shape, scene.background, scene.column) for scene in own} for own in scenes]
    assert not places[0] & places[1]
    told = [edit.instruction for edit in trained]
    assert {told.count(words) for words in told} == {TRAINED}
    assert set(told) == {edit.instruction for edit in held_out}
    assert len(set(told)) == len(SHAPES) * len(COLOURS)
    assert all(edit.before.colour != edit.after.colour for edit in (*trained, *held_out))


def test_the_rows_are_edits_and_what_is_asked_are_the_held_out_ones(tmp_path: Path) -> None:
    trained, held_out = all_edits(0)
    write_edits(tmp_path / "edits", trained, held_out)
    write_sources(tmp_path / "sources.yaml", tmp_path / "sample")
    shown = run_well("inspect-source", "--sources", tmp_path / "sources.yaml", "--source", "edits")
    rows = len(trained) + len(held_out)
    assert f"edits: {rows} rows = {rows} usable + 0 rejected\n  edit: {rows}\n" in shown
    asked = read_chats(tmp_path / "edits" / "asked.jsonl")
    assert [one.text for one in asked] == [edit.instruction for edit in held_out]
    assert all(one.draw for one in asked)


@pytest.mark.parametrize(("drawn", "colour"), [("after", 1.0), ("before", 0.0)])
def test_only_pictures_that_changed_as_told_are_right(tmp_path: Path, drawn: str, colour: float) -> None:
    _, edits = all_edits(0)
    (tmp_path / "drawn").mkdir()
    for number, edit in enumerate(edits):
        pixels_HWC = np.asarray(getattr(edit, drawn).draw())
        save_picture(tmp_path / "drawn" / f"{number}.png", pixels_HWC, {"number": number})
    shares = judge(tmp_path / "drawn", edits, tmp_path / "eval")
    assert shares == dict.fromkeys(CHANCES, 1.0) | {"colour": colour}
    assert [figure.holds for figure in figures(shares)] == [colour == 1.0, True, True]
    content = json.loads((tmp_path / "eval" / "held-out-edits.json").read_text())
    assert content["metrics"]["edit"]["colour"] == colour
    assert (tmp_path / "eval" / "held-out-edits.png").read_bytes().startswith(b"\x89PNG")
