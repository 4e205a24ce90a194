"""Names of what prompts share: equal exactly where their tokens and what keeps them apart are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.prompt import PromptPassage, Turn, rag_prompt
from serving.routing.prompt_path import PromptPath, prompt_path
from serving.types import GenerateRequest, KVReuse, Prompt, Segment


def request_of(ids: str, question: str = "why?", **fields: object) -> GenerateRequest:
    passages = [PromptPassage(one, f"title {one}", f"text of {one}") for one in ids]
    return GenerateRequest(rag_prompt(question, passages), **fields)  # type: ignore[arg-type]


def path_of(ids: str, question: str = "why?", **fields: object) -> PromptPath:
    return prompt_path(request_of(ids, question, **fields), is_blended=False)


def num_shared(one: PromptPath, other: PromptPath) -> int:
    return sum(a == b for a, b in zip(one.nodes(), other.nodes(), strict=False))


def test_two_prompts_share_the_nodes_of_their_equal_beginning() -> None:
    one, other = path_of("abc"), path_of("abd")
    # System turn 3 segments, each passage 3, and the turn that begins the third.
    assert num_shared(one, other) == 3 + 6 + 1
    assert num_shared(one, path_of("abc", "how?")) == 3 + 9 + 1
    assert num_shared(one, path_of("bac")) == 3 + 1


@pytest.mark.parametrize("fields", [{"tenant": "other"}, {"adapter": "a@1"}], ids=["tenant", "adapter"])
def test_what_shares_no_kv_shares_no_node(fields: dict[str, object]) -> None:
    assert num_shared(path_of("abc"), path_of("abc", **fields)) == 0


def test_blended_kv_is_apart_by_its_repair() -> None:
    asked = request_of("ab", reuse=KVReuse("blend", first_k=16))
    blended = prompt_path(asked, is_blended=True)
    deeper = prompt_path(replace(asked, reuse=KVReuse("blend", first_k=32)), is_blended=True)
    exact = prompt_path(asked, is_blended=False)
    assert len({blended.root, deeper.root, exact.root}) == 3
    assert exact.root == path_of("ab").root
    assert blended.chunks == deeper.chunks
    assert len(blended.chunks) == 2
    assert not exact.chunks


def test_a_stored_chunk_is_the_same_at_any_place_and_another_for_another_tenant_or_beginning() -> None:
    def chunks(ids: str, **fields: object) -> tuple[bytes, ...]:
        return prompt_path(request_of(ids, reuse=KVReuse("blend"), **fields), is_blended=True).chunks

    assert chunks("abc") == tuple(reversed(chunks("cba")))
    assert not set(chunks("abc")) & set(chunks("abc", tenant="other"))
    other = request_of("abc", reuse=KVReuse("blend"))
    other = replace(other, prompt=Prompt((Segment("system", "Another beginning."), *other.prompt.segments)))
    assert not set(chunks("abc")) & set(prompt_path(other, is_blended=True).chunks)


def test_trusted_text_is_another_segment_than_the_same_text_of_a_document() -> None:
    trusted, document = (
        prompt_path(
            GenerateRequest(Prompt((Segment("question", "<|im_end|>", trusted=is_trusted),))),
            is_blended=False,
        )
        for is_trusted in (True, False)
    )
    assert trusted.root == document.root
    assert num_shared(trusted, document) == 0


def test_only_passages_of_reordered_prompts_may_move() -> None:
    history = [Turn("user", "Before."), Turn("assistant", "Yes.")]
    passages = [PromptPassage(one, one, one) for one in "ab"]
    request = GenerateRequest(rag_prompt("why?", passages, history), reuse=KVReuse("reorder"))
    steps = prompt_path(request, is_blended=False).steps
    movable = [
        segment.chunk_id
        for segment, step in zip(request.prompt.segments, steps, strict=True)
        if step.is_movable
    ]
    assert movable == ["a", "b"]
    twice = replace(request, prompt=rag_prompt("why?", [*passages, passages[0]]))
    assert not any(step.is_movable for step in prompt_path(twice, is_blended=False).steps)
    assert not any(step.is_movable for step in path_of("ab").steps)
