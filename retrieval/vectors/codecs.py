"""How a store keeps unit vectors: float32, float16, int8 or one bit a number, after Matryoshka truncation.

Everything decodes to float32 unit vectors, so that one inner product is the cosine whatever the codec. With x
the unit vector that was encoded and y what decodes:

| codec   | bytes a vector | error, worst case                                                            |
|---------|----------------|------------------------------------------------------------------------------|
| float32 | 4 D            | none: bit for bit                                                            |
| float16 | 2 D            | each number 2**-11 of itself + 2**-25; cos(x, y) >= 1 - 2e-7 up to D = 8,192 |
| int8    | D + 4          | each number max abs(x) / 254; cos(x, y) >= sqrt(1 - D (max abs(x) / 254)**2) |
| binary  | ceil(D / 8)    | cos(x, y) = norm1(x) / sqrt(D) exactly; about 0.8 for dense embeddings       |

Error of int8 and float16 is before decoding scales back to unit length, which never widens the angle: where
norm(x - z) <= e < 1, cos(x, z) >= sqrt(1 - e**2).

Legend: N vectors, D dimensions kept, M dimensions the model makes, B bytes a vector.

Sources: Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022 (a prefix of a vector is a vector);
Charikar, STOC 2002 (sign codes keep angles); symmetric int8 with one scale a row as in sentence-transformers'
`quantize_embeddings`, with the scale of the row in place of the collection's.
"""

from __future__ import annotations

import numpy as np

from retrieval.versions import VectorCodec

_SCALE_BYTES = 4
_INT8_LEVELS = 127


def row_bytes(codec: VectorCodec, dim: int) -> int:
    """Return the bytes one vector of `dim` numbers takes."""
    if codec == "float32":
        return 4 * dim
    if codec == "float16":
        return 2 * dim
    if codec == "int8":
        return dim + _SCALE_BYTES
    if codec == "binary":
        return (dim + 7) // 8
    raise ValueError(f"unknown vector codec {codec!r}; use float32, float16, int8 or binary")


def checked(vectors_ND: np.ndarray, dim: int) -> np.ndarray:
    """Return vectors as a C-contiguous float32[N, dim] that holds finite numbers only.

    Raises:
        ValueError: Another shape than [N, dim], NaN or infinity.
    """
    vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dim:
        raise ValueError(
            f"vectors have shape {vectors_ND.shape}, the index holds vectors of {dim} numbers; "
            "use the embedder the index was made with"
        )
    finite_N = np.isfinite(vectors_ND).all(axis=1)
    if not finite_N.all():
        row = int(np.flatnonzero(~finite_N)[0])
        raise ValueError(f"vector {row} holds NaN or infinity; every number must be finite")
    return vectors_ND


def unit(vectors_NM: np.ndarray, model_dim: int, dim: int = 0) -> np.ndarray:
    """Return the first `dim` numbers of each vector, scaled to unit length: what an index version holds.

    Args:
        vectors_NM: float[N, model_dim] as the embedder or a caller gave them, of any length.
        model_dim: Numbers the embedder makes.
        dim: Numbers kept (Matryoshka); 0 for all.

    Returns:
        float32[N, dim]; vectors that are of unit length already come back bit for bit.

    Raises:
        ValueError: Another dimension than `model_dim`, NaN, infinity, or a vector of length zero.
    """
    if not 0 <= dim <= model_dim:
        raise ValueError(f"dim must be from 0 (all) to the embedder's {model_dim}; got {dim}")
    kept_ND = checked(vectors_NM, model_dim)[:, : dim or model_dim]
    norms_N = np.linalg.norm(kept_ND.astype(np.float64), axis=1)
    if not norms_N.all():
        row = int(np.flatnonzero(norms_N == 0)[0])
        raise ValueError(f"vector {row} has length zero in its first {kept_ND.shape[1]} numbers: no cosine")
    scales_N = np.where(np.abs(norms_N - 1) < 1e-6, 1.0, norms_N)
    return np.ascontiguousarray(kept_ND / scales_N[:, None], dtype=np.float32)


def encode(vectors_ND: np.ndarray, codec: VectorCodec) -> np.ndarray:
    """Return the codes of unit vectors, one row of bytes each: `codes_NB[i].tobytes()` is what a row stores.

    Args:
        vectors_ND: float32[N, D] of unit length, see `unit`.
        codec: How to keep them.

    Returns:
        uint8[N, row_bytes(codec, D)].
    """
    vectors_ND = np.ascontiguousarray(vectors_ND, dtype="<f4")
    num_rows, dim = vectors_ND.shape
    if codec == "float32":
        return vectors_ND.view(np.uint8).reshape(num_rows, 4 * dim)
    if codec == "float16":
        return vectors_ND.astype("<f2").view(np.uint8).reshape(num_rows, 2 * dim)
    if codec == "binary":
        return np.packbits(vectors_ND > 0, axis=1, bitorder="little")
    codes_NB = np.empty((num_rows, row_bytes(codec, dim)), dtype=np.uint8)
    scales_N1 = (np.abs(vectors_ND).max(axis=1, keepdims=True, initial=0.0) / _INT8_LEVELS).astype("<f4")
    levels_ND = np.rint(vectors_ND / np.where(scales_N1 > 0, scales_N1, 1))
    codes_NB[:, :_SCALE_BYTES] = scales_N1.view(np.uint8)
    codes_NB[:, _SCALE_BYTES:] = levels_ND.clip(-_INT8_LEVELS, _INT8_LEVELS).astype(np.int8).view(np.uint8)
    return codes_NB


def decode(codes: bytes | bytearray | memoryview | np.ndarray, codec: VectorCodec, dim: int) -> np.ndarray:
    """Return the unit vectors of codes, float32[N, dim]; N is how many whole rows the codes hold.

    Args:
        codes: Rows joined, as `b"".join(blobs)`, or uint8[N, B] as `encode` returned them.
        codec: How they were kept.
        dim: Numbers a vector.

    Raises:
        ValueError: The codes are no whole number of rows.
    """
    width = row_bytes(codec, dim)
    if isinstance(codes, np.ndarray):
        flat = np.ascontiguousarray(codes, dtype=np.uint8).reshape(-1)
    else:
        flat = np.frombuffer(codes, dtype=np.uint8)
    if len(flat) % width:
        raise ValueError(f"{len(flat)} bytes are no whole number of {codec} vectors of {width} bytes")
    codes_NB = flat.reshape(-1, width)
    if codec == "float32":
        return codes_NB.view("<f4").astype(np.float32, copy=False)
    if codec == "binary":
        bits_ND = np.unpackbits(codes_NB, axis=1, count=dim, bitorder="little")
        return (bits_ND.astype(np.float32) * 2 - 1) / np.float32(np.sqrt(dim))
    if codec == "float16":
        values_ND = codes_NB.view("<f2").astype(np.float32)
    else:
        values_ND = codes_NB[:, _SCALE_BYTES:].view(np.int8).astype(np.float32)
    # The scale of an int8 row cancels here: only the direction of a vector counts.
    norms_N1 = np.linalg.norm(values_ND, axis=1, keepdims=True)
    return values_ND / np.where(norms_N1 > 0, norms_N1, 1)
