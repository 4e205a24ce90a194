"""Chunks' KV in memory and on disk: what stays, what leaves, and what a damaged disk does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import safetensors.torch
import torch
from full_disk import full_disk

from serving.chunk_kv.chunk import ChunkKV, CorruptChunk
from serving.chunk_kv.chunk_file import num_tokens_in, read_chunk, write_chunk
from serving.chunk_kv.chunk_key import chunk_key
from serving.chunk_kv.chunk_store import ChunkStore
from serving.chunk_kv.eviction import BoundedEntries
from serving.chunk_kv.kv_codec import decode_chunk, encode_chunk
from serving.config import KVCodec

TOKEN_BYTES = 2 * 2 * 2 * 4 * 4  # Keys and values; layers, heads, dim, bytes.


def chunk(seed: int, num_tokens: int = 8, start: int = 3) -> ChunkKV:
    keys, values = torch.randn(2, 2, num_tokens, 2, 4, generator=torch.Generator().manual_seed(seed))
    return ChunkKV(keys, values, start)


def key(name: str) -> str:
    return chunk_key("model", (), tuple(name.encode()))


def assert_same(found: ChunkKV | None, wanted: ChunkKV) -> None:
    assert found is not None
    assert torch.equal(found.keys_LTHD, wanted.keys_LTHD)
    assert torch.equal(found.values_LTHD, wanted.values_LTHD)
    assert found.start == wanted.start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "chunks"


@pytest.fixture
def store(folder: Path) -> Iterator[ChunkStore]:
    with closing(ChunkStore(4 * 8 * TOKEN_BYTES, folder, 1 << 20)) as store:
        yield store


@pytest.mark.parametrize("other", [("m", (1,), (2, 3)), ("model", (), (1, 2, 3)), ("model", (1, 2), (3,))])
def test_a_key_is_of_one_scope_context_and_chunk(other: tuple[str, tuple[int, ...], tuple[int, ...]]):
    assert chunk_key("model", (1,), (2, 3)) == chunk_key("model", [1], [2, 3])
    assert chunk_key("model", (1,), (2, 3)) != chunk_key(*other)


def test_keys_and_values_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape .* \(2, 8, 2, 4\) and \(2, 7, 2, 4\)"):
        ChunkKV(torch.zeros(2, 8, 2, 4), torch.zeros(2, 7, 2, 4), 0)


def test_what_is_put_is_read_back_from_memory(store: ChunkStore):
    assert store.put(key("a"), chunk(1))
    assert_same(store.get(key("a")), chunk(1))
    assert store.get(key("b")) is None
    stats = store.stats()
    assert (stats.memory_hits, stats.misses, stats.memory_bytes) == (1, 1, 8 * TOKEN_BYTES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_process_reads_the_same_bytes_from_disk(folder: Path, dtype: torch.dtype):
    wanted = ChunkKV(chunk(1).keys_LTHD.to(dtype), chunk(1).values_LTHD.to(dtype), 5)
    with closing(ChunkStore(1 << 20, folder, 1 << 20)) as store:
        store.put(key("a"), wanted)
    with closing(ChunkStore(1 << 20, folder, 1 << 20)) as again:
        assert again.tier(key("a")) == "disk"
        assert_same(again.get(key("a")), wanted)
        assert again.tier(key("a")) == "memory"
        assert again.stats().disk_hits == 1


def test_chunks_that_leave_memory_are_still_on_disk(store: ChunkStore):
    for number in range(6):
        store.put(key(str(number)), chunk(number))
    store.flush()
    stats = store.stats()
    assert (stats.memory_chunks, stats.disk_chunks, stats.evicted) == (4, 6, 2)
    for number in range(6):
        assert_same(store.get(key(str(number))), chunk(number))


def test_the_disk_keeps_within_its_bytes(folder: Path):
    with closing(ChunkStore(1 << 20, folder, 3_000)) as store:
        for number in range(9):
            store.put(key(str(number)), chunk(number))
        store.flush()
        on_disk = sum(path.stat().st_size for path in folder.iterdir())
        assert on_disk == store.stats().disk_bytes <= 3_000
        assert len(list(folder.iterdir())) == store.stats().disk_chunks > 0


def test_a_larger_chunk_than_all_of_memory_is_not_kept(store: ChunkStore):
    store.put(key("small"), chunk(1))
    assert not store.put(key("large"), chunk(2, num_tokens=40))
    assert store.get(key("large")) is None
    assert_same(store.get(key("small")), chunk(1))
    assert store.stats().not_admitted == 1


def damage_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("codec", ["none", "fine"])
@pytest.mark.parametrize(
    "damage",
    [
        damage_one_byte,
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not ours"),
    ],
)
def test_a_damaged_file_is_a_miss_and_is_deleted(folder: Path, damage, codec: KVCodec):
    with closing(ChunkStore(0, folder, 1 << 20, codec)) as store:
        store._writes.put((key("a"), chunk(1)))
        store.flush()
        [path] = folder.iterdir()
        damage(path)
        assert store.get(key("a")) is None
        assert (store.stats().corrupt, store.stats().disk_chunks) == (1, 0)
        assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"not ours"])
def test_a_torn_file_of_an_earlier_process_is_deleted_at_the_start(folder: Path, content: bytes):
    folder.mkdir()
    (folder / f"{key('a')}.safetensors").write_bytes(content)
    (folder / f"{key('b')}.safetensors.0.partial").write_bytes(b"half")
    with closing(ChunkStore(1 << 20, folder, 1 << 20)) as store:
        assert store.tier(key("a")) is None
        assert store.stats().corrupt == 1
    assert not list(folder.iterdir())


def test_a_file_under_the_wrong_name_is_not_taken_for_another_chunk(folder: Path):
    with closing(ChunkStore(1 << 20, folder, 1 << 20)) as store:
        store.put(key("a"), chunk(1))
    os.rename(folder / f"{key('a')}.safetensors", folder / f"{key('b')}.safetensors")
    with closing(ChunkStore(1 << 20, folder, 1 << 20)) as again:
        assert again.get(key("b")) is None
        assert again.stats().corrupt == 1


def rounded(wanted: ChunkKV, codec: KVCodec) -> ChunkKV:
    """Return what a chunk is after the codec, which has tests of its own."""
    coded = encode_chunk(wanted, codec) if codec != "none" else None
    return wanted if coded is None else decode_chunk(coded)


@pytest.mark.parametrize("written_as", ["none", "fine", "coarse"])
@pytest.mark.parametrize("read_as", ["none", "medium"])
def test_files_of_every_codec_survive_a_restart_with_another(
    folder: Path, written_as: KVCodec, read_as: KVCodec
):
    wanted = chunk(1, num_tokens=200)
    with closing(ChunkStore(1 << 20, folder, 1 << 20, written_as)) as store:
        store.put(key("a"), wanted)
        assert_same(store.get(key("a")), wanted)  # Memory keeps what was put.
    with closing(ChunkStore(1 << 20, folder, 1 << 20, read_as)) as again:
        assert again.tier(key("a")) == "disk"
        assert_same(again.get(key("a")), rounded(wanted, written_as))
        assert (again.stats().disk_hits, again.stats().corrupt) == (1, 0)


def test_a_codec_makes_room_for_more_chunks_in_the_same_bytes(folder: Path):
    held = {}
    for codec in ("none", "coarse"):
        with closing(ChunkStore(1 << 20, folder / codec, 20_000, codec)) as store:
            for number in range(20):
                store.put(key(str(number)), chunk(number, num_tokens=100))
            store.flush()
            assert store.stats().disk_bytes <= 20_000
            held[codec] = store.stats().disk_chunks
    assert held["coarse"] > 3 * held["none"] > 0


def test_kv_that_is_not_finite_is_written_as_it_is(folder: Path):
    wanted = chunk(1)
    wanted.values_LTHD[0, 0, 0, 0] = float("inf")
    with closing(ChunkStore(1 << 20, folder, 1 << 20, "fine")) as store:
        store.put(key("a"), wanted)
    with closing(ChunkStore(1 << 20, folder, 1 << 20, "fine")) as again:
        assert_same(again.get(key("a")), wanted)


def test_no_changed_byte_of_a_coded_file_changes_the_chunk(tmp_path: Path):
    path, wanted = tmp_path / "chunk", rounded(chunk(1), "fine")
    write_chunk(path, key("a"), chunk(1), "fine")
    content = path.read_bytes()
    num_refused = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert_same(read_chunk(path, key("a")), wanted)
        except CorruptChunk:
            num_refused += 1
    assert num_refused > 0.9 * len(content)


def test_a_file_that_does_not_say_its_length_is_not_taken_in(folder: Path):
    folder.mkdir()
    tensors = {"coded": torch.zeros(8, dtype=torch.uint8)}
    path = folder / f"{key('a')}.safetensors"
    safetensors.torch.save_file(tensors, path, {"key": key("a")})
    with pytest.raises(CorruptChunk, match="num_tokens"):
        num_tokens_in(path)
    with closing(ChunkStore(1 << 20, folder, 1 << 20, "fine")) as store:
        assert store.tier(key("a")) is None


def test_a_file_of_a_later_format_is_a_miss(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with closing(ChunkStore(1 << 20, folder, 1 << 20, "fine")) as store, monkeypatch.context() as later:
        later.setattr("serving.chunk_kv.kv_codec._FORMAT", 2)
        store.put(key("a"), chunk(1))
        store.flush()
    with closing(ChunkStore(1 << 20, folder, 1 << 20, "fine")) as again:
        assert again.get(key("a")) is None
        assert again.stats().corrupt == 1


def test_a_folder_that_is_deleted_under_the_store_costs_only_the_files(store: ChunkStore, folder: Path):
    store.put(key("a"), chunk(1))
    store.flush()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert_same(store.get(key("a")), chunk(1))
    store.put(key("b"), chunk(2))
    store.flush()
    assert store.stats().disk_errors == 1
    assert_same(store.get(key("b")), chunk(2))


def test_a_folder_that_was_deleted_between_two_starts_is_made_again(folder: Path):
    with closing(ChunkStore(1 << 20, folder, 1 << 20)) as store:
        store.put(key("a"), chunk(1))
    shutil.rmtree(folder)
    with closing(ChunkStore(1 << 20, folder, 1 << 20)) as again:
        assert again.get(key("a")) is None
        assert again.put(key("a"), chunk(1))
        again.flush()
        assert (again.stats().disk_chunks, again.stats().disk_errors) == (1, 0)


def test_a_disk_that_is_full_costs_only_the_files(folder: Path):
    large = chunk(1, num_tokens=10_000)
    with closing(ChunkStore(1 << 24, folder, 1 << 24)) as store:
        with full_disk(1 << 20):
            assert store.put(key("a"), large)
            store.flush()
        assert (store.stats().disk_errors, store.stats().disk_chunks) == (1, 0)
        assert not list(folder.iterdir()), "no half of it stays"
        assert_same(store.get(key("a")), large)
        store.put(key("a"), large)
        store.flush()
        assert store.stats().disk_chunks == 1, "once there is room, files are written again"


WRITE_AND_DIE = """
import resource, signal, sys, torch
from pathlib import Path
from serving.chunk_kv.chunk import ChunkKV
from serving.chunk_kv.chunk_store import ChunkStore
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills it in the middle of a write
store = ChunkStore(1 << 24, Path(sys.argv[1]), 1 << 24)
store.put("a", ChunkKV(torch.ones(2, 10_000, 2, 4), torch.ones(2, 10_000, 2, 4), 0))
store.flush()
"""


def test_what_a_killed_process_was_writing_is_deleted_at_the_next_start(folder: Path):
    run = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(folder)], check=False)
    assert run.returncode == -signal.SIGXFSZ
    assert [path.stat().st_size for path in folder.iterdir()] == [1 << 20]
    with closing(ChunkStore(1 << 20, folder, 1 << 20)) as store:
        assert store.stats().disk_chunks == 0
    assert not list(folder.iterdir())


def test_what_cannot_be_read_at_the_start_is_counted_and_keeps_nothing_else_out(folder: Path):
    with closing(ChunkStore(1 << 20, folder, 1 << 20)) as store:
        store.put(key("a"), chunk(1))
    (folder / f"{key('b')}.safetensors").mkdir()
    with closing(ChunkStore(1 << 20, folder, 1 << 20)) as again:
        assert_same(again.get(key("a")), chunk(1))
        assert again.get(key("b")) is None
        assert again.stats().disk_errors == 1


def test_rare_entries_leave_before_those_in_use():
    entries = BoundedEntries(30)
    for name in "abc":
        assert entries.add(name, 10, 1.0) == []
    entries.use("a")
    entries.use("c")
    assert entries.add("d", 10, 1.0) == ["b"]
    assert entries.num_bytes == 30


def test_dear_entries_outlive_cheap_ones_of_their_size():
    entries = BoundedEntries(20)
    entries.add("dear", 10, 5.0)
    entries.add("cheap", 10, 1.0)
    assert entries.add("new", 10, 2.0) == ["cheap"]


def test_an_entry_used_long_ago_leaves_in_the_end():
    entries = BoundedEntries(20)
    for name in ("old", "new"):
        entries.add(name, 10, 1.0)
    for _ in range(5):
        entries.use("old")
    gone: list[str] = []
    for number in range(40):
        gone += entries.add(str(number), 10, 1.0) or []
    assert "old" in gone


def test_an_entry_worth_less_than_what_would_leave_is_not_let_in():
    entries = BoundedEntries(10)
    entries.add("dear", 10, 5.0)
    assert entries.add("cheap", 10, 1.0) is None
    assert "dear" in entries
