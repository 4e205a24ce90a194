"""The cross-encoder: a tiny one made here scores pairs, in time or not at all."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from fakes_shard import MemoryShard
from test_searcher import BAKING, searcher_over, skipped

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable
from retrieval.ranking.cross_encoder import CrossEncoderReranker
from retrieval.types import SearchRequest

WORDS = "bread is baked in an oven dough of flour rests first yeast raises the salt added . zebra".split()  # noqa: SIM905


def save_cross_encoder(folder: Path, num_labels: int = 1) -> Path:
    """Save a random two-layer cross-encoder over a few words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=128,
        initializer_range=1.0,
    )  # fmt: skip
    config.num_labels = num_labels
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("cross_encoder"))


def test_scores_are_one_a_text_whatever_the_batch(folder: Path) -> None:
    texts = ["dough of flour", "zebra", "the oven is baked in bread . yeast raises", "salt"]
    one_by_one = CrossEncoderReranker(str(folder), device="cpu", batch_size=1).scores("bread", texts)
    batched = CrossEncoderReranker(str(folder), device="cpu", batch_size=3).scores("bread", texts)
    assert one_by_one is not None
    assert batched is not None
    assert batched.shape == (4,)
    assert np.allclose(batched, one_by_one, atol=1e-5)
    assert len(set(batched.round(4).tolist())) == 4


def test_no_batch_begins_after_its_time(folder: Path) -> None:
    assert CrossEncoderReranker(str(folder), device="cpu").scores("x", ["y"], time.monotonic() - 1) is None


def test_a_model_that_is_not_there_or_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(IndexUnavailable, match="set cross_encoder to a folder"):
        CrossEncoderReranker(str(tmp_path / "none"), device="cpu").load()
    with pytest.raises(IndexUnavailable, match="3 numbers a pair"):
        CrossEncoderReranker(str(save_cross_encoder(tmp_path / "three", 3)), device="cpu").load()


async def test_a_search_orders_its_best_candidates_by_it(folder: Path) -> None:
    shard = MemoryShard()
    await shard.put("a", BAKING)
    config = RetrievalConfig(cross_encoder=str(folder), cross_encoder_weight=1.0, embed_device="cpu")
    searcher = searcher_over([shard], config)
    (result,) = await searcher.search([SearchRequest("dough bread", k=10, rerank="cross_encoder")])
    assert skipped(result)["cross_encoder"] is None
    reranker = CrossEncoderReranker(str(folder), device="cpu")
    texts = [passage.text for passage in result.passages]
    scores = await asyncio.to_thread(reranker.scores, "dough bread", texts)
    assert [hit.rerank_score for hit in result.hits] == pytest.approx(
        list(scores if scores is not None else [])
    )
    assert [hit.rerank_score for hit in result.hits] == sorted(
        (hit.rerank_score or 0.0 for hit in result.hits), reverse=True
    )


async def test_a_cross_encoder_without_time_is_skipped(folder: Path) -> None:
    shard = MemoryShard()
    await shard.put("a", BAKING)
    config = RetrievalConfig(cross_encoder=str(folder), cross_encoder_budget_ms=0.0, embed_device="cpu")
    (result,) = await searcher_over([shard], config).search([SearchRequest("dough", rerank="cross_encoder")])
    assert skipped(result)["cross_encoder"] == "time budget"
    assert len(result.hits) == 4
