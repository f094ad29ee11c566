"""What a run records of itself, and the page made from it."""
