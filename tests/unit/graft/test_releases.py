from __future__ import annotations

from dataclasses import replace

import pytest

from graft.errors import GraftError
from graft.releases import Release, ReleaseConflict, ReleaseLedger

RELEASE = Release("e", "i", "m", "t", "p", "c")


def test_equal_content_has_an_equal_id_and_any_change_another():
    assert RELEASE.id == Release("e", "i", "m", "t", "p", "c").id
    assert len({RELEASE.id, replace(RELEASE, adapter="a").id, replace(RELEASE, embedder_hash="f").id}) == 3


def test_swap_moves_the_pointer_and_survives_reopening(tmp_path):
    ledger = ReleaseLedger(tmp_path)
    assert ledger.current() is None
    first, second = ledger.add(RELEASE), ledger.add(replace(RELEASE, adapter="a"))
    ledger.swap(None, first)
    ledger.swap(first, second)
    assert ReleaseLedger(tmp_path).current() == second
    assert ReleaseLedger(tmp_path).get(second).adapter == "a"


def test_swap_from_a_stale_release_changes_nothing(tmp_path):
    ledger = ReleaseLedger(tmp_path)
    first, second = ledger.add(RELEASE), ledger.add(replace(RELEASE, adapter="a"))
    ledger.swap(None, first)
    with pytest.raises(ReleaseConflict, match="nothing was changed"):
        ledger.swap(None, second)
    assert ledger.current() == first


def test_unknown_release_cannot_become_current(tmp_path):
    with pytest.raises(GraftError, match="no release 'r-none'"):
        ReleaseLedger(tmp_path).swap(None, "r-none")
