"""What a model costs, and whether a device computes it right."""
