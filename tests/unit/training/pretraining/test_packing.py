from __future__ import annotations

import numpy as np
import pytest
import torch

from serving.prompt import NOT_IN_DOCUMENTS, PromptPassage, encode_prompt, rag_prompt
from serving.tokenizer import ModelTokenizer
from training.pretraining.model import MiniModel, ModelConfig, branch_mask
from training.pretraining.packing import NO_TARGET, fill_rows, pack_example, pack_text
from training.pretraining.reading_tasks import QuestionAnswer, ReadingExample

EXAMPLE = ReadingExample(
    (
        PromptPassage("a", "Ships", "The fleet landed in 1066."),
        PromptPassage("b", "Engines", "James Watt sold it."),
    ),
    (
        QuestionAnswer("When did the fleet land?", "1066", 1),
        QuestionAnswer("Who sold it?", "James Watt", 2),
        QuestionAnswer("Who slept?", None, None),
    ),
)


def branch_sequences(document) -> list[list[int]]:
    """Token ids that each branch sees, in order: the passages, then the branch."""
    shared = [t for t, b in zip(document.token_ids, document.branches, strict=True) if b == 0]
    branches = sorted(set(document.branches) - {0})
    return [
        shared + [t for t, b in zip(document.token_ids, document.branches, strict=True) if b == n]
        for n in branches
    ]


def test_each_branch_is_the_served_prompt_and_its_answer(encoder: ModelTokenizer):
    document = pack_example("squad", EXAMPLE, encoder)
    for item, seen in zip(EXAMPLE.questions, branch_sequences(document), strict=True):
        prompt = encode_prompt(rag_prompt(item.question, EXAMPLE.passages), encoder)
        assert seen == prompt + encoder.encode(item.text, trusted=False)


def test_loss_falls_on_the_answer_and_the_end_of_its_turn_alone(encoder: ModelTokenizer):
    document = pack_example("squad", EXAMPLE, encoder)
    for number, item in enumerate(EXAMPLE.questions, start=1):
        learnt = [
            t
            for t, b in zip(document.targets, document.branches, strict=True)
            if b == number and t != NO_TARGET
        ]
        assert learnt == [*encoder.encode(item.text, trusted=False), encoder.turn_end_id]
    assert all(t == NO_TARGET for t, b in zip(document.targets, document.branches, strict=True) if b == 0)


def test_answers_say_their_passage_or_that_there_is_none():
    assert [item.text for item in EXAMPLE.questions] == [" 1066 [1]", " James Watt [2]", NOT_IN_DOCUMENTS]


def test_every_branch_starts_at_the_position_where_the_passages_end(encoder: ModelTokenizer):
    document = pack_example("squad", EXAMPLE, encoder)
    prefix = document.branches.count(0)
    for number in (1, 2, 3):
        positions = [p for p, b in zip(document.positions, document.branches, strict=True) if b == number]
        assert positions == list(range(prefix, prefix + len(positions)))


def test_rows_hold_whole_documents_and_pad_without_loss(encoder: ModelTokenizer):
    documents = [
        pack_example("squad", EXAMPLE, encoder),
        *(pack_text("water " * n, encoder, 90) for n in (30, 9, 5)),
    ]
    size = max(len(document.token_ids) for document in documents) + 20
    batch = fill_rows(documents, 2, size, pad_id=0)
    assert sorted(batch.kinds) == ["squad", "text", "text", "text"]
    for number in range(len(batch.kinds)):
        rows, columns = np.nonzero(batch.documents == number)
        assert len(set(rows)) == 1
        assert list(columns) == list(range(columns[0], columns[-1] + 1))
    assert (batch.targets[batch.documents == -1] == NO_TARGET).all()
    assert batch.fill == pytest.approx((batch.documents >= 0).mean())


def test_packed_logits_equal_those_of_each_prompt_alone(encoder: ModelTokenizer):
    config = ModelConfig(vocab_size=512, hidden_dim=32, num_layers=3, num_heads=2, num_kv_heads=1, mlp_dim=48,
                         induction_init=False)  # fmt: skip
    model = MiniModel(config, seed=3)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=0.2)
        torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.2)
    document = pack_example("squad", EXAMPLE, encoder)
    filler = pack_text("The fleet landed at Pevensey in the autumn.", encoder, 40)
    batch = fill_rows([document, filler], 1, len(document.token_ids) + 45, pad_id=0)
    ids, positions, documents, branches = (
        torch.from_numpy(array)
        for array in (batch.token_ids, batch.positions, batch.documents, batch.branches)
    )
    with torch.no_grad():
        packed = model(ids, positions, branch_mask(documents, branches))[0]
        for number, sequence in enumerate(branch_sequences(document), start=1):
            alone_ids = torch.tensor([sequence])
            zeros = torch.zeros_like(alone_ids)
            alone = model(alone_ids, torch.arange(len(sequence))[None], branch_mask(zeros, zeros))[0]
            here = (documents[0] == batch.kinds.index("squad")) & (branches[0] == number)
            torch.testing.assert_close(packed[here], alone[-int(here.sum()) :], atol=1e-5, rtol=1e-4)
