"""Every `graft index` command, and what else the command line does with an index, on a running platform."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graft import Graft, StartError
from graft.cli import app
from graft.index_cli import index_app
from retrieval.errors import InvalidVersion

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
RUNNER = CliRunner()


def graft(*arguments: str | Path, code: int = 0) -> str:
    """Return what a command prints; it attaches to the platform as one of a shell would."""
    done = RUNNER.invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def values(*arguments: str | Path):
    return json.loads(graft(*arguments, "--json"))


@pytest.fixture
def kettles(platform_url: str, tmp_path: Path) -> Iterator[str]:
    """A library of three records, made by the command line."""
    name = f"kettles-{uuid.uuid4().hex[:8]}"
    path = tmp_path / "kettles.jsonl"
    lines = [
        {"name": f"kettle-{year}", "text": f"A kettle made in {year}.", "metadata": {"made": year}}
        for year in (1990, 2000, 2010)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert "stored 3 records" in graft("index", "import", path, "--library", name)
    yield name
    graft("delete", *(item["document_id"] for item in values("documents", "--library", name)))


def test_index_commands_walk_an_index_through_its_life(
    kettles: str, platform: Graft, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: set[str] = {"import"}

    def index(command: str, *arguments: str | Path, code: int = 0) -> str:
        walked.add(command)
        return graft("index", command, *arguments, code=code)

    def active() -> str:
        first = json.loads(index("versions", "--json"))[0]
        assert first["state"] == "active"
        return first["version_id"]

    # Versions: one is built, named, switched to, rolled back from and dropped.
    first = active()
    (made,) = json.loads(index("reindex", "--vectors", "int8", "--kind", "exact", "--json"))
    second = made["version_id"]
    assert (made["state"], active()) == ("ready", first)
    assert index("alias", "trial", second) == f"trial -> {second}\n"
    (switched,) = json.loads(index("switch", "trial", "--json"))
    assert (switched["state"], active()) == ("active", second)
    assert first in index("rollback", "--json")
    with pytest.raises(InvalidVersion, match="trial"):
        index("drop", second)
    assert index("alias", "trial") == "removed trial\n"
    assert index("drop", second) == f"dropped {second}\n"
    (third,) = json.loads(index("reindex", "--vectors", "float16", "--switch", "--json"))
    assert active() == third["version_id"]
    assert first in index("rollback", "--json")
    assert index("collect", "--keep", "0") == f"removed {third['version_id']}\n"
    assert index("collect") == "nothing to remove\n"

    # Segments, recall and progress.
    (compacted,) = [item for item in json.loads(index("compact", "--json")) if item["version_id"] == first]
    assert compacted["num_delta_rows"] == 0
    assert compacted["num_rows"] >= 3
    assert first in {item["version_id"] for item in json.loads(index("segments", "--json"))}
    assert "recall@10" in index("recall", "--queries", "10")
    assert "3 of 3 ready" in index("progress", "--library", kettles)

    # A snapshot is restored into the home folder of a platform that does not run.
    assert "bytes" in index("snapshot", tmp_path / "snapshot")
    with pytest.raises(StartError, match="stop it first"):
        index("restore", tmp_path / "snapshot")
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "elsewhere"))
    for kept in (False, True):
        assert ("what was there is in" in index("restore", tmp_path / "snapshot")) is kept
    monkeypatch.setenv("GRAFT_HOME", str(home))
    with sqlite3.connect(tmp_path / "elsewhere" / "index" / "shard.sqlite3") as db:
        restored = db.execute("SELECT count(*) FROM documents WHERE library=?", (kettles,)).fetchone()
    assert restored == (3,)

    assert "wrote 3 records" in index("export", tmp_path / "out.parquet", "--library", kettles)

    # Shards: two of them answer alike, and one again.
    asked = ("search", "a kettle of 1990", "--library", kettles, "-k", "3")
    before = values(*asked)["passages"]
    assert index("reshard", "2").startswith("2 shards,")
    found = json.loads(index("shards", "--json"))
    assert [(item["shard"], item["is_primary"], item["error"]) for item in found] == [
        (0, True, None), (1, True, None),
    ]  # fmt: skip
    assert values(*asked)["passages"] == before
    with pytest.raises(InvalidVersion, match="no shard 7"):
        index("promote", "7")
    assert index("reshard", "1").startswith("1 shard,")
    assert "primary" in index("shards")
    assert values(*asked)["passages"] == before

    assert walked == {command.name or command.callback.__name__ for command in index_app.registered_commands}  # pyright: ignore


def test_every_search_flag_reaches_the_search(kettles: str) -> None:
    (first, *_) = values("documents", "--library", kettles)
    asked = ("search", "a kettle", "--library", kettles)
    (passage,) = values(*asked, "--document", first["document_id"])["passages"]
    assert passage["document"] == first["name"]
    found = values(*asked, "--exact", "--fusion", "rrf", "--mmr", "0.5", "--expand", "neighbours",
                   "--alpha", "1", "--deadline", "30", "--explain")  # fmt: skip
    assert len(found["hits"]) == 3
    assert "mmr" in {stage["name"] for stage in found["stages"]}
    graft(*asked, "--fusion", "sum", code=2)
    graft(*asked, "--expand", "page", code=2)


def test_libraries_are_listed(kettles: str) -> None:
    (mine,) = [item for item in values("libraries") if item["name"] == kettles]
    assert (mine["num_documents"], mine["num_ready"]) == (3, 3)
    assert kettles in graft("libraries")


def test_ingest_watch_follows_a_folder_until_interrupted(platform: Graft, platform_url: str, tmp_path: Path):
    library = f"watched-{uuid.uuid4().hex[:8]}"
    (tmp_path / "first.txt").write_text("The first kettle is blue.", encoding="utf-8")
    following = subprocess.Popen(
        [sys.executable, "-m", "graft.cli", "ingest", str(tmp_path), "--watch", "--library", library,
         "--metadata", "year=1990", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ),
    )  # fmt: skip
    try:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline()) == {
            "name": "first.txt", "change": "ready", "cause": None,
        }  # fmt: skip
        (tmp_path / "second.txt").write_text("The second kettle is red.", encoding="utf-8")
        assert json.loads(following.stdout.readline())["name"] == "second.txt"
        following.send_signal(signal.SIGINT)
        _, said = following.communicate(timeout=60)
    finally:
        following.kill()
    assert following.returncode == 0, said
    assert "stopped watching" in said
    found = platform.search("kettle", library=library, filter="year == 1990")
    assert {passage.document for passage in found.passages} == {"first.txt", "second.txt"}
    for document in platform.documents(library):
        platform.delete(document.document_id)
