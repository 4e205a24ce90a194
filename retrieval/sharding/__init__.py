"""Shards and their copies: placement, routing, replicas, switches of versions, and resharding."""
