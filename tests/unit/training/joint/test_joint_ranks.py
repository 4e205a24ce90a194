"""Several ranks train as one; a killed run ends with the bytes of one that lived."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

VICTIM = Path(__file__).with_name("joint_victim.py")
WAIT_S = 280


def _start(folder: Path, encoder: Path, reader: Path, changes: dict, **environment: str) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"errors-{environment.get('RANK', '0')}.txt").open("a") as errors:
        return subprocess.Popen(
            [sys.executable, str(VICTIM), str(folder), str(encoder), str(reader), json.dumps(changes)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            cwd=VICTIM.parents[4],
        )


def _start_ranks(world_size: int, *arguments) -> list[subprocess.Popen]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [_start(*arguments, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(world_size)]


def _finish(processes: list[subprocess.Popen], folder: Path) -> None:
    try:
        for process in processes:
            process.communicate(timeout=WAIT_S)
            assert process.returncode == 0, "".join(p.read_text() for p in folder.glob("errors-*"))[-3000:]
    finally:
        for process in processes:
            process.kill()


def _log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((folder / "checkpoints" / "step-8").glob("*.distcp")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def alone(tiny_encoder: Path, tiny_reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    _finish([_start(folder, tiny_encoder, tiny_reader, {})], folder)
    return folder


def test_run_killed_while_an_index_is_encoded_ends_with_the_same_bytes(
    alone: Path, tiny_encoder: Path, tiny_reader: Path, tmp_path: Path
):
    process = _start(tmp_path, tiny_encoder, tiny_reader, {})
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3 "):  # Version 1 is under way since step 3 and searched from step 5.
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(timeout=WAIT_S) == -signal.SIGKILL
    process.stdout.close()
    _finish([_start(tmp_path, tiny_encoder, tiny_reader, {})], tmp_path)
    assert _log(tmp_path) == _log(alone)
    assert _weights(tmp_path) == _weights(alone)


def test_two_ranks_train_as_one(alone: Path, tiny_encoder: Path, tiny_reader: Path, tmp_path: Path):
    _finish(_start_ranks(2, tmp_path, tiny_encoder, tiny_reader, {}), tmp_path)
    for left, right in zip(_log(alone), _log(tmp_path), strict=True):
        assert left["index/staleness"] == right["index/staleness"]
        for name in ("loss", "loss/retriever", "loss/reader", "loss/contrastive", "search/recall"):
            assert left[name] == pytest.approx(right[name], rel=0.02, abs=1e-3), (left["step"], name)
    first, second = _log(alone)[0], _log(tmp_path)[0]
    for name in ("loss", "grad_norm/retriever", "grad_norm/reader"):
        assert first[name] == pytest.approx(second[name], rel=1e-4)


def test_two_ranks_share_a_reader_and_resume_whole_on_one(
    alone: Path, tiny_encoder: Path, tiny_reader: Path, tmp_path: Path
):
    shared = {"sharding": "fsdp2_offload"}
    processes = _start_ranks(2, tmp_path, tiny_encoder, tiny_reader, shared)
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        if line.startswith("step 4 "):
            for process in processes:
                process.send_signal(signal.SIGKILL)
            break
    for process in processes:
        process.wait(timeout=WAIT_S)
        process.stdout.close()
    _finish([_start(tmp_path, tiny_encoder, tiny_reader, {})], tmp_path)
    for left, right in zip(_log(alone), _log(tmp_path), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=0.02, abs=1e-3)
    whole = load_file(alone / "candidate" / "reader" / "model.safetensors")
    resumed = load_file(tmp_path / "candidate" / "reader" / "model.safetensors")
    assert {name: weight.shape for name, weight in whole.items()} == {
        name: weight.shape for name, weight in resumed.items()
    }
