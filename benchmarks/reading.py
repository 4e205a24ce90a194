"""Reading comprehension of the bundled generator: `python -m benchmarks.reading [--quick] [--squad FILE]`.

Questions are those of a SQuAD 2.0 file that no training run reads (`squad2/dev` by default). Prompts are the
served ones (`serving.prompt.rag_prompt`), decoding is greedy, in vLLM. `gold_only` shows the paragraph
alone; in `gold_in_5` it stands among the four other paragraphs that share the most words with the question,
in random order. A refusal is an answer that says "Not in the documents."; on answerable questions it scores
zero. A citation is correct when the cited passage holds one of the accepted answers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Report
from serving.config import ServingConfig
from serving.environment import engine_environment
from serving.prompt import NOT_IN_DOCUMENTS, PromptPassage, rag_prompt
from serving.tokenizer import ModelTokenizer
from training.pretraining.corpus import HumanPassage, open_lines, read_nq, read_squad
from training.pretraining.human_tasks import most_similar, rarity, words_of

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "graft-mini"
NUM_PASSAGES = 5
QUICK_QUESTIONS = 60
"""Questions of each arm under --quick."""
MAX_NEW_TOKENS = 40
_CITATION = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt with what counts as right."""

    question: str
    """The user's words."""
    answers: tuple[str, ...]
    """Accepted answers; empty when the passages hold none."""
    passages: tuple[PromptPassage, ...]
    """As shown."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, taken apart."""

    text: str
    """The answer without its citation."""
    cited: int | None
    """Number of the first passage cited."""
    refused: bool
    """It said that the documents do not hold the answer."""

    @classmethod
    def parse(cls, raw: str) -> Reply:
        """Return the parts of a raw generation."""
        match = _CITATION.search(raw)
        text = _CITATION.sub("", raw).strip()
        return cls(
            text, int(match.group(1)) if match else None, text.startswith(NOT_IN_DOCUMENTS.rstrip("."))
        )


def normalise(text: str) -> str:
    """Return the text as SQuAD's scorer compares it: lower case, no punctuation, no articles."""
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def f1(predicted: str, accepted: str) -> float:
    """Return the word overlap of two answers, as SQuAD's scorer computes it."""
    one, two = normalise(predicted).split(), normalise(accepted).split()
    shared = sum((Counter(one) & Counter(two)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(one), shared / len(two)
    return 2 * precision * recall / (precision + recall)


def gold_only(passages: Sequence[HumanPassage]) -> list[Item]:
    """Return every answerable question with its own passage alone."""
    return [
        Item(question.question, question.answers, (PromptPassage("gold", passage.title, passage.text),))
        for passage in passages
        for question in passage.questions
        if question.answers
    ]


def gold_in_5(passages: Sequence[HumanPassage], extra: Sequence[PromptPassage]) -> list[Item]:
    """Return every question with its passage among the four others that share the most words with it."""
    pool = [PromptPassage(f"own{i}", passage.title, passage.text) for i, passage in enumerate(passages)]
    pool += extra
    documents = [words_of(f"{passage.title} {passage.text}") for passage in pool]
    weights = rarity(documents)
    rng = random.Random(5)
    items: list[Item] = []
    for index, passage in enumerate(passages):
        for question in passage.questions:
            near = most_similar(words_of(question.question), documents, weights, NUM_PASSAGES)
            shown = [pool[index], *(pool[other] for other in near if other != index)][:NUM_PASSAGES]
            rng.shuffle(shown)
            items.append(Item(question.question, question.answers, tuple(shown)))
    return items


class Reader:
    """The exported model in vLLM, decoding greedily."""

    def __init__(self, folder: Path) -> None:
        """Start an engine in this process; its variables must stand before torch is loaded."""
        os.environ.update(engine_environment(ServingConfig()), VLLM_CPU_KVCACHE_SPACE="2")
        from vllm import LLM, SamplingParams
        from vllm.inputs import TokensPrompt

        self._prompt = TokensPrompt

        self.encoder = ModelTokenizer(folder / "tokenizer.json")
        self.engine = LLM(str(folder), dtype="float32", enforce_eager=True, block_size=32, seed=0)
        self.sampling = SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS)
        self.limit = self.engine.model_config.max_model_len - MAX_NEW_TOKENS

    def replies(self, items: Sequence[Item]) -> list[Reply]:
        """Return the reply to every item, in order."""
        encoded = [self.encoder.encode_prompt(rag_prompt(item.question, item.passages)) for item in items]
        # A prompt above the context keeps its end, where the question stands.
        prompts = [self._prompt(prompt_token_ids=ids[-self.limit :]) for ids in encoded]
        outputs = self.engine.generate(prompts, self.sampling, use_tqdm=False)
        return [Reply.parse(output.outputs[0].text) for output in outputs]


def add_answers(report: Report, arm: str, items: Sequence[Item], replies: Sequence[Reply]) -> None:
    """Report exact match and F1 of answerable questions."""
    scored = [
        (
            max(float(normalise(reply.text) == normalise(answer)) for answer in item.answers),
            max(f1(reply.text, answer) for answer in item.answers),
        )
        for item, reply in zip(items, replies, strict=True)
    ]
    report.add(
        arm, "em", round(100 * sum(em for em, _ in scored) / len(scored), 1), "%", questions=len(scored)
    )
    report.add(arm, "f1", round(100 * sum(f for _, f in scored) / len(scored), 1), "%", questions=len(scored))


def share(flags: Sequence[bool]) -> float:
    """Return the percentage of true flags, to one decimal."""
    return round(100 * sum(flags) / max(1, len(flags)), 1)


def holds_answer(item: Item, cited: int | None) -> bool:
    """Return whether the cited passage is shown and contains an accepted answer."""
    if cited is None or not 1 <= cited <= len(item.passages):
        return False
    passage = normalise(item.passages[cited - 1].text)
    return any(normalise(answer) in passage for answer in item.answers)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with the data sets"
    )
    parser.add_argument("--squad", type=Path, help="another SQuAD-format file, plain or .xz")
    parser.add_argument("--model", type=Path, default=MODEL, help="exported model folder")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_QUESTIONS} questions of each arm; not saved"
    )
    arguments = parser.parse_args()
    passages = read_squad(arguments.squad or arguments.data / "squad2" / "dev.json.xz")
    distractors = arguments.data / "squad2" / "distractor_passages.jsonl.xz"
    extra: list[PromptPassage] = []
    if distractors.is_file():
        for line in open_lines(distractors):
            record = json.loads(line)
            extra.append(PromptPassage(f"far{len(extra)}", record["title"].replace("_", " "), record["text"]))

    def cut(items: list[Item]) -> list[Item]:
        return random.Random(7).sample(items, min(QUICK_QUESTIONS, len(items))) if arguments.quick else items

    report = Report("reading", quick=arguments.quick or arguments.squad is not None)
    reader = Reader(arguments.model)
    items = cut(gold_only(passages))
    add_answers(report, "gold_only", items, reader.replies(items))

    everything = gold_in_5(passages, extra)
    answerable = cut([item for item in everything if item.answers])
    replies = reader.replies(answerable)
    add_answers(report, "gold_in_5", answerable, replies)
    answered = [(item, reply) for item, reply in zip(answerable, replies, strict=True) if not reply.refused]
    correct = share([holds_answer(item, reply.cited) for item, reply in answered])
    report.add("citations", "correct", correct, "%", questions=len(answered))
    impossible = cut([item for item in everything if not item.answers])
    if impossible:
        refused = share([reply.refused for reply in reader.replies(impossible)])
        report.add("unanswerable", "refused", refused, "%", questions=len(impossible))
    false_refusals = share([reply.refused for reply in replies])
    report.add("unanswerable", "false_refusals", false_refusals, "%", questions=len(replies))

    nq = arguments.data / "nq-gold" / "dev.jsonl.xz"
    if arguments.squad is None and nq.is_file():
        items = cut(gold_only(read_nq(nq)))
        add_answers(report, "nq_gold_only", items, reader.replies(items))
    report.save()


if __name__ == "__main__":
    main()
