"""The rows of the table (listed in `rows.py`) and what they share: sides, figures, workload."""
