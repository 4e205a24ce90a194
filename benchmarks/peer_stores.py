"""One interface over embedded vector stores, each as its documentation says to use it.

Runs in a child process, with the interpreter the store is installed in; imports nothing of Graft but in
`GraftStore`. Every row has an id (its number), a vector, a number `bucket` that filters compare, and a text.
"""

# The methods of all stores are described once, in `VectorStore`.
# ruff: noqa: D102

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from retrieval.versions import IndexKind

WORDS = ("river", "stone", "garden", "letter", "winter", "harbour", "lantern", "meadow", "orchard", "thunder")
NUM_BUCKETS = 1000


def text_of(row: int) -> str:
    """Return a row's text: thirty words that its number decides."""
    return " ".join(f"{WORDS[(row // 10**place) % 10]}{(row * 31 + place) % 997}" for place in range(30))


def bucket_of(row: int) -> int:
    """Return a row's bucket; consecutive rows land far apart."""
    return row * 7919 % NUM_BUCKETS


class VectorStore(Protocol):
    """A store of vectors in a folder."""

    def put(self, rows: range, vectors_ND: np.ndarray) -> None:
        """Store rows; durable when it returns, as far as the store's own word goes."""
        ...

    def finish(self) -> None:
        """Do what is recommended after a bulk load."""
        ...

    def search(self, vector_D: np.ndarray, k: int, below: int | None) -> list[int]:
        """Return the ids of the nearest rows whose bucket is below a number, and read their texts."""
        ...

    def read(self, rows: range) -> dict[int, tuple[int, str]]:
        """Return bucket and text of those rows that are there."""
        ...

    def delete(self, rows: Sequence[int]) -> None:
        """Remove rows."""
        ...

    def close(self) -> None:
        """Close the folder."""
        ...


class GraftStore:
    """A shard: SQLite as truth, base segment and delta as cache; the words are indexed as well."""

    kind: IndexKind = "auto"

    def __init__(self, folder: Path, dim: int) -> None:
        from retrieval.config import RetrievalConfig
        from retrieval.shard.shard import Shard
        from retrieval.versions import VersionSpec

        self._shard = Shard(folder, RetrievalConfig())
        spec = VersionSpec("packaged", "given", dim, 180, 20, 2000, kind=self.kind)
        self._version = self._shard.store.configure(spec)

    def put(self, rows: range, vectors_ND: np.ndarray) -> None:
        from retrieval.truth.records import Vectors
        from retrieval.types import Record

        records = [Record(f"r{row}", text_of(row), metadata={"bucket": bucket_of(row)}) for row in rows]
        self._shard.store.upsert("default", "default", records, {self._version.number: Vectors(vectors_ND)})

    def finish(self) -> None:
        self._shard.compact()

    def search(self, vector_D: np.ndarray, k: int, below: int | None) -> list[int]:
        from retrieval.filters import Compare
        from retrieval.types import SearchRequest

        wanted = None if below is None else Compare("bucket", "<", below)
        request = SearchRequest("by vector", k=k, mode="dense", filter=wanted)
        (found,) = self._shard.candidates(None, [request], vector_D[None])
        chunk_ids = [chunk_id for chunk_id, _ in found.dense[:k]]
        passages = self._shard.passages(None, chunk_ids, "default")
        return [int(passages[chunk_id].document[1:]) for chunk_id in chunk_ids]

    def _document_id(self, row: int) -> str:
        from retrieval.truth.store import document_id_of

        return document_id_of("default", "default", f"r{row}")

    def read(self, rows: range) -> dict[int, tuple[int, str]]:
        from retrieval.errors import UnknownDocument

        found = {}
        for row in rows:
            try:
                document = self._shard.store.document(self._document_id(row), "default")
            except UnknownDocument:
                continue
            text = self._shard.store.text(document.document_id, "default").text
            found[row] = (document.metadata["bucket"], text)
        return found

    def delete(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._shard.store.delete(self._document_id(row), "default")

    def close(self) -> None:
        self._shard.close()


class GraftIvfPqStore(GraftStore):
    """A shard whose base is product codes in inverted lists with exact rerank, tuned to recall 0.95."""

    kind = "ivf_pq"


class QdrantLocalStore:
    """`QdrantClient(path=...)`: brute force in the process over a SQLite file."""

    def __init__(self, folder: Path, dim: int) -> None:
        from qdrant_client import QdrantClient, models  # pyright: ignore[reportMissingImports]

        self._models = models
        self._client = QdrantClient(path=str(folder))
        if not self._client.collection_exists("rows"):
            distance = models.VectorParams(size=dim, distance=models.Distance.COSINE)
            self._client.create_collection("rows", vectors_config=distance)

    def put(self, rows: range, vectors_ND: np.ndarray) -> None:
        payloads = [{"bucket": bucket_of(row), "text": text_of(row)} for row in rows]
        points = self._models.Batch(ids=list(rows), vectors=vectors_ND.tolist(), payloads=payloads)
        self._client.upsert("rows", points)

    def finish(self) -> None:
        """Local mode has no index."""

    def search(self, vector_D: np.ndarray, k: int, below: int | None) -> list[int]:
        wanted = None
        if below is not None:
            bound = self._models.FieldCondition(key="bucket", range=self._models.Range(lt=below))
            wanted = self._models.Filter(must=[bound])
        found = self._client.query_points("rows", query=vector_D.tolist(), limit=k, query_filter=wanted)
        return [int(point.id) for point in found.points]

    def read(self, rows: range) -> dict[int, tuple[int, str]]:
        points = self._client.retrieve("rows", ids=list(rows))
        return {int(point.id): (point.payload["bucket"], point.payload["text"]) for point in points}

    def delete(self, rows: Sequence[int]) -> None:
        self._client.delete("rows", points_selector=self._models.PointIdsList(points=list(rows)))

    def close(self) -> None:
        self._client.close()


class LanceStore:
    """A LanceDB table, exhaustive; a scalar index on what filters compare."""

    indexed = False

    def __init__(self, folder: Path, dim: int) -> None:
        import lancedb  # pyright: ignore[reportMissingImports]
        import pyarrow as pa

        self._pa = pa
        self._dim = dim
        database = lancedb.connect(str(folder))
        fields = [
            ("id", pa.int64()),
            ("vector", pa.list_(pa.float32(), dim)),
            ("bucket", pa.int32()),
            ("text", pa.string()),
        ]
        self._table: Any = database.create_table("rows", schema=pa.schema(fields), exist_ok=True)

    def put(self, rows: range, vectors_ND: np.ndarray) -> None:
        pa = self._pa
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), self._dim)
        columns = {
            "id": pa.array(list(rows), pa.int64()),
            "vector": vectors,
            "bucket": pa.array([bucket_of(row) for row in rows], pa.int32()),
            "text": [text_of(row) for row in rows],
        }
        self._table.add(pa.table(columns))

    def finish(self) -> None:
        self._table.optimize()
        self._table.create_scalar_index("bucket")
        if self.indexed:
            self._table.create_index(metric="cosine", vector_column_name="vector")

    def search(self, vector_D: np.ndarray, k: int, below: int | None) -> list[int]:
        query = self._table.search(vector_D).distance_type("cosine").limit(k).select(["id", "text"])
        if self.indexed:
            query = query.refine_factor(10)
        if below is not None:
            query = query.where(f"bucket < {below}")
        return query.to_arrow()["id"].to_pylist()

    def read(self, rows: range) -> dict[int, tuple[int, str]]:
        condition = f"id >= {rows.start} AND id < {rows.stop}"
        query = self._table.search().where(condition).select(["id", "bucket", "text"]).limit(len(rows) + 1)
        return {row["id"]: (row["bucket"], row["text"]) for row in query.to_arrow().to_pylist()}

    def delete(self, rows: Sequence[int]) -> None:
        self._table.delete(f"id IN ({','.join(map(str, rows))})")

    def close(self) -> None:
        """A table has no close."""


class LanceIndexedStore(LanceStore):
    """A LanceDB table with its default vector index (IVF-PQ), refined by 10."""

    indexed = True


class ChromaStore:
    """`chromadb.PersistentClient`: HNSW over a SQLite file."""

    def __init__(self, folder: Path, dim: int) -> None:
        import chromadb  # pyright: ignore[reportMissingImports]
        from chromadb.config import Settings  # pyright: ignore[reportMissingImports]

        self._client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
        self._rows: Any = self._client.get_or_create_collection(
            "rows", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    def put(self, rows: range, vectors_ND: np.ndarray) -> None:
        self._rows.upsert(
            ids=[str(row) for row in rows],
            embeddings=vectors_ND,
            metadatas=[{"bucket": bucket_of(row)} for row in rows],
            documents=[text_of(row) for row in rows],
        )

    def finish(self) -> None:
        """The index grows with every upsert."""

    def search(self, vector_D: np.ndarray, k: int, below: int | None) -> list[int]:
        where = None if below is None else {"bucket": {"$lt": below}}
        found = self._rows.query(query_embeddings=vector_D[None], n_results=k, where=where)
        return [int(row) for row in found["ids"][0]]

    def read(self, rows: range) -> dict[int, tuple[int, str]]:
        found = self._rows.get(ids=[str(row) for row in rows], include=["metadatas", "documents"])
        values = zip(found["ids"], found["metadatas"], found["documents"], strict=True)
        return {int(row): (metadata["bucket"], text) for row, metadata, text in values}

    def delete(self, rows: Sequence[int]) -> None:
        self._rows.delete(ids=[str(row) for row in rows])

    def close(self) -> None:
        """A client has no close."""


class SqliteVecStore:
    """A `vec0` virtual table of sqlite-vec: brute force inside SQLite, as durable as Graft's truth."""

    def __init__(self, folder: Path, dim: int) -> None:
        import sqlite_vec  # pyright: ignore[reportMissingImports]

        # Python is often built without loadable extensions; the package has them.
        own = importlib.util.find_spec("pysqlite3") is None
        sqlite3 = importlib.import_module("sqlite3" if own else "pysqlite3")
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / "rows.sqlite3", isolation_level=None)
        self._db.enable_load_extension(True)
        sqlite_vec.load(self._db)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS rows USING "
            f"vec0(vector float[{dim}] distance_metric=cosine, bucket integer, +text text)"
        )

    def put(self, rows: range, vectors_ND: np.ndarray) -> None:
        values = [
            (row, vector.tobytes(), bucket_of(row), text_of(row))
            for row, vector in zip(rows, vectors_ND, strict=True)
        ]
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT INTO rows(rowid, vector, bucket, text) VALUES (?,?,?,?)", values)
        self._db.execute("COMMIT")

    def finish(self) -> None:
        """There is no index."""

    def search(self, vector_D: np.ndarray, k: int, below: int | None) -> list[int]:
        condition, values = "", [vector_D.tobytes(), k]
        if below is not None:
            condition, values = " AND bucket < ?", [*values, below]
        query = f"SELECT rowid, text FROM rows WHERE vector MATCH ? AND k = ?{condition} ORDER BY distance"
        return [row for row, _ in self._db.execute(query, values)]

    def read(self, rows: range) -> dict[int, tuple[int, str]]:
        found = {}
        for row in rows:
            query = "SELECT bucket, text FROM rows WHERE rowid = ?"
            for bucket, text in self._db.execute(query, (row,)):
                found[row] = (bucket, text)
        return found

    def delete(self, rows: Sequence[int]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("DELETE FROM rows WHERE rowid = ?", [(row,) for row in rows])
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


STORES: dict[str, type[Any]] = {
    "graft": GraftStore,
    "graft_ivf_pq": GraftIvfPqStore,
    "qdrant_local": QdrantLocalStore,
    "lancedb": LanceStore,
    "lancedb_ivf_pq": LanceIndexedStore,
    "chroma": ChromaStore,
    "sqlite_vec": SqliteVecStore,
}
"""By arm, the store it opens."""
PACKAGES = {
    "graft": "retrieval",
    "graft_ivf_pq": "retrieval",
    "qdrant_local": "qdrant_client",
    "lancedb": "lancedb",
    "lancedb_ivf_pq": "lancedb",
    "chroma": "chromadb",
    "sqlite_vec": "sqlite_vec",
}
"""By arm, the module that must be importable."""
