"""From shards to the batches of each step."""
