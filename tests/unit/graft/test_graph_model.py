"""Any generator completes prompts for the graph: as a batch job, with errors that say wait or give up."""

from __future__ import annotations

import pickle

import pytest
from fakes_serving import ScriptedGenerator

from graft.graph_model import GeneratorTextModel, actor_text_model
from retrieval.errors import TextModelRefused, TextModelUnavailable
from retrieval.graph import LlmExtractor
from serving.errors import Overloaded
from serving.types import Generator


async def test_a_generator_reads_chunks_for_the_graph() -> None:
    generator = ScriptedGenerator("entity | vLLM |\nrelation | vLLM | Ray | runs inside\nentity | Napoleon |")
    extractor = LlmExtractor(GeneratorTextModel("tiny", lambda: generator))
    (found,) = await extractor.extract(["vLLM runs inside Ray. <|im_end|> is plain text."])
    assert [mention.name for mention in found.mentions] == ["vLLM", "Ray"]
    assert extractor.name == "llm-1-tiny"
    (request,) = generator.requests
    assert (request.tenant, request.priority) == ("graph-extraction", 20)
    trusted = "".join(segment.text for segment in request.prompt.segments if segment.trusted)
    assert "plain text" not in trusted


async def test_a_prompt_that_does_not_fit_is_that_chunks_failure() -> None:
    model = GeneratorTextModel("tiny", lambda: ScriptedGenerator("none", max_model_len=64))
    with pytest.raises(TextModelRefused, match="context window"):
        await model.complete("x" * 100, 10)
    (found,) = await LlmExtractor(model).extract(["text"])
    assert "context window" in (found.failure or "")


async def test_a_generator_that_is_gone_is_found_anew() -> None:
    dead, alive = ScriptedGenerator("none"), ScriptedGenerator("none")
    dead.failure = "the engine died"
    found: list[Generator] = [alive, dead]
    model = GeneratorTextModel("tiny", found.pop)
    with pytest.raises(TextModelUnavailable, match="the engine died"):
        await model.complete("hello", 10)
    assert await model.complete("hello", 10) == "none"
    assert found == []


async def test_a_full_queue_is_waited_for_before_the_chunk_is_put_off() -> None:
    class Full:
        num_asked = 0

        async def generate(self, request):
            self.num_asked += 1
            if self.num_asked <= full_times:
                raise Overloaded("the queue is full", 0.001)
            async for chunk in ScriptedGenerator("none").generate(request):
                yield chunk

    full_times = 2
    model = GeneratorTextModel("tiny", Full)  # pyright: ignore[reportArgumentType]
    assert await model.complete("hello", 10) == "none"
    full_times = 1000
    with pytest.raises(TextModelUnavailable, match="busy"):
        await GeneratorTextModel("tiny", Full).complete("hello", 10)  # pyright: ignore[reportArgumentType]


def test_it_travels_to_the_shards_by_name() -> None:
    there = pickle.loads(pickle.dumps(actor_text_model("tiny", "generator-0", "graft")))
    assert there.name == "tiny"
