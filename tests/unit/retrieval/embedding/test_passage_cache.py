"""The cache on disk: kept by model and text, bounded, dropped by use, replaced when damaged."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from retrieval.embedding.passage_cache import CachedPassage, PassageCache


def opened(path: Path, max_bytes: int = 1 << 20) -> PassageCache:
    cache = PassageCache.open(path, max_bytes)
    assert cache is not None
    return cache


def passage(number: float, codes: bytes = b"") -> CachedPassage:
    return CachedPassage(np.full(8, number, np.float32), codes)


def test_what_was_kept_is_found_after_reopening(tmp_path: Path) -> None:
    path, key = tmp_path / "vectors.sqlite", PassageCache.key("model", "int8", "a text")
    cache = opened(path)
    cache.keep({key: passage(1, b"codes")})
    cache.close()
    cache = opened(path)
    found = cache.find([key, PassageCache.key("model", "int8", "another")])
    assert list(found) == [key]
    np.testing.assert_array_equal(found[key].vector_D, np.ones(8))
    assert found[key].codes == b"codes"
    cache.close()


def test_model_codec_and_text_each_make_another_key() -> None:
    keys = {
        PassageCache.key(model, codec, text)
        for model in ("m", "n")
        for codec in ("none", "int8")
        for text in ("a", "b", "\ud800")
    }
    assert len(keys) == 12


def test_the_bound_holds_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = opened(tmp_path / "vectors.sqlite", max_bytes=2000)
    keys = [PassageCache.key("m", "none", str(number)) for number in range(40)]
    for number, key in enumerate(keys):
        cache.keep({key: passage(number)})
        cache.find([keys[0]])
        assert cache.num_bytes() <= 2000
    assert keys[0] in cache.find(keys)
    assert keys[-1] in cache.find(keys)
    assert keys[1] not in cache.find(keys)
    cache.close()


def test_a_damaged_file_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "vectors.sqlite"
    path.write_bytes(b"this is no database " * 400)
    with caplog.at_level(logging.WARNING):
        cache = opened(path)
    assert "damaged" in caplog.text
    cache.keep({b"k": passage(1)})
    assert list(cache.find([b"k"])) == [b"k"]
    cache.close()


def test_a_cache_that_cannot_be_written_is_as_if_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "vectors.sqlite"
    cache = opened(path)
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE passages")
    other.close()
    with caplog.at_level(logging.WARNING):
        cache.keep({b"k": passage(1)})
        assert cache.find([b"k"]) == {}
    assert "cannot be used now" in caplog.text
    cache.close()


def test_a_folder_that_cannot_be_made_gives_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert PassageCache.open(tmp_path / "file" / "vectors.sqlite", 1000) is None
