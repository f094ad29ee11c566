"""A page that shows what a folder of shards holds."""
