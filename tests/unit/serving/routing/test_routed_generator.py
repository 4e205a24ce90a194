"""Replicas behind one generator: one that dies, is full, or leaves is not the caller's to notice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes_replica import ScriptedReplica
from letter_engine import until

from serving.errors import GeneratorUnavailable, InvalidAdapter, Overloaded, UnknownAdapter
from serving.prompt import Turn, chat_prompt
from serving.routing.routed_generator import RoutedGenerator
from serving.types import GenerateRequest, Sampling

TEXT = "The cache is kept in blocks."


def request(text: str = "What is paged attention?", **fields: object) -> GenerateRequest:
    return GenerateRequest(chat_prompt([Turn("user", text)]), **fields)  # type: ignore[arg-type]


async def text_of(generator: RoutedGenerator, asked: GenerateRequest | None = None) -> str:
    return "".join([chunk.text async for chunk in generator.generate(asked or request())])


@pytest.fixture
def replicas() -> list[ScriptedReplica]:
    return [ScriptedReplica(TEXT), ScriptedReplica(TEXT)]


@pytest.fixture
def routed(replicas: list[ScriptedReplica]) -> RoutedGenerator:
    return RoutedGenerator(replicas, report_interval_s=0.001)


async def test_requests_at_once_are_spread_and_equal_ones_are_not(
    routed: RoutedGenerator, replicas: list[ScriptedReplica]
) -> None:
    texts = await asyncio.gather(*(text_of(routed, request(f"{number} " * 400)) for number in range(6)))
    assert texts == [TEXT] * 6
    assert [len(replica.requests) for replica in replicas] == [3, 3]
    for replica in replicas:
        replica.requests.clear()
    await asyncio.gather(*(text_of(routed, request("the same " * 100)) for _ in range(4)))
    assert sorted(len(replica.requests) for replica in replicas) == [0, 4]


async def test_a_request_that_had_not_begun_is_sent_to_another_replica_once(
    routed: RoutedGenerator, replicas: list[ScriptedReplica]
) -> None:
    for replica in replicas:
        replica.dies_after = 0
    with pytest.raises(GeneratorUnavailable, match="died"):
        await text_of(routed)
    assert [len(replica.requests) for replica in replicas] == [1, 1]
    replicas[0].dies_after = replicas[1].dies_after = None
    replicas[0].is_down = replicas[1].is_down = False
    await until(lambda: not routed._down)
    replicas[0].dies_after = 0
    for _ in range(4):
        assert await text_of(routed) == TEXT


async def test_an_answer_that_had_begun_fails_and_is_not_begun_again(
    routed: RoutedGenerator, replicas: list[ScriptedReplica]
) -> None:
    for replica in replicas:
        replica.dies_after = 3
    stream = routed.generate(request())
    assert "".join([(await anext(stream)).text for _ in range(3)]) == TEXT[:3]
    with pytest.raises(GeneratorUnavailable, match="died"):
        await anext(stream)
    assert sum(len(replica.requests) for replica in replicas) == 1


async def test_a_replica_that_died_gets_nothing_until_it_answers_again(
    routed: RoutedGenerator, replicas: list[ScriptedReplica]
) -> None:
    dead, alive = replicas
    dead.is_down = True
    for number in range(8):
        assert await text_of(routed, request(f"question {number}")) == TEXT
    assert len(alive.requests) == 8
    dead.is_down = False
    await until(lambda: not routed._down)
    await asyncio.gather(*(text_of(routed, request(f"{number} " * 400)) for number in range(6)))
    assert len(dead.requests) == 3


async def test_with_every_replica_down_the_error_says_why(
    routed: RoutedGenerator, replicas: list[ScriptedReplica]
) -> None:
    for replica in replicas:
        replica.is_down = True
    for _ in range(2):
        with pytest.raises(GeneratorUnavailable, match="is down"):
            await text_of(routed)
    with pytest.raises(GeneratorUnavailable, match="No replica"):
        await routed.metrics_text()
    assert (await routed.health()).status == "failed"


async def test_a_full_replica_is_passed_over_and_all_full_ones_refuse() -> None:
    replicas = [
        ScriptedReplica(TEXT, max_num_seqs=1, max_queued_requests=0, token_delay_s=0.005) for _ in range(2)
    ]
    routed = RoutedGenerator(replicas)
    # The router takes equal prompts to one replica, which has room for one.
    first, second = (asyncio.create_task(text_of(routed, request("the same " * 100))) for _ in range(2))
    await until(lambda: all(replica.requests for replica in replicas))
    with pytest.raises(Overloaded) as refusal:
        await text_of(routed, request("the same " * 100))
    assert refusal.value.retry_after_s == 0.5
    assert [await first, await second] == [TEXT, TEXT]


async def test_closing_the_stream_frees_the_slot_and_the_count(
    routed: RoutedGenerator, replicas: list[ScriptedReplica]
) -> None:
    stream = routed.generate(request())
    await anext(stream)
    assert (await routed.stats()).num_running == 1
    await stream.aclose()
    stats = await routed.stats()
    assert (stats.num_running, stats.num_cancelled) == (0, 1)
    assert not any(routed._router.views[replica].num_own for replica in replicas)


async def test_a_removed_replica_ends_what_it_has_and_gets_nothing_new() -> None:
    slow, other = ScriptedReplica(TEXT, token_delay_s=0.01), ScriptedReplica(TEXT)
    routed = RoutedGenerator([slow, other])
    answers = [asyncio.create_task(text_of(routed, request(f"{number} " * 400))) for number in range(4)]
    await until(lambda: len(slow.requests) == 2)
    removal = asyncio.create_task(routed.remove(slow))
    await until(lambda: routed.replicas == (other,))
    for number in range(4):
        await text_of(routed, request(f"{number} " * 400))
    assert not slow.is_stopped
    assert await asyncio.gather(*answers) == [TEXT] * 4
    await removal
    assert slow.is_stopped
    assert len(slow.requests) == 2
    with pytest.raises(ValueError, match="another one"):
        await routed.remove(other)
    routed.add(ScriptedReplica(TEXT))
    assert len(routed.replicas) == 2


async def test_an_adapter_is_loaded_into_all_replicas_or_none(
    routed: RoutedGenerator, replicas: list[ScriptedReplica]
) -> None:
    replicas[1].takes_adapters = False
    with pytest.raises(InvalidAdapter):
        await routed.load_adapter("law", Path("folder"))
    assert not replicas[0].loaded
    replicas[1].takes_adapters = True
    info = await routed.load_adapter("law", Path("folder"))
    assert info.adapter_id == "law@1"
    [found] = await routed.adapters()
    assert found.num_requests == 2
    del replicas[0].loaded["law@1"]
    await routed.unload_adapter("law@1")
    with pytest.raises(UnknownAdapter):
        await routed.unload_adapter("law@1")


async def test_a_request_of_an_adapter_goes_where_it_is_loaded(
    routed: RoutedGenerator, replicas: list[ScriptedReplica]
) -> None:
    await replicas[1].load_adapter("law", Path("folder"))
    await text_of(routed)
    await until(lambda: any(view.state.adapter_ids for view in routed._router.views.values()))
    for replica in replicas:
        replica.requests.clear()
    for number in range(4):
        await text_of(routed, request(f"question {number}", adapter="law@1"))
    assert (len(replicas[0].requests), len(replicas[1].requests)) == (0, 4)


async def test_totals_and_metrics_are_those_of_all_replicas(
    routed: RoutedGenerator, replicas: list[ScriptedReplica]
) -> None:
    asked = request(sampling=Sampling(max_tokens=4))
    for replica in replicas:
        assert [chunk async for chunk in replica.generate(asked)]
    stats = await routed.stats()
    assert (stats.num_finished, stats.completion_tokens) == (2, 8)
    text = await routed.metrics_text()
    assert 'graft_x_total{replica="0"} 1.0' in text
    assert 'graft_x_total{replica="1"} 1.0' in text
    assert text.count("# TYPE graft_x_total counter") == 1
    replicas[0].is_down = True
    assert 'replica="0"' not in await routed.metrics_text()
    await routed.update_weights(Path("new"))
    assert replicas[0].weights == replicas[1].weights == [Path("new")]
    await routed.stop()
    assert all(replica.is_stopped for replica in replicas)


def test_one_replica_at_least() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RoutedGenerator([])


def test_several_event_loops_may_use_it(routed: RoutedGenerator) -> None:
    for _ in range(3):
        assert asyncio.run(text_of(routed)) == TEXT
