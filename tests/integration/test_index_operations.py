"""Records, filters, versions, snapshots, import and export through the SDK, HTTP and the command line."""

from __future__ import annotations

import json
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from test_cli import graft as command

from graft import Graft, GraftConfig, Index, Record, VersionState
from graft.index import AsyncIndex
from retrieval.errors import (
    InvalidDocument,
    InvalidFilter,
    InvalidMetadata,
    InvalidSearch,
    InvalidVector,
    InvalidVersion,
    UnknownVersion,
)

pytestmark = pytest.mark.integration

TREES = (
    Record("oak", "An oak drops acorns in autumn.", metadata={"height_m": 30, "evergreen": False}),
    Record("pine", "A pine keeps its needles in winter.", metadata={"height_m": 45, "evergreen": True}),
    Record("holly", "A holly bears red berries in winter.", metadata={"height_m": 10, "evergreen": True}),
)


@pytest.fixture(params=["here", "remote"])
def graft(request, platform: Graft, platform_url: str):
    """The platform in this process, and the same one over HTTP."""
    if request.param == "here":
        yield platform
    else:
        with Graft.connect(platform_url) as connected:
            yield connected


@pytest.fixture
def library(graft: Graft):
    name = f"trees-{uuid.uuid4().hex[:8]}"
    yield name
    for document in graft.documents(name):
        graft.delete(document.document_id)


def names(result) -> list[str]:
    return [passage.document for passage in result.passages]


def test_records_are_searchable_when_the_call_returns(graft: Graft, library: str):
    acknowledged = graft.upsert(TREES, library=library)
    assert acknowledged.count == 3
    found = graft.search("red berries", library=library, min_seq=acknowledged.seqs)
    assert names(found)[0] == "holly"
    graft.upsert([Record("holly", "A holly is cut for hedges.")], library=library)
    assert "berries" not in graft.search("red berries", library=library).passages[0].text


def test_filters_are_values_json_or_text(graft: Graft, library: str):
    graft.upsert(TREES, library=library)
    for given in (
        "evergreen and height_m < 40",
        {
            "and": [
                {"field": "evergreen", "op": "==", "value": True},
                {"field": "height_m", "op": "<", "value": 40},
            ]
        },
    ):
        assert names(graft.search("a tree in winter", library=library, filter=given)) == ["holly"]
    with pytest.raises(InvalidFilter, match="colour"):
        graft.search("a tree", library=library, filter="colour == 'red'")
    with pytest.raises(InvalidFilter, match="height_m"):
        graft.search("a tree", library=library, filter="height_m == 'tall'")


def test_explanation_shows_legs_plan_and_version(graft: Graft, library: str):
    graft.upsert(TREES, library=library)
    result = graft.search("needles in winter", library=library, explain=True)
    assert result.explanation is not None
    assert result.explanation.version == result.index_version
    assert result.explanation.plans
    assert result.explanation.terms == ("needl", "winter")
    assert {"dense", "lexical", "fuse"} <= {stage.name for stage in result.stages}
    assert all(hit.fused_score is not None for hit in result.hits)


def test_bad_records_are_refused_whole(graft: Graft, library: str):
    with pytest.raises(InvalidVector, match="3"):
        graft.upsert([TREES[0], Record("bad", "Words.", [1.0, 0.0, 0.0])], library=library)
    with pytest.raises(InvalidDocument, match=r"twice|two|same"):
        graft.upsert([TREES[0], TREES[0]], library=library)
    with pytest.raises(InvalidMetadata, match="height_m"):
        graft.upsert([*TREES, Record("odd", "Words.", metadata={"height_m": "tall"})], library=library)
    with pytest.raises(InvalidSearch):
        graft.search("a tree", k=0)
    assert graft.documents(library) == []


def test_metadata_of_files_filters_them(graft: Graft, library: str):
    added = graft.add("note.txt", b"The kettle is blue.", library=library, metadata={"year": 1999})
    graft.wait_ready([added.document_id])
    assert names(graft.search("kettle", library=library, filter="year == 1999")) == ["note.txt"]
    graft.add("note.txt", b"The kettle is blue.", library=library, metadata={"year": 2001})
    assert names(graft.search("kettle", library=library, filter="year == 1999")) == []
    assert graft.document(added.document_id).metadata == {"year": 2001}


def test_version_is_built_beside_switched_to_and_rolled_back(graft: Graft, library: str):
    graft.upsert(TREES, library=library)
    (active, *_) = graft.index.versions()
    assert active.state is VersionState.ACTIVE
    made = graft.index.reindex(vectors="int8")
    assert made.state is VersionState.READY
    assert graft.search("needles", library=library).index_version == active.version_id
    newest = graft.index.reindex(vectors="binary")  # It never answers.
    graft.index.set_alias("trial", made.version_id)
    assert graft.search("needles", library=library, version="trial").index_version == made.version_id
    assert graft.index.switch(made.version_id).state is VersionState.ACTIVE
    assert names(graft.search("needles", library=library))[0] == "pine"
    assert graft.index.rollback().version_id == active.version_id
    with pytest.raises(InvalidVersion):
        graft.index.drop_version(active.version_id)
    graft.index.set_alias("trial", None)
    graft.index.drop_version(newest.version_id)
    graft.index.drop_version(made.version_id)
    with pytest.raises(InvalidVersion, match="no version answered before"):
        graft.index.rollback()
    with pytest.raises(UnknownVersion, match=made.version_id):
        graft.search("needles", version=made.version_id)


def test_compaction_recall_segments_and_progress(graft: Graft, library: str):
    graft.upsert(TREES, library=library)
    (segment,) = [item for item in graft.index.compact() if item.num_rows]
    assert segment.num_delta_rows == 0
    estimate = graft.index.estimate_recall(20)
    assert 0.0 <= estimate.low <= estimate.recall <= estimate.high <= 1.0
    assert not estimate.alarm
    progress = graft.index.progress(library)
    assert (progress.num_documents, progress.num_ready, progress.num_under_way) == (3, 3, 0)


def test_snapshot_holds_what_was_acknowledged(graft: Graft, library: str, tmp_path: Path):
    graft.upsert(TREES, library=library)
    taken = graft.index.snapshot(tmp_path / "copy")
    assert taken.num_bytes > 0
    assert taken.seqs
    with pytest.raises(InvalidDocument, match="copy"):
        graft.index.snapshot(tmp_path / "copy")
    assert Graft.restore(tmp_path / "copy", GraftConfig(home=tmp_path / "home")) is None
    assert (tmp_path / "home" / "index" / "shard.sqlite3").exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_export_and_import_keep_records_and_vectors(graft: Graft, library: str, tmp_path: Path, suffix: str):
    graft.upsert(TREES, library=library)
    path = tmp_path / f"trees{suffix}"
    assert graft.index.export_file(path, library=library) == 3
    before = {record.text: record for batch in graft.index.export(library=library) for record in batch}
    for document in graft.documents(library):
        graft.delete(document.document_id)
    assert graft.index.import_file(path, library=library) == 3
    after = {record.text: record for batch in graft.index.export(library=library) for record in batch}
    assert before.keys() == after.keys()
    for text, record in before.items():
        assert dict(after[text].metadata) == dict(record.metadata)
        np.testing.assert_allclose(after[text].vector, record.vector, atol=1e-6)


def test_import_takes_more_than_one_question_may_weigh(graft: Graft, library: str, tmp_path: Path):
    path, vector = tmp_path / "many.jsonl", [0.123456789] * 384
    lines = [json.dumps({"name": f"n{row}", "text": f"Row {row}.", "vector": vector}) for row in range(300)]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert path.stat().st_size > 1_200_000
    assert graft.index.import_file(path, library=library) == 300
    assert graft.index.progress(library).num_ready == 300


def test_import_names_the_line_that_is_no_record(graft: Graft, library: str, tmp_path: Path):
    path = tmp_path / "trees.jsonl"
    path.write_text('{"name": "fir", "text": "A fir."}\n{"name": "elm"}\n', encoding="utf-8")
    with pytest.raises(InvalidDocument, match=r"line 2 .*text"):
        graft.index.import_file(path, library=library)
    with pytest.raises(InvalidDocument, match="neither"):
        graft.index.import_file(tmp_path / "trees.csv", library=library)


def test_folder_is_followed(graft: Graft, library: str, tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "first.txt").write_text("The first kettle is blue.", encoding="utf-8")
    seen: list[tuple[str, str]] = []
    ended = threading.Event()

    def follow() -> None:
        for item in graft.watch(tmp_path, library=library):
            seen.append((item.name, item.change))
            if ended.is_set():
                return

    def until(rule) -> None:
        ends_s = time.monotonic() + 60
        while not rule():
            assert time.monotonic() < ends_s, seen
            time.sleep(0.05)

    thread = threading.Thread(target=follow)
    thread.start()
    until(lambda: ("sub/first.txt", "ready") in seen)
    (tmp_path / "second.txt").write_text("The second kettle is red.", encoding="utf-8")
    until(lambda: ("second.txt", "ready") in seen)
    assert set(names(graft.search("kettle", library=library))) == {"sub/first.txt", "second.txt"}
    ended.set()
    (tmp_path / "second.txt").unlink()
    thread.join(60)
    assert not thread.is_alive()
    assert ("second.txt", "deleted") in seen
    assert names(graft.search("kettle", library=library)) == ["sub/first.txt"]


def test_commands_of_the_index(platform_url: str, tmp_path: Path):
    path = tmp_path / "kettles.jsonl"
    path.write_text(
        "".join(
            json.dumps({"name": f"kettle-{year}", "text": f"A kettle of {year}.", "metadata": {"made": year}})
            + "\n"
            for year in (1990, 2000, 2010)
        ),
        encoding="utf-8",
    )
    name = f"kettles-{uuid.uuid4().hex[:8]}"
    assert "stored 3 records" in command("index", "import", str(path), "--library", name)
    shown = command("search", "kettle", "--library", name, "--where", "made > 1995", "--explain")
    assert "kettle-1990" not in shown
    assert "version" in shown
    found = json.loads(command("search", "kettle", "--library", name, "--where", "made == 1990", "--json"))
    assert [item["document"] for item in found["passages"]] == ["kettle-1990"]
    assert "shade" in command("search", "kettle", "--where", "shade == 1", code=1)
    assert json.loads(command("index", "versions", "--json"))[0]["state"] == "active"
    assert json.loads(command("index", "segments", "--json"))
    assert "recall@10" in command("index", "recall", "--queries", "10")
    assert "ready" in command("index", "progress", "--library", name)
    target = tmp_path / "out.parquet"
    assert "wrote 3 records" in command("index", "export", str(target), "--library", name)
    assert "stop it first" in command("index", "restore", str(tmp_path), code=1)
    for item in json.loads(command("documents", "--library", name, "--json")):
        command("delete", item["document_id"])


def test_every_operation_has_a_twin():
    for name in (name for name in vars(AsyncIndex) if not name.startswith("_")):
        assert hasattr(Index, name), name
        assert hasattr(Index, f"a{name}"), name
