"""What a replica tells: exactly what a cache holds that is followed by its events."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.routing.block_mirror import BlockMirror, CacheEvent, Cleared, Removed, Stored
from serving.routing.kv_events import MAX_EVENTS, KVEvents
from serving.routing.kv_inventory import CHUNKS_AT_ONCE, MAX_SERVED, MAX_TRIES, KVInventory
from serving.routing.kv_report import KVReport, ReplicaState
from serving.routing.prompt_path import PathStep, PromptPath
from serving.routing.replica_view import ReplicaView

BLOCK = 4
STATE = ReplicaState()


class Cache:
    """A prefix cache of whole blocks that forgets the least recently used, as the engine's does."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self.events: list[CacheEvent] = []

    def compute(self, token_ids: list[int]) -> None:
        names = [tuple(token_ids[:end]) for end in range(BLOCK, len(token_ids) + 1, BLOCK)]
        for name in names:
            if name not in self.blocks:
                parent = name[:-BLOCK] or None
                self.events.append(Stored((name,), parent, name[-BLOCK:], "salt"))
        for name in reversed(names):  # The end of a prompt is forgotten first.
            self.blocks[name] = None
            self.blocks.move_to_end(name)
        while len(self.blocks) > self.capacity:
            name, _ = self.blocks.popitem(last=False)
            self.events.append(Removed((name,)))

    def num_cached(self, token_ids: list[int]) -> int:
        return max(
            end
            for end in range(0, len(token_ids) + 1, BLOCK)
            if not end or tuple(token_ids[:end]) in self.blocks
        )

    def take(self) -> list[CacheEvent]:
        events, self.events = self.events, []
        return events


def path_of(segments: list[list[int]]) -> PromptPath:
    steps = tuple(PathStep(bytes(segment), len(segment), is_movable=False) for segment in segments)
    return PromptPath(b"root", steps, ())


PROMPTS = st.lists(st.sampled_from([[1], [2, 2, 2], [3] * 5, [4] * 9, [5] * 4]), min_size=1, max_size=6)


@given(st.lists(st.tuples(PROMPTS, st.booleans()), min_size=1, max_size=25), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_a_router_that_reads_reports_knows_what_the_cache_holds(
    prompts: list[tuple[list[list[int]], bool]], capacity: int
) -> None:
    cache, inventory, view = Cache(capacity), KVInventory(BLOCK), ReplicaView()
    seen: list[list[list[int]]] = []
    for segments, reports in prompts:
        token_ids = list(chain.from_iterable(segments))
        cache.compute(token_ids)
        inventory.served(path_of(segments), [len(one) for one in segments], token_ids, "salt")
        seen.append(segments)
        if reports:
            inventory.follow(cache.take(), {})
            view.take(inventory.report(view.life, view.version, STATE), [])
            for one in seen:
                ends = [0]
                for segment in one:
                    ends.append(ends[-1] + len(segment))
                cached = cache.num_cached(list(chain.from_iterable(one)))
                # A router knows where segments end: it counts whole blocks up to the last end that is cached.
                known = max(end // BLOCK * BLOCK for end in ends if end // BLOCK * BLOCK <= cached)
                assert view.reusable(path_of(one)).device_tokens <= cached
                if len(cache.blocks) < capacity:
                    assert view.reusable(path_of(one)).device_tokens == known


def served(inventory: KVInventory, cache: Cache, segments: list[list[int]]) -> None:
    token_ids = list(chain.from_iterable(segments))
    cache.compute(token_ids)
    inventory.served(path_of(segments), [len(one) for one in segments], token_ids, "salt")
    inventory.follow(cache.take(), {})


def test_changes_alone_are_told_to_whom_knows_the_rest() -> None:
    cache, inventory = Cache(100), KVInventory(BLOCK)
    served(inventory, cache, [[1] * 4, [2] * 4])
    first = inventory.report("", 0, STATE)
    assert first.is_full
    assert set(first.prefixes.values()) == {4, 8}
    served(inventory, cache, [[1] * 4, [3] * 8])
    second = inventory.report(first.life, first.version, STATE)
    assert not second.is_full
    assert list(second.prefixes.values()) == [12]
    cache.events.append(Cleared())
    inventory.follow(cache.take(), {})
    third = inventory.report(first.life, second.version, STATE)
    assert set(third.prefixes.values()) == {None}
    assert len(third.prefixes) == 3
    assert inventory.report("another life", second.version, STATE).is_full


def test_events_that_come_after_the_prompt_are_waited_for_and_then_given_up() -> None:
    cache, inventory = Cache(100), KVInventory(BLOCK)
    cache.compute([1] * 8)
    inventory.served(path_of([[1] * 8]), [8], [1] * 8, "salt")
    inventory.follow([], {})
    assert not inventory.report("", 0, STATE).prefixes
    inventory.follow(cache.take(), {})
    assert list(inventory.report("", 0, STATE).prefixes.values()) == [8]
    inventory.served(path_of([[9] * 8]), [8], [9] * 8, "salt")
    for _ in range(10):
        inventory.follow([], {})
    assert not inventory._served


def test_places_of_chunks_are_told_when_they_change() -> None:
    inventory = KVInventory(BLOCK)
    inventory.has_chunks([b"one", b"two"], ["key one", "key two"])
    assert inventory.chunk_keys() == {b"one": "key one", b"two": "key two"}
    inventory.follow([], {b"one": "memory", b"two": None})
    first = inventory.report("", 0, STATE)
    assert first.chunks == {b"one": "memory"}
    inventory.follow([], {b"one": "disk", b"two": "memory"})
    second = inventory.report(first.life, first.version, STATE)
    assert second.chunks == {b"one": "disk", b"two": "memory"}
    inventory.follow([], {b"one": None, b"two": "memory"})
    assert inventory.report(first.life, second.version, STATE).chunks == {b"one": None}


def test_a_replica_that_nobody_asks_remembers_a_bounded_number_of_prompts_and_events() -> None:
    inventory = KVInventory(BLOCK)
    for number in range(10 * MAX_SERVED):
        inventory.served(path_of([[number % 251] * 8]), [8], [number] * 8, "salt")
        if inventory.is_behind:
            inventory.follow([], {})
    assert len(inventory._served) <= MAX_TRIES * MAX_SERVED
    events = KVEvents()
    try:
        for _ in range(3):
            events._keep([Removed(("block",))] * MAX_EVENTS)
        taken = events.take()
        assert taken[0] == Cleared()
        assert len(taken) <= MAX_EVENTS
    finally:
        events.close()


def test_a_report_looks_up_a_bounded_number_of_chunks_the_last_prompts_first() -> None:
    inventory = KVInventory(BLOCK)
    names = [number.to_bytes(8) for number in range(3 * CHUNKS_AT_ONCE)]
    inventory.has_chunks(names, [str(number) for number in range(len(names))])
    seen = [set(inventory.chunk_keys()) for _ in range(3)]
    assert [len(one) for one in seen] == [CHUNKS_AT_ONCE] * 3
    assert set().union(*seen) == set(names)
    inventory.has_chunks(names[:1], ["0"])
    assert names[0] in inventory.chunk_keys()


def test_a_block_that_two_requests_computed_is_there_until_both_copies_left() -> None:
    mirror = BlockMirror(BLOCK)
    stored = Stored(("a",), None, (1,) * 4, "salt")
    mirror.apply([stored, stored])
    assert mirror.apply([Removed(("a",))]) == []
    assert mirror.held([1] * 5, "salt") == ["a"]
    assert mirror.apply([Removed(("a",))]) == ["a"]
    assert mirror.held([1] * 5, "salt") == []
    assert mirror.apply([Removed(("never seen",))]) == []


def test_equal_tokens_under_another_salt_are_not_found() -> None:
    mirror = BlockMirror(BLOCK)
    mirror.apply([Stored(("a", "b"), None, (1,) * 8, ("salt",))])
    assert mirror.held([1] * 9, ("salt",)) == ["a", "b"]
    assert mirror.held([1] * 9, ("other",)) == []


def test_a_report_that_was_asked_for_earlier_and_comes_later_changes_nothing() -> None:
    view = ReplicaView()
    view.take(KVReport("life", 5, is_full=True, prefixes={b"new": 8}), [])
    view.take(KVReport("life", 3, is_full=True, prefixes={b"old": 8}), [])
    assert view.version == 5
    assert view._prefixes == {b"new": 8}
