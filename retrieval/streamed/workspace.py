"""How much of a batch is under way at once: temporaries are bounded by formulas above what torch takes.

Legend: B pages of a kernel, q queries a page, R rows a page, D dimensions, K rows wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrieval.streamed.device_memory import DeviceMemoryExceeded

_KEY_BYTES = 48
"""Bound on all temporaries of one score: itself, its bits, four stages of its key, top-k's copy."""
_MERGE_BYTES = 32
"""Bound on all temporaries of one merged key."""
_MAX_QUERIES = 32
"""Queries of a page in one kernel on a device that runs many pages at once."""


@dataclass(frozen=True, slots=True)
class TileSize:
    """How much one kernel may hold."""

    max_pages: int
    """Pages."""
    max_queries: int
    """Queries a page."""
    num_bytes: int
    """Bound on its temporaries."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Device memory for a batch's queries, their best keys, and the temporaries of one kernel."""

    num_bytes: int
    """What there is."""
    row_temporary_bytes: int
    """Bound on the temporaries of one row, besides its scores."""
    page_rows: int
    """R."""
    dim: int
    """Numbers of a query in a kernel."""
    batched: bool
    """Whether a kernel takes many pages."""

    def _tile_bytes(self, pages: int, queries: int, k: int, batch: int) -> int:
        kept = self.page_rows if 2 * k >= self.page_rows else k
        active = min(batch, pages * queries)
        return (
            pages * self.page_rows * self.row_temporary_bytes
            + pages * queries * (4 * self.dim + 16 + _KEY_BYTES * self.page_rows)
            + active * (pages * kept + k) * _MERGE_BYTES
        )

    def least_bytes(self, k: int, query_bytes: int) -> int:
        """Return what one query of `query_bytes` and one page need."""
        return query_bytes + self._tile_bytes(1, 1, k, 1)

    def batch(self, k: int, query_bytes: int, max_batch: int) -> int:
        """Return how many queries run together: they get half of what the smallest kernel leaves.

        Raises:
            DeviceMemoryExceeded: There is not room for one.
        """
        least_bytes = self.least_bytes(k, query_bytes)
        if least_bytes > self.num_bytes:
            raise DeviceMemoryExceeded(
                f"one query for {k} rows over pages of {self.page_rows} needs {least_bytes:,} bytes and the "
                f"workspace has {self.num_bytes:,}; raise gpu_memory_limit, or lower k or page_rows"
            )
        room = (self.num_bytes - least_bytes) // 2 // query_bytes
        return max(1, min(max_batch, room))

    def tile(self, k: int, batch: int, query_bytes: int) -> TileSize:
        """Return the largest kernel that fits beside a batch of at most `Workspace.batch` queries."""
        limit_bytes = self.num_bytes - batch * query_bytes
        pages, queries = 1, 1
        most_queries = min(batch, _MAX_QUERIES) if self.batched else batch
        while 2 * queries <= most_queries and self._tile_bytes(1, 2 * queries, k, batch) <= limit_bytes:
            queries *= 2
        while self.batched and self._tile_bytes(2 * pages, queries, k, batch) <= limit_bytes:
            pages *= 2
        return TileSize(pages, queries, self._tile_bytes(pages, queries, k, batch))
