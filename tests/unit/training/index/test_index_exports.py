"""Public names exist, and searching while training needs no Ray."""

from __future__ import annotations

import subprocess
import sys

import training.index


def test_every_public_name_is_there():
    assert sorted(training.index.__all__) == training.index.__all__ == sorted(training.index._HOMES)
    for name in training.index.__all__:
        assert getattr(training.index, name) is not None


def test_refresher_runs_without_ray_and_faiss():
    code = (
        "import sys, training.index as i; "
        "i.Refresher, i.ShardedSearch, i.local_shards, i.ThreadEncoderPool, i.InlineEncoderPool; "
        "print([m for m in ('ray', 'faiss', 'trl', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
