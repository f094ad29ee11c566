"""Proofs that a small network learns, by the commands that a user has; exit code 1 where it does not."""
