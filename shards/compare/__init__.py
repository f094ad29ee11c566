"""Pictures and folders of shards beside each other."""
