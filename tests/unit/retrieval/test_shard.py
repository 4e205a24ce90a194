"""The shard against a model: exact at any selectivity, over changes, compaction, reopening and damage."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes_retrieval import HashEmbedder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_model import (
    ALL,
    CONFIG,
    DIM,
    OTHER_SPEC,
    SPEC,
    TENANTS,
    WORDS,
    Beside,
    fill,
    vector_of,
    wait_until,
)

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable, InvalidFilter, UnknownVersion
from retrieval.filters import Compare, Exists
from retrieval.ranking.searcher import Searcher
from retrieval.ranking.view import IndexView
from retrieval.shard.shard import LocalShard, Shard
from retrieval.truth.records import Vectors
from retrieval.types import Record, SearchRequest
from retrieval.versions import VersionState

_steps = st.one_of(
    st.tuples(
        st.just("put"),
        st.sampled_from(TENANTS),
        st.sampled_from("abcdef"),
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=4),
        st.sampled_from([{}, {"year": 1}, {"year": 2}]),
    ),
    st.tuples(
        st.just("file"),
        st.sampled_from(TENANTS),
        st.sampled_from(["x.txt", "y.txt"]),
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=4),
        st.sampled_from([{}, {"year": 1}, {"year": 2}]),
    ),
    st.tuples(
        st.just("delete"),
        st.sampled_from(TENANTS),
        st.sampled_from([*"abcdef", "x.txt"]),
        st.just([]),
        st.just({}),
    ),
    st.tuples(st.sampled_from(["compact", "reopen"]), st.just(""), st.just(""), st.just([]), st.just({})),
)  # fmt: skip
_requests = st.builds(
    SearchRequest,
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join),
    k=st.sampled_from([1, 3]),
    tenant=st.sampled_from([*TENANTS, "nobody"]),
    library=st.sampled_from([None, "l", "other"]),
    filter=st.sampled_from([None, None, Compare("year", "==", 1)]),
    exact=st.booleans(),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_steps, max_size=20), st.lists(_requests, min_size=1, max_size=3), st.sampled_from([1, 100]))
def test_searches_equal_brute_force_whatever_happened(steps: list, requests: list, candidates: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="graft-shard-"))
    beside = Beside(folder, RetrievalConfig(num_candidates=candidates))
    try:
        for kind, tenant, name, words, metadata in [("put", "t", "a", ["plum"], {"year": 1}), *steps]:
            if kind == "put":
                beside.put(tenant, name, " ".join(words), metadata)
            elif kind == "file":
                beside.put_file(tenant, name, words, metadata)
            elif kind == "delete":
                beside.delete(tenant, name)
            elif kind == "compact":
                beside.shard.compact()
            else:
                beside.reopen()
            for request in requests:
                beside.check(request)
    finally:
        beside.shard.close()
        shutil.rmtree(folder)


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    beside = Beside(tmp_path / "shard")
    yield beside
    beside.shard.close()


def test_equal_scores_are_ordered_by_chunk_id_also_at_the_cut(tmp_path: Path) -> None:
    requests = [SearchRequest("apple", tenant="t", k=1, mode="hybrid")]
    answers = []
    for order in (range(30), reversed(range(30))):
        beside = Beside(tmp_path / str(len(answers)), RetrievalConfig(num_candidates=3))
        for number in order:
            beside.put("t", f"r{number}", "apple")
        beside.shard.compact()
        (found,) = beside.shard.candidates(None, requests, vector_of("apple")[None])
        answers.append((found.dense, found.lexical))
        beside.shard.close()
    assert answers[0] == answers[1]
    assert len(answers[0][0]) == len(answers[0][1]) == 3


def test_batch_answers_each_request_by_its_own_filter_and_mode(beside: Beside) -> None:
    fill(beside)
    requests = [
        SearchRequest("apple", tenant="t", mode="dense"),
        SearchRequest("apple", tenant="u", mode="lexical"),
        SearchRequest("plum", tenant="t", filter=Compare("year", "==", 2)),
        SearchRequest("plum", tenant="nobody"),
    ]
    vectors_QD = np.stack([vector_of(request.query) for request in requests])
    found = beside.shard.candidates(None, requests, vectors_QD)
    assert [bool(one.dense) for one in found] == [True, False, True, False]
    assert [bool(one.lexical) for one in found] == [False, True, True, False]
    assert list(found[2].dense) == beside.model.dense(requests[2], vectors_QD[2])
    assert found[0].seq == beside.shard.store.seq()
    assert found[0].plan
    assert found[1].plan == "not asked for"


def test_filters_are_checked_and_unknown_fields_reported(beside: Beside) -> None:
    fill(beside)
    query_QD = vector_of("apple")[None]
    with pytest.raises(InvalidFilter, match="field 'year' holds a number"):
        beside.shard.candidates(
            None, [SearchRequest("apple", tenant="t", filter=Compare("year", "==", "one"))], query_QD
        )
    request = SearchRequest("apple", tenant="t", filter=Exists("yaer"))
    (found,) = beside.shard.candidates(None, [request], query_QD)
    assert found.unknown_fields == ("yaer",)
    assert found.known_fields["year"] == "number"
    assert not found.dense
    assert not found.lexical


async def test_field_that_no_shard_knows_is_an_error_of_the_search(tmp_path: Path) -> None:
    knows, knows_not = Beside(tmp_path / "0"), Beside(tmp_path / "1")
    knows.put("t", "a", "apple", {"year": 1})
    knows_not.put("t", "b", "apple")
    view = IndexView(
        SPEC.version_id, 0, SPEC, HashEmbedder(DIM), [LocalShard(knows.shard), LocalShard(knows_not.shard)]
    )
    knows_not.shard.name = "s1"
    searcher = Searcher(lambda _: view, CONFIG)
    (found,) = await searcher.search([SearchRequest("apple", tenant="t", filter=Compare("year", "==", 1))])
    assert len(found.hits) == 1
    with pytest.raises(InvalidFilter, match=r"field 'yaer' \(did you mean 'year'\?\).*year \(number\)"):
        await searcher.search([SearchRequest("apple", tenant="t", filter=Compare("yaer", "==", 1))])
    knows.shard.close()
    knows_not.shard.close()


def test_versions_are_resident_side_by_side_and_never_mix(beside: Beside) -> None:
    fill(beside)
    store = beside.shard.store
    other = store.make_version(OTHER_SPEC)
    query_QD = vector_of("apple")[None]
    (found,) = beside.shard.candidates(other.version_id, [ALL], query_QD)
    assert not found.dense
    assert store.copy_rows(beside.version, other, store.lacking(other.number)) == 40
    store.set_alias("next", other.version_id)
    (active,) = beside.shard.candidates(None, [ALL], query_QD)
    (new,) = beside.shard.candidates("next", [ALL], query_QD)
    assert {one for one, _ in new.dense} == {one for one, _ in active.dense}
    assert new.dense != active.dense  # int8 cosines are not quite those of float32.
    chunk_id = new.dense[0][0]
    int8_D = beside.shard.vectors("next", [chunk_id])[chunk_id]
    float_D = beside.shard.vectors(None, [chunk_id])[chunk_id]
    assert not np.array_equal(int8_D, float_D)
    np.testing.assert_allclose(int8_D, float_D, atol=0.02)
    beside.shard.compact("next")
    assert (beside.folder / "segments" / str(other.number)).is_dir()
    store.set_state(other.version_id, VersionState.READY)
    store.set_state(other.version_id, VersionState.ACTIVE)
    (switched,) = beside.shard.candidates(None, [ALL], query_QD)
    assert switched.dense == new.dense
    beside.shard.drop_version(beside.version.version_id)
    assert not (beside.folder / "segments" / str(beside.version.number)).exists()
    with pytest.raises(UnknownVersion, match=beside.version.version_id):
        beside.shard.candidates(beside.version.version_id, [ALL], query_QD)


def test_min_seq_waits_for_the_write_or_names_both_positions(beside: Beside) -> None:
    seq = beside.put("t", "a", "apple")
    request = SearchRequest("apple", tenant="t", min_seq={"s0": seq + 1, "s1": 10**9})
    query_QD = vector_of("apple")[None]
    with pytest.raises(IndexUnavailable, match=f"'s0' is at log position {seq} and did not reach {seq + 1} "):
        beside.shard.candidates(None, [request], query_QD, deadline_s=0.05)
    later = threading.Timer(0.1, lambda: beside.put("t", "b", "apple tart"))
    later.start()
    (found,) = beside.shard.candidates(None, [request], query_QD, deadline_s=20)
    later.join()
    assert len(found.dense) == 2
    assert found.seq == seq + 1


def test_snapshot_is_restored_whole_or_refused(beside: Beside, tmp_path: Path) -> None:
    fill(beside)
    beside.shard.compact()
    beside.put("t", "late", "apple late")
    beside.shard.snapshot(tmp_path / "copy")
    with pytest.raises(IndexUnavailable, match="is not empty"):
        beside.shard.snapshot(tmp_path / "copy")
    (before,) = beside.shard.candidates(None, [ALL], vector_of(ALL.query)[None])
    beside.put("t", "later", "apple later")
    restored = Shard.restore(tmp_path / "restored", tmp_path / "copy", CONFIG)
    (after,) = restored.candidates(None, [ALL], vector_of(ALL.query)[None])
    assert (after.dense, after.lexical, after.seq) == (before.dense, before.lexical, before.seq)
    assert restored._residents._indexes[1].segment is not None  # Its segment came along.
    with pytest.raises(IndexUnavailable, match="is not empty"):
        Shard.restore(tmp_path / "restored", tmp_path / "copy", CONFIG)
    restored.close()
    (database,) = (tmp_path / "copy").rglob("shard.sqlite3")
    with database.open("r+b") as file:
        file.seek(5000)
        file.write(b"rot")
    with pytest.raises(IndexUnavailable, match="no whole snapshot"):
        Shard.restore(tmp_path / "again", tmp_path / "copy", CONFIG)
    assert not (tmp_path / "again").exists()
    with pytest.raises(IndexUnavailable, match="no whole snapshot"):
        Shard.restore(tmp_path / "again", tmp_path / "nowhere", CONFIG)


def test_approximate_base_is_exact_where_asked_and_its_recall_is_known(tmp_path: Path) -> None:
    beside = Beside(tmp_path, RetrievalConfig(shadow_share=1.0, num_candidates=20))
    spec = replace(SPEC, kind="ivf_sq8")
    version = beside.shard.store.make_version(spec)
    rng = np.random.default_rng(0)
    vectors_ND = rng.standard_normal((3000, DIM)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    records = [Record(f"r{number}", f"text n{number}", None, {"rank": number}) for number in range(3000)]
    embedded = {beside.version.number: Vectors(vectors_ND), version.number: Vectors(vectors_ND)}
    beside.shard.store.upsert("t", "l", records, embedded)
    manifest = beside.shard.compact(version.version_id)
    assert manifest.kind == "ivf_sq8"
    assert manifest.details["measured_recall"] >= beside.config.recall_floor
    queries_QD = vectors_ND[:8] + 0.01
    for predicate in (None, Compare("rank", "<", 2500), Compare("rank", "<", 30), Compare("rank", "<", 3)):
        requests = [SearchRequest("x", tenant="t", mode="dense", filter=predicate, exact=True)] * 8
        exact = beside.shard.candidates(version.version_id, requests, queries_QD)
        other = beside.shard.candidates(None, requests, queries_QD)  # The version without a segment.
        assert [one.dense for one in exact] == [one.dense for one in other]
    requests = [SearchRequest("x", tenant="t", mode="dense")]
    (found,) = beside.shard.candidates(version.version_id, requests, queries_QD[:1])
    assert found.plan.startswith(("ivf_sq8", "exact"))
    assert beside.shard.estimate_recall(50, version.version_id).recall >= 0.9
    if found.plan.startswith("ivf_sq8"):
        wait_until(lambda: beside.shard.recall_served(version.version_id).num_queries > 0)
    beside.shard.close()


async def test_local_shard_reads_what_the_shard_holds(beside: Beside) -> None:
    fill(beside)
    reader, version = LocalShard(beside.shard), beside.version.version_id
    assert reader.name == "s0"
    stats = await reader.term_stats(version, ["appl", "nothing"])
    assert (stats.num_chunks, stats.chunks_with["nothing"]) == (40, 0)
    (found,) = await reader.candidates(version, [ALL], vector_of(ALL.query)[None], stats)
    beside.check(ALL)
    chunk_ids = [chunk_id for chunk_id, _ in found.dense]
    vectors = await reader.vectors(version, [*chunk_ids, "gone:0:0"])
    passages = await reader.passages(version, chunk_ids, "t")
    assert set(vectors) == set(passages) == set(chunk_ids)
    for chunk_id, passage in passages.items():
        np.testing.assert_array_equal(vectors[chunk_id], vector_of(passage.text))
    assert await reader.passages(version, chunk_ids, "u") == {}
    assert await reader.token_codes(version, chunk_ids) == {}
    beside.put_file("t", "f.txt", ["one", "two", "three"])
    (found,) = await reader.candidates(
        version, [SearchRequest("two", tenant="t")], vector_of("two")[None], None
    )
    around = await reader.neighbours(version, found.dense[0][0], 1, 1, "t")
    assert [passage.text for passage in around] == ["one", "two", "three"]
    assert await reader.neighbours(version, found.dense[0][0], 1, 1, "u") == []


async def test_local_shard_waits_for_min_seq_without_holding_a_thread(beside: Beside) -> None:
    seq = beside.put("t", "a", "apple")
    reader, version = LocalShard(beside.shard), beside.version.version_id
    request = SearchRequest("apple", tenant="t", min_seq={"s0": seq + 1})
    query_QD = vector_of("apple")[None]
    waiting = [
        asyncio.create_task(reader.candidates(version, [request], query_QD, None, 30)) for _ in range(64)
    ]
    await asyncio.sleep(0.05)
    await asyncio.to_thread(beside.put, "t", "b", "apple tart")
    for (found,) in await asyncio.gather(*waiting):
        assert len(found.dense) == 2
    request = SearchRequest("apple", tenant="t", min_seq={"s0": seq + 9})
    with pytest.raises(IndexUnavailable, match=f"did not reach {seq + 9} "):
        await reader.candidates(version, [request], query_QD, None, 0.02)


def test_queries_of_another_dimension_are_refused(beside: Beside) -> None:
    fill(beside)
    with pytest.raises(ValueError, match=f"vectors of {DIM} numbers"):
        beside.shard.candidates(None, [ALL], np.ones((1, DIM + 1), dtype=np.float32))
    beside.check(ALL)


def test_closed_shard_says_so(beside: Beside) -> None:
    beside.shard.close()
    with pytest.raises(IndexUnavailable, match="is closed"):
        beside.shard.candidates(None, [ALL], vector_of("apple")[None])
    beside.open()
