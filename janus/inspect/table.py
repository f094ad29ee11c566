"""`janus verify` as a table in Markdown, to paste into an issue."""

from collections.abc import Callable
from pathlib import Path

from janus import device
from janus.common.errors import UserError
from janus.inspect.bounds import furthest_norm
from janus.inspect.peer import Run, beside_mindone
from janus.inspect.verify import open_cases, verify

QUANTITIES = ("weights", "dtype", "quantity", "difference", "at most", "")
BESIDE = ("dtype", "task", "loss", "mindone", "norms apart", "s", "mindone", "GB", "mindone")
"""norms apart: the largest relative difference of a gradient's norm. s: forward and backward."""
PEER_LAYOUT = "hf-format"


def write_table(
    folder: Path, mode: str, used: device.Used, peer: str | None, say: Callable[[str], None]
) -> bool:
    """Say versions and every quantity, line by line; whether any is beyond its tolerance.

    peer: "mindone" or None. Raises UserError where it cannot run.
    """
    if peer and not (folder / PEER_LAYOUT).is_dir():
        raise UserError(
            f"--peer {peer}: reads transformers' layout, {folder} has no {PEER_LAYOUT}; leave it out"
        )
    for name, value in device.facts().items():
        say(f"- {name}: {value}")
    say(f"- mode: {mode}\n")
    _say_head(QUANTITIES, say)
    failed = 0
    for layout, dtype, check in verify(folder, mode, used):
        failed += not check.passed
        figures = f"{check.difference:.2e} | {check.tolerance:.1e}"
        say(f"| {layout} | {dtype} | {check.name} | {figures} | {'ok' if check.passed else 'TOO FAR'} |")
    say("")
    if peer:
        _say_peer(folder, mode, used, say)
    say(f"{failed} quantities beyond their tolerance" if failed else "all within tolerance")
    return failed > 0


def _say_peer(folder: Path, mode: str, used: device.Used, say: Callable[[str], None]) -> None:
    _say_head(BESIDE, say)
    cases = open_cases(folder)
    for dtype in device.dtypes(used.device):
        for task, ours, theirs in beside_mindone(folder / PEER_LAYOUT, cases, dtype, mode):
            apart = f"{furthest_norm(ours.norms, theirs.norms):.1e}"
            values = (f"{ours.loss:.6f}", f"{theirs.loss:.6f}", apart, *_shown(ours, theirs))
            say(f"| {dtype} | {task} | {' | '.join(values)} |")
    say("")


def _shown(ours: Run, theirs: Run) -> tuple[str, ...]:
    peaks = ("—" if run.peak is None else f"{run.peak / 1e9:.2f}" for run in (ours, theirs))
    return (f"{ours.seconds:.4f}", f"{theirs.seconds:.4f}", *peaks)


def _say_head(columns: tuple[str, ...], say: Callable[[str], None]) -> None:
    say(f"| {' | '.join(columns)} |")
    say(f"|{'---|' * len(columns)}")
