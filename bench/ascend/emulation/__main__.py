"""Print the tables of docs/ascend.md. `--quick`: narrow, a few seconds."""

import sys
from itertools import groupby

from bench.ascend.emulation.cases import BOUND, Row, rows
from bench.ascend.emulation.network import Sizes, compare

KINDS = {"ascend": f"at most {BOUND:g}", "before": "replaced", "through": "not held"}


def main(quick: bool) -> None:
    """Print the tables of docs/ascend.md; quick: at narrow widths."""
    print("| form | size | times the error of one rounding | largest error | bound |")
    print("|---|---|---|---|---|")
    for _, own in groupby(rows(quick), lambda row: (row.form, row.size)):
        print(_line(list(own)))
    sizes, lengths = NARROW if quick else WIDE
    found = compare(sizes, lengths)
    print("\n| | found | bound |\n|---|---|---|")
    print(f"| loss, {found.loss:.4f} in float64 | off by {found.loss_error:.1e} of it | 2e-03 |")
    print(f"| cosine of the whole gradient | {found.whole:.5f} | 0.999 |")
    print(f"| lowest cosine of a matrix's gradient | {found.lowest:.5f} | 0.999 |")
    print(f"| lowest cosine of any tensor's | {min(found.cosines.values()):.5f} | |")
    print(f"| error of the whole gradient | {found.error:.1e} of its norm | |")


def _line(own: list[Row]) -> str:
    ratios = ", ".join(f"{row.result} {row.ratio:.2f}" for row in own)
    worst = max(row.error for row in own)
    return f"| {own[0].form} | {own[0].size} | {ratios} | {worst:.1e} | {KINDS[own[0].kind]} |"


NARROW = Sizes(width=256, inner=704, layers=2, vocabulary=1024, codes=512), [100, 60, 95, 1]
WIDE = Sizes(width=1024, inner=2816, layers=2, vocabulary=8192, codes=16_384), [1, 115, 908]
"""A network and its samples' lengths; the codes are Janus-Pro's."""


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
