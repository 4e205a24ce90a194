"""Ways to write a chunk's KV, as bytes: as it is, without loss, in 8 bits, as CacheGen does, and Graft's own.

All take float32 and have the same entropy coder, a Zstandard frame for each layer; what is coded differs.

Shapes: L layers, T tokens, C channels (KV heads x head dim), A anchors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import zstandard

from serving.chunk_kv.chunk import ChunkKV
from serving.chunk_kv.kv_codec import BIN_SHARES, decode_chunk, encode_chunk, pack_numbers, unpack_numbers

GROUP = 10
"""Tokens of a group of CacheGen's, the first of which is its anchor."""
GROWTH = (0.5, 1.0, 1.5)
"""Width of CacheGen's bins in the first, second and last third of the layers, in the one given."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a chunk."""

    encode: Callable[[ChunkKV], bytes]
    """Takes KV in float32."""
    decode: Callable[[bytes, ChunkKV], ChunkKV]
    """Takes the bytes, and a chunk of the same shape."""


def forms() -> dict[str, Form]:
    """Return every form by the name of its arm."""
    found = {
        "none": _of_tensors(_to_raw, _from_raw),
        "lossless": _of_tensors(_to_planes, _from_planes),
        "int8": _of_tensors(_to_int8, _from_int8),
    }
    for bins, share in BIN_SHARES.items():
        found[f"cachegen_{bins}"] = _of_tensors(
            lambda values_LTC, share=share: _to_deltas(values_LTC, share), _from_deltas
        )
    for bins in BIN_SHARES:
        found[bins] = Form(lambda chunk, bins=bins: encode_chunk(chunk, bins) or b"", _decode_own)
    return found


def _decode_own(coded: bytes, like: ChunkKV) -> ChunkKV:
    del like
    return decode_chunk(coded)


def _of_tensors(
    encode: Callable[[np.ndarray], list[bytes]],
    decode: Callable[[list[bytes], tuple[int, int, int]], np.ndarray],
) -> Form:
    """Return the form that writes keys and values alike, each as some parts."""

    def encode_both(chunk: ChunkKV) -> bytes:
        return _join([_join(encode(one.flatten(2).numpy())) for one in (chunk.keys_LTHD, chunk.values_LTHD)])

    def decode_both(coded: bytes, like: ChunkKV) -> ChunkKV:
        num_layers, num_tokens, num_heads, head_dim = shape = like.keys_LTHD.shape
        flat = (num_layers, num_tokens, num_heads * head_dim)
        keys, values = (torch.from_numpy(decode(_split(part), flat)).view(shape) for part in _split(coded))
        return replace(like, keys_LTHD=keys, values_LTHD=values)

    return Form(encode_both, decode_both)


def _to_raw(values_LTC: np.ndarray) -> list[bytes]:
    return [values_LTC.tobytes()]


def _from_raw(parts: list[bytes], shape: tuple[int, int, int]) -> np.ndarray:
    return _floats(parts[0], *shape).copy()


def _to_planes(values_LTC: np.ndarray) -> list[bytes]:
    """Return by layer the first bytes of all numbers, then the second ones ..: exponents are much alike."""
    compressor = zstandard.ZstdCompressor(level=1)
    planes = [layer.reshape(-1).view(np.uint8).reshape(-1, 4).T for layer in values_LTC]
    return [compressor.compress(layer.tobytes()) for layer in planes]


def _from_planes(parts: list[bytes], shape: tuple[int, int, int]) -> np.ndarray:
    decompressor = zstandard.ZstdDecompressor()
    planes = [np.frombuffer(decompressor.decompress(part), np.uint8).reshape(4, -1).T for part in parts]
    return np.ascontiguousarray(planes).view(np.float32).reshape(shape)


def _to_int8(values_LTC: np.ndarray) -> list[bytes]:
    """Return each channel's smallest value and step, and by layer the steps from there."""
    low_L1C = values_LTC.min(1, keepdims=True)
    step_L1C = np.maximum((values_LTC.max(1, keepdims=True) - low_L1C) / 255, np.float32(1e-30))
    numbers_LTC = np.rint((values_LTC - low_L1C) / step_L1C) - 128
    return [low_L1C.tobytes(), step_L1C.tobytes(), *map(pack_numbers, numbers_LTC)]


def _from_int8(parts: list[bytes], shape: tuple[int, int, int]) -> np.ndarray:
    num_layers, num_tokens, num_channels = shape
    low_L1C, step_L1C = (_floats(part, num_layers, 1, num_channels) for part in parts[:2])
    numbers_LTC = np.stack([unpack_numbers(part, (num_tokens, num_channels)) for part in parts[2:]])
    return (numbers_LTC + np.float32(128)) * step_L1C + low_L1C


def _to_deltas(values_LTC: np.ndarray, share: float) -> list[bytes]:
    """Return anchors in 8 bits, and of the other tokens whole bins from their anchor.

    Bins are a share of the layer's root mean square, as `kv_codec` has them, times `GROWTH`.
    """
    num_layers, num_tokens, num_channels = values_LTC.shape
    anchors = _to_int8(values_LTC[:, ::GROUP])
    anchors_LAC = _from_int8(anchors, (num_layers, -(-num_tokens // GROUP), num_channels))
    growth_L = np.array([GROWTH[3 * layer // num_layers] for layer in range(num_layers)], np.float32)
    width_L = np.float32(share) * growth_L * np.sqrt(np.square(values_LTC).mean((1, 2)))
    others = np.flatnonzero(np.arange(num_tokens) % GROUP)
    deltas_LTC = values_LTC[:, others] - anchors_LAC[:, others // GROUP]
    numbers_LTC = np.rint(deltas_LTC / width_L[:, None, None])
    return [_join(anchors), width_L.tobytes(), *map(pack_numbers, numbers_LTC)]


def _from_deltas(parts: list[bytes], shape: tuple[int, int, int]) -> np.ndarray:
    num_layers, num_tokens, num_channels = shape
    anchors_LAC = _from_int8(_split(parts[0]), (num_layers, -(-num_tokens // GROUP), num_channels))
    values_LTC = anchors_LAC[:, np.arange(num_tokens) // GROUP]
    others = np.flatnonzero(np.arange(num_tokens) % GROUP)
    numbers_LTC = np.stack([unpack_numbers(part, (len(others), num_channels)) for part in parts[2:]])
    values_LTC[:, others] += numbers_LTC * _floats(parts[1], num_layers, 1, 1)
    return values_LTC


def _floats(content: bytes, *shape: int) -> np.ndarray:
    return np.frombuffer(content, np.float32).reshape(shape)


def _join(parts: Sequence[bytes]) -> bytes:
    sizes = np.array([len(parts), *map(len, parts)], np.uint32)
    return b"".join((sizes.tobytes(), *parts))


def _split(joined: bytes) -> list[bytes]:
    [num_parts] = np.frombuffer(joined, np.uint32, 1)
    ends = 4 * (1 + num_parts) + np.cumsum(np.frombuffer(joined, np.uint32, num_parts, 4), dtype=np.int64)
    return [joined[begin:end] for begin, end in zip((4 * (1 + num_parts), *ends), ends, strict=False)]
