"""One shard: the store, and per index version the rows, filters and segments that searches read."""
