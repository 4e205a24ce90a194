"""One chunk's KV as one file: whole and checked, or not there.

A file holds the tensors `keys` and `values` as they are, or one tensor `coded`, the bytes of `kv_codec`: what
it holds says which, and either is read.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import xxhash

from serving.chunk_kv.chunk import ChunkKV, CorruptChunk
from serving.chunk_kv.kv_codec import decode_chunk, encode_chunk
from serving.config import KVCodec

SUFFIX = ".safetensors"
PARTIAL_SUFFIX = ".partial"
"""Ends the names of files that were not finished; the owner of the folder may delete them."""

_CODED = "coded"


def write_chunk(path: Path, key: str, chunk: ChunkKV, codec: KVCodec = "none") -> int:
    """Write a chunk under another name and rename it into place; returns the size of the file in bytes.

    Nothing is flushed to disk: after a power cut the checksum tells a torn file, and its chunk is computed
    again.

    Args:
        path: Replaced when it exists.
        key: The chunk's key, which the file must name when it is read.
        chunk: Its KV; tensors on the host.
        codec: How it is written; KV that the codec does not take is written as it is.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    coded = None if codec == "none" else encode_chunk(chunk, codec)
    if coded is None:
        tensors = {"keys": chunk.keys_LTHD.contiguous(), "values": chunk.values_LTHD.contiguous()}
        metadata = {"start": str(chunk.start)}
    else:
        tensors = {_CODED: torch.frombuffer(bytearray(coded), dtype=torch.uint8)}
        metadata = {"num_tokens": str(chunk.num_tokens)}
    metadata |= {"key": key, "checksum": _checksum(tensors)}
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    content = safetensors.torch.save(tensors, metadata)
    try:
        # Not by `save_file`, which has a name of its own for a file that is not finished.
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return len(content)


def read_chunk(path: Path, key: str) -> ChunkKV:
    """Return what `write_chunk` wrote.

    Raises:
        CorruptChunk: The file is torn, changed, or holds another key.
        OSError: It cannot be read, or is not there.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = (_CODED,) if _CODED in file.keys() else ("keys", "values")  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        raise CorruptChunk(f"{path.name}: {error}") from error
    if metadata.get("key") != key:
        raise CorruptChunk(f"{path.name} holds chunk {metadata.get('key')}, not {key}")
    if metadata.get("checksum") != _checksum(tensors):
        raise CorruptChunk(f"{path.name}: the checksum does not match")
    try:
        if _CODED in tensors:
            return decode_chunk(tensors[_CODED].numpy().tobytes())
        return ChunkKV(tensors["keys"], tensors["values"], int(metadata["start"]))
    except (CorruptChunk, KeyError, ValueError) as error:
        raise CorruptChunk(f"{path.name}: {error}") from error


def num_tokens_in(path: Path) -> int:
    """Return the length of the chunk in a file, from its header alone.

    Raises:
        CorruptChunk: The header is not one of `write_chunk`, or the file is shorter than it says.
        OSError: The file cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if _CODED in file.keys():  # noqa: SIM118
                return int((file.metadata() or {})["num_tokens"])
            return file.get_slice("keys").get_shape()[1]
    except (safetensors.SafetensorError, KeyError, IndexError, ValueError) as error:
        raise CorruptChunk(f"{path.name}: {error}") from error


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()
