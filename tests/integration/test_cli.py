"""The command line against the running platform, and the examples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def graft(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "graft.cli", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_ask_json_quotes_are_the_documents_text(platform, platform_url):
    answer = json.loads(graft("ask", "What problem does PagedAttention solve?", "--json"))
    assert set(answer) >= {"answer", "citations", "stop_reason", "timings_ms", "release"}
    assert answer["citations"]
    for citation in answer["citations"]:
        text = platform.text(citation["document_id"]).text
        assert citation["quote"] == text[citation["start"] : citation["end"]]


def test_ask_and_search_for_people(platform_url):
    assert "[1]" in graft("ask", "What does GraphRAG build from documents?")
    assert "paged-attention.md" in graft("search", "paged attention blocks", "-k", "3")


def test_ingest_documents_delete(platform_url, tmp_path):
    (tmp_path / "notes.md").write_text("The blue kettle weighs 912 grams.\n")
    (tmp_path / "skipped.bin").write_bytes(b"\x00\x01")
    [added] = json.loads(graft("ingest", str(tmp_path), "--library", "kitchen", "--json"))
    assert (added["name"], added["state"]) == ("notes.md", "ready")
    assert "notes.md" in graft("documents", "--library", "kitchen")
    [found] = json.loads(graft("documents", "--library", "kitchen", "--json"))
    assert found["document_id"] == added["document_id"]
    assert "deleted" in graft("delete", added["document_id"])
    assert json.loads(graft("documents", "--library", "kitchen", "--json")) == []


def test_failed_document_says_why_and_exits_1(platform_url, tmp_path):
    path = tmp_path / "broken.pdf"
    path.write_bytes(b"%PDF-1.7 nonsense")
    out = subprocess.run(
        [sys.executable, "-m", "graft.cli", "ingest", str(path), "--library", "bad", "--json"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert out.returncode == 1
    [document] = json.loads(out.stdout)
    assert document["state"] == "failed"
    assert "broken.pdf" in document["error"]


def test_status_and_doctor(platform_url):
    assert platform_url in graft("status")
    findings = {item["check"]: item for item in json.loads(graft("doctor", "--json"))}
    assert findings["port"]["verdict"] == "ok"
    assert all(item["verdict"] != "fail" for item in findings.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ask", "x", "--set", "servre.port=1"), "did you mean server?"),
        (("ask", "x", "--config", "absent.toml"), "absent.toml does not exist"),
        (("ask", " "), "empty"),
        (("ask", "x", "--graph", "zzz"), "zzz"),
        (("delete", "none"), "none"),
        (("ingest", "absent.md"), "does not exist"),
    ],
)
def test_mistake_is_one_clear_line(platform_url, arguments, words):
    message = graft(*arguments, code=1)
    assert words in message
    assert "Traceback" not in message


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(platform_url, example):
    done = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_are_five_examples():
    assert len(EXAMPLES) == 5
