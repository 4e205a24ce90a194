"""The two small files a sharded index turns on: the map of shards and the record of switches."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import IndexUnavailable, InvalidVersion
from retrieval.sharding import durable_json
from retrieval.sharding.epochs import Epoch, EpochLedger, versions_before
from retrieval.sharding.placement import Placement, open_placement, write_placement


@given(st.lists(st.text(min_size=1), unique=True, max_size=50), st.integers(1, 9))
def test_every_document_has_one_shard_for_good(document_ids: list[str], num_shards: int) -> None:
    first, second = Placement(num_shards), Placement(num_shards, generation=3)
    for document_id in document_ids:
        assert 0 <= first.shard_of(document_id) < num_shards
        assert first.shard_of(document_id) == second.shard_of(document_id)


def test_documents_spread_evenly() -> None:
    counts = [0] * 5
    for number in range(10_000):
        counts[Placement(5).shard_of(f"document {number}")] += 1
    assert min(counts) > 1800
    assert max(counts) < 2200


def test_map_is_checked_at_open(tmp_path: Path) -> None:
    assert open_placement(tmp_path, 3) == Placement(3)
    assert open_placement(tmp_path, 3) == Placement(3)
    with pytest.raises(IndexUnavailable, match=r"has 3 shard\(s\), and num_shards=2.*reshard 2"):
        open_placement(tmp_path, 2)


def test_zero_takes_the_shards_there_are_and_one_in_a_new_folder(tmp_path: Path) -> None:
    assert open_placement(tmp_path / "new", 0) == open_placement(tmp_path / "new", 0) == Placement(1)
    write_placement(tmp_path, Placement(3, generation=2))
    assert open_placement(tmp_path, 0) == Placement(3, generation=2)


def test_folder_from_before_shards_holds_one(tmp_path: Path) -> None:
    (tmp_path / "shard.sqlite3").touch()
    with pytest.raises(IndexUnavailable, match=r"has 1 shard"):
        open_placement(tmp_path, 2)
    assert open_placement(tmp_path, 1).folder(tmp_path, 0, 0) == tmp_path


def test_copies_have_folders_of_their_own() -> None:
    root = Path("index")
    placement = Placement(3, generation=2)
    folders = {placement.folder(root, shard, slot) for shard in range(3) for slot in range(3)}
    assert len(folders) == 9
    assert Placement(3).folder(root, 0, 0) not in folders


def test_promotion_is_kept(tmp_path: Path) -> None:
    promoted = open_placement(tmp_path, 2).promoted(1, 2)
    write_placement(tmp_path, promoted)
    opened = open_placement(tmp_path, 2)
    assert [opened.primary(shard) for shard in range(2)] == [0, 2]


def test_names_tell_generations_apart() -> None:
    assert Placement(2).name(1) == "shard-1"
    assert Placement(2, generation=4).name(1) == "shard-1.4"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "epochs": [{"epoch": 1}]}']
)
def test_file_not_ours_is_a_clear_error(tmp_path: Path, content: str) -> None:
    for name in ("placement.json", "epochs.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(IndexUnavailable, match=r"placement\.json"):
        open_placement(tmp_path, 1)
    with pytest.raises(IndexUnavailable, match=r"epochs\.json"):
        EpochLedger(tmp_path)


def test_ledger_survives_and_refuses_an_epoch_taken(tmp_path: Path) -> None:
    ledger = EpochLedger(tmp_path)
    assert ledger.current is None
    ledger.commit(Epoch(1, "a", "first", 1.0))
    ledger.commit(Epoch(2, "b", "switch", 2.0))
    ledger.commit(Epoch(2, "b", "switch", 2.5))  # The same switch told again.
    for opened in (ledger, EpochLedger(tmp_path)):
        assert opened.current == Epoch(2, "b", "switch", 2.0)
        assert [item.version for item in opened.history] == ["a", "b"]
        assert versions_before(opened.history) == ["a"]
    with pytest.raises(InvalidVersion, match="epoch 2 is taken"):
        ledger.commit(Epoch(2, "c", "switch", 3.0))


def test_crash_before_the_rename_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = EpochLedger(tmp_path)
    ledger.commit(Epoch(1, "a", "first", 1.0))

    def crash(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable_json.os, "fsync", crash)
    with pytest.raises(durable_json.StorageFull, match="nothing was changed"):
        ledger.commit(Epoch(2, "b", "switch", 2.0))
    monkeypatch.undo()
    assert ledger.current == EpochLedger(tmp_path).current == Epoch(1, "a", "first", 1.0)
