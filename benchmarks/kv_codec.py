"""What a passage's KV takes on disk in several forms, how fast they are, and what rounding does to answers.

Run: `python -m benchmarks.kv_codec [--quick] [--model MODEL]`

Arms (`kv_forms`): `none` (as it is), `lossless` (bytes of a kind together, Zstandard), `int8` (8 bits by
channel, Zstandard), `cachegen_*` (deltas to every tenth token on bins that grow with depth) and `fine`,
`medium`, `coarse` (`serving.chunk_kv_codec`). The KV is the model's own in float32, of passages after the
system turn, as the engine captures it.

Sizes: bytes of the tensors over those of the file, of all passages together. Speed: bytes of the tensors a
second, on one core, between memory and memory; arms go A B C C B A. Answers: questions of the sample
library, each after four passages with the right one among them. The KV of the prompt before the question is
computed once; then each passage's goes through the form, and the question is answered from it. Compared to
the answer from the untouched KV: the first token's distribution, and the first 32 greedy tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.kv_forms import Form, forms
from benchmarks.report import Report
from benchmarks.samples import Question, load_questions
from benchmarks.serving_ttft import interleaved, passages
from graft.config import REPOSITORY
from serving.chunk_kv.chunk import ChunkKV
from serving.chunk_kv.chunk_file import write_chunk
from serving.chunk_kv.key_rotation import RotaryAngles
from serving.chunk_kv.kv_codec import BIN_SHARES
from serving.chunk_kv.quality_gate import agreement
from serving.config import BUNDLED_MODEL
from serving.prompt import PromptPassage, encode_segments, rag_prompt
from serving.tokenizer import ModelTokenizer
from serving.weights import model_folder

NUM_PASSAGES = 4
CONTEXT_CHARS = 700
"""Text of a right passage, around the sentence that answers."""
MAX_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    chunks: int
    """Passages that are coded."""
    rounds: int
    """Times that each arm codes them all."""
    questions: int
    """Questions that are answered."""


FULL, QUICK = Size(40, 6, 50), Size(8, 2, 6)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came first."""

    logprobs_V: torch.Tensor
    """Log-probabilities of the first token."""
    token_ids: list[int]
    """Greedy tokens, up to the end of the turn."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt whose KV is computed up to the question."""

    kv: ChunkKV
    """Of all tokens before the question."""
    spans: list[tuple[int, int]]
    """Where its passages are."""
    rest: list[int]
    """Tokens of the question."""


class Model:
    """A model of transformers in float32, with its tokenizer."""

    def __init__(self, name: str) -> None:
        folder = model_folder(name)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = ModelTokenizer(folder / "tokenizer.json")
        self._end = self._model.config.eos_token_id
        frequencies = self._model.model.rotary_emb.inv_freq
        self._angles = RotaryAngles(tuple(frequencies.tolist()), is_neox_style=True)

    def chunk(self, passage: PromptPassage) -> ChunkKV:
        """Return a passage's KV after the system turn."""
        prefilled = self.prefill("", [passage])
        return _part(prefilled.kv, *prefilled.spans[0])

    def prefill(self, question: str, shown: list[PromptPassage]) -> Prefilled:
        """Return the KV of a prompt up to its question."""
        prompt = rag_prompt(question, shown)
        token_ids: list[int] = []
        spans: list[tuple[int, int]] = []
        end = 0
        for segment, ids in zip(prompt.segments, encode_segments(prompt, self._tokenizer), strict=True):
            if segment.chunk_id is not None:
                spans.append((len(token_ids), len(token_ids) + len(ids)))
            token_ids += ids
            if segment.kind == "passage":
                end = len(token_ids)
        with torch.inference_mode():
            layers = self._model(torch.tensor([token_ids[:end]]), use_cache=True).past_key_values.layers
        keys, values = (
            torch.stack([getattr(layer, name)[0].transpose(0, 1) for layer in layers])
            for name in ("keys", "values")
        )
        return Prefilled(ChunkKV(keys, values, 0, self._angles), spans, token_ids[end:])

    def answer(self, prefilled: Prefilled) -> Answer:
        """Return the answer to a prompt's question, from its KV."""
        pairs = zip(prefilled.kv.keys_LTHD, prefilled.kv.values_LTHD, strict=True)
        cache = DynamicCache([tuple(one.transpose(0, 1)[None] for one in pair) for pair in pairs])
        tokens: list[int] = []
        first: torch.Tensor | None = None
        given = prefilled.rest
        with torch.inference_mode():
            while len(tokens) < MAX_TOKENS and self._end not in tokens:
                logits = self._model(torch.tensor([given]), past_key_values=cache, use_cache=True).logits
                first = torch.log_softmax(logits[0, -1], -1) if first is None else first
                given = [int(logits[0, -1].argmax())]
                tokens += given
        assert first is not None
        return Answer(first, tokens)


def _part(kv: ChunkKV, begin: int, end: int) -> ChunkKV:
    keys, values = (one[:, begin:end].contiguous() for one in (kv.keys_LTHD, kv.values_LTHD))
    return ChunkKV(keys, values, kv.start + begin, kv.angles)


def _through(form: Form, prefilled: Prefilled) -> Prefilled:
    """Return a prompt whose passages' KV was written and read."""
    keys, values = prefilled.kv.keys_LTHD.clone(), prefilled.kv.values_LTHD.clone()
    for begin, end in prefilled.spans:
        chunk = _part(prefilled.kv, begin, end)
        read = form.decode(form.encode(chunk), chunk)
        keys[:, begin:end], values[:, begin:end] = read.keys_LTHD, read.values_LTHD
    return Prefilled(ChunkKV(keys, values, 0), prefilled.spans, prefilled.rest)


def shown_with(question: Question, pool: list[PromptPassage], luck: random.Random) -> list[PromptPassage]:
    """Return passages in random order, one of which answers."""
    assert question.document is not None
    assert question.quote is not None
    text = question.quote
    path = REPOSITORY / "sample_library" / "documents" / question.document
    if path.suffix == ".md":
        whole = path.read_text(encoding="utf-8")
        begin = max(whole.find(text) - CONTEXT_CHARS // 2, 0)
        text = whole[begin : begin + CONTEXT_CHARS]
    shown = [PromptPassage("right", question.document, text), *luck.sample(pool, NUM_PASSAGES - 1)]
    return luck.sample(shown, len(shown))


def measure_files(report: Report, arms: dict[str, Form], chunks: list[ChunkKV], rounds: int) -> None:
    """Measure size, error and speed of every arm."""
    raw_bytes = sum(chunk.num_bytes for chunk in chunks)
    num_values = sum(2 * chunk.keys_LTHD.numel() for chunk in chunks)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for name in interleaved(list(arms), rounds):
        form = arms[name]
        began_s = time.perf_counter()
        coded = [form.encode(chunk) for chunk in chunks]
        coded_s = time.perf_counter()
        for one, chunk in zip(coded, chunks, strict=True):
            form.decode(one, chunk)
        speeds[name].append(
            (raw_bytes / (coded_s - began_s) / 1e6, raw_bytes / (time.perf_counter() - coded_s) / 1e6)
        )
    for name, form in arms.items():
        coded = [form.encode(chunk) for chunk in chunks]
        file_bytes, error = sum(map(len, coded)), 0.0
        if name == "none" or name in BIN_SHARES:
            with tempfile.TemporaryDirectory() as folder:
                file_bytes = sum(write_chunk(Path(folder) / "chunk", "key", chunk, name) for chunk in chunks)
        for one, chunk in zip(coded, chunks, strict=True):
            read = form.decode(one, chunk)
            for before, after in (
                (chunk.keys_LTHD, read.keys_LTHD),
                (chunk.values_LTHD, read.values_LTHD),
            ):
                error = max(error, float((before - after).abs().max()))
        report.add(
            name,
            "size_ratio",
            round(raw_bytes / file_bytes, 2),
            "ratio",
            better="higher",
            bits_per_value=round(8 * file_bytes / num_values, 2),
            chunks=len(chunks),
        )
        for place, metric in enumerate(("encode_mb_per_s", "decode_mb_per_s")):
            runs = [speed[place] for speed in speeds[name]]
            report.add(
                name,
                metric,
                round(statistics.median(runs)),
                "MB/s",
                better="higher",
                runs=[round(run) for run in runs],
            )
        report.add(name, "max_abs_error", round(error, 4), "absolute")


def measure_answers(report: Report, arms: dict[str, Form], model: Model, num_questions: int) -> None:
    """Measure what the rounding of every arm does to answers."""
    luck, pool = random.Random(0), passages()
    questions = [one for one in load_questions() if one.answer is not None][:num_questions]
    prompts = [model.prefill(one.question, shown_with(one, pool, luck)) for one in questions]
    exact = [model.answer(prompt) for prompt in prompts]
    for name, form in arms.items():
        kls, agreements = [], []
        for prompt, wanted in zip(prompts, exact, strict=True):
            found = model.answer(_through(form, prompt))
            kl = (wanted.logprobs_V.exp() * (wanted.logprobs_V - found.logprobs_V)).sum()
            kls.append(max(float(kl), 0.0))
            agreements.append(agreement(wanted.token_ids, found.token_ids))
        report.add(
            name,
            "first_token_kl",
            round(statistics.mean(kls), 6),
            "nats",
            largest=round(max(kls), 5),
            questions=len(questions),
        )
        report.add(
            name,
            "greedy_agreement",
            round(statistics.mean(agreements), 3),
            "share",
            same_answers=sum(one == 1.0 for one in agreements),
            questions=len(questions),
        )


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few passages and questions; keeps nothing")
    parser.add_argument("--model", default=BUNDLED_MODEL, help="whose KV is coded")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    report = Report("kv_codec", quick=options.quick)
    model, arms = Model(options.model), forms()
    chosen = random.Random(1).sample(passages(), size.chunks)
    measure_files(report, arms, [model.chunk(passage) for passage in chosen], size.rounds)
    measure_answers(report, arms, model, size.questions)
    report.save()


if __name__ == "__main__":
    main()
