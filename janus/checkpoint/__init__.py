"""Checkpoints of both layouts: found, opened, converted, written."""
