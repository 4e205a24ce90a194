"""Blocks on disk are whole, of the right origin, or missing."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from tests.fakes_index import DIM, TEXTS, spec_of, text_vectors, version_bytes, write_version
from training.errors import IndexNotReady, NumericsError
from training.index.encoding import RowRange
from training.index.version_rows import DamagedBlocks, VersionRows

VECTORS = text_vectors(TEXTS, "start")


@pytest.fixture
def rows(tmp_path):
    return write_version(tmp_path, spec_of(), VECTORS)


def block_file(rows: VersionRows, index: int, suffix: str = ".npy"):
    return sorted(rows.folder.glob(f"rows-*{suffix}"))[index]


def test_blocks_come_back_as_written(tmp_path, rows):
    found = VersionRows.finished(tmp_path, 0).open(0, len(TEXTS))
    assert [block for block, _ in found] == list(rows.spec.ranges)
    np.testing.assert_array_equal(np.concatenate([array for _, array in found]), VECTORS)


def test_only_overlapping_blocks_are_opened(rows):
    assert [block for block, _ in rows.open(7, 15)] == [RowRange(7, 14), RowRange(14, 21)]


def test_single_rows_are_read(rows):
    wanted = np.array([3, 49, 3, 14])
    np.testing.assert_array_equal(rows.vectors(wanted), VECTORS[wanted])


def test_writing_a_block_twice_changes_no_byte(tmp_path, rows):
    before = version_bytes(tmp_path, 0)
    rows.write(rows.spec.ranges[2], VECTORS[14:21])
    rows.finish()
    assert version_bytes(tmp_path, 0) == before


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "no_sidecar", "torn_sidecar"])
def test_only_the_damaged_block_is_missing(rows, damage):
    path, sidecar = block_file(rows, 3), block_file(rows, 3, ".json")
    if damage == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "flip":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "delete":
        path.unlink()
    elif damage == "no_sidecar":
        sidecar.unlink()
    else:
        sidecar.write_bytes(sidecar.read_bytes()[:20])
    assert rows.missing() == [rows.spec.ranges[3]]
    with pytest.raises(DamagedBlocks, match=r"\[21, 28\)") as caught:
        rows.open(0, len(TEXTS))
    assert pickle.loads(pickle.dumps(caught.value)).ranges == (rows.spec.ranges[3],)
    assert len(rows.open(0, 21)) == 3, "blocks beside it can be read"
    rows.write(rows.spec.ranges[3], VECTORS[21:28])
    assert rows.missing() == []


@pytest.mark.parametrize(
    "other", [{"weights_hash": "x"}, {"step": 5}, {"dtype": "float16"}, {"block_rows": 5}]
)
def test_blocks_of_another_origin_count_as_missing(tmp_path, rows, other):
    successor = VersionRows(tmp_path, spec_of(**other))
    assert successor.begin() == list(successor.spec.ranges)
    with pytest.raises(IndexNotReady, match="not finished"):
        VersionRows.finished(tmp_path, 0)


def test_beginning_a_finished_version_again_keeps_it(tmp_path, rows):
    assert rows.begin() == []
    assert VersionRows.finished(tmp_path, 0).spec == rows.spec


def test_partial_files_of_a_killed_writer_go(rows):
    left = rows.folder / "rows-000000000-000000007.npy.abc.partial"
    left.write_bytes(b"half")
    rows.begin()
    assert not left.exists()


def test_version_is_not_finished_before_its_last_block(tmp_path):
    rows = VersionRows(tmp_path, spec_of())
    for block in rows.spec.ranges[:-1]:
        rows.write(block, VECTORS[block.first : block.last])
    with pytest.raises(IndexNotReady, match=r"lacks rows \[49, 50\)"):
        rows.finish()
    with pytest.raises(IndexNotReady, match="not finished"):
        VersionRows.finished(tmp_path, 0)


def test_damaged_manifest_is_named(tmp_path, rows):
    (rows.folder / "manifest.json").write_text('{"number": 0')
    with pytest.raises(IndexNotReady, match=r"manifest\.json is damaged"):
        VersionRows.finished(tmp_path, 0)


def test_numbers_beyond_float16_are_refused(tmp_path):
    rows = VersionRows(tmp_path, spec_of(dtype="float16"))
    with pytest.raises(NumericsError, match="set dtype float32"):
        rows.write(RowRange(0, 7), np.full((7, DIM), 1e5, dtype=np.float32))
    assert not rows.folder.exists() or not list(rows.folder.iterdir())


def test_rows_that_are_no_block_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no block"):
        VersionRows(tmp_path, spec_of()).write(RowRange(1, 8), VECTORS[1:8])
