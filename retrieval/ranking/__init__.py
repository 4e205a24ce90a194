"""Ranking: fusing the legs, reranking, diversity, expansion, and the searcher that runs them over shards."""
