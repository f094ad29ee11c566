"""What the project is worth in figures: `python -m bench` measures it beside its peers, in one session.

`bench/measures/rows.py` lists the rows of the table. A *side* is a process that keeps one implementation warm
(`bench/sides/`); the sides of a comparison take turns, A B A B …, so that a noisy machine hits all alike.
"""
