"""Many files into the running platform: by its own bulk path, here and attached, whole, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from graft import Document, DocumentState, Graft
from graft.cli import app
from graft.folders import source_files
from graft.peer import is_own_process
from retrieval.errors import IngestTimeout, InvalidDocument, InvalidMetadata
from retrieval.ingestion.bulk import BulkProgress

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    # Ray 2.60's DataContext warns of its own deprecated fields when it is made.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
    pytest.mark.filterwarnings("ignore:`target_shuffle_max_block_size` is deprecated:UserWarning"),
]
ROOT = Path(__file__).resolve().parents[2]
NUM_FILES = 210
"""Above the platform's `retrieval.bulk_files`."""


@pytest.fixture(params=["here", "remote"])
def graft(request: pytest.FixtureRequest, platform: Graft, platform_url: str) -> Iterator[Graft]:
    """The platform in this process, and the same one over HTTP."""
    if request.param == "here":
        yield platform
    else:
        with Graft.connect(platform_url) as connected:
            yield connected


@pytest.fixture
def library(platform: Graft) -> Iterator[str]:
    name = f"many-{uuid.uuid4().hex[:8]}"
    yield name
    for suffix in ("", "-single"):
        for document in platform.documents(name + suffix):
            platform.delete(document.document_id)


def written(folder: Path, count: int = NUM_FILES, filler: str = "") -> None:
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        page = f"<html><body><p>Plot {number} gave {number + 5_000} sacks.</p><!-- {filler} --></body></html>"
        (folder / "sub" / f"{number}.html").write_text(page, encoding="utf-8")


def settled(documents: list[Document]) -> dict[str, tuple[object, ...]]:
    """Return what became of documents, whenever and in whichever library."""
    return {
        one.name: (one.state, one.error, one.num_chunks, one.num_pages, one.content_hash, dict(one.metadata))
        for one in documents
    }


def test_many_files_become_what_single_adds_make_of_them(graft: Graft, library: str, tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 nothing more")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "two\nlines.txt").write_text("Not with this name.", encoding="utf-8")
    seen: list[BulkProgress] = []
    files = source_files([tmp_path])
    found = graft.ingest_files(files, library=library, metadata={"year": 1901}, on_progress=seen.append)
    single = graft.ingest_files(files[:4] + files[-4:], library=f"{library}-single", metadata={"year": 1901})
    assert {one.name for one in found.refused} == {one.name for one in single.refused}
    assert {one.name: one.cause for one in found.refused} == {one.name: one.cause for one in single.refused}
    made = settled(list(found.documents))
    assert settled(graft.documents(library)) == made
    assert len(made) == NUM_FILES + 1
    assert settled(list(single.documents)).items() <= made.items()
    assert [name for name, values in made.items() if values[0] is not DocumentState.READY] == ["broken.pdf"]
    last = seen[-1]
    assert (last.files_done, last.num_files) == (NUM_FILES + 3, NUM_FILES + 3)
    assert (last.num_ready, last.num_failed, last.num_refused) == (NUM_FILES, 1, 2)
    assert last.num_chunks == NUM_FILES
    assert last.sent_because == ""
    told = {failure.name for progress in seen for failure in progress.failures}
    assert told == {"broken.pdf", "empty.txt", "two\nlines.txt"}
    result = graft.search(
        "Which plot gave 5013 sacks?", library=library, filter="year == 1901", mode="lexical"
    )
    assert result.passages[0].document == "sub/13.html"
    with pytest.raises(InvalidDocument, match=r"2 of 213 files cannot be read, all others are in"):
        graft.ingest(tmp_path, library=library)


def test_mistakes_and_a_short_patience_keep_their_class(graft: Graft, library: str, tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(InvalidMetadata):
        graft.ingest(tmp_path, library=library, metadata={"no field name": 1})
    with pytest.raises(IngestTimeout, match="ingest the same paths again"):
        graft.ingest(tmp_path, library=library, timeout_s=0.001)
    assert graft.documents(library) == []


def test_what_may_not_be_read_in_place_is_sent_and_the_reason_told(
    platform_url: str, library: str, tmp_path: Path
) -> None:
    hidden = tmp_path / ".kept"
    written(hidden, 3)
    seen: list[BulkProgress] = []
    with Graft.connect(platform_url) as connected:
        connected._core._backend.bulk_files = 3
        documents = connected.ingest(hidden, library=library, on_progress=seen.append)
    assert {document.state for document in documents} == {DocumentState.READY}
    assert {progress.sent_because for progress in seen[1:]} == {
        f"'{hidden / 'sub' / '0.html'}' is hidden, and hidden files are not read in place"
    }


def test_a_path_outside_the_folders_is_refused_over_http(platform_url: str) -> None:
    for path in ("/etc/hostname", "/etc/absent"):
        file = {"name": "x", "path": path, "num_bytes": 1, "modified_ns": 1}
        answer = httpx.post(f"{platform_url}/v1/ingest", json={"files": [file]}, timeout=60)
        assert answer.status_code == 409
        assert answer.json()["error"]["type"] == "NotInPlace"
        assert "server.ingest_folders" in answer.json()["error"]["message"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_other_end_of_a_connection_is_known_by_its_user(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with listener, socket.create_connection(listener.getsockname()[:2]) as client:
        connection, _ = listener.accept()
        with connection:
            ends = client.getsockname()[:2], connection.getsockname()[:2]
            assert is_own_process(*ends)
            assert not is_own_process((ends[0][0], 1), ends[1])
    assert not is_own_process(("198.51.100.7", 5), ends[1])


def command(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "graft.cli", "ingest", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ),
    )  # fmt: skip


def test_a_client_that_stops_or_is_killed_leaves_what_was_stored_and_the_next_completes_it(
    platform: Graft, platform_url: str, library: str, tmp_path: Path
) -> None:
    written(tmp_path, filler="x" * 2**19)  # So much that it takes several blocks.
    working = platform._core._backend._ingesting
    held: dict[str, Document] = {}
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        client = command(tmp_path, "--library", library)
        try:
            ends_s = time.monotonic() + 240
            while len(platform.documents(library)) <= len(held):
                assert client.poll() is None, client.communicate()
                assert time.monotonic() < ends_s
                time.sleep(0.05)
            client.send_signal(number)
            _, said = client.communicate(timeout=60)
        finally:
            client.kill()
        assert client.returncode == status, said
        if number is signal.SIGINT:
            assert "what was taken in stays" in said
            assert "files ready" in said
        ends_s = time.monotonic() + 120
        while working.locked():
            assert time.monotonic() < ends_s
            time.sleep(0.05)
        now = {one.document_id: one for one in platform.documents(library)}
        assert len(held) < len(now) < NUM_FILES
        assert {one.state for one in now.values()} == {DocumentState.READY}
        assert {key: now[key] for key in held} == held
        held = now
    documents = {one.document_id: one for one in platform.ingest(tmp_path, library=library)}
    assert len(documents) == NUM_FILES
    assert {one.state for one in documents.values()} == {DocumentState.READY}
    assert {key: documents[key] for key in held} == held


RUNNER = CliRunner()


def test_the_command_lists_every_cause_and_exits_1(platform_url: str, library: str, tmp_path: Path) -> None:
    written(tmp_path, 2)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 nothing more")
    (tmp_path / "empty.txt").write_bytes(b"")
    done = RUNNER.invoke(app, ["ingest", str(tmp_path), "--library", library])
    assert done.exit_code == 1
    assert "broken.pdf" in done.stdout
    assert "failed" in done.stdout
    assert "refused  empty.txt" in done.stdout
    assert "2 of 4 files are searchable" in done.stdout
    assert "2 of 4 files ready, 1 failed, 1 refused" in done.stderr
    done = RUNNER.invoke(app, ["ingest", str(tmp_path), "--library", library, "--json"])
    assert done.exit_code == 1
    states = {item["name"]: (item["state"], item["error"]) for item in json.loads(done.stdout)}
    assert states["empty.txt"][0] == "refused"
    assert "0 bytes" in states["empty.txt"][1]
    assert states["broken.pdf"][0] == "failed"


def test_the_command_need_not_wait(platform: Graft, platform_url: str, library: str, tmp_path: Path) -> None:
    written(tmp_path, 3)
    done = RUNNER.invoke(app, ["ingest", str(tmp_path), "--library", library, "--no-wait", "--json"])
    assert done.exit_code == 0
    documents = json.loads(done.stdout)
    ready = platform.wait_ready([item["document_id"] for item in documents], timeout_s=120)
    assert {document.state for document in ready} == {DocumentState.READY}
    for options in (("--no-wait", "--timeout", "5"), ("--no-wait", "--watch"), ("--watch", "--timeout", "5")):
        assert RUNNER.invoke(app, ["ingest", str(tmp_path), *options]).exit_code == 2


def test_a_watched_folder_of_many_files_goes_in_together(
    platform: Graft, platform_url: str, library: str, tmp_path: Path
) -> None:
    written(tmp_path)
    (tmp_path / "empty.txt").write_bytes(b"")
    seen: list[BulkProgress] = []
    changes: dict[str, str] = {}
    with Graft.connect(platform_url) as connected:
        for item in connected.watch(tmp_path, library=library, on_progress=seen.append):
            changes[item.name] = item.change
            if len(changes) == NUM_FILES + 1:
                break
    assert changes.pop("empty.txt") == "refused"
    assert set(changes.values()) == {"ready"}
    assert (seen[-1].num_ready, seen[-1].sent_because) == (NUM_FILES, "")
