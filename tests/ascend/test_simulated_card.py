"""What MindSpore says of an Ascend that it simulates, with empty stand-ins for CANN's libraries.

MindSpore's own code runs, op by op, up to the launch of a kernel: nothing is computed, every result is 0.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import execute
from paths import GOLDEN, ROOT, needs_shared

from bench.ascend.audit import standins

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(standins.missing_tools()), reason="no compiler for the stand-ins"),
]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a process that sees a card."""
    built = standins.build(tmp_path_factory.mktemp("cann"))
    support = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support")))
    return standins.environment(built) | {"PYTHONPATH": support}


def _on(card: dict[str, str], tmp_path: Path, program: str) -> Any:
    """What the program puts into `said`."""
    script = tmp_path / "program.py"
    # Without CANN a process does not end well; and MindSpore's own log goes to standard output.
    end = "import json, os, pathlib\npathlib.Path('said.json').write_text(json.dumps(said))\nos._exit(0)\n"
    script.write_text(program + end)
    execute(sys.executable, script, cwd=tmp_path, **card)
    return json.loads((tmp_path / "said.json").read_text())


DEVICE = """
import mindspore as ms
from janus import device
from janus.common.errors import UserError
said = {"first": ms.get_context("deterministic")}
try:
    device.use("Ascend", device_id=99)
except UserError as error:
    said["refused"] = error.format_message()
said["used"] = [device.use("Ascend", "auto", 0, True), device.use(), device.use("Ascend", "float32", 0, True)]
said["deterministic"] = ms.get_context("deterministic")
said["device"] = [ms.get_context("mode") == ms.PYNATIVE_MODE, *ms.get_current_device()]
"""


def test_device_number_dtype_and_determinism_are_set_before_the_first_tensor(
    card: dict[str, str], tmp_path: Path
) -> None:
    said = _on(card, tmp_path, DEVICE)
    assert said["first"] == "OFF"
    assert said["refused"].startswith("device_id: 99, but this machine has ")
    assert said["used"] == [["Ascend", "bfloat16"], ["Ascend", "bfloat16"], ["Ascend", "float32"]]
    assert said["deterministic"] == "ON"
    assert said["device"] == [True, "Ascend", 0]


AUTO = """
from janus import device
from janus.common.errors import UserError
try:
    said = list(device.use())
except UserError as error:
    said = error.format_message()
"""


def test_a_card_that_is_chosen_by_itself_is_checked_as_well(card: dict[str, str], tmp_path: Path) -> None:
    version = tmp_path / "latest" / "compiler" / "version.info"
    version.parent.mkdir(parents=True)
    for number, expected in (("9.1.0", ["Ascend", "bfloat16"]), ("7.6.0", "device: CANN 7.6.0")):
        version.write_text(f"Version={number}\n")
        said = _on({**card, "ASCEND_HOME_PATH": str(version.parents[1])}, tmp_path, AUTO)
        assert said[: len(expected)] == expected


MINDONE = """
from pathlib import Path
from janus import device
from janus.inspect.peer import _mindone_steps
from janus.inspect.verify import open_cases
device.use("Ascend")
folder, said = Path(FOLDER), {}
for task, step in _mindone_steps(folder / "hf-format", open_cases(folder), "bfloat16"):
    if task != "vqa":  # its backward asks for the number of placeholders, which a simulation cannot know
        loss, gradients = step()
        said[task] = [list(loss.shape), sorted({str(g.dtype) for g in gradients.values()})]
"""


@needs_shared
def test_mindones_janus_goes_through_forward_and_backward_in_bfloat16(
    card: dict[str, str], tmp_path: Path
) -> None:
    said = _on(card, tmp_path, MINDONE.replace("FOLDER", repr(str(GOLDEN / "tiny"))))
    assert said == {"text": [[], ["BFloat16"]], "t2i": [[], ["BFloat16"]]}
