"""A shard's SQLite file: documents, chunks, vectors, versions, the log; everything else is a cache of it."""
