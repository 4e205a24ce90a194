"""The yardsticks of `overhead`: the same work in one process, without Ray, actors or our serving code.

Each runs in a process of its own and measures a round when it is told to, so that it idles while the other
arm is measured.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from retrieval.config import RetrievalConfig
from serving.config import ServingConfig
from serving.prompt import encode_prompt
from serving.types import Prompt

if TYPE_CHECKING:
    from vllm.inputs.engine import TokensInput
    from vllm.v1.engine.llm_engine import LLMEngine

START_TIMEOUT_S = 300.0
ROUND_TIMEOUT_S = 300.0


class BareArm(AbstractContextManager["BareArm"]):
    """A process that measures one round at a time.

    Args:
        work: Run in the process as `work(connection, *arguments)`; answers every message with a round.
        arguments: More arguments of `work`.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def wait_ready(self) -> None:
        """Wait until rounds can be measured."""
        self._receive(START_TIMEOUT_S)

    def round(self, message: Any) -> Any:
        """Return what the process measured."""
        self._ours.send(message)
        return self._receive(ROUND_TIMEOUT_S)

    def _receive(self, timeout_s: float) -> Any:
        if not self._ours.poll(timeout_s):
            raise TimeoutError(f"process {self._process.pid} did not answer within {timeout_s:g} s")
        try:
            return self._ours.recv()
        except EOFError as error:
            raise RuntimeError(f"process {self._process.pid} ended; its message is above") from error


def search_rounds(connection: Connection, config: RetrievalConfig, files: list[Path]) -> None:
    """Index files in this process; answer each batch of requests with its milliseconds and its results."""
    from retrieval.actor import actor_env

    # Before torch is imported: the actors' own settings.
    os.environ.update(actor_env(config, config.embed_threads or os.cpu_count() or 1))
    asyncio.run(_search_rounds(connection, config, files))


async def _search_rounds(connection: Connection, config: RetrievalConfig, files: list[Path]) -> None:
    from retrieval.embedding import SentenceTransformerEmbedder
    from retrieval.service import LocalRetrieval

    embedder = SentenceTransformerEmbedder(config)
    await embedder.load()
    with tempfile.TemporaryDirectory(prefix="graft-overhead-") as folder:
        async with await LocalRetrieval.open(Path(folder), config, embedder) as retrieval:
            added = [await retrieval.add(file.name, file.read_bytes()) for file in files]
            await retrieval.wait_ready([item.document_id for item in added], timeout_s=START_TIMEOUT_S)
            connection.send("ready")
            while (requests := _next(connection)) is not None:
                began_s = time.perf_counter()
                results = await retrieval.search(requests)
                connection.send(((time.perf_counter() - began_s) * 1000, passages_of(results)))


def passages_of(results: Any) -> list[list[str]]:
    """Return the texts found by each query, to show that two indexes answer alike."""
    return [[passage.text for passage in result.passages] for result in results]


def engine_rounds(connection: Connection, config: ServingConfig) -> None:
    """Load the model into vLLM's own engine; answer each (prompts, max_tokens) with (tokens, seconds)."""
    engine, encode = _bare_engine(config)
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    connection.send("ready")
    while (message := _next(connection)) is not None:
        prompts: list[Prompt] = message[0]
        # The cheapest way vLLM has: nothing is handed out before the end.
        sampling = SamplingParams(
            temperature=0.0, max_tokens=message[1], output_kind=RequestOutputKind.FINAL_ONLY
        )
        num_tokens = 0
        began_s = time.perf_counter()
        for number, prompt in enumerate(prompts):
            engine.add_request(str(number), encode(prompt), sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                assert isinstance(output, RequestOutput)
                num_tokens += len(output.outputs[0].token_ids) if output.finished else 0
        connection.send((num_tokens, time.perf_counter() - began_s))


def stream_rounds(connection: Connection, config: ServingConfig) -> None:
    """The same, each token handed out as it is made; answers with a list of (tokens, first_s, seconds)."""
    engine, encode = _bare_engine(config)
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    connection.send("ready")
    while (message := _next(connection)) is not None:
        prompts: list[Prompt] = message[0]
        sampling = SamplingParams(temperature=0.0, max_tokens=message[1], output_kind=RequestOutputKind.DELTA)
        began_s = time.perf_counter()
        tokens, first_s, last_s = [0] * len(prompts), [0.0] * len(prompts), [0.0] * len(prompts)
        for number, prompt in enumerate(prompts):
            engine.add_request(str(number), encode(prompt), sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                assert isinstance(output, RequestOutput)
                number = int(output.request_id)
                tokens[number] += len(output.outputs[0].token_ids)
                last_s[number] = time.perf_counter() - began_s
                first_s[number] = first_s[number] or last_s[number]
        connection.send(list(zip(tokens, first_s, last_s, strict=True)))


def _bare_engine(config: ServingConfig) -> tuple[LLMEngine, Callable[[Prompt], TokensInput]]:
    """Return vLLM's own engine with our arguments, and what encodes a prompt for it."""
    from serving.environment import engine_environment

    os.environ.update(engine_environment(config))  # before torch is imported
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.inputs.engine import tokens_input
    from vllm.v1.engine.llm_engine import LLMEngine

    from serving import vllm_values
    from serving.engine_arguments import engine_arguments
    from serving.tokenizer import ModelTokenizer
    from serving.weights import model_folder

    folder = model_folder(config.model)
    vllm_values.register_architecture(str(folder))
    arguments = engine_arguments(config, str(folder), on_gpu=torch.cuda.is_available())
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    tokenizer = ModelTokenizer(folder / "tokenizer.json")
    return engine, lambda prompt: tokens_input(encode_prompt(prompt, tokenizer))


def _next(connection: Connection) -> Any:
    """Return the next message; None once the other side is gone."""
    try:
        return connection.recv()
    except EOFError:
        return None
