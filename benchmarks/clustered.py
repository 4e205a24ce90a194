"""Seeded unit vectors shaped like embedded passages: overlapping subjects in few dimensions, a little noise.

A figure of storage and search must not wait for an embedder, so benchmarks that compare engines on equal
vectors use these. Rows are scattered around subjects in 32 latent dimensions, wide enough that neighbours
straddle the lists of an IVF: with 256 lists of 60k rows recall@10 is about 0.78 at 4 probes, 0.91 at 16, 0.97
at 32. Queries are new vectors of the same subjects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

_ROWS_PER_SUBJECT = 64
_LATENT_DIM = 32
_SPREAD = 0.8
_NOISE = 0.3
_BLOCK_ROWS = 65_536


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


@dataclass(frozen=True, slots=True)
class Clustered:
    """A distribution of unit vectors."""

    subjects_SL: np.ndarray
    """float32[S, latent dim], the centres rows are scattered around."""
    lift_LD: np.ndarray
    """float32[latent dim, D] with orthonormal rows."""
    share_S: np.ndarray
    """float64[S], how often a row is of each subject."""

    @classmethod
    def made(cls, num_rows: int, dim: int, *, seed: int = 0) -> Clustered:
        """Return a distribution fit for `num_rows` rows: 64 a subject on average, sizes by a power law."""
        generator = np.random.default_rng(seed)
        num_subjects = max(4, num_rows // _ROWS_PER_SUBJECT)
        latent_dim = min(_LATENT_DIM, dim)
        subjects_SL = generator.standard_normal((num_subjects, latent_dim), dtype=np.float32)
        lift_LD = np.linalg.qr(generator.standard_normal((dim, latent_dim)))[0].T.astype(np.float32)
        share_S = (1 + np.arange(num_subjects)) ** -0.3
        return cls(subjects_SL, lift_LD, share_S / share_S.sum())

    def fill(self, rows_ND: np.ndarray, *, seed: int) -> np.ndarray:
        """Fill an array with rows and return it."""
        generator = np.random.default_rng(seed)
        for start in range(0, len(rows_ND), _BLOCK_ROWS):
            block = rows_ND[start : start + _BLOCK_ROWS]
            block[:] = self._drawn(generator, len(block), self.share_S)
        return rows_ND

    def queries(self, num_queries: int, *, seed: int, skew: float = 0.0) -> np.ndarray:
        """Return float32[Q, D] of subjects drawn by rank ** -skew; 0 asks for all alike."""
        share_S = (1.0 + np.arange(len(self.share_S))) ** -skew
        return self._drawn(np.random.default_rng(seed), num_queries, share_S / share_S.sum())

    def _drawn(self, generator: np.random.Generator, count: int, share_S: np.ndarray) -> np.ndarray:
        subject_N = generator.choice(len(share_S), count, p=share_S)
        latent_dim, dim = self.lift_LD.shape
        latent_NL = self.subjects_SL[subject_N]
        latent_NL += _SPREAD * generator.standard_normal((count, latent_dim), dtype=np.float32)
        noise_ND = generator.standard_normal((count, dim), dtype=np.float32) * (_NOISE / dim**0.5)
        return _unit(_unit(latent_NL) @ self.lift_LD + noise_ND)


def exact_neighbours(
    matrix_ND: np.ndarray, queries_QD: np.ndarray, k: int, device: str = "cpu"
) -> np.ndarray:
    """Return int64[Q, k], the positions of the k largest inner products, best first."""
    queries = torch.from_numpy(np.array(queries_QD)).to(device)
    best = torch.empty((len(queries), 0), device=device)
    rows = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    for start in range(0, len(matrix_ND), _BLOCK_ROWS):
        block = np.array(matrix_ND[start : start + _BLOCK_ROWS], dtype=np.float32)
        top = (queries @ torch.from_numpy(block).to(device).T).topk(min(k, len(block)), dim=1)
        best, rows = torch.cat((best, top.values), dim=1), torch.cat((rows, top.indices + start), dim=1)
        kept = best.topk(min(k, best.shape[1]), dim=1)
        best, rows = kept.values, rows.gather(1, kept.indices)
    return rows.cpu().numpy()


def recall(found_QK: np.ndarray, wanted_QK: np.ndarray) -> float:
    """Return the mean share of wanted rows that were found; negative rows are none."""
    shares = [
        len(set(found) & set(wanted)) / len(wanted)
        for found, wanted in zip(found_QK.tolist(), wanted_QK.tolist(), strict=True)
    ]
    return float(np.mean(shares))
