"""What vLLM's worker gains: the connector gets hold of the model runner, which vLLM does not hand to it."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group

from serving.chunk_kv.connector import ChunkKVConnector
from serving.chunk_kv.store_stats import StoreStats, Tier


class ChunkKVWorker:
    """Mixed into vLLM's worker (`worker_extension_cls`); called with `collective_rpc`."""

    model_runner: Any

    def attach_chunk_kv(self) -> str | None:
        """Give the connector its model; returns why chunk KV is not used with it, or None where it is."""
        return _connector().attach(self.model_runner)

    def chunk_kv_stats(self) -> StoreStats:
        """Return what the store holds and what became of what was asked of it."""
        return _connector().store_stats

    def chunk_kv_tiers(self, keys: list[str]) -> list[Tier | None]:
        """Return where the store has each of these chunks; None where it has not."""
        return _connector().tiers(keys)


def _connector() -> ChunkKVConnector:
    connector = get_kv_transfer_group()
    assert isinstance(connector, ChunkKVConnector)
    return connector
