"""A chunk's KV in few bytes: rounded to bins, as distances from each channel's mean, entropy-coded.

1. Keys are turned back to the position of the chunk's first token (`turned_by_place`): what then changes from
   token to token is the text's, not the position's. Decoding turns by the very same angles, so that wrong
   ones would cost bytes and never the KV.
2. Of keys and values alike, a layer has one width of bin: a share (`BIN_SHARES`) of its typical value, the
   root of the channels' mean squares, of which none counts for more than 16 times the median channel.
3. A channel's mean over the chunk is kept to a quarter of a bin, and of each value the number of whole bins
   that it is away from there.
4. The numbers of a layer are one Zstandard frame, whose Huffman code is made for them.

Error: at most half a bin for each value, and sqrt(2) / 2 bins for each key, whose error is turned with its
pair; to that comes the rounding of the number format. `bin_widths` says what bins a coded chunk has.

Bytes, little endian: header (format, number format, style of rotation, shape, start, number of angles);
angles float32[H]; then for keys and for values: widths float32[L], frame sizes uint32[1 + L], frames (means,
then each layer). Whoever keeps them adds a checksum; decoding checks the form alone.

All of it is NumPy, on one core: chunks are written by a thread beside the engine's, which has the cores.

Shapes: L layers, T tokens, H KV heads (of angles: rotary pairs), D head dim, C channels = H x D.

Source: CacheGen (Liu et al., SIGCOMM 2024) rounds by layer, as distances of ten tokens from the first of
them, on bins that grow with depth. Measured (`benchmarks.kv_codec`), tokens are nearer to their channel's
mean than to each other, and bins that grow gain nothing over a share of each layer's own size: both were left
out. KIVI (Liu et al., ICML 2024) for keys being alike by channel, KVQuant (Hooper et al., NeurIPS 2024) for
rounding them before they are turned.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Literal

import numpy as np
import torch
import zstandard

from serving.chunk_kv.chunk import ChunkKV, CorruptChunk
from serving.chunk_kv.key_rotation import RotaryAngles

Bins = Literal["fine", "medium", "coarse"]

BIN_SHARES: dict[Bins, float] = {"fine": 1 / 8, "medium": 1 / 4, "coarse": 1 / 2}
"""Width of a bin, as a share of a layer's typical value."""

_FORMAT = 1
_HEADER = struct.Struct("<4sBBBxIIIIqI")
_MAGIC = b"GRKV"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MEAN_PARTS = 4
"""Parts of a bin that a mean is kept to."""
_MAX_BINS = 8191
"""Most bins from zero to a layer's largest value, so that all numbers fit 16 bits; wider bins then."""
_MIN_WIDTH = 2.0**-100
"""Keeps the quotients of tiny values out of subnormal numbers."""
_MAX_CHANNEL = 16.0
"""What a channel counts for at most, in median ones: a few outliers are not to widen all bins (KVQuant)."""
_ZSTD = zstandard.ZstdCompressionParameters.from_level(1, min_match=7)
"""Matches of fewer than seven numbers cost more than their Huffman codes; level 19 would save 2 to 6 % more
at a hundredth of the speed."""


def encode_chunk(chunk: ChunkKV, bins: Bins) -> bytes | None:
    """Return a chunk as bytes, the same for the same chunk, or None where it has no such form.

    That is KV with a value that is not finite, without tokens, or in another number format than float32,
    bfloat16 and float16.

    Args:
        chunk: Tensors on the host. With `angles` its keys take fewer bytes.
        bins: How far values are rounded.
    """
    keys_LTHD, values_LTHD, angles = chunk.keys_LTHD, chunk.values_LTHD, chunk.angles
    if keys_LTHD.dtype not in _DTYPES or not keys_LTHD.numel():
        return None
    keys, values = keys_LTHD.float().numpy(), values_LTHD.float().numpy()
    radians = np.array(angles.radians if angles else (), "<f4")
    if angles is not None:
        angles = RotaryAngles(tuple(radians.tolist()), angles.is_neox_style)  # As decoding finds them.
        keys = turned_by_place(keys, angles, -1)
    if not (np.isfinite(keys).all() and np.isfinite(values).all()):
        return None
    header = _HEADER.pack(
        _MAGIC,
        _FORMAT,
        _DTYPES.index(keys_LTHD.dtype),
        bool(angles and angles.is_neox_style),
        *keys.shape,
        chunk.start,
        len(radians),
    )
    share = BIN_SHARES[bins]
    return b"".join((header, radians.tobytes(), _encode(keys, share), _encode(values, share)))


def decode_chunk(coded: bytes) -> ChunkKV:
    """Return the chunk of `encode_chunk`, rounded.

    Args:
        coded: What it returned, its checksum having been looked at.

    Raises:
        CorruptChunk: The bytes are not of that form, or of a later one.
    """
    stream = io.BytesIO(coded)
    dtype, shape, start, angles = _read_header(stream)
    keys, values = _decode(stream, shape), _decode(stream, shape)
    if stream.read(1):
        raise CorruptChunk("bytes follow the coded chunk")
    if angles is not None:
        keys = turned_by_place(keys, angles, 1)
    largest = torch.finfo(dtype).max
    keys_LTHD, values_LTHD = (
        torch.from_numpy(np.clip(one, -largest, largest, out=one)).to(dtype) for one in (keys, values)
    )
    return ChunkKV(keys_LTHD, values_LTHD, start, angles)


def bin_widths(coded: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the width of each layer's bins: float32[L] of keys, and of values.

    Raises:
        CorruptChunk: The bytes are not those of `encode_chunk`.
    """
    stream = io.BytesIO(coded)
    _, shape, _, _ = _read_header(stream)
    key_widths_L, _ = _read_frames(stream, shape[0])
    value_widths_L, _ = _read_frames(stream, shape[0])
    return key_widths_L, value_widths_L


def turned_by_place(keys_LTHD: np.ndarray, angles: RotaryAngles, direction: int) -> np.ndarray:
    """Return keys of which token t is turned by t positions; what is too large for that becomes infinite.

    Args:
        keys_LTHD: float32 keys of neighbouring tokens.
        angles: Of at most D / 2 pairs.
        direction: -1 to turn all to the position of the first, which makes them alike; 1 to undo that.
    """
    num_pairs = len(angles.radians)
    if angles.is_neox_style:
        first, second = slice(0, num_pairs), slice(num_pairs, 2 * num_pairs)
    else:
        first, second = slice(0, 2 * num_pairs, 2), slice(1, 2 * num_pairs, 2)
    turns_TH = np.outer(np.arange(keys_LTHD.shape[1]), direction * np.array(angles.radians))
    cos_T1H, sin_T1H = (function(turns_TH).astype(np.float32)[:, None] for function in (np.cos, np.sin))
    turned = keys_LTHD.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        turned[..., first] = keys_LTHD[..., first] * cos_T1H - keys_LTHD[..., second] * sin_T1H
        turned[..., second] = keys_LTHD[..., second] * cos_T1H + keys_LTHD[..., first] * sin_T1H
    return turned


def _encode(values_LTHD: np.ndarray, share: float) -> bytes:
    """Return widths, sizes and frames of finite float32 values."""
    values_LTC = values_LTHD.reshape(*values_LTHD.shape[:2], -1)
    peak_L11 = np.abs(values_LTC).max((1, 2), keepdims=True)
    # Squares and sums of values over their largest one cannot overflow.
    unit_L11 = np.where(peak_L11 > 0, peak_L11, np.float32(1))
    shares_LTC = values_LTC / unit_L11
    size_L1C = np.sqrt(np.square(shares_LTC).mean(1, keepdims=True))
    size_L1C = np.minimum(size_L1C, _MAX_CHANNEL * np.median(size_L1C, 2, keepdims=True))
    typical_L11 = np.sqrt(np.square(size_L1C).mean(2, keepdims=True))
    width_L11 = unit_L11 * np.maximum(share * typical_L11, 1 / _MAX_BINS)
    width_L11 = np.maximum(width_L11, _MIN_WIDTH).astype("<f4")
    means_L1C = np.rint(shares_LTC.mean(1, keepdims=True) * (unit_L11 / width_L11) * _MEAN_PARTS)
    numbers_LTC = np.rint(values_LTC / width_L11 - means_L1C / _MEAN_PARTS)
    frames = [pack_numbers(numbers) for numbers in (means_L1C, *numbers_LTC)]
    sizes = np.array([len(frame) for frame in frames], "<u4")
    return b"".join((width_L11.tobytes(), sizes.tobytes(), *frames))


def _decode(stream: io.BytesIO, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Return the float32[L, T, H, D] that `_encode` rounded, read from where the stream stands."""
    num_layers, num_tokens, num_channels = shape[0], shape[1], shape[2] * shape[3]
    widths_L, frames = _read_frames(stream, num_layers)
    means_LC = unpack_numbers(frames[0], (num_layers, num_channels)) / np.float32(_MEAN_PARTS)
    layers = []  # Nothing is set aside for a shape that no frame has.
    with np.errstate(over="ignore"):
        for frame, means_C, width in zip(frames[1:], means_LC, widths_L, strict=True):
            layers.append((unpack_numbers(frame, (num_tokens, num_channels)) + means_C) * width)
    return np.stack(layers).reshape(shape)


def pack_numbers(numbers: np.ndarray) -> bytes:
    """Return whole numbers of 16 bits in few bytes, best where most are near zero.

    The first byte says how many each number takes; a Zstandard frame follows. Numbers that need two are
    written as all their lower bytes and then all the higher ones, most of which are zero.

    Args:
        numbers: From -32,768 to 32,639, of any type and shape.
    """
    is_narrow = bool(np.abs(numbers).max() <= 127)
    if is_narrow:
        content = numbers.astype(np.int8)
    else:
        content = (numbers.ravel() + 128).astype("<i2").view(np.uint8).reshape(-1, 2).T
    compressor = zstandard.ZstdCompressor(compression_params=_ZSTD)
    return bytes([1 if is_narrow else 2]) + compressor.compress(content.tobytes())


def unpack_numbers(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return what `pack_numbers` packed, as int8 or int16.

    Raises:
        CorruptChunk: It is other than that, or of another shape.
    """
    width, frame = packed[0], packed[1:]
    count = math.prod(shape)
    try:
        if width not in (1, 2) or zstandard.frame_content_size(frame) != width * count:
            raise CorruptChunk("a frame of the coded chunk is not of its shape")
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptChunk(f"a frame of the coded chunk cannot be decoded: {error}") from error
    if width == 1:
        return np.frombuffer(content, np.int8).reshape(shape)
    planes = np.frombuffer(content, np.uint8).reshape(2, count)
    return (np.ascontiguousarray(planes.T).view("<i2") - 128).reshape(shape)


def _read_header(
    stream: io.BytesIO,
) -> tuple[torch.dtype, tuple[int, int, int, int], int, RotaryAngles | None]:
    magic, version, dtype, is_neox_style, *shape, start, num_angles = _HEADER.unpack(
        _read(stream, _HEADER.size)
    )
    if magic != _MAGIC or version != _FORMAT or dtype >= len(_DTYPES):
        raise CorruptChunk("the bytes are not a coded chunk of this format")
    num_layers, num_tokens, num_heads, head_dim = shape
    if not min(shape) or 2 * num_angles > head_dim:
        raise CorruptChunk(f"a coded chunk cannot have shape {shape} and {num_angles} angles")
    radians = np.frombuffer(_read(stream, 4 * num_angles), "<f4")
    angles = RotaryAngles(tuple(radians.tolist()), bool(is_neox_style)) if num_angles else None
    return _DTYPES[dtype], (num_layers, num_tokens, num_heads, head_dim), start, angles


def _read_frames(stream: io.BytesIO, num_layers: int) -> tuple[np.ndarray, list[bytes]]:
    widths_L = np.frombuffer(_read(stream, 4 * num_layers), "<f4")
    sizes = np.frombuffer(_read(stream, 4 * (1 + num_layers)), "<u4")
    if not sizes.all():
        raise CorruptChunk("a frame of the coded chunk is empty")
    return widths_L, [_read(stream, int(size)) for size in sizes]


def _read(stream: io.BytesIO, num_bytes: int) -> bytes:
    content = stream.read(num_bytes)
    if len(content) != num_bytes:
        raise CorruptChunk("the coded chunk is cut short")
    return content
