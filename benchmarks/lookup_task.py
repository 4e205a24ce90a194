"""A toy task that only a search can solve, and a tiny policy that half knows how.

24 facts with invented names ("The color of Zorp is jade.") are records of a real index, searched by words.
Two thirds of their questions are trained on, the others are held out; values are drawn at random, so that
nothing in a name tells them. The policy is a Qwen3 of two layers, warmed up on loops of which some search and
copy and the others guess. Left to learn is to look before answering, and to copy without slips.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

from agents.search_loop import SEARCH_SYSTEM, SearchLimits
from agents.search_loop.prompt import LAST_TURN
from retrieval.config import RetrievalConfig
from retrieval.service import LocalRetrieval
from retrieval.types import EmbedderInfo, EncodedTokens, Passage, Record
from retrieval.versions import TokenCodec
from serving.prompt import CONTROL_TOKENS
from training.preference import sft
from training.preference.examples import SearchTrace, TraceTurn
from training.preference.settings import PolicySettings, TrainSettings
from training.types import TrainingQuestion

_NAMES = (
    "Zorp Vell Quin Marb Tosk Irun Pell Drax Foss Glim Hule Jorv Kest Lomb Nair Orst Pryn Rusk Sedd Tarn "
    "Ulve Vint Wex Yarl"
)
NAMES = tuple(_NAMES.split())
_VALUES = "amber birch coral ebony flint gold iron jade"
VALUES = tuple(_VALUES.split())
LIMITS = SearchLimits(max_turns=3, max_malformed=1, k_passages=1, max_snippet_chars=200)
SEARCH_SHARE = 0.6
"""Share of the demonstrations that search; the others guess."""
DIM = 16
ATTENTION_SCALE = 1.5
"""First weights of the query and key norms: at 1 a head of 32 cannot single out one token of a hundred."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is so."""

    number: int
    """Place among the facts; names its record."""
    name: str
    """Whose."""
    value: str
    """What."""

    @property
    def text(self) -> str:
        """Return the fact as its record has it."""
        return f"The color of {self.name} is {self.value}."

    @property
    def question(self) -> TrainingQuestion:
        """Return what is asked."""
        return TrainingQuestion(f"q{self.number}", f"What is the color of {self.name}?", (self.value,))


class _FixedVectors:
    """An embedder for records that are searched by words alone: everything is embedded alike."""

    async def info(self) -> EmbedderInfo:
        return EmbedderInfo("none", "0" * 16, DIM, 512)

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        return np.full((len(texts), DIM), DIM**-0.5, np.float32)

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        return await self.embed_queries(texts)

    async def embed_passages_with_tokens(
        self, texts: Sequence[str], codec: TokenCodec
    ) -> tuple[np.ndarray, EncodedTokens]:
        return await self.embed_queries(texts), EncodedTokens((b"",) * len(texts), codec)

    async def embed_queries_with_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        vectors_ND = await self.embed_queries(texts)
        return vectors_ND, [vector_D[None] for vector_D in vectors_ND]


def facts(seed: int) -> list[Fact]:
    """Return a fact for each name, in random order, with random values."""
    rng = random.Random(f"facts:{seed}")
    names = rng.sample(NAMES, len(NAMES))
    return [Fact(number, name, rng.choice(VALUES)) for number, name in enumerate(names)]


def split(everything: Sequence[Fact]) -> tuple[list[TrainingQuestion], list[TrainingQuestion]]:
    """Return the questions trained on and those held out."""
    questions = [fact.question for fact in everything]
    held_out = questions[::3]
    return [one for one in questions if one not in held_out], held_out


@asynccontextmanager
async def opened(folder: Path, everything: Sequence[Fact]) -> AsyncIterator[LocalRetrieval]:
    """Open an index that holds the facts."""
    config = RetrievalConfig(token_codec="none")
    async with await LocalRetrieval.open(folder, config, _FixedVectors()) as retrieval:
        vector = [DIM**-0.5] * DIM
        await retrieval.upsert([Record(f"f{fact.number}", fact.text, vector) for fact in everything])
        yield retrieval


def _passage(fact: Fact) -> Passage:
    name = f"f{fact.number}"
    return Passage(name, name, name, "default", fact.text, 0, len(fact.text))


def demonstrations(everything: Sequence[Fact], num: int, seed: int) -> list[SearchTrace]:
    """Return loops of which some search and answer from what is shown, and the others guess."""
    rng = random.Random(f"demonstrations:{seed}")
    traces: list[SearchTrace] = []
    for _ in range(num):
        fact = rng.choice(everything)
        # Values are drawn anew each time, so that an answer can be read or guessed, never remembered.
        shown = Fact(fact.number, fact.name, rng.choice(VALUES))
        turns = (
            TraceTurn(f"search: {fact.name}", (_passage(shown),)),
            TraceTurn(f"answer: {shown.value}"),
        )
        is_guess = rng.random() >= SEARCH_SHARE
        traces.append(SearchTrace(fact.question.text, turns[1:] if is_guess else turns))
    return traces


def build_policy(folder: Path, everything: Sequence[Fact], seed: int) -> Path:
    """Write a policy with random weights and a tokenizer in which every word of the task is one token."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    lines = [SEARCH_SYSTEM, LAST_TURN, "user\n assistant\n tool\n[1] [2] [3] [4]"]
    for fact in everything:
        lines += [
            fact.text,
            fact.question.text,
            f"f{fact.number}\n",
            f"search: {fact.name}",
            f"answer: {fact.value}",
        ]
    trainer = trainers.BpeTrainer(
        vocab_size=1_500,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    end_of_text, turn_end = (tokenizer.token_to_id(CONTROL_TOKENS[at]) for at in (0, 2))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": CONTROL_TOKENS[2],
        "pad_token": CONTROL_TOKENS[0],
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            initializer_range=0.08,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=turn_end,
            pad_token_id=end_of_text,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.fill_(ATTENTION_SCALE)
    model.save_pretrained(folder)
    return folder


def warmed_up(folder: Path, everything: Sequence[Fact], seed: int, steps: int) -> Path:
    """Return a policy that has seen demonstrations; see the module's first lines."""
    start = build_policy(folder / "random", everything, seed)
    config = sft.SftConfig(
        policy=PolicySettings(folder=start),
        train=TrainSettings(
            steps=steps, batch_size=24, lr=3e-3, warmup_steps=20, schedule="cosine", seed=seed, log_every=50
        ),
        max_tokens=512,
        limits=LIMITS,
    )
    traces = demonstrations(everything, 24 * steps, seed)
    return sft.run(config, traces, folder / "sft").model
