"""What bfloat16 costs in the Ascend forms, computed on a CPU: emulated, not measured on an Ascend.

    python -m bench.ascend.emulation             # the table of docs/ascend.md, about a minute
    python -m bench.ascend.emulation --quick     # narrow, a few seconds

`rounding.py` rounds, `forms.py` has every form forward and backward in either arithmetic, `before.py` what
the CPU's forms would give, `cases.py` the figures, `network.py` a Llama with heads and loss.
"""
