"""What a CPU can say of the graphs for Ascend: MindSpore's own Ascend compiler is asked, CANN stubbed.

MindSpore's wheel holds its Ascend plugin. `standins.py` builds empty stand-ins for CANN's libraries from the
names that the plugin asks for; `graph.py` compiles one graph of the product with them, in a process of its
own; `dump.py` reads what MindSpore wrote after kernel selection; `rules.py` judges it with `support.yaml`.

What passes was *accepted by MindSpore's Ascend compiler with CANN stubbed*. Nothing ran: no kernel, number,
time or memory of an Ascend is shown.
"""
