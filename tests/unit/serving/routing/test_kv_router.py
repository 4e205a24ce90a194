"""Where requests go: to the replica with least to compute before their first token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.prompt import PromptPassage, rag_prompt
from serving.routing.kv_report import KVReport, ReplicaState
from serving.routing.prompt_path import PromptPath, prompt_path
from serving.routing.replica_view import ReplicaView
from serving.routing.router import Choice, KVRouter
from serving.types import GenerateRequest, KVReuse, Prompt

REPLICAS = ("one", "two", "three")
REORDER = KVReuse("reorder")
BLEND = KVReuse("blend")


def path_of(ids: str, *, reuse: KVReuse = KVReuse()) -> PromptPath:  # noqa: B008 - it is frozen
    passages = [PromptPassage(letter, letter, f"about {letter} " * 60) for letter in ids]
    request = GenerateRequest(rag_prompt("why?", passages), reuse=reuse)
    return prompt_path(request, is_blended=reuse.mode == "blend")


def holding(path: PromptPath, num_nodes: int) -> dict[bytes, int | None]:
    """Return a report's prefixes for the first nodes of a path, a token for every four characters."""
    tokens, found = 0, {}
    for node, step in list(zip(path.nodes(), path.steps, strict=True))[:num_nodes]:
        tokens += step.num_chars
        found[node] = tokens // 4
    return found


@pytest.fixture
def router() -> KVRouter[str]:
    return KVRouter(views={name: ReplicaView() for name in REPLICAS})


def choose(
    router: KVRouter[str], path: PromptPath, replicas: tuple[str, ...], *, session: str = ""
) -> Choice[str]:
    return router.choose(GenerateRequest(Prompt(()), session=session), path, replicas)


def tell(router: KVRouter[str], replica: str, report: KVReport) -> None:
    view = router.views[replica]
    view.take(report, view.asked())


def report(
    prefixes: dict[bytes, int | None] | None = None, *, version: int = 1, state: ReplicaState | None = None
) -> KVReport:
    return KVReport("life", version, is_full=True, prefixes=prefixes or {}, state=state or ReplicaState())


def test_a_prompt_goes_where_most_of_it_is_held(router: KVRouter[str]) -> None:
    path = path_of("abc")
    tell(router, "two", report(holding(path, 9)))
    tell(router, "three", report(holding(path, 12)))
    assert choose(router, path, REPLICAS).replica == "three"
    assert choose(router, path, ("one", "two")).replica == "two"


def test_what_is_being_computed_counts_as_held_and_as_work(router: KVRouter[str]) -> None:
    first = choose(router, path_of("abc"), REPLICAS)
    same = choose(router, path_of("abc"), REPLICAS)
    assert same.replica == first.replica, "a prefix is computed once"
    other = choose(router, path_of("xyz"), REPLICAS)
    assert other.replica != first.replica, "a prompt of other passages does not wait for it"


def test_a_busy_replica_gives_a_shared_prefix_away(router: KVRouter[str]) -> None:
    path = path_of("a")
    tell(router, "one", report(holding(path, 6), state=ReplicaState(num_running=3, num_waiting=12)))
    assert choose(router, path, REPLICAS).replica != "one"


def test_requests_with_nothing_in_common_are_spread_evenly(router: KVRouter[str]) -> None:
    chosen = [choose(router, path_of(letter), REPLICAS).replica for letter in "abcdef"]
    assert sorted(chosen) == sorted(REPLICAS * 2)


def test_what_the_report_denies_is_not_held_any_more(router: KVRouter[str]) -> None:
    path = path_of("abc")
    choice = choose(router, path, REPLICAS)
    view = router.views[choice.replica]
    view.begun(choice.number)
    view.end(choice.number)
    assert view.reusable(path).device_tokens > 0, "what it has just computed is taken for granted"
    tell(router, choice.replica, report())
    assert view.reusable(path).device_tokens == 0, "evicted in between"
    assert not view._expected
    assert not view._expected_tokens


def test_a_reordered_prompt_goes_where_another_order_of_its_passages_is(router: KVRouter[str]) -> None:
    held = path_of("cba")
    tell(router, "two", report(holding(held, len(held.steps))))
    view = router.views["two"]
    assert view.reusable(path_of("abc", reuse=REORDER)).device_tokens == view.reusable(held).device_tokens
    assert view.reusable(path_of("abc")).device_tokens < view.reusable(held).device_tokens / 4
    for ids in ("abc", "bca", "cxb"):
        assert choose(router, path_of(ids, reuse=REORDER), REPLICAS).replica == "two"


def test_a_blended_prompt_goes_where_its_chunks_are_stored(
    router: KVRouter[str],
) -> None:
    path = path_of("abc", reuse=BLEND)
    on_disk = KVReport("life", 1, is_full=True, chunks=dict.fromkeys(path.chunks, "disk"))
    tell(router, "one", on_disk)
    assert choose(router, path, REPLICAS).replica == "one"
    tell(router, "two", replace(on_disk, chunks=dict.fromkeys(path.chunks, "memory")))
    found = router.views["two"].reusable(path)
    assert (found.memory_chars, found.disk_chars) == (path.chunk_chars, 0)
    assert choose(router, path, ("two", "three")).replica == "two"


def test_a_session_stays_where_it_was_unless_that_costs(router: KVRouter[str]) -> None:
    first = choose(router, path_of("a"), REPLICAS, session="talk")
    view = router.views[first.replica]
    view.end(first.number)
    tell(router, first.replica, report())
    for letter in "bcd":
        again = choose(router, path_of(letter), REPLICAS, session="talk")
        assert again.replica == first.replica
        view.end(again.number)
        tell(router, first.replica, report())
    tell(router, first.replica, report(state=ReplicaState(num_waiting=20)))
    assert choose(router, path_of("e"), REPLICAS, session="talk").replica != first.replica


def test_the_length_of_tokens_is_learnt(router: KVRouter[str]) -> None:
    for _ in range(200):
        router.learn(1_000, 500)
    assert router._chars_per_token == pytest.approx(2.0, rel=0.01)
    router.learn(1_000, 0)
    path = path_of("abc")
    choice = choose(router, path, REPLICAS)
    assert router.views[choice.replica].queued_tokens == pytest.approx(path.num_chars / 2, rel=0.01)
