"""Forms: ways to write conversations down, and how a row of each is read.

A file gives records (`json_rows`, `csv_rows`, `parquet`, `webdataset`); a dialect takes their columns for
turns (`conversation`, `captions`). `read` finds out which, and joins them; `plugin` lets a user's own Python
do both. What holds for every source is checked once, by ingest (`pipelines/stages/rules.py`).
"""
