"""The bundled weights are complete, small, and the same model in transformers as in our own code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from serving.prompt import CONTROL_TOKENS, PromptPassage, rag_prompt
from serving.tokenizer import ModelTokenizer
from training.pretraining.checkpoint import load_exported
from training.pretraining.model import branch_mask

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).parents[2] / "models" / "graft-mini"
FILES = (
    "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "MODEL_CARD.md",
)  # fmt: skip
PROMPT = rag_prompt(
    "Where was Ada Lovelace born?",
    [
        PromptPassage("a", "Notes", "Ada Lovelace was born in London. Charles Babbage built an engine."),
        PromptPassage("b", "List", "The river rises near Salisbury and flows to the sea."),
    ],
)


def test_bundle_is_complete_and_small_enough_for_git():
    sizes = [(FOLDER / name).stat().st_size for name in FILES]
    assert sum(sizes) <= 25_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"]
    assert config["max_position_embeddings"] == 2048


def test_control_tokens_end_generation():
    tokenizer = ModelTokenizer(FOLDER / "tokenizer.json")
    ids = {token: tokenizer.encode(token, trusted=True) for token in CONTROL_TOKENS}
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert sorted(generation["eos_token_id"]) == sorted([*ids["<|im_end|>"], *ids["<|endoftext|>"]])


def test_transformers_and_our_own_model_give_equal_logits():
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([ModelTokenizer(FOLDER / "tokenizer.json").encode_prompt(PROMPT)])
    theirs = AutoModelForCausalLM.from_pretrained(str(FOLDER), dtype=torch.float32)
    ours = load_exported(FOLDER)
    zeros = torch.zeros_like(ids)
    with torch.no_grad():
        expected = ours.logits(ours(ids, torch.arange(ids.shape[1])[None], branch_mask(zeros, zeros)))
        actual = theirs(ids).logits
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-3)


async def test_the_engine_writes_what_transformers_writes(engine):
    from transformers import AutoModelForCausalLM

    from serving.types import GenerateRequest, Sampling

    tokenizer = ModelTokenizer(FOLDER / "tokenizer.json")
    model = AutoModelForCausalLM.from_pretrained(str(FOLDER), dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode_prompt(PROMPT)])
    with torch.no_grad():
        whole = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    expected = [token for token in whole if token not in tokenizer.end_ids]
    request = GenerateRequest(PROMPT, Sampling(max_tokens=12))
    written = [token async for chunk in engine.generate(request) for token in chunk.token_ids]
    assert [token for token in written if token not in tokenizer.end_ids] == expected
    assert expected
