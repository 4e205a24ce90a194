"""Token vectors of a passage as bytes: what late interaction keeps of each of its tokens.

A code is a header (number of tokens, dimensions) and one fixed-length row a token. Vectors are unit length,
so a component is about Gaussian with deviation 1/sqrt(dim); `int4` is the 16-level Lloyd-Max quantizer of
that Gaussian and `sign` its 2-level one, with one codebook for all tokens; `int8` is linear with a scale a
token. Bytes a token at 384 dimensions: 48 (`sign`), 192 (`int4`), 386 (`int8`); float32 is 1,536.

Source: Max, "Quantizing for Minimum Distortion", IRE Transactions on Information Theory 1960, table I.

Shapes: T tokens, D dimensions, B bytes of a token.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from retrieval.errors import IndexUnavailable
from retrieval.versions import TokenCodec

_HEADER = struct.Struct("<HH")
_MAX_TOKENS = 0xFFFF

# Output levels of the 16-level Lloyd-Max quantizer of a unit Gaussian; borders lie midway.
_POSITIVE_LEVELS = (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733)
_LEVELS_16 = np.array([*(-level for level in reversed(_POSITIVE_LEVELS)), *_POSITIVE_LEVELS], np.float32)
_BORDERS_15 = (_LEVELS_16[1:] + _LEVELS_16[:-1]) / 2
_NIBBLE_PAIRS_256x2 = np.stack([_LEVELS_16[np.arange(256) >> 4], _LEVELS_16[np.arange(256) & 15]], axis=1)
_BITS_256x8 = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1


def bytes_per_token(codec: TokenCodec, dim: int) -> int:
    """Return the length of one token's row; 0 for `none`."""
    return {"none": 0, "sign": -(-dim // 8), "int4": -(-dim // 2), "int8": dim + 2}[codec]


def encode(tokens_TD: np.ndarray, codec: TokenCodec) -> bytes:
    """Return the codes of a text's token vectors.

    Args:
        tokens_TD: float32[num_tokens, dim], unit length, at most 65,535 tokens.
        codec: `sign`, `int4` or `int8`.
    """
    num_tokens, dim = tokens_TD.shape
    if num_tokens > _MAX_TOKENS:
        raise ValueError(f"{num_tokens:,} tokens in one text, above the {_MAX_TOKENS:,} a code can count")
    header = _HEADER.pack(num_tokens, dim)
    if codec == "sign":
        return header + np.packbits(tokens_TD > 0, axis=1).tobytes()
    if codec == "int4":
        nibbles_TD = np.searchsorted(_BORDERS_15, tokens_TD * np.sqrt(dim)).astype(np.uint8)
        if dim % 2:
            nibbles_TD = np.pad(nibbles_TD, ((0, 0), (0, 1)))
        return header + (nibbles_TD[:, 0::2] << 4 | nibbles_TD[:, 1::2]).tobytes()
    if codec == "int8":
        scales_T1 = (np.abs(tokens_TD).max(axis=1, keepdims=True, initial=0.0) / 127).astype(np.float16)
        steps_T1 = np.maximum(scales_T1.astype(np.float32), np.finfo(np.float16).tiny)
        codes_TD = np.clip(np.rint(tokens_TD / steps_T1), -127, 127).astype(np.int8)
        return header + np.concatenate([scales_T1.view(np.int8), codes_TD], axis=1).tobytes()
    raise ValueError(f"token vectors cannot be kept as {codec!r}; give sign, int4 or int8")


def num_tokens(codes: bytes) -> int:
    """Return how many tokens a text's codes hold."""
    return int(_HEADER.unpack_from(codes)[0])


def decode(codes: bytes, codec: TokenCodec, dim: int) -> np.ndarray:
    """Return float32[num_tokens, dim], about the vectors that `encode` was given.

    Raises:
        IndexUnavailable: The bytes are not codes of this codec and dimension.
    """
    return decode_all((codes,), codec, dim)[0]


def decode_all(codes: Sequence[bytes], codec: TokenCodec, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the token vectors of several texts, float32[all tokens, dim], and int64[len(codes)] counts.

    Raises:
        IndexUnavailable: The bytes of a text are not codes of this codec and dimension.
    """
    width = bytes_per_token(codec, dim)
    counts = np.empty(len(codes), np.int64)
    for position, code in enumerate(codes):
        known = len(code) >= _HEADER.size and width > 0
        counts[position], code_dim = _HEADER.unpack_from(code) if known else (0, 0)
        if not known or code_dim != dim or len(code) != _HEADER.size + counts[position] * width:
            raise IndexUnavailable(
                f"{len(code):,} bytes of token codes are not {codec} codes of {dim} dimensions; "
                "the index version was made by another model or is damaged: build it anew"
            )
    joined = b"".join(memoryview(code)[_HEADER.size :] for code in codes)
    rows_TB = np.frombuffer(joined, np.uint8).reshape(-1, width)
    if codec == "sign":
        tokens_TD = _BITS_256x8.take(rows_TB, axis=0).reshape(len(rows_TB), width * 8)[:, :dim]
        return tokens_TD * np.float32(1 / np.sqrt(dim)), counts
    if codec == "int4":
        tokens_TD = _NIBBLE_PAIRS_256x2.take(rows_TB, axis=0).reshape(len(rows_TB), width * 2)[:, :dim]
        return tokens_TD * np.float32(1 / np.sqrt(dim)), counts
    scales_T1 = np.ascontiguousarray(rows_TB[:, :2]).view(np.float16).astype(np.float32)
    return rows_TB[:, 2:].view(np.int8) * scales_T1, counts
