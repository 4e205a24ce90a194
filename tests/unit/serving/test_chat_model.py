"""A generator as langchain sees it."""

from __future__ import annotations

import pytest
from fakes_serving import ScriptedGenerator
from langchain_core.messages import AIMessage, FunctionMessage, HumanMessage, SystemMessage, ToolMessage

from serving import InvalidGeneration, Sampling, as_chat_model
from serving.prompt import chat_prompt


async def test_stream_gives_pieces_and_one_usage() -> None:
    model = as_chat_model(ScriptedGenerator("four"))
    chunks = [chunk async for chunk in model.astream("hi")]
    assert "".join(str(chunk.content) for chunk in chunks) == "four"
    (usage,) = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert usage["output_tokens"] == 4
    assert usage["total_tokens"] == usage["input_tokens"] + 4


async def test_ainvoke_gives_the_whole_answer_and_its_end() -> None:
    message = await as_chat_model(ScriptedGenerator("the whole answer")).ainvoke("hi")
    assert message.content == "the whole answer"
    assert message.response_metadata["finish_reason"] == "stop"


def test_invoke_works_without_a_loop() -> None:
    assert as_chat_model(ScriptedGenerator("done")).invoke("hi").content == "done"


async def test_messages_become_turns_in_order() -> None:
    generator = ScriptedGenerator("ok")
    messages = [
        SystemMessage("be brief"),
        HumanMessage("one"),
        AIMessage("two"),
        ToolMessage("three", tool_call_id="t"),
        HumanMessage("four"),
    ]
    await as_chat_model(generator).ainvoke(messages)
    (request,) = generator.requests
    text = request.prompt.text
    assert [line for line in text.split("\n") if line.startswith("<|im_start|>")] == [
        f"<|im_start|>{role}" for role in ("system", "user", "assistant", "tool", "user", "assistant")
    ]
    assert text != chat_prompt([]).text
    assert all(not s.trusted for s in request.prompt.segments if s.text in ("be brief", "one", "three"))


async def test_call_settings_win_over_defaults() -> None:
    generator = ScriptedGenerator("a long story about stop words")
    model = as_chat_model(generator, sampling=Sampling(max_tokens=5, seed=1), tenant="north", deadline_s=9.0)
    assert (await model.ainvoke("hi")).content == "a lon"
    assert (await model.ainvoke("hi", stop=["story"], max_tokens=99)).content == "a long "
    request = generator.requests[-1]
    assert request.sampling == Sampling(max_tokens=99, stop=("story",), seed=1)
    assert (request.tenant, request.deadline_s) == ("north", 9.0)


async def test_closing_the_stream_cancels_the_request() -> None:
    generator = ScriptedGenerator("x" * 500, token_delay_s=0.001)
    stream = as_chat_model(generator).astream("hi")
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert (await generator.stats()).num_cancelled == 1


@pytest.mark.parametrize(
    "message", [FunctionMessage("x", name="f"), HumanMessage([{"type": "image_url", "image_url": "x"}])]
)
async def test_a_message_that_cannot_be_served_is_the_callers_error(message: object) -> None:
    with pytest.raises(InvalidGeneration, match="cannot be served"):
        await as_chat_model(ScriptedGenerator("x")).ainvoke([message])
