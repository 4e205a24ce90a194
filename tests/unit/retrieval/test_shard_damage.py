"""A shard whose segments are torn, foreign, unwritable or being merged: searches stay exact meanwhile."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from shard_model import (
    ALL,
    SPEC,
    Beside,
    fill,
    segment_of,
    vector_of,
    wait_until,
)

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable
from retrieval.truth.records import Vectors
from retrieval.types import Record, SearchRequest
from retrieval.vectors import cuda_driver, gpu
from retrieval.vectors.exact import ExactBase
from retrieval.vectors.notes import Note


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    beside = Beside(tmp_path / "shard")
    yield beside
    beside.shard.close()


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "matrix.f32", "rows.npz", "documents.npz", "vectors/vectors.json", "lexical/terms.bin"],
)
def test_torn_segment_is_ignored_and_rebuilt_with_exact_answers_meanwhile(
    beside: Beside, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(beside)
    beside.shard.compact()
    beside.put("t", "after", "apple pie")
    beside.shard.close()
    torn = segment_of(beside)
    size = (torn / name).stat().st_size
    os.truncate(torn / name, size // 2)
    building = threading.Event()
    monkeypatch.setattr("retrieval.shard.residents.build_segment", _waiting(building))
    beside.open()
    (found,) = beside.shard.candidates(None, [ALL], vector_of(ALL.query)[None])
    assert list(found.dense) == beside.model.dense(ALL, vector_of(ALL.query))[:100]
    # The terms of compacted rows were only in the segment: the leg says so instead of finding half.
    assert found.skipped == {"lexical": "the lexical index is being rebuilt"}
    assert str(torn) in caplog.text
    building.set()
    wait_until(lambda: _is_whole(beside))
    beside.check(ALL)


def _waiting(event: threading.Event):
    from retrieval.shard.compaction import build_segment

    def build(*args):
        assert event.wait(30)
        return build_segment(*args)

    return build


def _is_whole(beside: Beside) -> bool:
    (found,) = beside.shard.candidates(None, [ALL], vector_of(ALL.query)[None])
    return not found.skipped


class OnGpu(ExactBase):
    """A base that says it lives on a GPU."""

    kind = "gpu_flat"  # pyright: ignore[reportAssignmentType]

    def save(self, folder: Path) -> list[Path]:
        return [Note("gpu_flat", self.effort).write(folder)]


@pytest.mark.parametrize("gone", ["the GPU", "its memory"])
def test_segment_of_a_gpu_that_is_gone_is_searched_exactly_and_rebuilt_with_a_kind_that_fits(
    tmp_path: Path, gone: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard_model.SPEC", replace(SPEC, kind="gpu_flat"))
    beside = Beside(tmp_path / "shard")
    fill(beside)
    with monkeypatch.context() as patch:
        patch.setattr("retrieval.shard.compaction.build_base", lambda matrix_ND, *_, **__: OnGpu(matrix_ND))
        patch.setattr(gpu, "require", lambda _: None)
        patch.setattr(gpu, "build", lambda kind, matrix_ND, *_: OnGpu(matrix_ND))
        patch.setattr(cuda_driver, "free_bytes", lambda _: 1 << 40)
        beside.shard.compact()
        assert beside.shard.segments()[0].kind == "gpu_flat"
        beside.check(ALL)
    beside.put("t", "after", "apple pie")
    beside.shard.close()
    if gone == "its memory":
        monkeypatch.setattr(gpu, "require", lambda _: None)
        monkeypatch.setattr(cuda_driver, "free_bytes", lambda _: 1000)
    building = threading.Event()
    monkeypatch.setattr("retrieval.shard.residents.build_segment", _waiting(building))
    beside.open()
    beside.check(ALL)
    assert "cannot be used on this machine" in caplog.text
    building.set()
    wait_until(lambda: beside.shard.segments()[0].num_delta_rows == 0)
    assert beside.shard.segments()[0].kind == "exact"
    beside.check(ALL)
    beside.shard.close()


def test_segment_of_another_log_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = Beside(tmp_path / "ours"), Beside(tmp_path / "theirs")
    for beside, word in ((ours, "apple"), (theirs, "plum")):
        for number in range(5):
            beside.put("t", f"r{number}", f"{word} n{number}")
        beside.shard.compact()
        beside.shard.close()
    shutil.rmtree(ours.folder / "segments")
    shutil.copytree(theirs.folder / "segments", ours.folder / "segments")
    ours.open()
    (found,) = ours.shard.candidates(None, [ALL], vector_of("apple plum")[None])
    assert list(found.dense) == ours.model.dense(ALL, vector_of("apple plum"))
    assert "of another log than this shard's" in caplog.text
    wait_until(lambda: _is_whole(ours))
    ours.check(ALL)
    ours.shard.close()


def test_read_only_segments_and_full_disks_do_not_stop_searches(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(beside)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(IndexUnavailable, match="cannot be written"):
            beside.shard.compact()
    beside.check(ALL)
    beside.shard.compact()
    beside.check(ALL)


def test_segment_that_is_not_what_the_store_holds_is_thrown_away(
    beside: Beside, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(beside)
    beside.shard.compact()
    from retrieval.shard import compaction

    real = compaction.read_matrix
    calls = 0

    def wrong_once(*args):
        nonlocal calls
        calls += 1
        return real(*args) + (1 if calls == 1 else 0)  # The matrix the second segment starts from.

    beside.put("t", "more", "apple")
    monkeypatch.setattr("retrieval.shard.compaction.read_matrix", wrong_once)
    beside.shard.compact()
    assert "building from the store instead" in caplog.text
    beside.check(ALL)


def test_compaction_starts_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    beside = Beside(tmp_path, RetrievalConfig(lexical_delta_max_rows=10))
    fill(beside, 25)
    beside.check(ALL)
    wait_until(lambda: (tmp_path / "segments" / "1" / "CURRENT").exists())
    assert "25 rows whose terms no segment holds, more than 10" in caplog.text
    beside.check(ALL)
    beside.shard.close()


def test_failed_compaction_is_logged_and_searches_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("retrieval.shard.residents.build_segment", fail)
    beside = Beside(tmp_path, RetrievalConfig(lexical_delta_max_rows=1))
    fill(beside, 5)
    beside.check(ALL)
    wait_until(lambda: "the next attempt is in" in caplog.text)
    for _ in range(5):
        beside.check(ALL)
    assert caplog.text.count("the next attempt is in") == 1
    beside.shard.close()


def test_acknowledged_writes_are_found_and_deleted_ones_never_while_compacting(tmp_path: Path) -> None:
    beside = Beside(tmp_path, RetrievalConfig(lexical_delta_max_rows=20, num_candidates=500))
    shard, number = beside.shard, beside.version.number
    stop = threading.Event()
    errors: list[BaseException] = []

    def compact() -> None:
        try:
            while not stop.is_set():
                shard.compact()
        except BaseException as error:
            errors.append(error)

    worker = threading.Thread(target=compact)
    worker.start()
    try:
        live: dict[str, str] = {}
        for turn in range(120):
            name = f"r{turn % 17}"
            word = f"w{turn}"
            text = f"common {word}"
            shard.store.upsert("t", "l", [Record(name, text)], {number: Vectors(vector_of(text)[None])})
            live[name] = word
            if turn % 5 == 4:
                gone = f"r{(turn * 7) % 17}"
                if gone in live:
                    document_id = next(
                        one.document_id for one in shard.store.documents("l", "t") if one.name == gone
                    )
                    shard.store.delete(document_id, "t")
                    del live[gone]
            request = SearchRequest("common", tenant="t", k=500)
            (found,) = shard.candidates(None, [request], vector_of("common")[None])
            assert not found.skipped
            for leg in (found.dense, found.lexical):
                passages = shard.passages(None, [chunk_id for chunk_id, _ in leg], "t")
                assert sorted(passage.text for passage in passages.values()) == sorted(
                    f"common {word}" for word in live.values()
                )
    finally:
        stop.set()
        worker.join()
        shard.close()
    assert not errors
