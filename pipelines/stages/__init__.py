"""The stages from raw rows to shards."""
